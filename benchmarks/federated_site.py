"""One site that learns: its pictures, its own state between rounds, and the real train step.

The same code trains a device of a federation, one factory alone, and all pictures in one place: only who holds which
pictures, and who averages, differs.
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
from edgekit.architectures import Spec, build, input_spec
from edgekit.architectures.network import INPUT, LOGITS
from edgekit.autodiff.losses import CrossEntropy
from edgekit.autodiff.optimisers import AdamW, Clipped
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.schedules import Schedule, learning_rate
from edgekit.autodiff.step import build_step
from edgekit.training import (
    FORWARD_FILE,
    STEP_FOLDER,
    Augmentation,
    Balance,
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


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How every model of one product is trained, wherever its pictures lie."""

    side: int  # pixels of the square input
    width: float  # of the network's layers
    turned: bool  # whether a picture may be mirrored and turned by quarters
    batch: int
    shown: int  # pictures that a model is shown in all, on all sites together
    peak: float = 3e-3  # learning rate
    balance: Balance = "root"
    smoothing: float = 0.05
    weight_decay: float = 0.02
    gradient_norm: float = 5.0
    """As `cloudd train` has them."""

    @property
    def augmentation(self) -> Augmentation:
        """As `cloudd train` has it for classifiers."""
        return Augmentation(
            flip_horizontal=self.turned,
            flip_vertical=self.turned,
            quarter_turns=self.turned,
            rotation=8.0,
            scale=0.1,
            shift=0.05,
            brightness=0.1,
            contrast=0.15,
            noise=5.0,
        )


class Machine:
    """The derived train step and the forward model of one network; sites take turns on it. One thread.

    `base`: weights to begin with, by name; those of the head and those that are not given are random, by `seed`.
    `head_only`: the convolutions stay as they are; head and normalisations learn.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        classes: int,
        seed: int,
        *,
        base: Mapping[str, NDArray[Any]] | None = None,
        head_only: bool = False,
    ) -> None:
        self.spec = Spec(
            architecture="tiny_cnn",
            classes=classes,
            input_width=recipe.side,
            input_height=recipe.side,
            channels=1,
            width=recipe.width,
            seed=seed,
        )
        network = build(self.spec)
        for tensor in network.model.graph.initializer:
            if base is not None and tensor.name in base and not tensor.name.startswith(_HEAD):
                tensor.CopyFrom(onnx.numpy_helper.from_array(base[tensor.name], tensor.name))
        names = network.parameters()
        if head_only:
            names = tuple(name for name in names if ".norm." in name or name.startswith(_HEAD))
        optimiser = Clipped(AdamW(weight_decay=recipe.weight_decay), recipe.gradient_norm)
        loss = CrossEntropy(smoothing=recipe.smoothing)
        write_plan(build_step(network.model, loss, optimiser, names, batch_norm="train"), folder)
        runner = StepRunner(folder / STEP_FOLDER, threads=1)
        self.engine = StepEngine(runner)
        self.forward = ForwardModel(folder / FORWARD_FILE, threads=1)
        self.shapes = {one.name: one.shape for one in runner.manifest.of("parameter", "batch_norm")}
        self.first = self.engine.state()
        """What every site begins with."""


class Site:
    """Who learns from some pictures and judges by others. `batch` pictures a step, fewer where it has fewer."""

    def __init__(
        self,
        machine: Machine,
        recipe: Recipe,
        teach: Sequence[Sample],
        judge: Sequence[Sample],
        *,
        batch: int,
        seed: int,
    ) -> None:
        self.machine, self._recipe, self._seed = machine, recipe, seed
        self.state: Tensors = dict(machine.first)
        """Weights, running statistics, the optimiser's moments. Of a device in a federation, only what is personal
        counts after a round: the rest is replaced by the published model."""
        self.memory: NDArray[np.float32] | None = None  # what its strategy remembers
        self.pictures, self.batch = len(teach), min(batch, len(teach))
        spec, classes = input_spec(machine.spec), machine.spec.classes
        self._examples = LabelledExamples(
            Pictures(lambda place: teach[place].data, spec),
            np.array([one.label for one in teach]),
            classes,
            seed=seed,
            augmentation=recipe.augmentation,
        )
        self._feeds = self._shown()
        held = Pictures(lambda place: judge[place].data, spec)
        self._held = LabelledExamples(held, np.array([one.label for one in judge]), classes) if judge else None

    def learn(
        self, shared: Mapping[str, NDArray[Any]], rates: Sequence[float], correction: Tensors | None = None
    ) -> None:
        """As many steps as there are learning rates, beginning with `shared` in place of its own tensors.

        `correction`: added to every gradient, as SCAFFOLD does it: after each step, rate times it is taken off.
        """
        engine = self.machine.engine
        engine.restore({**self.state, **shared})
        for rate in rates:
            engine.step(next(self._feeds), rate)
            if correction is not None:
                state = engine.state()
                moved = {name: state[name] - np.float32(rate) * one for name, one in correction.items()}
                engine.restore({**state, **moved})
        self.state = engine.state()

    def judged(self, shared: Mapping[str, NDArray[Any]]) -> Confusion:
        """Of the pictures that it judges by, with `shared` in place of its own tensors."""
        classes = self.machine.spec.classes
        found = np.zeros((classes, classes), np.int64)
        if self._held is None:
            return found
        weights = {**{name: self.state[name] for name in self.machine.shapes}, **shared}
        for start in range(0, len(self._held.labels), _JUDGED):
            places = np.arange(start, min(len(self._held.labels), start + _JUDGED))
            images = {INPUT: self._held.plain(places)[INPUT]}
            said = self.machine.forward(images, weights)[LOGITS].argmax(axis=1)
            np.add.at(found, (self._held.labels[places], said), 1)
        return found

    def _shown(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Batches for ever: an epoch goes on in the next round where it was left."""
        epoch = 0
        while True:
            order = epoch_order(self._examples.groups, epoch, self._seed, self._recipe.balance)
            for at, places in enumerate(batches(order, self.batch)):
                yield self._examples.feeds(places, epoch, at * self.batch)
            epoch += 1


def rates(recipe: Recipe, steps: int) -> list[float]:
    """Of every step of a training: a short warm-up, then a cosine."""
    schedule = Schedule(peak=recipe.peak, warm_up=min(50, steps // 10))
    return [learning_rate(schedule, step, steps) for step in range(steps)]
