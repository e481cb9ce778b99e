"""A service's own pipeline in front of a classifier: a region of interest, tiles, and one answer of all tiles.

The order is: decode, cut out the region of interest, cut that into tiles, and then for each tile what the package says
(its own crop, resize, normalisation), the model, and at last one answer of all tiles.

How certain the whole is. "worst": the deciding tiles are those with the picture's label, and the picture gets score,
margin and probabilities of the least certain of them. A board that is "normal" only because every tile is, is as
certain as its most doubtful tile. "mean": margin and score are those of the mean of the probabilities. The gate's
certificate needs no particular definition: it is proved on whatever this gives, and a better one only sends less.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgekit.services import Pipeline, Tiles
from edgekit.vision.classification import Classified, Classifier, likeliest
from edgekit.vision.images import ImageError, decode, sniff
from edgekit.vision.preprocess import fraction_box

MAX_TILES = 256
"""Tiles of one picture: bounded work, and more would outlast every deadline."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom lie outside."""
Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Tiled:
    """A classifier's answers to the tiles of one picture."""

    width: int  # of the full picture, pixels
    height: int
    answers: list[Classified]  # row by row, one at least; each with its `region` in pixels of the full picture
    timings_ms: dict[str, float] = field(default_factory=dict)  # decode (with pre-processing), infer


class Pipelined:
    """A classifier behind a service's pipeline. Methods may be called from several threads."""

    def __init__(self, classifier: Classifier, pipeline: Pipeline) -> None:
        self._classifier, self._pipeline = classifier, pipeline

    def classify(self, data: bytes) -> Classified:
        """Classify a JPEG or PNG: one answer of all tiles. Raises as `regions` does."""
        tiled = self.regions(data)
        answer = aggregate(tiled.answers, self._pipeline.tiles, self._classifier.labels)
        answer.timings_ms.update(tiled.timings_ms)
        return answer

    def regions(self, data: bytes) -> Tiled:
        """The answer to each tile of a JPEG or PNG; without tiles, to the region of interest.

        Raises ImageError for a bad picture, one that the region of interest reaches out of, or one that makes more than
        MAX_TILES tiles; ModelError for a failing model.
        """
        started = time.perf_counter()
        model = self._classifier
        info = sniff(data)
        boxes = regions(self._pipeline, info.width, info.height)
        whole = info.width, info.height
        image = decode(data, model.colour, reduce_to=model.reduce_to(narrowest(boxes, whole)))
        decoded = image.shape[1], image.shape[0]
        decode_s, infer_s = time.perf_counter() - started, 0.0
        answers = []
        for box in boxes:
            started = time.perf_counter()
            left, top, right, bottom = decoded_box(box, whole, decoded)
            tensor = model.image_tensor(image[top:bottom, left:right])
            prepared = time.perf_counter()
            answers.append(replace(model.classify_tensor(tensor), region=box))
            decode_s += prepared - started
            infer_s += time.perf_counter() - prepared
        return Tiled(info.width, info.height, answers, {"decode": decode_s * 1e3, "infer": infer_s * 1e3})


def regions(pipeline: Pipeline, width: int, height: int) -> list[Box]:
    """The parts of a picture of this size that the model sees, row by row. Raises ImageError if it does not fit."""
    whole = _region_of_interest(pipeline, width, height)
    tiles = pipeline.tiles
    if tiles is None:
        return [whole]
    left, top, right, bottom = whole
    columns = _steps(right - left, tiles.width, tiles.overlap)
    rows = _steps(bottom - top, tiles.height, tiles.overlap)
    if len(columns) * len(rows) > MAX_TILES:
        raise ImageError(
            f"{right - left}x{bottom - top} pixels make {len(columns) * len(rows)} tiles of "
            f"{tiles.width}x{tiles.height}; {MAX_TILES} are allowed"
        )
    return [(left + x, top + y, left + x_end, top + y_end) for y, y_end in rows for x, x_end in columns]


def _region_of_interest(pipeline: Pipeline, width: int, height: int) -> Box:
    roi = pipeline.roi
    if not roi:
        return 0, 0, width, height
    if pipeline.roi_unit == "fraction":
        return fraction_box(roi, width, height)
    left, top, right, bottom = (int(value) for value in roi)
    if right > width or bottom > height:
        raise ImageError(
            f"the region of interest reaches to {right}x{bottom}, outside of this picture of {width}x{height} pixels"
        )
    return left, top, right, bottom


def _steps(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Where tiles of `size` begin and end along one side.

    Neighbours share `overlap` pixels. The last one ends at the edge and shares more, so that every tile has its full
    size and no pixel is left out; a side shorter than a tile is one tile.
    """
    if length <= size:
        return [(0, length)]
    starts = [*range(0, length - size, size - overlap), length - size]
    return [(start, start + size) for start in starts]


def narrowest(boxes: Sequence[Box], whole: Size) -> tuple[float, float]:
    """The shares of a picture's width and height that the narrowest and the lowest of its parts have."""
    width = min(right - left for left, _, right, _ in boxes)
    height = min(bottom - top for _, top, _, bottom in boxes)
    return width / whole[0], height / whole[1]


def decoded_box(box: Box, whole: Size, decoded: Size) -> Box:
    """`box` of a picture of the size `whole` that was decoded at a fraction of it; one pixel at least stays."""
    if whole == decoded:
        return box
    across, down = decoded[0] / whole[0], decoded[1] / whole[1]
    left, top = int(box[0] * across), int(box[1] * down)
    return left, top, max(left + 1, round(box[2] * across)), max(top + 1, round(box[3] * down))


def aggregate(answers: Sequence[Classified], tiles: Tiles | None, labels: Sequence[str]) -> Classified:
    """One answer of the tiles' answers, of which there is one at least; see the top of this module.

    With "worst", labels that `tiles.worst` does not name come after all that it names, in the model's order.
    """
    if tiles is None or (len(answers) == 1 and tiles.aggregate == "mean"):
        return answers[0]
    if tiles.aggregate == "mean":
        mean = np.stack([answer.probabilities for answer in answers]).mean(axis=0, dtype=np.float64)
        return likeliest(np.asarray(mean, np.float32), labels)
    order = [label for label in tiles.worst if label in labels]
    order += [label for label in labels if label not in order]
    rank = {label: place for place, label in enumerate(order)}
    worst = min(rank[answer.label] for answer in answers)
    return min((answer for answer in answers if rank[answer.label] == worst), key=lambda answer: answer.margin)
