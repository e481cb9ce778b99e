"""Assembles a train step: forward graph, loss, gradients, optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgekit.autodiff.artefact import model_with_weights, save_step
from edgekit.autodiff.builder import GraphBuilder, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.forward import Forward, read_forward
from edgekit.autodiff.interfaces import Loss, LossTerms, Optimiser, Parameter
from edgekit.autodiff.manifest import StateSpec, StepManifest
from edgekit.autodiff.selection import Select, select
from edgekit.autodiff.trace import BatchNormMode, Trace, trace

SHARE = "share"
"""Fed with every micro-batch of an accumulating step: the part of the whole batch that it is, 0..1."""


@dataclass(frozen=True)
class TrainStep:
    """A derived train step.

    `graph` takes the model's inputs, the inputs of loss and optimiser, and every state by its name; it gives `loss`,
    the metrics, the outputs asked for and `NAME.new` of every state it changes. Without an optimiser it gives
    `NAME.gradient` of every parameter. With accumulation it adds `share` times the gradients to the states
    `NAME.accumulated`, and `apply` makes new parameters of these.
    """

    graph: onnx.ModelProto
    apply: onnx.ModelProto | None
    model: onnx.ModelProto  # the forward model; its initializers have the names of the parameters
    manifest: StepManifest
    initial: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]  # of every state, by name
    unused: tuple[str, ...]  # weights that `trainable` selected but the loss does not depend on

    def save(self, folder: Path, weights: Path | None = None) -> None:
        """Write the artefact into `folder`, which is made; it must not hold an artefact already.

        weights: a safetensors file with the weights of `model`, all trained ones among them. It gets a second name in
        `folder` instead of a copy, so it must not be changed in place; replacing it is fine.
        Raises AutodiffError when `folder` holds an artefact, or `weights` other weights.
        """
        save_step(self.graph, self.apply, self.model, self.manifest, self.initial, folder, weights)


def build_step(
    model: onnx.ModelProto | Path,
    loss: Loss,
    optimiser: Optimiser | None,
    trainable: Select = ".*",
    *,
    batch_norm: BatchNormMode = "frozen",
    momentum: float | None = None,
    accumulate: bool = False,
    outputs: Sequence[str] = (),
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> TrainStep:
    """Derive the train step of a forward model.

    model: file or protobuf, opset 7 to 22, float32, axis 0 of every input the batch, everything else of fixed size.
    optimiser: None gives a step whose outputs are the gradients, `NAME.gradient`.
    trainable: a regular expression searched in the names of the weights, the names, or a predicate; see
        `selection.trainable_weights` for what can be trained. Nothing is differentiated before the first trained
        weight.
    batch_norm: "frozen" normalises with the running statistics; "train" with the batch's wherever a trained weight
    feeds
        the normalisation, and updates the running ones (variance unbiased, as PyTorch); "reestimate" everywhere.
    momentum: the share of the old running statistics that is kept; None takes each node's own.
    accumulate: the gradients of several micro-batches are summed, each times the fed `share`, then applied once.
    outputs: names of model outputs to fetch beside the loss.
    sizes: for inputs with open height or width, the sizes of all axes after the batch.
    Raises AutodiffError: a model that cannot be read, an operator without a gradient rule, nothing to train, a loss or
    optimiser that does not fit.
    """
    if accumulate and optimiser is None:
        raise AutodiffError("accumulate needs an optimiser; without one the gradients themselves are given")
    forward = read_forward(model, sizes)
    chosen = select(forward, trainable)
    builder = GraphBuilder(forward.graph.opset)
    _reserve(builder, forward)
    traced = trace(forward, builder, chosen, batch_norm, momentum)
    terms = loss.emit(builder, traced.outputs)
    _fetch(builder, terms, traced, outputs)
    gradients = _gradients(traced, terms)
    parameters, unused = [], []
    for name in chosen:
        gradient = gradients.get(name)
        if gradient is None:
            unused.append(name)
        else:
            parameters.append(Parameter(name, builder.states[name].value, gradient))
    if not parameters:
        raise AutodiffError(f"the loss depends on none of the weights to train ({', '.join(chosen[:8])})")
    for name in unused:  # the graph keeps such a weight as it is
        value = builder.states.pop(name).value
        builder.constants[value.name] = forward.graph.constants[name]
    apply: GraphBuilder | None = None
    if optimiser is None:
        for parameter in parameters:
            builder.output(f"{parameter.name}.gradient", parameter.gradient)
    elif accumulate:
        apply = _accumulating(builder, parameters, optimiser)
    else:
        _optimise(builder, parameters, optimiser)
    manifest = _manifest(builder, apply, "gradients" if optimiser is None else "accumulate" if accumulate else "update",
                         [one.name for one in parameters] if optimiser is None else [], traced.prefix)  # fmt: skip
    states = {**builder.states, **(apply.states if apply else {})}
    return TrainStep(
        builder.build("train_step"),
        apply.build("apply_gradients") if apply else None,
        model_with_weights(forward),
        manifest,
        {name: state.initial for name, state in states.items()},
        tuple(unused),
    )


def build_reestimation(
    model: onnx.ModelProto | Path,
    *,
    momentum: float | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> TrainStep:
    """Derive a step that learns nothing but the running statistics of every BatchNormalization, from unlabelled inputs.

    Every layer is normalised with the batch's statistics on the way. Raises AutodiffError as `build_step`, and when the
    model has no BatchNormalization.
    """
    forward = read_forward(model, sizes)
    builder = GraphBuilder(forward.graph.opset)
    _reserve(builder, forward)
    traced = trace(forward, builder, (), "reestimate", momentum)
    if not builder.states:
        raise AutodiffError("the model has no BatchNormalization; exporters fold it unless told not to")
    manifest = _manifest(builder, None, "reestimate", [], traced.prefix)
    initial = {name: state.initial for name, state in builder.states.items()}
    return TrainStep(builder.build("reestimation"), None, model_with_weights(forward), manifest, initial, ())


def _reserve(builder: GraphBuilder, forward: Forward) -> None:
    """Keep the names of inputs and weights for them; nodes take others."""
    for name in (*forward.graph.inputs, *forward.weights, *forward.outputs, "loss"):
        builder.reserve(name)


def _fetch(builder: GraphBuilder, terms: LossTerms, traced: Trace, outputs: Sequence[str]) -> None:
    if any(isinstance(size, int) and size != 1 for size in terms.loss.shape):
        raise AutodiffError(f"the loss has the shape {list(terms.loss.shape)}; it must be one number")
    builder.output("loss", terms.loss)
    for name, value in terms.metrics.items():
        builder.output(name, value)
    for name in outputs:
        if name not in traced.outputs:
            raise AutodiffError(f"the model has no output {name}; its outputs are {', '.join(traced.outputs)}")
        builder.output(name, traced.outputs[name])


def _gradients(traced: Trace, terms: LossTerms) -> dict[str, Value]:
    builder, tape = traced.builder, traced.tape
    if terms.gradients is None:
        tape.record()
        one = np.ones([size if isinstance(size, int) else 1 for size in terms.loss.shape], np.float32)
        seeds = {terms.loss.name: builder.constant(one)}
        return tape.gradients(seeds)
    seeds = {}
    for name, gradient in terms.gradients.items():
        output = traced.outputs.get(name)
        if output is None:
            raise AutodiffError(f"the loss gives a gradient of {name}, which is no output of the model")
        if gradient.rank != output.rank:
            raise AutodiffError(f"the loss's gradient of {name} has {gradient.rank} axes, the output {output.rank}")
        known = seeds.get(output.name)
        seeds[output.name] = gradient if known is None else builder.add(known, gradient)
    tape.skip()
    return tape.gradients(seeds)


def _optimise(builder: GraphBuilder, parameters: Sequence[Parameter], optimiser: Optimiser) -> None:
    optimiser.emit(builder, parameters)
    for parameter in parameters:
        if builder.states[parameter.name].updated is None:
            raise AutodiffError(f"the optimiser gives no new value of {parameter.name}")


def _accumulating(builder: GraphBuilder, parameters: Sequence[Parameter], optimiser: Optimiser) -> GraphBuilder:
    """Finish `builder` as the graph that sums gradients; returns the one that applies the sums."""
    apply = GraphBuilder(builder.opset)
    share = builder.input(SHARE, ())
    later = []
    for parameter in parameters:
        initial = builder.states[parameter.name].initial
        name, zeros = f"{parameter.name}.accumulated", np.zeros_like(initial)
        so_far = builder.state(name, zeros, "accumulator")
        part = builder.mul(parameter.gradient, builder.ranked(share, parameter.gradient.rank))
        builder.update(name, builder.add(so_far, part))
        value = apply.state(parameter.name, initial, "parameter")
        later.append(Parameter(parameter.name, value, apply.state(name, zeros, "accumulator")))
    _optimise(apply, later, optimiser)
    return apply


def _manifest(
    builder: GraphBuilder, apply: GraphBuilder | None, kind: str, gradients: Sequence[str], prefix: bool
) -> StepManifest:
    states = {**builder.states, **(apply.states if apply else {})}
    for name, state in states.items():
        if state.initial.dtype != np.float32:
            raise AutodiffError(f"state {name} is {state.initial.dtype}; states are float32")
    own = apply if apply else builder  # where the optimiser is
    specs = tuple(
        StateSpec(
            name=name,
            role=state.kind,
            shape=tuple(state.initial.shape),
            in_place=state.kind == "optimiser" and own.in_place(name),
        )
        for name, state in states.items()
    )
    fetched = tuple(name for name in builder.outputs if not name.endswith(".gradient") or name[:-9] not in gradients)
    return StepManifest(
        kind=kind,  # type: ignore[arg-type]
        states=specs,
        fetched=fetched,
        gradients=tuple(gradients),
        frozen_prefix=prefix,
    )
