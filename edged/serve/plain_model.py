"""A loaded model that need not be a classifier: what is served by the Open Inference Protocol without a service."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.packages import Package, Variant
from edgekit.runtimes import ModelError, Session
from edgekit.vision.anomaly import AnomalyDetector
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector
from edgekit.vision.embedding import Embedder
from edgekit.vision.images import ImageError, decode
from edgekit.vision.model import loaded
from edgekit.vision.preprocess import check_input, in_colour, prepare, reduced_size

_MAX_PROOF_BYTES = 64 << 20
"""An input of zeros for the proof is not made larger than this."""


class Model(Protocol):
    """What a model is asked for by the protocol: a `Classifier` or a `PlainModel`."""

    package: Package
    variant: Variant
    session: Session
    labels: list[str]

    def tensor(self, data: bytes) -> NDArray[Any]:
        """A JPEG or PNG as the batch of one that the model wants. Raises ImageError or ModelError."""
        ...

    def pixels(self, array: NDArray[Any]) -> NDArray[Any]:
        """Raw pixels (uint8, HxW or HxWx3 in the order red, green, blue) prepared like a picture of them."""
        ...


class PlainModel:
    """One loaded variant of a package of any task. Methods may be called from several threads."""

    def __init__(self, package: Package, variant: Variant, session: Session) -> None:
        """Use `load`."""
        self.package, self.variant, self.session = package, variant, session
        self.labels: list[str] = list(package.labels)
        self._no_pictures = self._why_no_pictures()

    @classmethod
    def load(cls, package: Package) -> PlainModel:
        """Open the first variant that was compiled for no special chip and whose runtime is installed.

        Raises ModelError if it cannot be loaded.
        """
        return loaded(cls, package, None, None)

    def prove(self) -> None:
        """Run once with zeros, so that a model that cannot run at all shows here. Raises ModelError.

        A model with an input of unknown size (beyond the batch) is not run: nobody can say which sizes it takes.
        """
        feeds: dict[str, NDArray[Any]] = {}
        for tensor in self.session.inputs:
            shape = [1 if at == 0 and side is None else side for at, side in enumerate(tensor.shape)]
            if None in shape or tensor.dtype not in np.sctypeDict:
                return
            known = [side for side in shape if side is not None]
            dtype = np.dtype(tensor.dtype)
            if np.prod(known, dtype=np.float64) * dtype.itemsize > _MAX_PROOF_BYTES:
                return
            feeds[tensor.name] = np.zeros(known, dtype)
        self.session.run(feeds)

    @property
    def takes_pictures(self) -> bool:
        """Whether its one input is what the package's `[input]` describes, so that pictures can be made to fit."""
        return not self._no_pictures

    def tensor(self, data: bytes) -> NDArray[Any]:
        """A JPEG or PNG as the batch of one that the package's `[input]` describes. Raises ImageError or ModelError."""
        self._wants_pictures()
        spec = self.package.manifest.input
        return self._prepared(decode(data, spec.colour, reduce_to=reduced_size(spec)))

    def pixels(self, array: NDArray[Any]) -> NDArray[Any]:
        """Raw pixels (uint8, HxW or HxWx3 in the order red, green, blue) prepared like a picture. Raises ImageError."""
        self._wants_pictures()
        return self._prepared(in_colour(array, self.package.manifest.input))

    def _prepared(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        return prepare(image, self.package.manifest.input, self.session.inputs[0])

    def _wants_pictures(self) -> None:
        if self._no_pictures:
            raise ImageError(f"{self.package.ref} takes no pictures: {self._no_pictures}")

    def _why_no_pictures(self) -> str:
        if len(self.session.inputs) != 1:
            return f"it has {len(self.session.inputs)} inputs"
        try:
            check_input(self.package.manifest.input, self.session.inputs[0])
        except ModelError as error:
            return str(error)
        return ""


def as_model(vision: Classifier | Detector | AnomalyDetector | Embedder) -> Classifier | PlainModel | str:
    """What answers the protocol's requests to this model, whose tensors go out as they are; or why nothing can."""
    if isinstance(vision, Classifier):
        return vision
    if vision.session is None:
        return f"{vision.package.ref} compares pictures with a golden one, so it has no tensors to be asked for"
    return PlainModel(vision.package, vision.variant, vision.session)
