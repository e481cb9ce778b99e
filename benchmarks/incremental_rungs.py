"""The rungs of `edged.train` on real patches, for benchmarks.incremental: a new head, fine-tuning, another scene.

What learns here is the code of the device's own learning jobs; only the pictures come from a folder instead of the
sample store.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.pictures import SIDE, Grey
from edged.train import head, scene
from edged.train.lessons import Lessons, Part
from edged.train.network import Network
from edged.train.pace import Pace, Workplace
from edged.train.tuning import settings_for, tune
from edgekit.architectures import Spec, build, input_spec
from edgekit.datasets.dataset import Dataset, Picture
from edgekit.learning.budget import Budget, unlimited
from edgekit.runtimes import SessionOptions, open_session
from edgekit.training import MODEL_FILE, WEIGHTS_FILE
from edgekit.vision.images import encode_png

Rung = Literal["head", "last-blocks", "full"]
Labels = NDArray[np.int64]
Scene = tuple[float, float, float, float]

SCENES: dict[str, Scene] = {
    "half the contrast": (0.5, 64.0, 0.0, 0.0),
    "out of focus": (1.0, 0.0, 1.5, 0.0),
    "darker and noisy": (0.5, 0.0, 0.0, 8.0),
}
"""What becomes of a picture elsewhere: its values times the first, plus the second; then a Gaussian blur and noise."""
_SECONDS = 600.0
_DIGEST = "benchmarks.incremental"


def elsewhere(patches: Sequence[Grey], change: Scene, seed: int) -> list[Grey]:
    """The patches as the camera of another scene sees them."""
    factor, offset, blur, noise = change
    rng = np.random.default_rng(seed)
    found = []
    for patch in patches:
        values = patch.astype(np.float32) * factor + offset
        if blur:
            values = cv2.GaussianBlur(values, (0, 0), blur)
        values += rng.normal(0.0, noise, values.shape) if noise else 0.0
        found.append(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    return found


class Learner:
    """A `tiny_cnn` for grey patches with trained weights, and what becomes of it by each rung."""

    def __init__(self, weights: Mapping[str, NDArray[Any]], known: Sequence[str]) -> None:
        """`known`: the labels that the weights were trained on, in their order."""
        self.known = tuple(known)
        spec = Spec(architecture="tiny_cnn", classes=len(known), input_width=SIDE, input_height=SIDE, channels=1)
        model = build(spec).model
        self.spec = input_spec(spec)
        plain = Network(model, model.graph.input[0].name, model.graph.output[0].name)
        self._network = plain.with_weights(dict(weights))

    def before(self, tests: Sequence[Sequence[Grey]]) -> list[Labels]:
        """The answers of the network as it is to each of the lists, as indices into `known`."""
        with tempfile.TemporaryDirectory() as folder:
            self._network.save(Path(folder))
            return [self._answers(Path(folder), one) for one in tests]

    def after(
        self, rung: Rung, learn: Sequence[Grey], labels: Labels, classes: Sequence[str], test: Sequence[Grey], seed: int
    ) -> tuple[Labels, float]:
        """Its answers after a job on this rung, as indices into `classes`, and the seconds that the job took.

        `classes` begin with those that it knows. As on the device, fine-tuning begins with the new head.
        """
        lessons = self._lessons(learn, labels, classes)
        with tempfile.TemporaryDirectory() as name:
            at, began = _workplace(Path(name)), time.perf_counter()
            network, _ = head.relearned(self._network, lessons, self.spec, at, widen=rung == "head")
            write = network.save
            if rung != "head":
                settings = settings_for(rung, len(learn), self.spec, seed, _SECONDS, Budget())
                write = tune(rung, network, lambda: network, lessons, self.spec, settings, _DIGEST, at).write
            seconds = time.perf_counter() - began
            made = Path(name) / "made"
            made.mkdir()
            write(made)
            return self._answers(made, test), seconds

    def there(self, scene_patches: Sequence[Grey], test: Sequence[Grey]) -> Labels:
        """Its answers after BatchNorm re-estimation on unlabelled patches of another scene."""
        lessons = self._lessons(scene_patches, np.zeros(len(scene_patches), np.int64), self.known)
        with tempfile.TemporaryDirectory() as name:
            at = _workplace(Path(name))
            pictures = lessons.pictures(lessons.learn, self.spec)
            network = scene.reestimated(self._network, pictures, range(len(scene_patches)), at)
            made = Path(name) / "made"
            made.mkdir()
            network.save(made)
            return self._answers(made, test)

    def _answers(self, folder: Path, patches: Sequence[Grey]) -> Labels:
        options = SessionOptions(threads=1)
        with closing(open_session(folder / MODEL_FILE, "onnxruntime", options, [WEIGHTS_FILE])) as session:
            name = session.inputs[0].name
            images = [(patch.astype(np.float32) - 127.5) / 127.5 for patch in patches]
            return np.array([int(session.run({name: one[None, None]})[0].argmax()) for one in images], np.int64)

    def _lessons(self, patches: Sequence[Grey], labels: Labels, classes: Sequence[str]) -> Lessons:
        files = {f"{at}": encode_png(np.ascontiguousarray(patch), "grey") for at, patch in enumerate(patches)}
        pictures = tuple(
            Picture(file, hashlib.sha256(png).hexdigest(), classes[int(label)], part="train", width=SIDE, height=SIDE)
            for (file, png), label in zip(files.items(), labels, strict=True)
        )
        none = Part((), np.zeros(0, np.int64), np.zeros(0))
        return Lessons(
            dataset=Dataset(pictures, lambda picture: files[picture.file]),
            classes=tuple(classes),
            known=len(self.known),
            learn=Part(pictures, labels, np.zeros(len(labels))),
            choose=none,
            judge=none,
            notes=(),
            pipeline=None,
        )


def _workplace(folder: Path) -> Workplace:
    pace = Pace(Budget(), unlimited, time.monotonic, time.sleep, lambda progress: None)
    return Workplace(folder=folder, threads=1, pace=pace, clock=time.monotonic, sensors=unlimited)
