"""What is in a dataset, in numbers: labels, groups, parts, sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from edgekit.datasets.dataset import Picture

Number = TypeVar("Number", int, float)


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Counts. `labels` counts boxes in a dataset of boxes, pictures otherwise."""

    pictures: int
    empty: int  # pictures that were looked at and have no box
    labels: dict[str, int]  # the most frequent first
    groups: int  # distinct; pictures without one count as one each
    parts: dict[str, int]
    width: tuple[int, int, int]  # least, median, largest, in pixels
    height: tuple[int, int, int]
    box_side: tuple[float, float, float]  # square root of the area, the same three; zeros without boxes


def summarise(pictures: Iterable[Picture]) -> Summary:
    """Count. Linear but for sorting sizes."""
    everything = list(pictures)
    labels: Counter[str] = Counter()
    sides: list[float] = []
    for one in everything:
        if one.boxes is None:
            labels[one.label] += 1
            continue
        labels.update(box.label for box in one.boxes)
        sides += [((box.right - box.left) * (box.bottom - box.top)) ** 0.5 for box in one.boxes]
    return Summary(
        pictures=len(everything),
        empty=sum(one.boxes == () for one in everything),
        labels=dict(sorted(labels.items(), key=lambda item: (-item[1], item[0]))),
        groups=len({one.group or one.sha256 for one in everything}),
        parts=dict(sorted(Counter(one.part for one in everything).items())),
        width=_spread([one.width for one in everything], 0),
        height=_spread([one.height for one in everything], 0),
        box_side=_spread(sides, 0.0),
    )


def _spread(values: Sequence[Number], none: Number) -> tuple[Number, Number, Number]:
    ordered = sorted(values)
    return (ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else (none, none, none)
