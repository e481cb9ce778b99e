"""The pictures and the network of a job, checked before anything is computed with them.

The pictures have the network's size and colour already, so they are only normalised here, as serving does it. Network
and pictures come from a device: what does not load as a package does is not looked at by any other library.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from cloudd.retraining.errors import Unteachable
from edgekit import packages
from edgekit.messages.retraining import RetrainRequest, TaughtPicture
from edgekit.packages import InputSpec, Manifest, OutputSpec, PackageError, Variant
from edgekit.runtimes import ModelError
from edgekit.splitting.graph import read_graph
from edgekit.training import MODEL_FILE, Augmentation, LabelledExamples, Pictures
from edgekit.vision.classification import Classifier

LABELS_FILE = "labels.txt"
AUGMENTATION = Augmentation(rotation=8.0, scale=0.1, shift=0.05, brightness=0.1, contrast=0.15, noise=5.0)
"""Small changes that every camera makes by itself, as on the device."""
NETWORK = "network"


class Material:
    """All that a job has. Raises Unteachable for a network that cannot be used, OSError."""

    def __init__(self, request: RetrainRequest, files: Path, work: Path) -> None:
        self.request, self._files = request, files
        self.teaching = tuple(one for one in request.pictures if not one.chooses)
        self.choosing = tuple(one for one in request.pictures if one.chooses)
        spec = request.input
        self.spec = msgspec.structs.replace(spec, resize="stretch", crop=None, decode="full")
        self.folder = work / NETWORK
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for one in request.network:
            shutil.copyfile(files / one.sha256, self.folder / one.path)
        self._check()
        self.model = onnx.load(str(self.folder / MODEL_FILE))

    @property
    def teacher_spec(self) -> InputSpec:
        """Of the larger network: the same values in the order that our own networks want."""
        return msgspec.structs.replace(self.spec, layout="nchw", name="")

    def for_teacher(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same pictures as the larger network wants them."""
        return batch if self.spec.layout == "nchw" else np.ascontiguousarray(batch.transpose(0, 3, 1, 2))

    def macs(self, path: Path, image: str, spec: InputSpec) -> int:
        """Multiply-accumulates of a model for one picture. Raises Unteachable."""
        channels = 1 if spec.colour == "grey" else 3
        planar = (1, channels, spec.height, spec.width)
        shape = planar if spec.layout == "nchw" else (1, spec.height, spec.width, channels)
        try:
            return sum(node.macs for node in read_graph(path, {image: shape}).nodes)
        except (ModelError, ValueError) as error:
            raise Unteachable(f"the network cannot be read: {error}") from None

    def reader(self, pictures: tuple[TaughtPicture, ...]) -> Callable[[int], bytes]:
        """Gives the bytes of one of these pictures by its number. Raises OSError."""
        return lambda place: (self._files / pictures[place].sha256).read_bytes()

    def examples(
        self, pictures: tuple[TaughtPicture, ...], spec: InputSpec, image: str, augmentation: Augmentation | None = None
    ) -> LabelledExamples:
        """These pictures as a Trainer sees them."""
        held = Pictures(self.reader(pictures), spec)
        labels = np.array([one.label for one in pictures], np.int64)
        return LabelledExamples(
            held, labels, len(self.request.labels), seed=self.request.seed, augmentation=augmentation, image=image
        )

    def counts(self, pictures: tuple[TaughtPicture, ...]) -> dict[str, int]:
        """How many of these pictures have each label."""
        found = np.bincount([one.label for one in pictures], minlength=len(self.request.labels))
        return {label: int(count) for label, count in zip(self.request.labels, found, strict=True)}

    def draft(self, root: Path, description: str = "") -> Manifest:
        """Of the package whose MODEL_FILE lies in `root`, which gets the labels. Raises OSError."""
        request = self.request
        (root / LABELS_FILE).write_text("".join(f"{label}\n" for label in request.labels), "utf-8")
        return Manifest(
            name=request.name,
            version=request.version,
            description=description,
            labels=LABELS_FILE,
            input=request.input,
            output=OutputSpec(kind="logits", name=request.logits),
            variants=[Variant(file=MODEL_FILE)],
        )

    def _check(self) -> None:
        """Load the network as a device does: what it refers to, its input and its output are looked at there."""
        try:
            package = packages.seal_package(self.folder, self.draft(self.folder))
            with closing(Classifier.load(package)) as model:
                names = [one.name for one in model.session.inputs], [one.name for one in model.session.outputs]
        except (PackageError, ModelError) as error:
            raise Unteachable(f"the network cannot be used: {error}") from None
        if names != ([self.request.image], [self.request.logits]):
            raise Unteachable(f"the network has the inputs and outputs {names}, and others were announced")
