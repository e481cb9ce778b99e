"""What a model gets of a picture at once: the whole, the region of interest or a tile, cut out as serving cuts it.

A picture is decoded and its parts are brought to the size of the model's input without a file in between, so that what
teaches is, pixel for pixel, what `edgekit.vision` gives the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.datasets.dataset import Picture
from edgekit.packages import InputSpec
from edgekit.services import Pipeline
from edgekit.training import Fitted, Pictures, TrainingError
from edgekit.training.pictures import CACHE_BYTES
from edgekit.vision.detection import tiling
from edgekit.vision.detection.geometry import Placement, placement, reduction
from edgekit.vision.images import ImageError, decode, sniff
from edgekit.vision.pipeline import Box, Size, decoded_box, narrowest, regions
from edgekit.vision.preprocess import cropped, fit, reduced_size

VISIBLE = 0.4
"""Share of a box that must lie in a view for it to be taught there, as in `edgekit.training.augment`."""

Cut = Callable[[Box, Size, Size], Box]
"""(box in the full picture, its size, the size that it was decoded at) -> the box in the decoded picture."""
cut_for_classifiers: Cut = decoded_box
cut_for_detectors: Cut = tiling.decoded_box


@dataclass(frozen=True)
class View:
    """A part of the picture at a place of the dataset. `share`: of width and height, that the narrowest view has."""

    picture: int
    box: Box
    share: tuple[float, float]


def views(place: int, size: Size, pipeline: Pipeline | None) -> list[View]:
    """What a service with this pipeline looks at in a picture of this size, row by row. Raises ImageError."""
    boxes = [(0, 0, *size)] if pipeline is None else regions(pipeline, *size)
    share = narrowest(boxes, size)
    return [View(place, box, share) for box in boxes]


def spread(among: Sequence[View], most: int, picture: Picture) -> list[View]:
    """At most `most` of the views, drawn by the picture's content: the same picture gives the same ones."""
    left, drawn = list(among), []
    for turn in range(min(most, len(left))):
        drawn.append(left.pop(int(picture.sha256[8 * turn : 8 * turn + 8], 16) % len(left)))
    return drawn


class Views(Pictures):
    """Views as `edgekit.training` wants pictures. Where a pixel came from is told in pixels of the full picture."""

    def __init__(
        self,
        read: Callable[[int], bytes],
        chosen: Sequence[View],
        spec: InputSpec,
        cut: Cut,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """`read` gives the encoded picture at a place of the dataset, and may raise OSError."""
        super().__init__(read, spec, cache_bytes)
        self._views, self._cut = tuple(chosen), cut
        self._decoded: tuple[int, Size, NDArray[np.uint8]] | None = None  # the last one, for its other views

    def made(self, place: int) -> Fitted:
        """See Pictures.made."""
        view, spec = self._views[place], self._spec
        try:
            whole, image = self._picture(view)
        except ImageError as error:
            raise TrainingError(f"picture {view.picture} of the dataset cannot be used: {error}") from None
        left, top, right, bottom = self._cut(view.box, whole, (image.shape[1], image.shape[0]))
        part = image[top:bottom, left:right]
        across, down = reduction(whole[0], image.shape[1]), reduction(whole[1], image.shape[0])
        shown = placement(spec, part.shape[1], part.shape[0])
        seen = shown.seen
        placed = Placement(
            (left + shown.left) * across,
            (top + shown.top) * down,
            shown.across * across,
            shown.down * down,
            ((left + seen[0]) * across, (top + seen[1]) * down, (left + seen[2]) * across, (top + seen[3]) * down),
        )
        return Fitted(np.ascontiguousarray(fit(cropped(part, spec), spec)), placed)

    def _picture(self, view: View) -> tuple[Size, NDArray[np.uint8]]:
        """The full size, and the decoded pixels. Raises ImageError."""
        if self._decoded is None or self._decoded[0] != view.picture:
            self._decoded = None  # not two of them at once
            data = self._read(view.picture)
            info = sniff(data)
            if view.box[2] > info.width or view.box[3] > info.height:
                raise ImageError(f"it has {info.width}x{info.height} pixels, others than were noted of it")
            image = decode(data, self._spec.colour, reduce_to=reduced_size(self._spec, view.share))
            self._decoded = view.picture, (info.width, info.height), image
        return self._decoded[1:]


def inside(boxes: NDArray[np.float64], view: Box) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The boxes [n, 4] of which VISIBLE is to be seen in a view, cut off at its borders, and their rows."""
    low = np.maximum(boxes[:, :2], view[:2])
    high = np.minimum(boxes[:, 2:], view[2:])
    shown = np.prod(np.maximum(high - low, 0.0), axis=1)
    rows = np.flatnonzero((shown > 0) & (shown >= VISIBLE * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)))
    return np.concatenate([low, high], axis=1)[rows], rows
