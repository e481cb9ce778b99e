"""From which score a candidate reports, where the pictures that choose say what each score would cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edged.train.box_examining import score_of
from edgekit.packages import DetectionSpec
from edgekit.vision.detection.boxes import Detections, ranked
from edgekit.vision.detection.metrics import Truth

SPEC = DetectionSpec(head="centernet", report=0.3)
OLD, NEW = 0, 1


def told(*boxes: tuple[int, int, float]) -> Detections:
    """Of each box its place, its label and its score; places below 100 are those of the truth."""
    sides = np.array([(20.0 * at, 0.0, 20.0 * at + 10.0, 10.0) for at, _, _ in boxes], np.float32).reshape(-1, 4)
    scores = np.array([score for _, _, score in boxes], np.float32)
    return ranked(sides, scores, np.array([label for _, label, _ in boxes], np.int32), scores)


def truth(labels: Sequence[int]) -> Truth:
    sides = np.array([(20.0 * at, 0.0, 20.0 * at + 10.0, 10.0) for at in range(len(labels))], np.float32)
    return Truth(sides.reshape(-1, 4), np.array(labels, np.int64))


def chosen(before: Detections, after: Detections, labels: Sequence[int], spec: DetectionSpec = SPEC) -> float:
    return score_of([before], [after], [truth(labels)], 1, SPEC.report, spec)


def test_the_best_f1_does_not_count_where_it_would_lose_boxes_of_the_old_classes() -> None:
    """Two sure hits alone have the better F1; the present model finds a third box, beside more false alarms."""
    wrong = [(100 + number, OLD, 0.4) for number in range(5)]
    before = told((0, OLD, 0.8), (1, OLD, 0.8), (2, OLD, 0.4), *wrong)
    after = told((0, OLD, 0.9), (1, OLD, 0.9), (2, OLD, 0.32), *((at, OLD, 0.33) for at, _, _ in wrong[:4]))
    assert chosen(before, after, [OLD, OLD, OLD]) == pytest.approx(0.3)
    assert chosen(told((0, OLD, 0.8), (1, OLD, 0.8), *wrong), after, [OLD, OLD, OLD]) > 0.33, "nothing is lost so"


def test_boxes_of_a_new_class_do_not_make_up_for_lost_old_ones() -> None:
    before = told((0, OLD, 0.8), (1, OLD, 0.5), (100, OLD, 0.5), (101, OLD, 0.5), (102, OLD, 0.5))
    after = told((0, OLD, 0.9), (1, OLD, 0.22), (2, NEW, 0.9), (100, OLD, 0.24), (101, OLD, 0.24), (102, OLD, 0.24))
    assert chosen(before, after, [OLD, OLD, NEW]) == pytest.approx(0.2)


def test_no_score_with_more_false_alarms_than_the_present_model_is_taken() -> None:
    after = told((0, OLD, 0.35), (100, OLD, 0.45))
    assert chosen(told((0, OLD, 0.8)), after, [OLD]) > 0.45, "the one box is given up for it"


def test_where_no_score_will_do_the_one_of_the_package_stays() -> None:
    after = told((0, OLD, 0.95), (100, OLD, 0.97))
    assert chosen(told((0, OLD, 0.8)), after, [OLD]) == SPEC.report
