"""The judgement on a detector's candidate: what lets it pass, and what each fault of it is called."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.gates.limits import Limits
from edgekit.gates.paired import surely_worse
from edgekit.learning.box_judging import Found, HeldOutBoxes, judge_boxes
from edgekit.learning.judging import Cost
from edgekit.learning.limits import JudgingLimits
from edgekit.learning.trial import Verdict

CLASSES = ["hole", "bar", "spot"]
LIMITS = JudgingLimits(old=Limits(items=100, drop=0.05, class_drop=0.05), earlier=20)


def held(boxes: int = 200, pictures: int = 100, old: int = 2, earlier: int = 0) -> HeldOutBoxes:
    """Boxes of the first `old` classes by turns, two a picture; the first `earlier` pictures are old ones."""
    return HeldOutBoxes(
        dataset="d" * 64,
        classes=CLASSES[:old],
        old=old,
        truth=np.arange(boxes) % old,
        picture=np.arange(boxes) % pictures,
        earlier=np.arange(pictures) < earlier,
    )


def found(boxes: int = 200, pictures: int = 100, missed: object = (), false: object = (), unusable: int = 0) -> Found:
    """Everything but the boxes at the places `missed`; one false alarm on each of the pictures `false`."""
    hits, alarms = np.ones(boxes, np.bool_), np.zeros(pictures, np.int64)
    hits[list(missed)] = False  # type: ignore[call-overload]
    for place in false:  # type: ignore[attr-defined]
        alarms[place] += 1
    return Found(hits, alarms, unusable)


def failing(verdict: Verdict) -> list[str]:
    return [one.name for one in verdict.facts if not one.passed]


def test_a_candidate_that_finds_the_same_passes_with_its_numbers() -> None:
    verdict = judge_boxes(held(), found(missed=range(10)), found(missed=range(10)), LIMITS)
    assert verdict.accepted and not verdict.reason and verdict.dataset == "d" * 64
    texts = [one.text for one in verdict.facts if one.name == "recall"]
    assert texts == [
        '"hole" is found in 95 of 100 boxes, by the present model in 95',
        '"bar" is found in 95 of 100 boxes, by the present model in 95',
    ]


def test_too_few_boxes_refuse_even_a_perfect_candidate() -> None:
    verdict = judge_boxes(held(60), found(60), found(60), LIMITS)
    assert "items" in failing(verdict)
    assert "compared on 60 held-out boxes" in verdict.reason and "100 are needed" in verdict.reason
    assert failing(judge_boxes(held(0), found(0), found(0), LIMITS)) == ["items"]


def test_boxes_that_are_lost_refuse_it_all_together_and_by_class() -> None:
    everywhere = judge_boxes(held(), found(), found(missed=range(40)), LIMITS)
    assert "accuracy" in failing(everywhere) and "40 of 200 boxes lost, 0 gained" in everywhere.reason
    one_class = judge_boxes(held(), found(missed=range(1, 30, 2)), found(missed=range(0, 30, 2)), LIMITS)
    assert "classes" in failing(one_class), "bars are gained and holes are lost"
    assert 'the class "hole" is at least' in one_class.reason


def test_a_rare_class_that_loses_much_is_found_even_if_another_gains_as_much() -> None:
    """Where half of the items may differ, the paired bound alone says nothing of 30 boxes."""
    boxes = HeldOutBoxes(
        dataset="d",
        classes=CLASSES[:2],
        old=2,
        truth=np.repeat([0, 1], [30, 470]),
        picture=np.arange(500) % 100,
        earlier=np.zeros(100, np.bool_),
    )
    verdict = judge_boxes(boxes, found(500, missed=range(30, 50)), found(500, missed=range(12)), LIMITS)
    assert failing(verdict) == ["classes"] and "12 of its 30 boxes lost" in verdict.reason


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.data())
def test_what_is_surely_lost_is_less_than_what_was_seen_to_be_lost(n: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    assert 0.0 <= surely_worse(lost, gained, n) <= max(0.0, (lost - gained) / n) + 1e-9


def test_one_box_decides_nothing() -> None:
    verdict = judge_boxes(held(), found(), found(missed=[0]), LIMITS)
    assert "classes" not in failing(verdict)


def test_more_false_alarms_refuse_a_candidate_that_finds_everything() -> None:
    verdict = judge_boxes(held(), found(missed=range(40)), found(false=range(20)), LIMITS)
    assert failing(verdict) == ["false-alarms"]
    assert "0.20 false alarms a picture, the present model 0.00; more of them on 20 of 100" in verdict.reason


def test_false_alarms_on_other_pictures_are_no_more_of_them() -> None:
    verdict = judge_boxes(held(), found(false=range(20)), found(false=range(20, 40)), LIMITS)
    assert verdict.accepted, verdict.reason


def test_what_was_labelled_before_the_batch_finds_wrong_labels_in_it() -> None:
    """On all boxes together the candidate is no worse, since the batch agrees with it."""
    boxes = held(400, 200, earlier=40)
    old = np.flatnonzero(boxes.earlier[boxes.picture])
    new = np.flatnonzero(~boxes.earlier[boxes.picture])
    verdict = judge_boxes(boxes, found(400, 200, missed=new[:40]), found(400, 200, missed=old[:30]), LIMITS)
    assert "earlier" in failing(verdict) and "labels of the batch may be wrong" in verdict.reason
    few = judge_boxes(held(earlier=5), found(), found(), LIMITS)
    assert failing(few) == ["earlier-items"] and "10 held-out boxes were labelled before this batch" in few.reason


def test_a_batch_without_its_boxes_makes_false_alarms_on_what_was_labelled_before() -> None:
    boxes = held(400, 200, earlier=40)
    alarms = list(range(40))
    there = list(range(40, 80))
    verdict = judge_boxes(boxes, found(400, 200, false=there), found(400, 200, false=alarms), LIMITS)
    assert failing(verdict) == ["earlier-false-alarms"]


def test_a_new_class_must_be_found_in_its_boxes() -> None:
    boxes = HeldOutBoxes(
        dataset="d",
        classes=CLASSES,
        old=2,
        truth=np.concatenate([np.arange(200) % 2, np.full(20, 2)]),
        picture=np.arange(220) % 100,
        earlier=np.zeros(100, np.bool_),
    )
    before = found(220, missed=range(200, 220))
    good = judge_boxes(boxes, before, found(220, missed=range(200, 203)), LIMITS)
    assert good.accepted, good.reason
    bad = judge_boxes(boxes, before, found(220, missed=range(200, 215)), LIMITS)
    assert failing(bad) == ["new-class"] and 'the new class "spot" is found in 5 of 20' in bad.reason


def test_a_picture_without_an_answer_is_the_only_reason_that_is_told() -> None:
    verdict = judge_boxes(held(), found(), found(missed=range(200), unusable=3), LIMITS)
    assert verdict.reason == "refused: it gives no usable answer for 3 of 100 pictures"


def test_a_slower_candidate_is_refused() -> None:
    verdict = judge_boxes(held(), found(), found(), LIMITS, Cost(p95_ms=(2.0, 3.0), bytes=(10, 10)))
    assert failing(verdict) == ["latency"]


@pytest.mark.parametrize(
    ("present", "says"),
    [
        (found(199), "one length"),
        (found(pictures=99), "one length"),
        (Found(np.ones(200, np.bool_), np.full(100, -1)), "fewer than no"),
    ],
)
def test_lists_that_do_not_fit_together_are_no_judgement(present: Found, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        judge_boxes(held(), present, found(), LIMITS)


def test_a_box_of_no_class_or_picture_is_no_judgement() -> None:
    with pytest.raises(ValueError, match="truth of a box"):
        judge_boxes(
            HeldOutBoxes("d", ["a"], 1, np.array([1]), np.array([0]), np.zeros(1, bool)), found(1, 1), found(1, 1)
        )
    with pytest.raises(ValueError, match="picture of a box"):
        judge_boxes(
            HeldOutBoxes("d", ["a"], 1, np.array([0]), np.array([1]), np.zeros(1, bool)), found(1, 1), found(1, 1)
        )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=120, max_size=120), st.lists(st.integers(0, 3), min_size=60, max_size=60))
def test_a_model_never_loses_against_itself_for_its_answers(hits: list[bool], alarms: list[int]) -> None:
    same = Found(np.array(hits), np.array(alarms, np.int64))
    assert judge_boxes(held(120, 60, earlier=30), same, same, LIMITS).accepted


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 199)), st.sets(st.integers(0, 99)))
def test_finding_more_and_alarming_less_is_never_refused(missed: set[int], false: set[int]) -> None:
    verdict = judge_boxes(held(earlier=30), found(missed=missed, false=false), found(), LIMITS)
    assert verdict.accepted, verdict.reason
