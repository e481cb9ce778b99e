"""The pictures and the network of a job, checked before anything is computed with them.

The pictures have the network's size and colour already, so they are only normalised here, as serving does it. Network
and pictures come from a device: what does not load as a package does is not looked at by any other library. What a
classifier's labels and a detector's boxes need of their own is in `labels` and `boxes`.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from cloudd.retraining.errors import Unteachable
from edgekit import packages
from edgekit.autodiff.interfaces import Loss
from edgekit.messages.retraining import RetrainRequest, TaughtPicture, labels_in
from edgekit.packages import InputSpec, Manifest, Package, PackageError
from edgekit.runtimes import ModelError
from edgekit.splitting.graph import read_graph
from edgekit.training import MODEL_FILE, Augmentation, Evaluator, Examples, ForwardModel, Pictures

LABELS_FILE = "labels.txt"
AUGMENTATION = Augmentation(rotation=8.0, scale=0.1, shift=0.05, brightness=0.1, contrast=0.15, noise=5.0)
"""Small changes that every camera makes by itself, as on the device."""
NETWORK = "network"

Answers = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]
"""Pictures as the device's network wants them -> every output of the larger one."""
Rung = tuple[Literal["tiny_cnn", "resnet18", "centre_point"], float]
"""A network of ours and its width."""


@dataclass(frozen=True)
class Pace:
    """How a training goes: pictures that are shown in all, of a batch, and the highest learning rate."""

    shown: int
    batch: int
    peak: float


class Material(ABC):
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

    # --- what labels and boxes differ in ------------------------------------------------------------------------------

    teaching_pace: Pace
    """Of the larger network."""
    learning_pace: Pace
    """Of the device's network."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Names of the network's outputs."""

    @property
    @abstractmethod
    def made_outputs(self) -> tuple[str, ...]:
        """Those of the larger network."""

    @abstractmethod
    def ladder(self) -> Sequence[Rung]:
        """Larger networks, in the order in which they are tried."""

    @abstractmethod
    def examples(self, pictures: tuple[TaughtPicture, ...], spec: InputSpec, image: str, changed: bool) -> Examples:
        """These pictures as a Trainer sees them; `changed`: a little, every time anew. Raises TrainingError."""

    @abstractmethod
    def lessons(self, answers: Answers) -> Examples:
        """The pictures that teach, each with what the larger network says of it."""

    @abstractmethod
    def evaluator(self, forward: ForwardModel, spec: InputSpec, image: str, outputs: tuple[str, ...]) -> Evaluator:
        """Judges weights by the pictures that choose. Raises TrainingError."""

    @abstractmethod
    def loss(self, outputs: tuple[str, ...]) -> Loss:
        """By which labels or boxes are learned."""

    @abstractmethod
    def taught_loss(self) -> Loss:
        """By which the device's network learns from `lessons`."""

    @abstractmethod
    def draft(self, root: Path, description: str = "") -> Manifest:
        """Of the package whose MODEL_FILE lies in `root`, which gets the labels. Raises OSError."""

    @abstractmethod
    def _loaded(self, package: Package) -> tuple[list[str], Collection[str]]:
        """Names of inputs and outputs of the network, loaded as a device does. Raises ModelError, Unteachable."""

    # --- what they share ----------------------------------------------------------------------------------------------

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

    def pictures(self, chosen: tuple[TaughtPicture, ...], spec: InputSpec) -> Pictures:
        """The pixels of these pictures."""
        return Pictures(self.reader(chosen), spec)

    def reader(self, pictures: tuple[TaughtPicture, ...]) -> Callable[[int], bytes]:
        """Gives the bytes of one of these pictures by its number. Raises OSError."""
        return lambda place: (self._files / pictures[place].sha256).read_bytes()

    def counts(self, pictures: tuple[TaughtPicture, ...]) -> dict[str, int]:
        """How many of these pictures show each label."""
        found = np.bincount([label for one in pictures for label in labels_in(one)], minlength=len(self.request.labels))
        return {label: int(count) for label, count in zip(self.request.labels, found, strict=True)}

    def write_labels(self, root: Path) -> str:
        """The file of the labels, in `root`. Raises OSError."""
        (root / LABELS_FILE).write_text("".join(f"{label}\n" for label in self.request.labels), "utf-8")
        return LABELS_FILE

    def _check(self) -> None:
        """Load the network as a device does: what it refers to, its input and its output are looked at there."""
        try:
            package = packages.seal_package(self.folder, self.draft(self.folder))
            inputs, outputs = self._loaded(package)
        except (PackageError, ModelError) as error:
            raise Unteachable(f"the network cannot be used: {error}") from None
        if inputs != [self.request.image] or set(outputs) != set(self.outputs):
            raise Unteachable(
                f"the network has the inputs {inputs} and outputs {list(outputs)}, and others were announced"
            )
