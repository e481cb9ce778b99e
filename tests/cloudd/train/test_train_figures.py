from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudd.train.figures import best_report, judge_answers, judge_boxes, share
from edgekit.vision.detection.boxes import Detections
from edgekit.vision.detection.metrics import Truth

LABELS = ("bad", "good")


@given(st.integers(1, 400), st.data())
def test_the_range_of_a_share_holds_it(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    one = share(hits, trials)
    assert 0 <= one.low <= hits / trials <= one.high <= 1
    assert one.value == hits / trials


def test_the_range_is_that_of_clopper_and_pearson() -> None:
    one = share(18, 19)

    def chance(hits: int, p: float) -> float:
        return math.comb(19, hits) * p**hits * (1 - p) ** (19 - hits)

    assert chance(18, one.low) + chance(19, one.low) == pytest.approx(0.025)
    assert 1 - chance(19, one.high) == pytest.approx(0.025)
    assert share(0, 0).value is None


def test_recall_and_precision_of_each_label_are_counted() -> None:
    truth = np.array([0] * 20 + [1] * 80)
    answers = truth.copy()
    answers[:2] = 1
    answers[-1] = 0
    figures = judge_answers(answers, truth, LABELS, frequent=1)
    bad, good = figures.labels
    assert (bad.recall.hits, bad.recall.trials, bad.precision.hits, bad.precision.trials) == (18, 20, 18, 19)
    assert (good.recall.hits, good.precision.trials) == (79, 81)
    assert figures.right.hits == 97 and figures.rival_right == 80 and not figures.reason


@pytest.mark.parametrize("found", [0, 4])
def test_a_classifier_that_may_be_no_better_than_the_most_frequent_label_is_refused(found: int) -> None:
    truth = np.array([0] * 20 + [1] * 80)
    answers = np.ones_like(truth)
    answers[:found] = 0
    figures = judge_answers(answers, truth, LABELS, frequent=1)
    assert f"gets {80 + found} of 100 pictures right, and always saying 'good' gets 80" in figures.reason


def test_five_defects_found_and_nothing_lost_are_enough() -> None:
    truth = np.array([0] * 20 + [1] * 80)
    answers = np.ones_like(truth)
    answers[:5] = 0  # a chance of 1/32
    assert not judge_answers(answers, truth, LABELS, frequent=1).reason


def test_a_classifier_that_never_says_the_frequent_label_is_refused_although_it_finds_every_defect() -> None:
    truth = np.array([0] * 20 + [1] * 80)
    assert judge_answers(np.zeros_like(truth), truth, LABELS, frequent=1).reason


def found(*rows: tuple[float, float, int]) -> Detections:
    """(left, score, label) of boxes of 10 pixels."""
    boxes = np.array([[left, 0, left + 10, 10] for left, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in rows], np.float32)
    return Detections(boxes, scores, np.array([label for _, _, label in rows], np.int32), np.zeros_like(scores))


def truth(*rows: tuple[float, int]) -> Truth:
    boxes = np.array([[left, 0, left + 10, 10] for left, _ in rows], np.float32).reshape(-1, 4)
    return Truth(boxes, np.array([label for _, label in rows], np.int64))


def test_a_detector_is_judged_by_label_at_its_report_score() -> None:
    answers = [found((0, 0.9, 0), (50, 0.7, 1), (90, 0.2, 1))] * 30
    truths = [truth((0, 0), (50, 1), (90, 1))] * 30
    figures = judge_boxes(answers, truths, LABELS, report=0.5)
    bad, good = figures.labels
    assert bad.recall.hits == bad.recall.trials == 30 and bad.ap50 == pytest.approx(1.0)
    assert (good.recall.hits, good.recall.trials, good.precision.trials) == (30, 60, 30)
    assert not figures.reason and figures.rival_right is None


def test_a_detector_whose_boxes_may_be_false_for_half_is_refused() -> None:
    answers = [found((0, 0.9, 0), (50, 0.8, 0))] * 30
    figures = judge_boxes(answers, [truth((0, 0))] * 30, LABELS, report=0.5)
    assert "of the 60 boxes that it reports 30 are true" in figures.reason
    nothing = judge_boxes([found()] * 30, [truth((0, 0))] * 30, LABELS, report=0.5)
    assert "of the 0 boxes that it reports 0 are true" in nothing.reason


def test_boxes_are_reported_from_the_score_that_keeps_most_true_and_fewest_false_ones() -> None:
    truths = [truth((0, 0))] * 10
    assert best_report([found((0, 0.36, 0), (50, 0.28, 0))] * 10, truths) == pytest.approx(0.35)
    assert best_report([found((0, 0.9, 0), (50, 0.65, 0))] * 10, truths) == pytest.approx(0.7)
    assert best_report([found((0, 0.9, 0))] * 10, truths) == pytest.approx(0.5)
