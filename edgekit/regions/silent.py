"""A random look at frames in which the edge found nothing at all.

No candidate means that no region can be doubtful, so without this a model that has gone blind would send nothing and
look perfect. A silent frame is not an easy frame. A share of the silent frames is drawn at random and sent, either
whole (scaled down in the mosaic: what is small is not seen), or as a few pieces of full size at random places (what
lies elsewhere is not seen). These frames are no samples of the gate: what they show is counted and bounded here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.regions.header import IntBox, Region
from edgekit.regions.select import SURE

_GRID = 1 << 13  # steps across in which a random place is drawn
_STEP_X, _STEP_Y = 0.7548776662466927, 0.5698402909980532


@dataclass(frozen=True)
class SilentRules:
    """How silent frames are looked at. Raises ValueError for a rate outside 0..1 or no pieces."""

    rate: float = 0.02  # share of the silent frames
    look: Literal["frame", "pieces"] = "frame"
    pieces: int = 4  # a frame, with look = "pieces"
    side: int = 128  # pixels of a piece, or the whole side of a smaller frame

    def __post_init__(self) -> None:
        if not (0.0 <= self.rate <= 1.0 and 1 <= self.pieces <= 64 and self.side >= 8):
            raise ValueError(
                f"a rate from 0 to 1, 1 to 64 pieces and a side of 8 pixels or more are needed, not {self.rate}, "
                f"{self.pieces} and {self.side}"
            )


def audit(rules: SilentRules, width: int, height: int, u: float) -> list[IntBox]:
    """The parts of a silent frame to be sent; none for most frames.

    `u`: a fresh uniform random number in [0, 1). It decides whether (u < rate), and what is left of it decides where:
    the first piece's place is uniform in the frame, the others follow it by the R2 sequence (Roberts 2018), modulo the
    frame, so each of them is uniform as well and they keep apart. Pieces may overlap in small frames.
    """
    if not u < rules.rate:
        return []
    if rules.look == "frame":
        return [(0, 0, width, height)]
    fine = u / rules.rate * _GRID
    x, y = math.floor(fine) / _GRID, fine - math.floor(fine)
    across, down = min(rules.side, width), min(rules.side, height)
    boxes = []
    for i in range(rules.pieces):
        left = int((x + i * _STEP_X) % 1.0 * (width - across + 1))
        top = int((y + i * _STEP_Y) % 1.0 * (height - down + 1))
        boxes.append((left, top, left + across, top + down))
    return boxes


def questions(boxes: Sequence[IntBox], label: str) -> list[Region]:
    """The regions to be sent for an audit's boxes. `label` says that nothing is there: NOTHING, or a label of the
    classifier that answers, such as "clean"."""
    return [
        Region(index=i, box=box, view=box, label=label, score=SURE, margin=SURE, reason="silent")
        for i, box in enumerate(boxes)
    ]


class SilentTally(msgspec.Struct, frozen=True, kw_only=True):
    """What the looks at silent frames have shown; stored with the gate."""

    frames: int = 0  # looked at and answered
    found: int = 0  # of them: the cloud found something

    def __post_init__(self) -> None:
        if not 0 <= self.found <= self.frames:
            raise ValueError(f"{self.found} of {self.frames} frames is no tally")

    def add(self, found: bool) -> SilentTally:
        """Count one answered frame."""
        return SilentTally(frames=self.frames + 1, found=self.found + found)

    def bound(self, confidence: float) -> float | None:
        """Upper bound of the share of silent frames in which the cloud would find something; None before any look.

        Clopper-Pearson; holds with `confidence` for the looks as they are done, not for what they cannot see.
        """
        return clopper_pearson_upper(self.found, self.frames, 1 - confidence) if self.frames else None

    def sentence(self, confidence: float) -> str:
        """For people."""
        bound = self.bound(confidence)
        if bound is None:
            return "No frame without a finding was looked at yet."
        return (
            f"Frames without a finding: {self.frames:,} looked at, {self.found:,} of them with something in it; "
            f"at most {bound:.1%} of all such frames, at {confidence:.0%} confidence."
        )
