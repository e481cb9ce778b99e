"""The incremental benchmark's own arithmetic; its figures are for a quiet machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.anomaly_features import Network
from benchmarks.incremental import NEW, features, recalls, updated, verdict
from edgekit.heads.linear import LinearHead

LABELS = ["clean", "open", *NEW]
MEANS = 4.0 * np.eye(4, 6)


def drawn(seed: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    y = np.repeat(np.arange(4), each)
    return MEANS[y] + np.random.default_rng(seed).standard_normal((len(y), 6)), y


def test_recalls_go_by_the_names_of_the_head() -> None:
    head = LinearHead(("open", "clean"), np.array([[1.0], [-1.0]]), np.zeros(2))
    x, y = np.array([[1.0], [-1.0], [-2.0], [3.0]]), np.array([1, 0, 1, 2])
    assert recalls(head, x, y, LABELS) == {"clean": 1.0, "open": 0.5, "copper": 0.0}


def test_new_classes_are_learned_from_few_labels_and_old_ones_kept() -> None:
    row = updated(drawn(0, 200), drawn(1, 200), LABELS, 20, 0, "own")
    assert row["new_recall"] > 0.9 and abs(row["old_drop"]) < 0.05 and row["update_s"] < 1.0
    assert row["old_before"] - row["old_after"] == pytest.approx(row["old_drop"])
    assert updated(drawn(0, 200), drawn(1, 200), LABELS, 20, 1, "own") != row


def row(labels: int, recall: float, drop: float, backbone: str = "own") -> dict[str, Any]:
    return {
        "backbone": backbone,
        "labels": labels,
        "new_recall": recall,
        "old_drop": drop,
        "old_before": 0.9,
        "update_s": 0.1,
    }


def test_the_verdict_takes_the_rows_with_twenty_labels_and_the_own_backbone_only() -> None:
    found = verdict([row(5, 0.1, 0.5), row(20, 0.1, 0.5, "foreign"), row(20, 0.7, 0.0), row(20, 0.9, 0.01)])
    assert found["new_recall"] == pytest.approx(0.8) and found["new_recall_min"] == 0.7
    assert found["old_drop_max"] == 0.01 and found["old_met"] and found["update_met"]


def test_features_are_means_and_maxima() -> None:
    found = features(Network("random", {}, 64), [np.full((64, 64), 90, np.uint8)] * 2)
    assert found.shape == (2, 384) and (found[:, 192:] >= found[:, :192] - 1e-6).all()
