"""Cut-outs packed into one picture, and unpacked on the other side.

Each cell begins on a border of JPEG blocks and is filled up to the next one by repeating its last row and column. A
JPEG is coded without colour subsampling (4:4:4). With 4:2:0 the usual decoders interpolate colour across borders of
blocks, so that the outermost pixel of a cell takes up to 199 levels of its neighbour's colour however it is aligned; a
seam of two pixels against that costs more bytes than 4:4:4 does. Decoded pixels of a cell depend on that cell alone.

A grey mosaic may be a lossy WebP instead, where the other side takes it. A WebP is not coded block by block: what lies
beside a cell decides which rounding errors it gets, though none of its light. For colour WebP knows 4:2:0 only, so a
coloured mosaic stays a JPEG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekit.regions.cutouts import ALIGN, LONGEST, CutOut, cut_outs, mapped
from edgekit.regions.header import (
    MAX_MOSAIC,
    MAX_REGIONS,
    Cell,
    IntBox,
    MosaicHeader,
    Region,
    RegionError,
    Size,
    check_header,
)
from edgekit.vision.images import Colour, ImageError

LIMIT = 2048
"""Pixels of a mosaic's longer side, unless the caller says otherwise."""
QUALITY = 90
"""Of the JPEG. Measured on 984 patches of pcb-bare, ten a mosaic, with a plain classifier on random features of edges:
from 80 on it is as often right as on raw pixels, and about 1.5 points less at 75 and below; 85, 90 and 95 change 8.6,
7.7 and 5.9 % of its labels for 589, 691 and 895 bytes a region."""
WEBP_LESS = 10
"""By so much less is the quality of a WebP that stands for a JPEG. Three boards of pcb-bare as JPEGs of quality 80, 85
and 90 are 44.7, 46.2 and 49.9 dB from what they show and have 17.1, 18.4 and 20.3 kB; as WebPs of 70, 75 and 80 they
are 48.2, 48.8 and 50.3 dB from it and have 5.4, 5.5 and 5.9 kB. Of 372 doubtful tiles that come in mosaics of quality
90, a trained classifier calls 0.3 % otherwise than in the frames themselves (JPEGs of 90, which a JPEG repeats almost
bit by bit) with 680 bytes a tile, as WebP 1.1 % with 226; in JPEGs of quality 75 it is 2.2 % with 511. To encode 13 to
25 tiles takes 3.5 to 8 ms instead of 0.6 to 1 ms."""
SHRINK = 0.8  # one step of making all cells smaller until they fit
_WIDTHS = (1.0, 1.15, 1.3, 1.5, 1.8, 2.2)  # widths that are tried, in units of a square's
_UNSAMPLED = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, cv2.IMWRITE_JPEG_OPTIMIZE, 1)
_ROUNDING = 1e-6  # pixels; a border that is whole but for floating point stays where it is

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Mosaic:
    """`image` has the frame's channels; `header` says what is where."""

    image: Pixels
    header: MosaicHeader

    def encode(self, quality: int = QUALITY, colour: Colour = "rgb", *, webp: bool = False) -> bytes:
        """As a JPEG of `quality` 1..100, 4:4:4; with `webp` a grey one as a lossy WebP that loses about as much.

        `colour` is the order of the frame's channels. Raises ImageError.
        """
        image = self.image
        if image.ndim == 3 and (image == image[:, :, :1]).all():  # grey; two planes without content cost 16 %
            image = np.ascontiguousarray(image[:, :, 0])
        if webp and image.ndim == 2:
            return _encoded(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, max(1, quality - WEBP_LESS)])
        if image.ndim == 3 and colour == "rgb":
            image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8)
        return _encoded(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality, *_UNSAMPLED])


def compose(frame: Pixels, regions: Sequence[Region], limit: int = LIMIT, longest: int = LONGEST) -> Mosaic:
    """Cut the regions' views out of `frame` (uint8, HxW or HxWx3) and pack them; the same in, the same out.

    Views that share many pixels become one cell. A cell longer than `longest` is scaled down to it, and if all of them
    together do not fit into `limit` x `limit` pixels, all are made smaller until they do; what was scaled shows in each
    cell's two sizes. Raises RegionError for no region or too many, or one whose view or values are impossible, and
    ValueError for a limit under 512 or over MAX_MOSAIC.
    """
    if not 512 <= limit <= MAX_MOSAIC:  # 512: room for MAX_REGIONS of the smallest cells
        raise ValueError(f"a mosaic's limit lies from 512 to {MAX_MOSAIC} pixels, not {limit}")
    if not 0 < len(regions) <= MAX_REGIONS:
        raise RegionError(f"a mosaic holds 1 to {MAX_REGIONS} regions, not {len(regions)}")
    height, width = frame.shape[:2]
    cuts = cut_outs([region.view for region in regions], longest)
    cells, size = _placed(cuts, regions, limit, longest)
    header = MosaicHeader(frame=(width, height), size=size, cells=cells)
    check_header(header)
    image = np.zeros((size[1], size[0], *frame.shape[2:]), np.uint8)
    for cell in cells:
        _draw(image, frame, cell)
    return Mosaic(image, header)


def whole(size: Size, regions: Sequence[Region]) -> MosaicHeader:
    """The header of a frame of `size` that is sent as it is, because its mosaic would take more bytes: one cell."""
    frame = (0, 0, *size)
    return MosaicHeader(frame=size, size=size, cells=[Cell(place=frame, box=frame, regions=list(regions))])


