"""Runs what a loss or an optimiser wrote, and what float64 says of the same formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgekit.autodiff.builder import GraphBuilder
from edgekit.autodiff.interfaces import Loss, Optimiser, Parameter

Arrays = dict[str, NDArray[Any]]


def session(builder: GraphBuilder) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(builder.build("test").SerializeToString(), options)


def run_loss(loss: Loss, outputs: Mapping[str, NDArray[np.float32]], fed: Mapping[str, NDArray[Any]]) -> Arrays:
    """The loss as "loss", each gradient under its output's name, and the metrics."""
    builder = GraphBuilder()
    values = {name: builder.input(name, ("N", *array.shape[1:])) for name, array in outputs.items()}
    terms = loss.emit(builder, values)
    builder.output("loss", terms.loss)
    assert terms.gradients is not None
    for name, gradient in terms.gradients.items():
        assert gradient.shape == values[name].shape
        builder.output(f"d {name}", gradient)
    for name, metric in terms.metrics.items():
        builder.output(name, metric)
    made = session(builder)
    names = [output.name for output in made.get_outputs()]
    results = made.run(names, {**outputs, **fed})
    return {name.removeprefix("d "): result for name, result in zip(names, results, strict=True)}


def slope(formula: Callable[[NDArray[np.float64]], float], at: NDArray[Any], step: float = 1e-5) -> NDArray[np.float64]:
    """d formula / d at by central differences in float64."""
    result = np.zeros(at.shape)
    for place in np.ndindex(*at.shape):
        moved = [at.astype(np.float64), at.astype(np.float64)]
        moved[0][place] += step
        moved[1][place] -= step
        result[place] = (formula(moved[0]) - formula(moved[1])) / (2 * step)
    return result


class Training:
    """An optimiser on parameters whose gradients are fed, step after step."""

    def __init__(self, optimiser: Optimiser, start: Mapping[str, NDArray[np.float32]]) -> None:
        builder = GraphBuilder()
        parameters = []
        for name, array in start.items():
            value = builder.state(name, array, "parameter")
            parameters.append(Parameter(name, value, builder.input(f"{name}.fed", array.shape)))
        optimiser.emit(builder, parameters)
        self.state: Arrays = {name: state.initial for name, state in builder.states.items()}
        self.fetched: Arrays = {}
        self._session = session(builder)

    def step(self, gradients: Mapping[str, NDArray[np.float32]], rate: float, **fed: NDArray[np.float32]) -> None:
        feeds = {f"{name}.fed": gradient for name, gradient in gradients.items()}
        names: Sequence[str] = [output.name for output in self._session.get_outputs()]
        results = self._session.run(names, {**feeds, **self.state, **fed, "learning_rate": np.array(rate, np.float32)})
        for name, result in zip(names, results, strict=True):
            if name.endswith(".new"):
                self.state[name.removesuffix(".new")] = result
            else:
                self.fetched[name] = result
