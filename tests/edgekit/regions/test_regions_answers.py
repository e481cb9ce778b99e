from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.gates.policy import GateDecision
from edgekit.regions.answers import FrameDecision, FrameRegion, FrameRule, compare, decide, merge
from edgekit.regions.cutouts import Context, region
from edgekit.regions.header import (
    NOTHING,
    Found,
    MosaicAnswer,
    MosaicHeader,
    RegionAnswer,
    check_answer,
)
from edgekit.regions.mosaic import compose
from edgekit.regions.select import SURE, Candidate
from edgekit.regions.silent import SilentRules, audit, questions

FRAME = np.zeros((400, 600), np.uint8)
HARD = GateDecision(True, "hard", False, 0.8, 0.8)
AUDIT = GateDecision(True, "audit", True, 0.1, 1.0)
LOCAL = GateDecision(False, None, True, 0.1, 0.0)

OPEN = Candidate((100.0, 100.0, 120.0, 120.0), "open", 0.6, 0.2)
MISSED = Candidate((300.0, 100.0, 320.0, 120.0), NOTHING, 0.6, 0.2)
SURE_SHORT = Candidate((500.0, 300.0, 520.0, 320.0), "short", 0.95, 0.9)


def header_of(candidates: list[Candidate], asked: list[int], reason: str = "hard") -> MosaicHeader:
    regions = [region(k, candidates[k], reason, Context(), 600, 400) for k in asked]  # type: ignore[arg-type]
    return compose(FRAME, regions).header


def detected(header: MosaicHeader, *boxes: tuple[tuple[float, float, float, float], str, float]) -> MosaicAnswer:
    """Boxes of the cloud, each put into the first cell that holds it."""

    def cell_of(box: tuple[float, float, float, float]) -> int:
        return next(
            k
            for k, cell in enumerate(header.cells)
            if cell.box[0] <= box[0] and cell.box[1] <= box[1] and box[2] <= cell.box[2] and box[3] <= cell.box[3]
        )

    found = [Found(cell=cell_of(b), box=b, label=label, score=score, margin=0.8) for b, label, score in boxes]
    answer = MosaicAnswer(task="detection", found=found)
    check_answer(header, answer)
    return answer


def test_a_confirmed_region_becomes_what_the_cloud_says() -> None:
    header = header_of([OPEN, MISSED], [0, 1])
    answer = detected(header, ((101.0, 99.0, 121.0, 119.0), "short", 0.97), ((303.0, 103.0, 323.0, 123.0), "open", 0.9))
    merged = merge([OPEN, MISSED, SURE_SHORT], {0: HARD, 1: HARD, 2: LOCAL}, header, answer)
    first, second, third = merged.regions
    assert (first.box, first.label, first.score, first.decided) == ((101, 99, 121, 119), "short", 0.97, "cloud")
    assert (second.label, second.decided) == ("open", "cloud")  # the edge had missed it
    assert (third.label, third.decided, third.certified) == ("short", "edge", True)
    assert [one.differs for one in merged.outcomes] == [True, True]


def test_what_the_cloud_does_not_confirm_is_nothing_and_stays_on_record() -> None:
    header = header_of([OPEN, MISSED], [0, 1])
    merged = merge([OPEN, MISSED], {0: HARD, 1: HARD}, header, detected(header))
    assert [(r.label, r.decided, r.score) for r in merged.regions] == [(NOTHING, "cloud", SURE)] * 2
    assert merged.regions[0].box == OPEN.box
    assert [one.differs for one in merged.outcomes] == [True, False]


def test_a_weak_box_of_the_cloud_says_how_sure_its_nothing_is() -> None:
    header = header_of([OPEN], [0])
    (one,) = merge([OPEN], {0: HARD}, header, detected(header, (OPEN.box, NOTHING, 0.55))).regions
    assert (one.label, one.score, one.margin) == (NOTHING, 0.55, 0.8)
    both = detected(header, (OPEN.box, NOTHING, 0.9), ((104.0, 104.0, 124.0, 124.0), "open", 0.8))
    (one,) = merge([OPEN], {0: HARD}, header, both).regions
    assert one.label == "open"  # what counts comes before what does not, however well it lies