def cells(image: Pixels, header: MosaicHeader) -> list[Pixels]:
    """The pixels of each cell of a decoded mosaic, as views of `image`, in the header's order.

    Checks the header (see `check_header`). Raises RegionError if the picture has another size than the header says.
    """
    check_header(header)
    height, width = image.shape[:2]
    if (width, height) != tuple(header.size):
        raise RegionError(f"the mosaic has {width}x{height} pixels, its header says {header.size[0]}x{header.size[1]}")
    return [_cut(image, cell.place) for cell in header.cells]


def views(image: Pixels, header: MosaicHeader) -> list[tuple[Region, Pixels]]:
    """What a classifier is to look at for each region, cell by cell, as views of `image`.

    In a scaled cell the region's view is rounded to whole pixels outwards. Raises RegionError as `cells` does.
    """
    cells(image, header)
    seen = []
    for cell in header.cells:
        for region, place in zip(cell.regions, to_cell(cell, [r.view for r in cell.regions]), strict=True):
            x, y = cell.place[:2]
            left, top = (math.floor(v + _ROUNDING) for v in place[:2])
            right, bottom = (math.ceil(v - _ROUNDING) for v in place[2:])
            seen.append((region, _cut(image, (x + left, y + top, x + right, y + bottom))))
    return seen


def to_cell(cell: Cell, boxes: ArrayLike) -> NDArray[np.float64]:
    """Boxes (n, 4) of the frame, in pixels of the cell's picture as `cells` gives it."""
    return mapped(boxes, cell.box, _own(cell))


def to_frame(cell: Cell, boxes: ArrayLike) -> NDArray[np.float64]:
    """Boxes (n, 4) in pixels of the cell's picture, in pixels of the frame; clipped to what the cell shows."""
    left, top, right, bottom = cell.box
    return np.clip(mapped(boxes, _own(cell), cell.box), [left, top, left, top], [right, bottom, right, bottom])


def pack(sizes: Sequence[Size], limit: int) -> tuple[Size, list[tuple[int, int]]] | None:
    """Left top corners for rectangles of these sizes (width, height), without overlap, and the size of the whole.

    Corners are multiples of ALIGN. Rows of falling height, of several widths the one with the smallest area ("shelf
    next fit decreasing height", Coffman et al. 1980). None if nothing fits into `limit` x `limit`.
    """
    slots = [(_aligned(w), _aligned(h)) for w, h in sizes]
    order = sorted(range(len(slots)), key=lambda i: (-slots[i][1], -slots[i][0], i))
    widest, square = max(w for w, _ in slots), math.sqrt(sum(w * h for w, h in slots))
    best: tuple[Size, list[tuple[int, int]]] | None = None
    for width in sorted({max(widest, _aligned(math.ceil(square * f))) for f in _WIDTHS} | {limit // ALIGN * ALIGN}):
        if not widest <= width <= limit:
            continue
        corners = [(0, 0)] * len(slots)
        x = y = row = used = 0
        for i in order:
            w, h = slots[i]
            if x + w > width:
                x, y = 0, y + row
            if x == 0:
                row = h
            corners[i] = (x, y)
            x += w
            used = max(used, x)
        if y + row <= limit and (best is None or used * (y + row) < math.prod(best[0])):
            best = (used, y + row), corners
    return best


def _encoded(suffix: str, image: Pixels, parameters: Sequence[int]) -> bytes:
    ok, encoded = cv2.imencode(suffix, image, parameters)
    if not ok:
        raise ImageError("the mosaic cannot be encoded")
    return bytes(encoded)


def _placed(cuts: Sequence[CutOut], regions: Sequence[Region], limit: int, longest: int) -> tuple[list[Cell], Size]:
    boxes = [(*cut.box, cut.box[2] - cut.box[0], cut.box[3] - cut.box[1]) for cut in cuts]
    factor = 1.0
    while True:
        sizes = []
        for *_, w, h in boxes:
            scale = min(1.0, longest / max(w, h, 1)) * factor
            sizes.append((max(1, math.ceil(w * scale - _ROUNDING)), max(1, math.ceil(h * scale - _ROUNDING))))
        packed = pack(sizes, limit)
        if packed is not None:
            break
        factor *= SHRINK
    size, corners = packed
    return [
        Cell(place=(x, y, x + w, y + h), box=cut.box, regions=[regions[i] for i in cut.members])
        for cut, (x, y), (w, h) in zip(cuts, corners, sizes, strict=True)
    ], size


def _draw(image: Pixels, frame: Pixels, cell: Cell) -> None:
    left, top, right, bottom = cell.place
    across, down = right - left, bottom - top
    pixels = _cut(frame, cell.box)
    if pixels.shape[:2] != (down, across):
        pixels = np.asarray(cv2.resize(pixels, (across, down), interpolation=cv2.INTER_AREA), np.uint8)
    slot = cv2.copyMakeBorder(
        pixels, 0, _aligned(down) - down, 0, _aligned(across) - across, borderType=cv2.BORDER_REPLICATE
    )
    image[top : top + slot.shape[0], left : left + slot.shape[1]] = slot


def _cut(image: Pixels, box: IntBox) -> Pixels:
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def _own(cell: Cell) -> IntBox:
    left, top, right, bottom = cell.place
    return 0, 0, right - left, bottom - top


def _aligned(length: int) -> int:
    return -(-length // ALIGN) * ALIGN
