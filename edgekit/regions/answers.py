"""The cloud's answers merged into a frame's regions, and the one decision of the frame.

What a detector on the cloud says about a cell is matched with the regions that were asked in it, by overlap alone: the
label may be another one.

- A matched region becomes the cloud's box, label, score and margin.
- A region that the cloud does not confirm becomes NOTHING, decided by the cloud. Its box stays on record.
- A box that the cloud found and nobody had asked about is added, unless it is mostly part of something that is known
  already: a neighbour of which the cut-out shows a piece, or one object seen in two cells.
- A region that was not asked keeps the edge's answer, whatever the cloud saw of it by the way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.gates.policy import GateDecision
from edgekit.messages import DecidedAt
from edgekit.regions.header import NOTHING, FloatBox, Found, MosaicAnswer, MosaicHeader, Region, overlap
from edgekit.regions.select import SURE, Candidate
from edgekit.vision.detection.boxes import iou

MATCH = 0.3
"""IoU from which a box of the cloud is an answer to a region. Under the usual 0.5, because the edge's boxes are rough:
of a defect of 10 x 10 pixels, a box that is off by 3 pixels both ways has 0.32."""
KNOWN = 0.5
"""A box of which this share lies in a known finding is a part of that and no finding of its own."""


@dataclass(frozen=True)
class Outcome:
    """The cloud's answer to one region."""

    region: Region
    box: FloatBox
    label: str
    score: float
    margin: float
    differs: bool  # from what the edge decided


@dataclass(frozen=True)
class FrameRegion:
    """A part of the frame with its final answer."""

    index: int | None  # position among the candidates; None: not one of them, added by the cloud
    box: FloatBox
    label: str  # NOTHING: there is nothing
    score: float
    margin: float
    decided: DecidedAt
    certified: bool  # a certificate of the gate covers this local answer


@dataclass(frozen=True)
class Merged:
    """`regions`: the candidates in their order, then what the cloud added. `outcomes`: what the gate is to learn."""

    regions: list[FrameRegion]
    outcomes: list[Outcome]


@dataclass(frozen=True)
class FrameRule:
    """How the answers of the regions become one of the frame.

    The frame gets the worst label that a region has. With `defective`, it gets that label instead if more than
    `allowed` regions have a defect, and `clean` if not.
    """

    clean: str  # label of a frame or region without a defect; regions of NOTHING are clean too
    worst: Sequence[str] = ()  # labels, the worst first; one that is missing comes after them, and before `clean`
    defective: str = ""
    allowed: int = 0


@dataclass(frozen=True)
class FrameDecision:
    """One answer for the whole frame."""

    label: str
    score: float  # of the region that decides, see `decide`
    margin: float
    decided: DecidedAt
    certified: bool  # every region was answered by the cloud, or here under a certificate; never without regions
    defects: int  # regions with a label that is neither `clean` nor NOTHING


def compare(header: MosaicHeader, answer: MosaicAnswer, clean: str = NOTHING) -> tuple[list[Outcome], list[Found]]:
    """The answer to each region of a mosaic, and the boxes that were found beside them, the highest score first.

    Needs nothing but what travels, so that late answers are judged like early ones. Both are checked already (see
    regions.header). `clean`: the label that means the same as NOTHING. A `silent` region differs if its cell holds
    anything.
    """
    if answer.task == "classification":
        said = {one.index: one for one in answer.regions}
        outcomes = []
        for region in header.regions():
            one = said[region.index]
            differs = _plain(one.label, clean) != _plain(region.label, clean)
            outcomes.append(Outcome(region, region.box, one.label, one.score, one.margin, differs))
        return outcomes, []
    outcomes, beside = [], []
    for number, cell in enumerate(header.cells):
        inside = [one for one in answer.found if one.cell == number]
        found = [one for one in inside if _plain(one.label, clean) != NOTHING]
        weak = [one for one in inside if _plain(one.label, clean) == NOTHING]
        asked = [region for region in cell.regions if region.reason != "silent"]
        outcomes += [_silent(region, found) for region in cell.regions if region.reason == "silent"]
        matched = _matched(asked, found)
        left = [region for region in asked if region.index not in matched]
        matched |= _matched(left, weak)
        outcomes += [_outcome(region, matched.get(region.index), clean) for region in asked]
        taken = {id(one) for one in matched.values()}
        beside += [one for one in found if id(one) not in taken]
    return outcomes, sorted(beside, key=lambda one: -one.score)


