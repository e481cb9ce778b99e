"""One site that learns: its pictures, its own state between rounds, and the real train step.

The same code trains a device of a federation, one factory alone, and all pictures in one place: only who holds which
pictures, and who averages, differs. How it trains is said as in the table `[local]` of a job, and means what it means
to a real device: the optimiser of `cloudd.federation.preparing`, the augmentation of `edged.federation.subject`, the
learning rates of `edgekit.federated.course`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from benchmarks.federated_data import Sample
from cloudd.federation.preparing import local_optimiser
from edged.federation.local import ANCHOR
from edged.federation.subject import augmentation
from edgekit.architectures import Spec, build, input_spec
from edgekit.architectures.network import INPUT, LOGITS
from edgekit.autodiff.losses import CrossEntropy
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.step import build_step
from edgekit.federated.averaging import FedAvg
from edgekit.federated.course import rates
from edgekit.federated.plan import Plan
from edgekit.messages.federation import LocalTraining
from edgekit.training import (
    FORWARD_FILE,
    STEP_FOLDER,
    ForwardModel,
    LabelledExamples,
    Pictures,
    StepEngine,
    epoch_order,
    write_plan,
)
from edgekit.training.order import batches

Tensors = dict[str, NDArray[Any]]
Confusion = NDArray[np.int64]
"""[c, c]: rows are what pictures are, columns what the model says."""
_JUDGED = 32  # pictures at once
_HEAD = "head."

PLAN = Plan(strategy=FedAvg(clip=20.0, limit=2.0), personal=("*.norm.mean", "*.norm.variance"))
LOCAL = LocalTraining(
    steps=1,
    schedule="cosine",
    optimiser="adamw",
    moments="kept",
    weight_decay=0.02,
    max_norm=5.0,
    smoothing=0.05,
    batch_norm="train",
)
"""What all trainings have in common."""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """What all models of one product are."""

    side: int  # pixels of the square input
    width: float = 0.5  # of the layers


class Machine:
    """The derived train step and the forward model of one network; sites take turns on it. One thread.

    `base`: weights to begin with, by name; those of the head and those that are not given are random, by `seed`.
    """

    def __init__(
        self,
        folder: Path,
        network: Network,
        local: LocalTraining,
        classes: int,
        seed: int,
        *,
        plan: Plan = PLAN,
        base: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.local, self.plan = local, plan
        self.spec = Spec(
            architecture="tiny_cnn",
            classes=classes,
            input_width=network.side,
            input_height=network.side,
            channels=1,
            width=network.width,
            seed=seed,
        )
        built = build(self.spec)
        for tensor in built.model.graph.initializer:
            if base is not None and tensor.name in base and not tensor.name.startswith(_HEAD):
                tensor.CopyFrom(onnx.numpy_helper.from_array(base[tensor.name], tensor.name))
        loss, optimiser = CrossEntropy(smoothing=local.smoothing), local_optimiser(local, plan)
        write_plan(build_step(built.model, loss, optimiser, local.trainable, batch_norm=local.batch_norm), folder)
        self._runner = StepRunner(folder / STEP_FOLDER, threads=1)
        self.forward = ForwardModel(folder / FORWARD_FILE, threads=1)
        self.trained = [one.name for one in self._runner.manifest.of("parameter")]
        self.shapes = {one.name: one.shape for one in self._runner.manifest.of("parameter", "batch_norm")}
        self.first = StepEngine(self._runner).state()
        """What every site begins with."""

    def engine(self, start: Mapping[str, NDArray[Any]], *, near_start: bool) -> StepEngine:
        """Of one site from `start` on; `near_start`: with the proximal term of the plan."""
        anchors = {name + ANCHOR: start[name] for name in self.trained} if near_start else {}
        engine = StepEngine(self._runner, optimiser_inputs=anchors)
        engine.restore(start)
        return engine


class Site:
    """Who learns from some pictures and judges by others, in batches of what the machine's `local` says, or fewer."""

    def __init__(self, machine: Machine, teach: Sequence[Sample], judge: Sequence[Sample], *, seed: int) -> None:
        self.machine, self._seed = machine, seed
        self.state: Tensors = dict(machine.first)
        """Weights, running statistics, the optimiser's moments. Of a device in a federation, only what stays on it
        counts after a round: the rest is replaced by the published model."""
        self.memory: NDArray[np.float32] | None = None  # what its strategy remembers
        self.pictures, self.batch = len(teach), min(machine.local.batch, len(teach))
        spec, classes = input_spec(machine.spec), machine.spec.classes
        self._examples = LabelledExamples(
            Pictures(lambda place: teach[place].data, spec),
            np.array([one.label for one in teach]),
            classes,
            seed=seed,
            augmentation=augmentation(machine.local),
        )
        self._feeds = self._shown()
        held = Pictures(lambda place: judge[place].data, spec)
        self._held = LabelledExamples(held, np.array([one.label for one in judge]), classes) if judge else None

    def learn(
        self,
        shared: Mapping[str, NDArray[Any]],
        rates: Sequence[float],
        correction: Tensors | None = None,
        *,
        near_start: bool = False,
    ) -> None:
        """As many steps as there are learning rates, beginning with `shared` in place of its own tensors.

        `correction`: added to every gradient, as SCAFFOLD does it: after each step, rate times it is taken off.
        """
        machine = self.machine
        kept = self.state if machine.local.moments == "kept" else {**machine.first, **self.weights()}
        engine = machine.engine({**kept, **shared}, near_start=near_start)
        for rate in rates:
            engine.step(next(self._feeds), rate)
            if correction is not None:
                state = engine.state()
                moved = {name: state[name] - np.float32(rate) * one for name, one in correction.items()}
                engine.restore({**state, **moved})
        self.state = engine.state()

    def weights(self) -> Tensors:
        """As its last training left them."""
        return {name: self.state[name] for name in self.machine.shapes}

    def judged(self, shared: Mapping[str, NDArray[Any]]) -> Confusion:
        """Of the pictures that it judges by, with `shared` in place of its own tensors."""
        classes = self.machine.spec.classes
        found = np.zeros((classes, classes), np.int64)
        for truth, scores in self.scored(shared):
            found[truth, scores.argmax()] += 1
        return found

    def scored(self, shared: Mapping[str, NDArray[Any]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(label, logits) of each picture that it judges by."""
        if self._held is None:
            return
        weights = {**self.weights(), **shared}
        for start in range(0, len(self._held.labels), _JUDGED):
            places = np.arange(start, min(len(self._held.labels), start + _JUDGED))
            images = {INPUT: self._held.plain(places)[INPUT]}
            yield from zip(self._held.labels[places], self.machine.forward(images, weights)[LOGITS], strict=True)

    def _shown(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Batches for ever: an epoch goes on in the next round where it was left."""
        epoch = 0
        while True:
            order = epoch_order(self._examples.groups, epoch, self._seed, self.machine.local.balance)
            for at, places in enumerate(batches(order, self.batch)):
                yield self._examples.feeds(places, epoch, at * self.batch)
            epoch += 1


def in_one_place(local: LocalTraining, steps: int) -> list[float]:
    """The learning rates of a training without rounds: every step is one, and the first ones are a warm-up."""
    gentle = msgspec.structs.replace(local, warm_up=min(50, steps // 10))
    return [rates(gentle, step, steps, 1)[0] for step in range(steps)]
