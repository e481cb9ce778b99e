"""The compression benchmark's own arithmetic and networks; its figures are for a quiet machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks.compress import NETWORKS, in_turn, verdict
from edgekit.runtimes import open_session

GOOD: list[dict[str, Any]] = [
    {"case": "resnet18", "kind": "u8s8", "speedup": 3.1, "size_ratio": 0.25},
    {"case": "mobilenetv2", "kind": "u8s8", "speedup": 2.1, "size_ratio": 0.27},
    {"case": "solder-large", "kind": "u8s8", "speedup": 1.0, "accuracy_drop": 0.004, "accepted": True},
    {"case": "resnet18", "kind": "s8s8", "speedup": 1.0, "size_ratio": 1.0},
    {"case": "mobilenetv2", "kind": "pruned-u8s8 0.75", "speedup": 2.1, "size_ratio": 0.18},
    {"case": "solder-large", "kind": "pruned-u8s8", "speedup": 1.3, "accuracy_drop": 0.004, "accepted": True},
    {"case": "mobilenetv2", "kind": "pruned 0.75", "speedup": 1.4, "size_ratio": 0.7},
]


def test_the_verdict_looks_at_what_suits_the_processor() -> None:
    assert all(verdict(GOOD).values())


@pytest.mark.parametrize(
    ("row", "change", "goal"),
    [
        (0, {"speedup": 2.9}, "speedup_met"),
        (1, {"speedup": 1.9}, "speedup_met"),
        (1, {"size_ratio": 0.28}, "size_ratio_met"),
        (2, {"accuracy_drop": 0.006}, "accuracy_drop_met"),
        (2, {"accepted": False}, "accuracy_drop_met"),
        (4, {"speedup": 1.9}, "pruned_speedup_met"),
        (4, {"size_ratio": 0.3}, "pruned_size_ratio_met"),
        (5, {"accuracy_drop": 0.006}, "pruned_accuracy_drop_met"),
        (5, {"accepted": False, "accuracy_drop": None}, "pruned_accuracy_drop_met"),
    ],
)
def test_a_goal_that_is_missed_shows(row: int, change: dict[str, Any], goal: str) -> None:
    rows = [dict(one) for one in GOOD]
    rows[row] |= change
    found = verdict(rows)
    assert not found.pop(goal) and all(found.values())


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_680_000), ("mobilenetv2", 3_490_000)])
def test_the_networks_have_the_size_of_their_originals_and_run(name: str, parameters: int, tmp_path: Path) -> None:
    NETWORKS[name](tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    onnx.checker.check_model(model)
    count = 0
    for tensor in model.graph.initializer:
        size = 1
        for side in tensor.dims:
            size *= side
        count += size
    assert count == pytest.approx(parameters, rel=0.01)
    times = in_turn({"": open_session(tmp_path / "model.onnx", "onnxruntime")}, rounds=2)
    assert len(times[""]) == 2 and min(times[""]) > 0
