"""Cut-outs of a frame: a box with its context, clipped, merged where two share pixels, and the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekit.regions.header import FloatBox, IntBox, Region, RegionError, RegionReason
from edgekit.regions.select import Candidate

LONGEST = 512
"""Pixels of a cut-out's longer side in a mosaic; a longer one is scaled down."""
ALIGN = 8
"""Pixels of the blocks in which a JPEG without colour subsampling is coded."""


@dataclass(frozen=True)
class Context:
    """What is added to a box on each side: `share` of its width and height, `pixels` at least."""

    share: float = 0.25
    pixels: int = 8

    def __post_init__(self) -> None:
        if not (0.0 <= self.share <= 4.0 and 0 <= self.pixels <= 1024):
            raise ValueError(f"a share from 0 to 4 and 0 to 1024 pixels are needed, not {self.share}, {self.pixels}")


EXACT = Context(0.0, 0)
"""No context: for tiles, which the cloud's model is to see exactly as the edge's did."""


@dataclass(frozen=True)
class CutOut:
    """One piece of the frame that holds the views of some regions."""

    box: IntBox
    members: tuple[int, ...]  # positions in the list of views, rising


def view(box: FloatBox, context: Context, width: int, height: int) -> IntBox:
    """The pixels that show `box` with its context, clipped to the frame, whole pixels outwards.

    Raises RegionError for a box that is not finite, or has no area inside the frame.
    """
    left, top, right, bottom = box
    if not all(math.isfinite(value) for value in box) or not (left < right and top < bottom):
        raise RegionError(f"the box {tuple(box)} has no area, or is not finite")
    if not (left < width and top < height and right > 0 and bottom > 0):
        raise RegionError(f"the box {tuple(box)} lies outside of the frame of {width}x{height} pixels")
    across = max(context.share * (right - left), context.pixels)
    down = max(context.share * (bottom - top), context.pixels)
    return (
        max(0, math.floor(left - across)),
        max(0, math.floor(top - down)),
        min(width, math.ceil(right + across)),
        min(height, math.ceil(bottom + down)),
    )


def region(index: int, candidate: Candidate, reason: RegionReason, context: Context, width: int, height: int) -> Region:
    """The question about one candidate, ready to be sent. Raises RegionError as `view` does."""
    return Region(
        index=index,
        box=candidate.box,
        view=view(candidate.box, context, width, height),
        label=candidate.label,
        score=round(candidate.score, 6),
        margin=round(candidate.margin, 6),
        reason=reason,
    )


def cut_outs(views: Sequence[IntBox], longest: int = LONGEST) -> list[CutOut]:
    """Cut-outs that hold every view whole: two become one as long as that sends fewer pixels than both apart.

    Pixels are counted in whole JPEG blocks. The pair that saves most is merged first (of equal ones the first), so the
    result depends on the list alone. No merger grows longer than `longest` if neither of the two is so already, because
    what is longer is scaled down. In order of each cut-out's first member.
    """
    boxes = np.array(views, np.int64).reshape(-1, 4)
    members: dict[int, tuple[int, ...]] = {i: (i,) for i in range(len(boxes))}
    saved = np.zeros((len(boxes), len(boxes)), np.int64)  # by merging a < b
    for a in range(len(boxes)):
        saved[a, a + 1 :] = _savings(boxes[a], boxes[a + 1 :], longest)
    while len(members) > 1:
        a, b = divmod(int(saved.argmax()), len(boxes))
        if saved[a, b] <= 0:
            break
        boxes[a, :2] = np.minimum(boxes[a, :2], boxes[b, :2])
        boxes[a, 2:] = np.maximum(boxes[a, 2:], boxes[b, 2:])
        members[a] = tuple(sorted(members[a] + members.pop(b)))
        saved[b, :] = saved[:, b] = 0
        others = np.array([i for i in members if i != a], np.int64)
        saved[np.minimum(a, others), np.maximum(a, others)] = _savings(boxes[a], boxes[others], longest)
    found = sorted(members.items(), key=lambda item: item[1])
    return [CutOut(_ints(boxes[i]), parts) for i, parts in found]


def _ints(box: NDArray[np.int64]) -> IntBox:
    left, top, right, bottom = box.tolist()
    return left, top, right, bottom


def _savings(box: NDArray[np.int64], others: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """Pixels that are saved by merging `box` with each of the others (n, 4); 0 where it is not allowed."""
    low, high = np.minimum(box[:2], others[:, :2]), np.maximum(box[2:], others[:, 2:])
    sizes, own = others[:, 2:] - others[:, :2], box[2:] - box[:2]
    allowed = (high - low).max(axis=1) <= np.maximum(np.maximum(sizes.max(axis=1), own.max()), longest)
    return np.where(allowed, _blocks(own) + _blocks(sizes) - _blocks(high - low), 0)


def _blocks(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels of the whole blocks that hold sizes (..., 2)."""
    return np.asarray((-(-sizes // ALIGN) * ALIGN).prod(axis=-1))


def mapped(boxes: ArrayLike, source: Sequence[float], target: Sequence[float]) -> NDArray[np.float64]:
    """Boxes (n, 4) inside the rectangle `source`, in the coordinates in which that rectangle is `target`.

    Coordinates are edges of pixels, not centres, so a cut-out that was scaled maps by its two sizes alone.
    """
    b = np.asarray(boxes, np.float64).reshape(-1, 4)
    across = (target[2] - target[0]) / (source[2] - source[0])
    down = (target[3] - target[1]) / (source[3] - source[1])
    origin, goal = (np.array([left, top, left, top], np.float64) for left, top, *_ in (source, target))
    return np.asarray((b - origin) * np.array([across, down, across, down]) + goal)
