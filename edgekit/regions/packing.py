"""A mosaic's header in a few bytes: whole numbers in columns, differences where neighbours are alike, then zlib.

As JSON a region takes 110 to 120 bytes, a fifth of what its pixels take. Nothing is lost: a number that is no whole
multiple of its unit (1/100 pixel, a millionth of a probability) travels as it is. Imports neither numpy nor OpenCV.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice, pairwise
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from edgekit.regions.header import MAX_REGIONS, Label, MosaicHeader, RegionError, Size

MAX_PACKED = 1 << 18
"""Bytes of a packed header."""
MAX_UNPACKED = 1 << 19
"""Bytes that it may hold; with the most regions and the longest labels it holds about 280,000."""
_PIXEL, _SHARE = 100, 1_000_000
_LARGEST = 1e7  # of a number that may travel as a whole one

T = TypeVar("T")
Number = int | float
_Ones = Annotated[list[int], Meta(max_length=MAX_REGIONS)]
_Fours = Annotated[list[int], Meta(max_length=4 * MAX_REGIONS)]
_Numbers = Annotated[list[Number], Meta(max_length=MAX_REGIONS)]


class _Columns(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A column's numbers follow each other cell by cell, or region by region. A box is left, top, width, height."""

    frame: Size
    size: Size
    labels: Annotated[list[Label], Meta(max_length=MAX_REGIONS)]  # each once
    reasons: Annotated[list[str], Meta(max_length=MAX_REGIONS)]  # each once
    counts: Annotated[list[Annotated[int, Meta(ge=1, le=MAX_REGIONS)]], Meta(max_length=MAX_REGIONS)]  # regions a cell
    places: _Fours
    cells: _Fours
    views: _Fours  # less the cell's box
    boxes: Annotated[list[Number], Meta(max_length=4 * MAX_REGIONS)]  # whole: 1/100 pixel, less the view's corners
    indices: _Ones  # less the one before
    label: _Ones  # position in `labels`
    reason: _Ones
    scores: _Numbers  # whole: millionths
    margins: _Numbers


def pack(header: MosaicHeader) -> bytes:
    """The header as `unpack` takes it. `header` is checked already (see header.check_header)."""
    regions = header.regions()
    labels, reasons = list(dict.fromkeys(r.label for r in regions)), list(dict.fromkeys(r.reason for r in regions))
    owners = [cell.box for cell in header.cells for _ in cell.regions]
    columns = _Columns(
        frame=header.frame,
        size=header.size,
        labels=labels,
        reasons=list(reasons),
        counts=[len(cell.regions) for cell in header.cells],
        places=_flat(_spans(cell.place) for cell in header.cells),
        cells=_flat(_spans(cell.box) for cell in header.cells),
        views=_flat(_less(_spans(r.view), _spans(box)) for r, box in zip(regions, owners, strict=True)),
        boxes=[_whole(v, _PIXEL, of) for r in regions for v, of in zip(r.box, r.view, strict=True)],
        indices=[b - a for a, b in pairwise([0, *(r.index for r in regions)])],
        label=[labels.index(r.label) for r in regions],
        reason=[reasons.index(r.reason) for r in regions],
        scores=[_whole(r.score, _SHARE) for r in regions],
        margins=[_whole(r.margin, _SHARE) for r in regions],
    )
    return zlib.compress(msgspec.msgpack.encode(columns), 9)


def unpack(data: bytes) -> MosaicHeader:
    """The header in `data`, of which only types and list lengths are checked. Raises RegionError if there is none."""
    if len(data) > MAX_PACKED:
        raise RegionError(f"the packed header has {len(data)} bytes; {MAX_PACKED} are allowed")
    inflating = zlib.decompressobj()
    try:
        plain = inflating.decompress(data, MAX_UNPACKED)
    except zlib.error as error:
        raise RegionError(f"the packed header is damaged ({error})") from error
    if not inflating.eof or inflating.unused_data:
        raise RegionError(f"the packed header is cut short, holds over {MAX_UNPACKED} bytes, or something follows it")
    try:
        columns = msgspec.msgpack.decode(plain, type=_Columns)
        return msgspec.convert(_rows(columns), MosaicHeader)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RegionError(f"the packed header cannot be used ({error})") from error


def _rows(columns: _Columns) -> dict[str, Any]:
    """The header as plain lists. Raises RegionError unless the columns belong together."""
    cells, regions = len(columns.counts), sum(columns.counts)
    lengths = [len(columns.places), len(columns.cells), len(columns.views), len(columns.boxes)]
    lengths += [len(column) for column in (columns.indices, columns.label, columns.reason)]
    lengths += [len(columns.scores), len(columns.margins)]
    if lengths != [4 * cells, 4 * cells, 4 * regions, 4 * regions, *[regions] * 5]:
        raise RegionError(f"the columns of the packed header have the lengths {lengths} for {cells} cells")
    if not all(0 <= i < len(columns.labels) for i in columns.label):
        raise RegionError(f"the packed header names a label that is none of its {len(columns.labels)}")
    if not all(0 <= i < len(columns.reasons) for i in columns.reason):
        raise RegionError(f"the packed header names a reason that is none of its {len(columns.reasons)}")
    boxes = list(_fours(columns.cells))
    owners = [box for box, count in zip(boxes, columns.counts, strict=True) for _ in range(count)]
    views = [_corners(_plus(v, box)) for v, box in zip(_fours(columns.views), owners, strict=True)]
    rows = iter(
        zip(
            accumulate(columns.indices),
            [_boxed(box, view) for box, view in zip(_fours(columns.boxes), views, strict=True)],
            views,
            [columns.labels[i] for i in columns.label],
            [_number(value, _SHARE) for value in columns.scores],
            [_number(value, _SHARE) for value in columns.margins],
            [columns.reasons[i] for i in columns.reason],
            strict=True,
        )
    )
    return {
        "frame": columns.frame,
        "size": columns.size,
        "cells": [
            [_corners(place), _corners(box), list(islice(rows, count))]
            for place, box, count in zip(_fours(columns.places), boxes, columns.counts, strict=True)
        ],
    }


def _whole(value: float, unit: int, less: int = 0) -> Number:
    """`value` in whole 1/`unit`, counted from `less`, if that brings it back exactly; else as it is."""
    if abs(value) < _LARGEST and (whole := round(value * unit)) / unit == value:
        return whole - less * unit
    return value


def _number(value: Number, unit: int, less: int = 0) -> float:
    return value if isinstance(value, float) else (value + less * unit) / unit


def _boxed(box: Sequence[Number], view: Sequence[int]) -> list[float]:
    return [_number(value, _PIXEL, of) for value, of in zip(box, view, strict=True)]


def _spans(box: Sequence[int]) -> tuple[int, ...]:
    left, top, right, bottom = box
    return left, top, right - left, bottom - top


def _corners(spans: Sequence[int]) -> tuple[int, ...]:
    left, top, width, height = spans
    return left, top, left + width, top + height


def _less(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a - b for a, b in zip(one, other, strict=True)]


def _plus(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _fours(column: Sequence[T]) -> list[Sequence[T]]:
    return [column[i : i + 4] for i in range(0, len(column), 4)]


def _flat(boxes: Iterable[Sequence[int]]) -> list[int]:
    return [value for box in boxes for value in box]
