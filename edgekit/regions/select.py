"""Which regions of a frame are candidates, and about which of them the gate is asked.

Candidates are all tiles of a picture, or all boxes of a detector from a low floor on. The boxes under the detector's
threshold belong to them: there the edge decided that nothing is to be found, and if only found things could be sent, a
missed defect would never leave the device.

The gate is asked about each chosen candidate, and decides which are sent. A frame has a bound of chosen ones; beyond
it the hardest are chosen. The rest are no samples of the gate: the edge's answer stands, no certificate covers it, and
the frame says so. The gate's traffic is therefore "the chosen regions of all frames", and a certificate is about that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgekit.gates.scores import hardness
from edgekit.regions.header import MAX_INDEX, MAX_REGIONS, NOTHING, FloatBox, IntBox
from edgekit.vision.detection.boxes import Detections

FLOOR = 0.05
"""Boxes with a lower score are no candidates (the floor of the region experiments, algorithms.md 1.3)."""
SURE = 1.0 - FLOOR
"""Score and margin of NOTHING where a detector has no box at all from its floor on."""
MOST_ASKED = 64
"""Candidates of one frame about which the gate is asked, unless the caller says otherwise."""


@dataclass(frozen=True)
class Candidate:
    """A part of a frame and what the edge decided about it."""

    box: FloatBox
    label: str  # NOTHING for a box under the threshold
    score: float  # probability of `label`
    margin: float  # how far the decision was from another one, 0..1


@dataclass(frozen=True)
class Selection:
    """Positions in the list of candidates. `asked` and `rest` together hold each of them once."""

    asked: list[int]  # in reading order: top to bottom, then left to right
    rest: list[int]  # as they came


class TileAnswer(Protocol):
    """A classifier's answer to one part of a picture: edgekit.vision's Classified."""

    @property
    def label(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def margin(self) -> float: ...
    @property
    def region(self) -> IntBox | None: ...


def from_tiles(answers: Sequence[TileAnswer]) -> list[Candidate]:
    """Every tile is a candidate, whatever its score. Raises ValueError for an answer without a region."""
    candidates = []
    for answer in answers:
        if answer.region is None:
            raise ValueError("a tile's answer has no region")
        candidates.append(Candidate(answer.region, answer.label, answer.score, answer.margin))
    return candidates


def from_detections(
    found: Detections, names: Sequence[str], report: float, width: int, height: int, floor: float = FLOOR
) -> list[Candidate]:
    """A candidate for every box with a score of `floor` or more, in the detector's order, clipped to the frame.

    `report` is the score from which a box counts, the one that the detections' margins were made with. A box below it
    is decided as NOTHING, with the probability 1 - score. Boxes are rounded to 1/100 pixel; one that is not finite, or
    has no area inside the frame, is no candidate. Raises ValueError unless 0 <= floor <= report < 1 and report > 0.
    """
    if not (0.0 <= floor <= report < 1.0 and report > 0.0):
        raise ValueError(f"0 <= floor <= report < 1 and report > 0 are needed, not {floor} and {report}")
    candidates = []
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.margins.tolist(), strict=True)
    for corners, raw, label, margin in rows:
        if not (raw >= floor and all(math.isfinite(value) for value in corners)):
            continue
        left, top, right, bottom = (round(value, 2) for value in corners)
        box = (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
        if not (box[0] < box[2] and box[1] < box[3]):
            continue
        score = min(1.0, raw)
        decided, probability = (names[label], score) if score >= report else (NOTHING, 1.0 - score)
        candidates.append(Candidate(box, decided, probability, margin))
    return candidates[:MAX_INDEX]


def select(candidates: Sequence[Candidate], most: int = MOST_ASKED) -> Selection:
    """Choose at most `most` candidates, the hardest first (of equal ones those that come first).

    The chosen ones come in reading order, not by hardness: a calibration block ends where it ends, often in the middle
    of a frame, and must not have taken the hardest part of it. Raises ValueError unless 1 <= most <= MAX_REGIONS.
    """
    if not 1 <= most <= MAX_REGIONS:
        raise ValueError(f"from 1 to {MAX_REGIONS} regions of a frame can be asked about, not {most}")
    hardest = sorted(range(len(candidates)), key=lambda i: -hardness(candidates[i].margin))
    chosen = set(hardest[:most])
    asked = sorted(chosen, key=lambda i: (candidates[i].box[1], candidates[i].box[0], i))
    return Selection(asked, [i for i in range(len(candidates)) if i not in chosen])
