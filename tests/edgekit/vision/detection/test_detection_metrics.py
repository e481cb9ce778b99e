"""The measures against cases worked out by hand, and against figures that pycocotools gave for recorded cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.vision.detection.boxes import NONE, Detections, ranked
from edgekit.vision.detection.metrics import Truth, average_precision, count, match


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """left, top, right, bottom, score, label."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return ranked(table[:, :4], table[:, 4], table[:, 5].astype(np.int32), np.zeros(len(table)))


def truth(*rows: tuple[float, float, float, float, int]) -> Truth:
    table = np.array(rows, np.float64).reshape(-1, 5)
    return Truth(table[:, :4], table[:, 4].astype(np.int32))


def test_perfect_detections_have_an_average_precision_of_one() -> None:
    boxes = truth((0, 0, 10, 10, 0), (20, 20, 40, 40, 1))
    perfect = found((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.8, 1))
    scores = average_precision([perfect], [boxes], 3)
    assert (scores.ap, scores.ap50, scores.ap75) == pytest.approx((1, 1, 1))
    assert scores.per_class == [pytest.approx(1), pytest.approx(1), None]


def test_average_precision_worked_out_by_hand() -> None:
    """Three true boxes; right, wrong, right, wrong in order of score: recall 1/3 at 1, 2/3 at 2/3, never more.

    Of the 101 recalls, 0 to 0.33 (34 of them) have precision 1, 0.34 to 0.66 (33) have 2/3, the rest 0.
    """
    boxes = truth((0, 0, 10, 10, 0), (20, 0, 30, 10, 0), (40, 0, 50, 10, 0))
    detections = found((0, 0, 10, 10, 0.9, 0), (60, 0, 70, 10, 0.8, 0), (20, 0, 30, 10, 0.7, 0), (0, 0, 10, 10, 0.6, 0))
    scores = average_precision([detections], [boxes], 1)
    assert scores.ap50 == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert scores.ap == pytest.approx(scores.ap50)


def test_the_iou_of_a_find_decides_at_which_thresholds_it_counts() -> None:
    """IoU 0.7: right at 0.5 to 0.7, five of ten thresholds, and each time with precision 1 at recall 1."""
    scores = average_precision([found((0, 0, 10, 7, 0.9, 0))], [truth((0, 0, 10, 10, 0))], 1)
    assert scores.ap50 == pytest.approx(1)
    assert scores.ap75 == pytest.approx(0)
    assert scores.ap == pytest.approx(0.5)


def test_a_class_that_is_nowhere_does_not_count_and_one_never_found_counts_as_zero() -> None:
    scores = average_precision([NONE, found((0, 0, 9, 9, 0.5, 2))], [truth((0, 0, 9, 9, 1)), truth()], 3)
    assert scores.per_class == [None, 0.0, None]
    assert scores.ap == 0
    nothing = average_precision([NONE], [truth()], 2)
    assert nothing.ap is nothing.ap50 is nothing.ap75 is None


def test_a_hundred_detections_of_a_class_count_in_one_picture() -> None:
    wrong = [(100.0, 100.0, 110.0, 110.0, 0.9, 0)] * 100
    boxes = truth((0, 0, 10, 10, 0))
    assert average_precision([found(*wrong[:99], (0, 0, 10, 10, 0.5, 0))], [boxes], 1).ap50 == pytest.approx(0.01)
    assert average_precision([found(*wrong, (0, 0, 10, 10, 0.5, 0))], [boxes], 1).ap50 == 0


def test_labels_and_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="labels must be 0 to 0"):
        average_precision([found((0, 0, 1, 1, 0.5, 1))], [truth()], 1)
    with pytest.raises(ValueError, match="1 results for 2 pictures"):
        count([NONE], [truth(), truth()], 0.5)
    with pytest.raises(ValueError, match="true boxes must be"):
        Truth(np.zeros((2, 4)), np.zeros(3, np.int32))


def test_the_best_detection_chooses_first_and_a_true_box_is_found_once() -> None:
    boxes = truth((0, 0, 10, 10, 0), (0, 5, 10, 15, 0))
    detections = found((0, 2, 10, 12, 0.9, 0), (0, 0, 10, 10, 0.8, 0), (0, 0, 10, 10, 0.7, 0), (0, 5, 10, 15, 0.6, 1))
    assert match(detections, boxes, np.array([0.5])).tolist() == [[0, -1, -1, -1]]
    assert match(detections, boxes, np.array([0.3])).tolist() == [[0, 1, -1, -1]]
    between = found((0, 2.5, 10, 12.5, 0.9, 0))
    assert match(between, boxes, np.array([0.5])).tolist() == [[1]], "of equals the last, as COCOeval has it"
    assert match(detections, boxes, np.array([0.5]), class_aware=False).tolist() == [[0, -1, -1, 1]]