def test_a_box_that_nobody_asked_about_is_added_once() -> None:
    near = Candidate((130.0, 100.0, 140.0, 110.0), "open", 0.6, 0.2)
    header = header_of([OPEN, near], [0, 1])
    new = ((100.0, 124.0, 112.0, 128.0), "spur", 0.9)
    merged = merge([OPEN, near], {0: HARD, 1: HARD}, header, detected(header, new, new, (OPEN.box, "open", 0.9)))
    added = [one for one in merged.regions if one.index is None]
    assert [(one.box, one.label, one.decided) for one in added] == [(new[0], "spur", "cloud")]


def test_a_piece_of_a_known_neighbour_is_no_new_finding() -> None:
    neighbour = Candidate((124.0, 100.0, 160.0, 120.0), "short", 0.95, 0.9)  # reaches into the cut-out of OPEN
    header = header_of([OPEN, neighbour], [0])
    answer = detected(header, (OPEN.box, "open", 0.9), ((124.0, 100.0, 128.0, 120.0), "spur", 0.6))
    merged = merge([OPEN, neighbour], {0: HARD, 1: LOCAL}, header, answer)
    assert [(one.index, one.label) for one in merged.regions] == [(0, "open"), (1, "short")]


def test_a_box_where_the_edge_was_sure_of_nothing_is_a_new_finding() -> None:
    neighbour = Candidate((124.0, 100.0, 128.0, 120.0), NOTHING, 0.95, 0.9)
    header = header_of([OPEN, neighbour], [0])
    merged = merge([OPEN, neighbour], {0: HARD, 1: LOCAL}, header, detected(header, (neighbour.box, "spur", 0.8)))
    assert [(one.index, one.label) for one in merged.regions] == [(0, NOTHING), (1, NOTHING), (None, "spur")]


def test_a_classifier_answers_every_region() -> None:
    header = header_of([OPEN, MISSED], [0, 1])
    answers = [RegionAnswer(index=k, label=label, score=0.9, margin=0.8) for k, label in ((1, "clean"), (0, "open"))]
    merged = merge(
        [OPEN, MISSED], {0: HARD, 1: HARD}, header, MosaicAnswer(task="classification", regions=answers), "clean"
    )
    assert [(one.label, one.decided) for one in merged.regions] == [("open", "cloud"), ("clean", "cloud")]
    assert not any(one.differs for one in merged.outcomes)  # "clean" is the classifier's word for nothing


def test_without_an_answer_only_what_was_waited_for_is_degraded() -> None:
    merged = merge([OPEN, MISSED, SURE_SHORT], {0: HARD, 1: AUDIT})
    assert [(one.decided, one.certified) for one in merged.regions] == [
        ("edge-degraded", False),
        ("edge", True),
        ("edge", False),  # not asked about
    ]
    assert merged.outcomes == []


@pytest.mark.parametrize("hidden", [True, False])
def test_a_look_at_a_silent_frame_reports_what_is_there(hidden: bool) -> None:
    header = compose(FRAME, questions(audit(SilentRules(rate=1.0), 600, 400, 0.3), NOTHING)).header
    boxes = [(OPEN.box, "open", 0.9), ((300.0, 0.0, 330.0, 20.0), "short", 0.7)] if hidden else []
    merged = merge([], {}, header, detected(header, *boxes))
    assert [one.differs for one in merged.outcomes] == [hidden]
    assert [one.label for one in merged.regions] == (["open", "short"] if hidden else [])
    said = MosaicAnswer(
        task="classification",
        regions=[RegionAnswer(index=0, label="short" if hidden else "clean", score=0.9, margin=0.8)],
    )
    assert [one.label for one in merge([], {}, header, said, "clean").regions] == (["short"] if hidden else [])


def test_a_late_answer_is_judged_from_what_travelled_alone() -> None:
    header = header_of([OPEN, MISSED], [0, 1])
    answer = detected(header, (MISSED.box, "open", 0.9))
    outcomes, beside = compare(header, answer)
    live = merge([OPEN, MISSED], {0: HARD, 1: HARD}, header, answer).outcomes
    assert outcomes == live and beside == []


corners = st.tuples(st.integers(0, 560), st.integers(0, 360), st.integers(4, 40), st.integers(4, 40)).map(
    lambda v: (float(v[0]), float(v[1]), float(v[0] + v[2]), float(v[1] + v[3]))
)
labels = st.sampled_from([NOTHING, "open", "short"])


