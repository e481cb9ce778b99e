"""Overlap, suppression and margins against slow definitions written out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.vision.detection.boxes import NONE, Detections, areas, clip, iou, joined, margins_of, nms, ranked

Array = NDArray[Any]

edges = st.tuples(*[st.integers(0, 40)] * 4).map(
    lambda e: [min(e[0], e[2]), min(e[1], e[3]), max(e[0], e[2]), max(e[1], e[3])]
)
box_lists = st.lists(edges, min_size=0, max_size=12).map(lambda b: np.array(b, np.float32).reshape(-1, 4))


def pixels(box: Array) -> set[tuple[int, int]]:
    left, top, right, bottom = (int(edge) for edge in box)
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


@given(box_lists, box_lists)
def test_iou_is_the_share_of_pixels_that_both_boxes_have(first: Array, second: Array) -> None:
    found = iou(first, second)
    assert found.shape == (len(first), len(second))
    for row, one in enumerate(first):
        for column, other in enumerate(second):
            a, b = pixels(one), pixels(other)
            expected = len(a & b) / len(a | b) if a | b else 0.0
            assert found[row, column] == pytest.approx(expected)
    assert areas(first).tolist() == [len(pixels(box)) for box in first]


def slow_nms(boxes: Array, scores: Array, labels: Array, overlap: float, agnostic: bool) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        rivals = [k for k in kept if agnostic or labels[k] == labels[index]]
        if all(iou(boxes[k : k + 1], boxes[index : index + 1])[0, 0] <= overlap for k in rivals):
            kept.append(index)
    return kept


@given(box_lists, st.data(), st.floats(0, 1), st.booleans())
def test_suppression_is_greedy_by_score(boxes: Array, data: st.DataObject, overlap: float, agnostic: bool) -> None:
    count = len(boxes)
    scores = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.9]), min_size=count, max_size=count)))
    labels = np.array(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), np.int32)
    kept = nms(boxes, scores.reshape(-1), labels, overlap, class_agnostic=agnostic)
    assert kept.tolist() == slow_nms(boxes, scores, labels, overlap, agnostic)


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.9])
def test_suppression_of_many_boxes_is_still_greedy(overlap: float) -> None:
    generator = np.random.default_rng(2)
    starts = generator.integers(0, 60, (400, 2))
    boxes = np.concatenate([starts, starts + generator.integers(5, 30, (400, 2))], axis=1)
    scores, labels = generator.random(400), generator.integers(0, 2, 400)
    kept = nms(boxes, scores, labels, overlap, max_kept=400)
    assert kept.tolist() == slow_nms(boxes, scores, labels, overlap, False)
    assert nms(boxes, scores, labels, overlap, max_kept=7).tolist() == kept[:7].tolist()


def test_suppression_keeps_another_class_unless_told_otherwise() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 10]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.7]), np.array([0, 1, 0])
    assert nms(boxes, scores, labels, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, labels, 0.5, class_agnostic=True).tolist() == [0]
    assert nms(boxes, scores, labels, 1.0, class_agnostic=True).tolist() == [0, 1, 2]


def test_suppression_looks_at_the_best_candidates_only() -> None:
    boxes = np.array([[i * 10, 0, i * 10 + 5, 5] for i in range(6)], np.float32)
    scores, labels = np.array([0.1, 0.6, 0.5, 0.9, 0.2, 0.3]), np.zeros(6, np.int32)
    assert nms(boxes, scores, labels, 0.5, max_candidates=3).tolist() == [3, 1, 2]
    assert nms(boxes, scores, labels, 0.5, max_kept=2).tolist() == [3, 1]


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32), st.sampled_from([0.05, 0.25, 0.5, 0.75, 0.95]))
def test_a_margin_is_zero_exactly_where_the_judgement_tips(score: float, second: float, report: float) -> None:
    [margin] = margins_of(np.array([score]), np.array([second]), report)
    assert 0 <= margin <= 1
    if score >= report and margin > 0:
        assert score > report
        assert score > second
    if score == report:
        assert margin == 0
    if second == 0 and score == 1:
        assert margin == 1
    if score == 0:
        assert margin == 1


@given(st.floats(0, 1), st.floats(0, 1))
def test_at_one_half_a_margin_is_a_classifiers_with_nothing_as_a_further_class(score: float, second: float) -> None:
    second = min(second, score)
    nothing, first, runner_up = 1 - score, score, second
    best, other = sorted((nothing, first, runner_up), reverse=True)[:2]
    if score >= 0.5 or runner_up <= nothing:
        assert margins_of(np.array([score]), np.array([second]), 0.5)[0] == pytest.approx(best - other, abs=1e-6)


def test_detections_are_ranked_and_stay_together() -> None:
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = ranked(boxes, np.array([0.2, 0.9, 0.2]), np.array([0, 1, 2]), np.array([0.5, 0.8, 0.6]))
    assert found.labels.tolist() == [1, 0, 2]
    assert found.boxes[0].tolist() == [4, 5, 6, 7]
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int32)
    assert len(found.above(0.5)) == 1
    assert joined([found, NONE, found]).labels.tolist() == [1, 1, 0, 2, 0, 2]
    assert len(joined([])) == len(NONE) == 0
    with pytest.raises(ValueError, match="must be"):
        Detections(boxes, np.ones(2, np.float32), np.zeros(2, np.int32), np.ones(2, np.float32))


def test_what_lies_outside_of_the_picture_is_cut_off_or_dropped() -> None:
    boxes = np.array([[-5, -5, 5, 5], [90, 40, 130, 60], [200, 0, 210, 10], [3, 3, 3, 9]], np.float32)
    found = ranked(boxes, np.array([0.9, 0.8, 0.7, 0.6]), np.zeros(4), np.zeros(4)).clipped(100, 50)
    assert found.boxes.tolist() == [[0, 0, 5, 5], [90, 40, 100, 50]]
    assert clip(boxes[:1], (1, 2, 3, 4)).tolist() == [[1, 2, 3, 4]]
