"""What travels beside a mosaic and comes back as its answer, with every size bounded.

A *cell* is a cut-out of the frame with its place in the mosaic. A *region* is one question about a part of a cell, so
two regions that share pixels share a cell and are still answered apart. Boxes of regions, cells and answers are in
pixels of the full frame; only `Cell.place` is in pixels of the mosaic.

Regions, cells and answers travel as lists without names, which halves a header; a field may only be added at their end,
and an older peer ignores it. This module imports neither numpy nor OpenCV, so messages can hold these Structs anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit.vision import MAX_PIXELS

MAX_REGIONS = 256
"""Regions of one mosaic: as many as a picture may have tiles (edgekit.vision.pipeline)."""
MAX_INDEX = 1 << 16
MAX_MOSAIC = 4096
"""Pixels of a mosaic's longer side."""
MAX_FOUND = 1024
"""Boxes that one answer may hold."""
MAX_LABEL = 256

Int = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
IntBox = tuple[Int, Int, Int, Int]
FloatBox = tuple[float, float, float, float]
Size = tuple[int, int]
"""Width, height in pixels."""

Label = Annotated[str, Meta(max_length=MAX_LABEL)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
RegionReason = Literal["hard", "audit", "calibrating", "safe-mode", "silent"]
"""Why a region is sent: the gate's reasons, and `silent` for a look at a frame in which nothing was found."""

NOTHING = ""
"""The label of a region in which nothing is found."""


class RegionError(ValueError):
    """A header, an answer or a box cannot be used; the message names what is wrong and what is allowed."""


class Region(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One part of the frame with the edge's own answer, and the question whether the cloud agrees."""

    index: Annotated[int, Meta(ge=0, lt=MAX_INDEX)]  # its sample id is FRAME#index
    box: FloatBox  # the edge's box, or the tile; frame pixels
    view: IntBox  # what a classifier is to look at: the box with its context, clipped to the frame
    label: Label  # what the edge decided; NOTHING for a box under its threshold
    score: Share  # probability of the label
    margin: Share
    reason: RegionReason


class Cell(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A cut-out: `box` of the frame, drawn at `place` in the mosaic, scaled where the sizes differ."""

    place: IntBox
    box: IntBox
    regions: Annotated[list[Region], Meta(min_length=1, max_length=MAX_REGIONS)]

    @property
    def scale(self) -> tuple[float, float]:
        """Mosaic pixels per frame pixel, across and down; at most 1."""
        (a, b, c, d), (left, top, right, bottom) = self.place, self.box
        return (c - a) / (right - left), (d - b) / (bottom - top)


class MosaicHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything about a mosaic but its pixels."""

    frame: Size
    size: Size  # of the mosaic
    cells: Annotated[list[Cell], Meta(min_length=1, max_length=MAX_REGIONS)]

    def regions(self) -> list[Region]:
        """All regions, cell by cell."""
        return [region for cell in self.cells for region in cell.regions]


class RegionAnswer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A classifier's answer to one region."""

    index: int  # Region.index
    label: Label
    score: Share
    margin: Share


class Found(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A candidate of the cloud's detector in a cell, its box mapped to the frame already (see regions.select)."""

    cell: int  # position in MosaicHeader.cells
    box: FloatBox
    label: Label  # NOTHING for one under the score that counts there
    score: Share
    margin: Share


class MosaicAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The cloud's answer to a mosaic: one `RegionAnswer` for each region, or what a detector found in all cells."""

    task: Literal["classification", "detection"]
    regions: Annotated[list[RegionAnswer], Meta(max_length=MAX_REGIONS)] = []
    found: Annotated[list[Found], Meta(max_length=MAX_FOUND)] = []


def check_header(header: MosaicHeader) -> None:
    """Raise RegionError unless every cell lies inside the mosaic, alone in its place, and inside the frame, every
    region's view inside its cell, no cell is enlarged, and all numbers are finite and in range.

    Types and list lengths of decoded JSON are msgspec's work; they are checked here again, because a header may have
    been made in another way.
    """
    (width, height), (across, down) = header.frame, header.size
    if not (min(width, height) > 0 and width * height <= MAX_PIXELS):
        raise RegionError(f"the frame has {width}x{height} pixels; 1 to {MAX_PIXELS} are allowed")
    if not (0 < across <= MAX_MOSAIC and 0 < down <= MAX_MOSAIC):
        raise RegionError(f"the mosaic has {across}x{down} pixels; {MAX_MOSAIC}x{MAX_MOSAIC} are allowed")
    regions = header.regions()
    if not 0 < len(regions) <= MAX_REGIONS or not all(cell.regions for cell in header.cells):
        raise RegionError(
            f"{len(header.cells)} cells hold {len(regions)} regions; 1 to {MAX_REGIONS} are allowed, 1 a cell at least"
        )
    for number, cell in enumerate(header.cells):
        _check_cell(f"cell {number}", cell, header)
    _check_apart([cell.place for cell in header.cells])
    if len({region.index for region in regions}) != len(regions):
        raise RegionError("two regions have one index")
    for region in regions:
        _check_region(region, header.frame)


def check_answer(header: MosaicHeader, answer: MosaicAnswer) -> None:
    """Raise RegionError unless `answer` fits `header` (which is checked already).

    A classifier's answer names every region exactly once; a detector's boxes lie inside their cells.
    """
    if answer.task == "classification":
        asked, answered = (sorted(r.index for r in regions) for regions in (header.regions(), answer.regions))
        if asked != answered:
            raise RegionError(f"the answer is about the regions {answered[:10]}, asked were {asked[:10]}")
        for region in answer.regions:
            _check_verdict(f"region {region.index}", region.label, region.score, region.margin)
        return
    if len(answer.found) > MAX_FOUND:
        raise RegionError(f"the answer holds {len(answer.found)} boxes; {MAX_FOUND} are allowed")
    for number, found in enumerate(answer.found):
        name = f"box {number}"
        if not 0 <= found.cell < len(header.cells):
            raise RegionError(f"{name} is in cell {found.cell}; there are {len(header.cells)}")
        _check_box(name, found.box, header.cells[found.cell].box, "its cell")
        _check_verdict(name, found.label, found.score, found.margin)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes share."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return across * down if across > 0 and down > 0 else 0.0


def _check_apart(places: Sequence[IntBox]) -> None:
    """No two overlap; from top to bottom, so that a cell meets only those that begin beside it."""
    order = sorted(range(len(places)), key=lambda i: places[i][1])
    for position, one in enumerate(order):
        for other in order[position + 1 :]:
            if places[other][1] >= places[one][3]:
                break
            if overlap(places[one], places[other]) > 0:
                raise RegionError(f"cells {min(one, other)} and {max(one, other)} overlap in the mosaic")


def _check_cell(name: str, cell: Cell, header: MosaicHeader) -> None:
    _check_box(f"{name}'s place", cell.place, (0, 0, *header.size), "the mosaic")
    _check_box(name, cell.box, (0, 0, *header.frame), "the frame")
    if max(cell.scale) > 1.0:
        raise RegionError(f"{name} is larger in the mosaic than in the frame: {cell.place} for {cell.box}")
    for region in cell.regions:
        _check_box(f"the view of region {region.index}", region.view, cell.box, "its cell")


def _check_region(region: Region, frame: Size) -> None:
    name = f"region {region.index}"
    if not 0 <= region.index < MAX_INDEX:
        raise RegionError(f"{name}: an index from 0 to {MAX_INDEX - 1} belongs there")
    _check_box(name, region.box, (0, 0, *frame), "the frame")
    _check_verdict(name, region.label, region.score, region.margin)


def _check_box(name: str, box: Sequence[float], limits: IntBox, inside: str) -> None:
    """`box` has an area and lies inside `limits`."""
    left, top, right, bottom = box
    if not all(math.isfinite(value) for value in box):
        raise RegionError(f"{name} is {tuple(box)}: finite numbers belong there")
    if not (left < right and top < bottom):
        raise RegionError(f"{name} is {tuple(box)}: left < right and top < bottom belong there")
    if not (limits[0] <= left and limits[1] <= top and right <= limits[2] and bottom <= limits[3]):
        raise RegionError(f"{name} is {tuple(box)}, outside of {inside}, which is {limits}")


def _check_verdict(name: str, label: str, score: float, margin: float) -> None:
    if len(label) > MAX_LABEL:
        raise RegionError(f"{name} has a label of {len(label)} characters; {MAX_LABEL} are allowed")
    if not (0.0 <= score <= 1.0 and 0.0 <= margin <= 1.0):  # false for NaN as well
        raise RegionError(f"{name} has the score {score} and the margin {margin}; both must lie between 0 and 1")
