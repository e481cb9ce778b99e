"""Pictures at the size of the model's input, made as serving makes them, and kept in memory up to a bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.packages import InputSpec
from edgekit.runtimes.base import TensorInfo
from edgekit.training.errors import TrainingError
from edgekit.vision.detection.geometry import Placement, placement, reduction
from edgekit.vision.images import ImageError, decode, sniff
from edgekit.vision.preprocess import cropped, fit, prepare, reduced_size

CACHE_BYTES = 256 << 20
"""Bytes of pictures kept by default: 20,000 colour patches of 64 x 64 pixels, 600 of 384 x 384."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """One picture at the size of the input, before normalisation, and where its pixels came from."""

    image: NDArray[np.uint8]  # HxW or HxWx3, in the order of the package's input
    placement: Placement


class Pictures:
    """Decoded pictures by their place in the dataset. `read` gives the encoded JPEG or PNG, and may raise OSError."""

    def __init__(self, read: Callable[[int], bytes], spec: InputSpec, cache_bytes: int = CACHE_BYTES) -> None:
        self._read, self._spec, self._room = read, spec, cache_bytes
        self._kept: dict[int, Fitted] = {}
        self._ready = msgspec.structs.replace(spec, crop=None)
        channels = 1 if spec.colour == "grey" else 3
        planar, packed = (channels, spec.height, spec.width), (spec.height, spec.width, channels)
        self._tensor = TensorInfo(spec.name, (None, *(planar if spec.layout == "nchw" else packed)), "float32")

    @property
    def width(self) -> int:
        """Of the model's input, pixels."""
        return self._spec.width

    @property
    def height(self) -> int:
        """Of the model's input, pixels."""
        return self._spec.height

    def fitted(self, place: int) -> Fitted:
        """The picture at a place of the dataset. Raises TrainingError if it is no picture, OSError if it is gone."""
        kept = self._kept.get(place)
        if kept is None:
            kept = self.made(place)
            if kept.image.nbytes <= self._room:
                self._room -= kept.image.nbytes
                self._kept[place] = kept
        return kept

    def made(self, place: int) -> Fitted:
        """The same without memory of what was made before."""
        try:
            data = self._read(place)
            info = sniff(data)
            image = decode(data, self._spec.colour, reduce_to=reduced_size(self._spec))
        except ImageError as error:
            raise TrainingError(f"picture {place} of the dataset cannot be used: {error}") from None
        across, down = reduction(info.width, image.shape[1]), reduction(info.height, image.shape[0])
        shown = placement(self._spec, image.shape[1], image.shape[0])
        left, top, right, bottom = shown.seen
        whole = Placement(
            shown.left * across,
            shown.top * down,
            shown.across * across,
            shown.down * down,
            (left * across, top * down, right * across, bottom * down),
        )
        return Fitted(np.ascontiguousarray(fit(cropped(image, self._spec), self._spec)), whole)

    def tensor(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[1, C, H, W] (or [1, H, W, C]) of a fitted picture, normalised as in serving."""
        return np.asarray(prepare(image, self._ready, self._tensor), np.float32)