def merge(
    candidates: Sequence[Candidate],
    decisions: Mapping[int, GateDecision],
    header: MosaicHeader | None = None,
    answer: MosaicAnswer | None = None,
    clean: str = NOTHING,
) -> Merged:
    """The final answer of every region.

    `decisions`: what the gate said, by position among the candidates; who is missing was not asked about. Without an
    `answer` (it came too late, or never) what should have been decided by the cloud is `edge-degraded`. An audit's
    answer counts if it is there; if not, the local one does, and it is not degraded. Header and answer are checked.
    """
    outcomes, beside = compare(header, answer, clean) if header is not None and answer is not None else ([], [])
    answers = {one.region.index: one for one in outcomes if one.region.reason != "silent"}
    regions = [_final(k, one, decisions.get(k), answers.get(k)) for k, one in enumerate(candidates)]
    for one in outcomes:
        if one.region.reason == "silent" and one.differs and answer is not None and answer.task == "classification":
            regions.append(FrameRegion(None, one.box, one.label, one.score, one.margin, "cloud", False))
    known = [region.box for region in regions if _plain(region.label, clean) != NOTHING]
    for new in beside:
        if not any(_same(new.box, box) for box in known):
            regions.append(FrameRegion(None, new.box, new.label, new.score, new.margin, "cloud", False))
            known.append(new.box)
    return Merged(regions, outcomes)


def decide(regions: Sequence[FrameRegion], rule: FrameRule) -> FrameDecision:
    """One answer of all regions; `rule.clean` for a frame without any.

    By the worst label: score and margin are those of the least certain region that has it, as for tiles
    (edgekit.vision.pipeline). By the count: those of the region at which the count would tip if the least certain ones
    were wrong. A frame is `edge-degraded` if one of its regions is, else `cloud` if the cloud answered one.
    """
    defects = [region for region in regions if _plain(region.label, rule.clean) != NOTHING]
    sound = [region for region in regions if _plain(region.label, rule.clean) == NOTHING]
    places: set[DecidedAt] = {region.decided for region in regions}
    decided: DecidedAt = "edge-degraded" if "edge-degraded" in places else "cloud" if "cloud" in places else "edge"
    if rule.defective:
        defective = len(defects) > rule.allowed
        label = rule.defective if defective else rule.clean
        doubtful = sorted(defects if defective else sound, key=lambda region: region.margin)
        tips = len(defects) - rule.allowed if defective else rule.allowed + 1 - len(defects)
        deciding = doubtful[tips - 1] if tips <= len(doubtful) else None
    else:
        label = min((region.label for region in defects), key=lambda name: _rank(name, rule.worst), default=rule.clean)
        same = [region for region in defects if region.label == label] or sound
        deciding = min(same, key=lambda region: region.margin, default=None)
    return FrameDecision(
        label=label,
        score=SURE if deciding is None else deciding.score,
        margin=SURE if deciding is None else deciding.margin,
        decided=decided,
        certified=bool(regions) and all(region.decided == "cloud" or region.certified for region in regions),
        defects=len(defects),
    )


def _plain(label: str, clean: str) -> str:
    return NOTHING if label == clean else label


def _rank(label: str, worst: Sequence[str]) -> tuple[int, str]:
    return (worst.index(label) if label in worst else len(worst)), label


def _matched(regions: Sequence[Region], found: Sequence[Found]) -> dict[int, Found]:
    """Which box answers which region, by its index: the pair that overlaps most first, each at most once."""
    if not regions or not found:
        return {}
    shared = iou(np.array([region.box for region in regions]), np.array([one.box for one in found]))
    matched: dict[int, Found] = {}
    while True:
        i, j = divmod(int(shared.argmax()), len(found))
        if shared[i, j] < MATCH:
            return matched
        matched[regions[i].index] = found[j]
        shared[i, :] = shared[:, j] = -1.0


def _outcome(region: Region, found: Found | None, clean: str) -> Outcome:
    local = _plain(region.label, clean)
    if found is None or _plain(found.label, clean) == NOTHING:
        score, margin = (SURE, SURE) if found is None else (found.score, found.margin)
        return Outcome(region, region.box, NOTHING, score, margin, local != NOTHING)
    return Outcome(region, found.box, found.label, found.score, found.margin, found.label != local)


def _silent(region: Region, found: Collection[Found]) -> Outcome:
    """A look at a frame without candidates: the boxes themselves are beside it."""
    if not found:
        return Outcome(region, region.box, NOTHING, SURE, SURE, False)
    best = max(found, key=lambda one: one.score)
    return Outcome(region, best.box, best.label, best.score, best.margin, True)


def _final(index: int, candidate: Candidate, decision: GateDecision | None, outcome: Outcome | None) -> FrameRegion:
    if outcome is not None:
        return FrameRegion(index, outcome.box, outcome.label, outcome.score, outcome.margin, "cloud", False)
    certified = decision is not None and decision.certified
    waited = decision is not None and decision.send and decision.reason != "audit"
    place: DecidedAt = "edge-degraded" if waited else "edge"
    return FrameRegion(index, candidate.box, candidate.label, candidate.score, candidate.margin, place, certified)


def _same(new: FloatBox, known: FloatBox) -> bool:
    """Is `new` a part of `known`, or much the same box?"""
    shared = overlap(new, known)
    area, other = _area(new), _area(known)
    return shared >= KNOWN * area or shared >= MATCH * (area + other - shared)


def _area(box: FloatBox) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
