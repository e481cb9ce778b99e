"""The solder benchmark's own arithmetic; its figures are for a quiet machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.solder import f1, histograms, joints, logistic, logits, summary, verdict
from cloudd.train import divide


def row(architecture: str, score: float, **other: Any) -> dict[str, Any]:
    figures = {"recall": 0.9, "precision": 1.0, "train_s": 10.0}
    return {"architecture": architecture, "f1": score, **figures, **other}


def test_f1_is_that_of_recall_and_precision() -> None:
    assert f1(18, 19, 18) == pytest.approx(2 * 1.0 * (18 / 19) / (1.0 + 18 / 19))
    assert f1(0, 19, 0) == 0.0 and f1(0, 0, 0) == 0.0


def test_the_summary_has_mean_and_spread_over_the_seeds() -> None:
    rows = [row("tiny_cnn", 0.9, recall=0.8), row("tiny_cnn", 1.0, recall=1.0), row("other", 0.2)]
    found = summary(rows, "tiny_cnn")
    assert (found["f1_mean"], found["f1_min"], found["f1_max"]) == pytest.approx((0.95, 0.9, 1.0))
    assert found["recall_mean"] == pytest.approx(0.9) and found["train_s"] == 10.0


@pytest.mark.parametrize(("scores", "met"), [((0.95, 0.95), True), ((1.0, 0.89), False)])
def test_the_goal_is_the_mean_of_the_tiny_network(scores: tuple[float, ...], met: bool) -> None:
    rows = [row("hog", 0.97), *(row("tiny_cnn", score) for score in scores), row("mobilenet_v2", 0.5)]
    found = verdict(rows)
    assert found["f1_met"] is met and found["hog_f1"] == 0.97
    assert found["networks"]["mobilenet_v2"]["f1_mean"] == 0.5
    assert {"f1_mean", "f1_min", "f1_max", "recall_mean", "precision_mean", "train_s"} <= found.keys()


def test_histograms_tell_the_direction_of_an_edge_and_not_its_sign_or_contrast() -> None:
    upright = np.zeros((64, 64), np.uint8)
    upright[:, 30:] = 200
    lying = np.ascontiguousarray(upright.T)
    a = histograms(upright)
    assert a.shape == (7 * 7 * 4 * 9,) and np.isfinite(a).all()
    np.testing.assert_allclose(histograms(200 - upright), a, atol=1e-9)
    np.testing.assert_allclose(histograms(upright // 2), a, atol=1e-3)
    assert np.abs(histograms(lying) - a).max() > 0.3


def test_logistic_regression_is_where_its_loss_has_no_slope() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 60))
    y = (x[:, 0] + 0.5 * rng.normal(size=40) > 0).astype(np.float64)
    weights = logistic(x, y, 10.0)
    rows = np.column_stack([x, np.ones(40)])
    slope = rows.T @ (1 / (1 + np.exp(-(rows @ weights))) - y) + weights / 10.0
    assert np.abs(slope).max() < 1e-6
    assert ((logits(x, weights) > 0) == (y == 1)).mean() > 0.9


def test_the_boards_that_judge_are_those_of_the_data(real_data: Path) -> None:
    dataset = joints(real_data)
    parts = divide(dataset)
    assert {one.part for one in parts.test} == {"test"} and len(parts.test) == 250
    assert sum(one.label == "defect" for one in parts.test) == 19
    groups = [{one.group for one in pictures} for _, pictures in parts.items()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2]