@given(st.lists(st.tuples(corners, labels, st.booleans()), min_size=1, max_size=8), st.data())
def test_every_candidate_has_one_final_answer_and_every_question_one_outcome(
    rows: list[tuple[Any, str, bool]], data: st.DataObject
) -> None:
    candidates = [Candidate(box, label, 0.6, 0.2) for box, label, _ in rows]
    asked = [k for k, (_, _, sent) in enumerate(rows) if sent]
    decisions = {k: HARD if k in asked else LOCAL for k in range(len(rows))}
    if not asked:
        assert all(one.decided == "edge" for one in merge(candidates, decisions).regions)
        return
    header = header_of(candidates, asked)
    found = []
    for number, cell in enumerate(header.cells):
        left, top, right, bottom = cell.box
        for _ in range(data.draw(st.integers(0, 3))):
            x, y = data.draw(st.integers(left, right - 1)), data.draw(st.integers(top, bottom - 1))
            box = (float(x), float(y), float(data.draw(st.integers(x + 1, right))), float(bottom))
            found.append(Found(cell=number, box=box, label=data.draw(labels), score=0.7, margin=0.5))
    answer = MosaicAnswer(task="detection", found=found)
    check_answer(header, answer)
    merged = merge(candidates, decisions, header, answer)
    assert [one.index for one in merged.regions[: len(rows)]] == list(range(len(rows)))
    assert all(one.index is None and one.label != NOTHING for one in merged.regions[len(rows) :])
    assert sorted(one.region.index for one in merged.outcomes) == asked
    for k, one in enumerate(merged.regions[: len(rows)]):
        assert one.decided == ("cloud" if k in asked else "edge")
        assert k in asked or one.label == candidates[k].label
    for one in merged.outcomes:
        assert one.differs == (one.label != one.region.label)


def final(label: str, margin: float = 0.9, decided: Any = "edge", certified: bool = True) -> FrameRegion:
    return FrameRegion(0, (0, 0, 9, 9), label, margin, margin, decided, certified)


WORST = FrameRule(clean="clean", worst=("open", "short"))


def test_the_worst_label_decides_and_the_frame_is_as_sure_as_the_least_certain_that_has_it() -> None:
    regions = [final("short", 0.1), final("open", 0.8), final("open", 0.6), final("clean", 0.05), final(NOTHING)]
    assert decide(regions, WORST) == FrameDecision("open", 0.6, 0.6, "edge", True, 3)
    assert decide([final("clean", 0.4), final(NOTHING, 0.7)], WORST) == FrameDecision(
        "clean", 0.4, 0.4, "edge", True, 0
    )


def test_a_label_that_the_rule_does_not_know_is_worse_than_clean() -> None:
    assert decide([final("clean"), final("burnt")], WORST).label == "burnt"
    assert decide([final("short"), final("burnt")], WORST).label == "short"


def test_a_frame_without_regions_is_clean_as_sure_as_the_floor_and_never_certified() -> None:
    assert decide([], WORST) == FrameDecision("clean", SURE, SURE, "edge", False, 0)


def test_a_count_of_defects_decides_and_is_as_sure_as_the_region_at_which_it_would_tip() -> None:
    rule = FrameRule(clean="good", defective="bad", allowed=1)
    one, two = [final("open", 0.2), final("good", 0.3)], [final("open", 0.2), final("short", 0.7), final("spur", 0.9)]
    assert decide(one, rule) == FrameDecision("good", 0.3, 0.3, "edge", True, 1)
    assert decide(two, rule) == FrameDecision("bad", 0.7, 0.7, "edge", True, 3)  # two of three must be wrong to tip it
    assert decide([final("open", 0.2)], rule).margin == SURE  # no other region could be the second


def test_where_a_frame_was_decided_and_whether_it_is_certified() -> None:
    cloud, degraded = final("open", decided="cloud", certified=False), final("open", decided="edge-degraded")
    unasked = final("open", certified=False)
    assert (decide([final("open"), cloud], WORST).decided, decide([cloud], WORST).certified) == ("cloud", True)
    assert decide([cloud, degraded], WORST).decided == "edge-degraded"
    assert not decide([cloud, unasked], WORST).certified
