"""Trains by a derived train step: what a Trainer needs of `edgekit.autodiff.run`, batches cut into micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.run import StepRunner
from edgekit.training.errors import TrainingError

LEARNING_RATE = "learning_rate"


class StepEngine:
    """An Engine for `Trainer`. The step must have been derived with an optimiser.

    `micro_batch`: for a step derived with accumulate=True, how many examples go through it at once; memory follows this
    number and not the batch. `loss_inputs` and `optimiser_inputs` are fed at each step beside the examples: class
    weights, the anchors of a proximal term.
    """

    def __init__(
        self,
        runner: StepRunner,
        *,
        micro_batch: int | None = None,
        loss_inputs: Mapping[str, NDArray[Any]] | None = None,
        optimiser_inputs: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        accumulates = runner.manifest.kind == "accumulate"
        if runner.manifest.kind != "update" and not accumulates:
            raise TrainingError(
                f'the train step is of the kind "{runner.manifest.kind}"; training needs an optimiser in it'
            )
        if accumulates != (micro_batch is not None) or (micro_batch is not None and micro_batch < 1):
            raise TrainingError("micro-batches need a train step derived with accumulate=True, and it needs their size")
        self._runner, self._micro_batch = runner, micro_batch
        self._loss_inputs, self._optimiser_inputs = dict(loss_inputs or {}), dict(optimiser_inputs or {})

    def step(self, feeds: Mapping[str, NDArray[Any]], learning_rate: float) -> float:
        """See Engine.step."""
        optimiser = {**self._optimiser_inputs, LEARNING_RATE: np.float32(learning_rate)}
        try:
            if self._micro_batch is not None:
                return self._accumulate(feeds, optimiser, self._micro_batch)
            found = self._runner.step({**feeds, **self._loss_inputs, **optimiser})
        except AutodiffError as error:
            raise TrainingError(str(error)) from error
        return _number(found["loss"])

    def _accumulate(self, feeds: Mapping[str, NDArray[Any]], optimiser: Mapping[str, Any], size: int) -> float:
        count = len(next(iter(feeds.values())))
        loss = 0.0
        try:
            for start in range(0, count, size):
                part = {name: array[start : start + size] for name, array in feeds.items()}
                share = min(size, count - start) / count
                loss += share * _number(self._runner.accumulate({**part, **self._loss_inputs}, share)["loss"])
            self._runner.apply(optimiser)
        except AutodiffError:
            self._runner.discard()
            raise
        return loss

    def state(self) -> dict[str, NDArray[Any]]:
        """See Engine.state. Sums of gradients are none: they are empty between two steps."""
        kept = {one.name for one in self._runner.manifest.of("parameter", "batch_norm", "optimiser")}
        return {name: array for name, array in self._runner.states().items() if name in kept}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See Engine.restore."""
        wanted = {one.name for one in self._runner.manifest.of("parameter", "batch_norm", "optimiser")}
        if wanted != set(state):
            odd = sorted(wanted ^ set(state))[0]
            raise TrainingError(f'the checkpoint and the train step do not have the same states: "{odd[:100]}"')
        try:
            self._runner.load(state)
        except AutodiffError as error:
            raise TrainingError(str(error)) from error

    def weights(self) -> dict[str, NDArray[Any]]:
        """See Engine.weights."""
        return dict(self._runner.parameters())


def _number(value: NDArray[Any]) -> float:
    return float(np.asarray(value).reshape(-1)[0])