def test_a_point_of_operation_worked_out_by_hand() -> None:
    results = [
        found(
            (0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.8, 0), (20, 0, 30, 10, 0.4, 0)
        ),  # one found, one false, one low
        found((50, 50, 60, 60, 0.9, 0)),  # bad, and only a false alarm
        found((0, 0, 10, 10, 0.6, 0)),  # good, reported
        NONE,  # good, not reported
        NONE,  # bad, nothing reported
    ]
    truths = [
        truth((0, 0, 10, 10, 0), (20, 0, 30, 10, 0)),
        truth((0, 0, 10, 10, 0)),
        truth(),
        truth(),
        truth((5, 5, 9, 9, 1)),
    ]
    counts = count(results, truths, report=0.5)
    assert (counts.found, counts.missed, counts.false) == (1, 3, 3)
    assert counts.precision == pytest.approx(1 / 4)
    assert counts.recall == pytest.approx(1 / 4)
    assert counts.f1 == pytest.approx(1 / 4)
    assert counts.escape_boxes == pytest.approx(3 / 4)
    assert counts.escape_pictures == pytest.approx(2 / 3)
    assert counts.incomplete_pictures == 3
    assert counts.overkill_boxes == pytest.approx(3 / 4)
    assert counts.overkill_pictures == pytest.approx(1 / 2)
    assert count(results, truths, report=0.3).found == 2


def test_deeppcb_wants_more_than_a_third_and_not_as_much() -> None:
    boxes = [truth((0, 0, 100, 100, 0))]
    assert count([found((0, 0, 100, 33, 0.9, 0))], boxes, 0.5).found == 0
    assert count([found((0, 0, 100, 34, 0.9, 0))], boxes, 0.5).found == 1
    other = [found((0, 0, 100, 34, 0.9, 1))]
    assert count(other, boxes, 0.5).found == 0
    assert count(other, boxes, 0.5, class_aware=False).found == 1


def test_shares_of_nothing_are_none() -> None:
    counts = count([], [], 0.5)
    assert counts.precision is counts.recall is counts.f1 is counts.escape_pictures is counts.overkill_pictures is None


def test_recorded_cases_have_the_figures_that_pycocotools_gave() -> None:
    cases = json.loads((Path(__file__).parent / "coco_cases.json").read_text())
    assert len(cases) >= 6
    for case in cases:
        results = [found(*rows) for rows in case["results"]]
        truths = [truth(*rows) for rows in case["truths"]]
        scores = average_precision(results, truths, case["classes"])
        for key in ("ap", "ap50", "ap75"):
            assert getattr(scores, key) == pytest.approx(case[key], abs=1e-9), (case["name"], key)
        for mine, theirs in zip(scores.per_class, case["per_class"], strict=True):
            assert mine == (None if theirs is None else pytest.approx(theirs, abs=1e-9)), case["name"]


rows = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20), st.integers(0, 10)),
    max_size=6,
)


@settings(max_examples=50)
@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=4))
def test_measures_stay_within_zero_and_one_and_agree_with_each_other(pictures: list[tuple[list, list]]) -> None:
    results = [found(*[(x, y, x + w, y + h, s / 10, s % 2) for x, y, w, h, s in r]) for r, _ in pictures]
    truths = [truth(*[(x, y, x + w, y + h, s % 2) for x, y, w, h, s in t]) for _, t in pictures]
    scores = average_precision(results, truths, 2)
    for value in (scores.ap, scores.ap50, scores.ap75, *scores.per_class):
        assert value is None or 0 <= value <= 1
    counts = count(results, truths, 0.0)
    assert counts.found + counts.missed == sum(len(one) for one in truths)
    assert counts.found + counts.false == sum(len(one) for one in results)
    assert counts.bad_pictures + counts.good_pictures == len(pictures)
    swapped = [found(*[(*box, 1.0, label) for box, label in zip(t.boxes, t.labels, strict=True)]) for t in truths]
    perfect = average_precision(swapped, truths, 2)
    assert perfect.ap is None or perfect.ap == pytest.approx(1)
