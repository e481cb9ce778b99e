"""Detection in pictures that are too large to be shown to the model at once: tile by tile, and the boxes put together.

An object that lies across the border of a tile is found twice: cut off there, and whole by a neighbour, if the tiles
overlap by at least its size. A cut box may well have the better score, and shares too little with the whole one for
suppression to see that both are one object. So a box that ends at an inner border of its tile goes when a box that
does not, from another tile, covers most of it; the whole box keeps the better of both scores. What only one tile found
stays, cut or not: nothing that was seen is lost.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes import ModelError
from edgekit.services import Pipeline
from edgekit.vision.detection.boxes import Boxes, Detections, areas, intersections, joined, nms, ranked
from edgekit.vision.detection.detector import Detected, Detector
from edgekit.vision.detection.geometry import reduction
from edgekit.vision.images import decode, sniff
from edgekit.vision.pipeline import Box, Size, narrowest, regions

COVERED = 0.6
"""Share of a cut box that a whole one must cover. Models place an edge within some per cent of an object's size."""
REPEATED = 0.5
"""IoU from which boxes of different tiles are one object, for models that need no suppression within one picture."""
BORDER_PIXELS, BORDER_SHARE = 2.0, 0.01
"""A box ends at a border if it comes as near to it as the larger of these, pixels and a share of the tile's side."""


class TiledDetector:
    """A detector behind a service's pipeline of region of interest and tiles. May be called from several threads."""

    def __init__(self, detector: Detector, pipeline: Pipeline) -> None:
        """Raises ModelError for tiles of what must be compared as a whole."""
        if detector.compares_whole and (pipeline.tiles is not None or pipeline.roi):
            raise ModelError(
                f"{detector.package.ref} compares a picture with a golden one as a whole; "
                "its package says what part of it (input.crop), and the service needs no pipeline"
            )
        self._detector, self._pipeline = detector, pipeline

    def detect(self, data: bytes) -> Detected:
        """Detect in a JPEG or PNG; boxes in pixels of the full picture.

        Raises ImageError for a bad picture, one that the region of interest reaches out of, or one that makes more than
        pipeline.MAX_TILES tiles; ModelError for a failing model.
        """
        started = time.perf_counter()
        detector = self._detector
        info = sniff(data)
        tiles = regions(self._pipeline, info.width, info.height)
        whole = info.width, info.height
        image = decode(data, detector.colour, reduce_to=detector.reduce_to(narrowest(tiles, whole)))
        decoded = time.perf_counter()
        parts = [self._tile(image, tile, whole) for tile in tiles]
        spec = detector.spec
        found = merge(
            tiles,
            parts,
            detector.overlap if detector.overlap < 1 else REPEATED,
            class_agnostic=spec.class_agnostic,
            max_candidates=spec.max_candidates,
            max_kept=spec.max_detections,
        )
        ended = time.perf_counter()
        timings = {"decode": (decoded - started) * 1e3, "infer": (ended - decoded) * 1e3}
        found = found.clipped(info.width, info.height)  # a reduced pixel at the edge shows less than the others
        return Detected(found, detector.report, info.width, info.height, timings)

    def _tile(self, image: NDArray[np.uint8], tile: Box, whole: Size) -> Detections:
        """What is found in one tile, in pixels of the full picture."""
        decoded = image.shape[1], image.shape[0]
        across, down = _factors(whole, decoded)
        left, top, right, bottom = decoded_box(tile, whole, decoded)
        found = self._detector.detect_image(image[top:bottom, left:right])
        boxes = (found.boxes + np.array([left, top] * 2, np.float32)) * np.array([across, down] * 2, np.float32)
        return found.placed(boxes)


def decoded_box(box: Box, whole: Size, decoded: Size) -> Box:
    """`box` of a picture of the size `whole` that was decoded at a fraction of it: every pixel that shows a part."""
    across, down = _factors(whole, decoded)
    left, top = box[0] // across, box[1] // down
    return left, top, max(left + 1, -(-box[2] // across)), max(top + 1, -(-box[3] // down))


def _factors(whole: Size, decoded: Size) -> tuple[int, int]:
    return reduction(whole[0], decoded[0]), reduction(whole[1], decoded[1])


def merge(
    tiles: Sequence[Box],
    parts: Sequence[Detections],
    overlap: float,
    *,
    class_agnostic: bool = False,
    max_candidates: int = 1000,
    max_kept: int = 300,
) -> Detections:
    """The detections of all tiles as those of one picture; see the top of this module.

    `parts` are the detections of each of `tiles`, both in pixels of the picture. Repeated boxes are suppressed at an
    IoU of `overlap`. The work is bounded: only the `max_candidates` best boxes are looked at.
    """
    if len(tiles) == 1:
        return parts[0]
    everything = joined(parts)
    # `joined` ranks as this does, so the flags follow their boxes.
    order = np.argsort(-np.concatenate([part.scores for part in parts]), kind="stable")[:max_candidates]
    found = everything.take(np.arange(len(order)))
    cut = np.concatenate([_cut(part.boxes, tile, tiles) for part, tile in zip(parts, tiles, strict=True)])[order]
    origin = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]
    found, stays = _without_cut(found, cut, origin, class_agnostic)
    kept = nms(
        found.boxes[stays],
        found.scores[stays],
        found.labels[stays],
        overlap,
        class_agnostic=class_agnostic,
        max_candidates=max_candidates,
        max_kept=max_kept,
    )
    rows = stays[kept]
    return ranked(found.boxes[rows], found.scores[rows], found.labels[rows], found.margins[rows])


def _without_cut(
    found: Detections, cut: NDArray[np.bool_], origin: NDArray[np.intp], class_agnostic: bool
) -> tuple[Detections, NDArray[np.intp]]:
    """The boxes with the scores that they inherit, and the rows of those that stay."""
    scores, labels, margins = found.scores.copy(), found.labels.copy(), found.margins.copy()
    whole = np.flatnonzero(~cut)
    size = areas(found.boxes)
    stays = np.ones(len(found), bool)
    for row in np.flatnonzero(cut):  # the best first, so a whole box inherits the best
        others = whole[origin[whole] != origin[row]]
        if not class_agnostic:
            others = others[found.labels[others] == found.labels[row]]
        shared = intersections(found.boxes[row : row + 1], found.boxes[others])[0]
        if not len(others) or shared.max() < COVERED * size[row]:
            continue
        stays[row] = False
        heir = others[shared.argmax()]
        if scores[row] > scores[heir]:
            scores[heir], labels[heir], margins[heir] = scores[row], labels[row], margins[row]
    return Detections(found.boxes, scores, labels, margins), np.flatnonzero(stays)


def _cut(boxes: Boxes, tile: Box, tiles: Sequence[Box]) -> NDArray[np.bool_]:
    """Which boxes end at a border of their tile beyond which another tile sees more."""
    left, top, right, bottom = tile
    near_x = max(BORDER_PIXELS, BORDER_SHARE * (right - left))
    near_y = max(BORDER_PIXELS, BORDER_SHARE * (bottom - top))
    cut = np.zeros(len(boxes), bool)
    if any(other[0] < left for other in tiles):
        cut |= boxes[:, 0] <= left + near_x
    if any(other[1] < top for other in tiles):
        cut |= boxes[:, 1] <= top + near_y
    if any(other[2] > right for other in tiles):
        cut |= boxes[:, 2] >= right - near_x
    if any(other[3] > bottom for other in tiles):
        cut |= boxes[:, 3] >= bottom - near_y
    return cut
