"""The secure aggregation benchmark's own arithmetic; its figures are for a quiet machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.secagg import NOT_INSTALLED, case, flower_python, verdict

GOOD: list[dict[str, Any]] = [
    {"mode": "full", "params": 100_000, "n": 8, "client_x": 8.5, "server_x": 9.0, "up_ratio": 1.0},
    {"mode": "full", "params": 100_000, "n": 32, "client_x": 9.0, "server_x": 110.0, "up_ratio": 1.01},
    {"mode": "full", "params": 1_000_000, "n": 32, "client_x": 9.0, "server_x": 26.0, "up_ratio": 1.0},
    {"mode": "lite", "params": 1_000_000, "n": 32, "client_x": 9.0, "server_x": 26.0, "up_ratio": 0.51},
]


def test_the_verdict_has_every_goal() -> None:
    assert verdict(GOOD) == {"client_cpu_met": True, "server_cpu_met": True, "up_ratio_met": True}


@pytest.mark.parametrize(
    ("row", "change", "goal"),
    [
        (0, {"client_x": 7.9}, "client_cpu_met"),
        (1, {"server_x": 99.0}, "server_cpu_met"),
        (2, {"server_x": 24.0}, "server_cpu_met"),
        (1, {"up_ratio": 1.02}, "up_ratio_met"),
        (3, {"up_ratio": 0.52}, "up_ratio_met"),
    ],
)
def test_each_goal_can_be_missed(row: int, change: dict[str, Any], goal: str) -> None:
    rows = [dict(one) for one in GOOD]
    rows[row] |= change
    found = verdict(rows)
    assert not found[goal]
    assert all(met for name, met in found.items() if name != goal)


def test_a_case_without_flower_says_so_and_meets_the_sizes() -> None:
    rows = case(5000, 5, 1, 1, None)
    assert [row["mode"] for row in rows] == ["full", "lite"]
    assert all(row["flower_client_cpu_s"] == row["flower_server_cpu_s"] == NOT_INSTALLED for row in rows)
    assert all(row["client_cpu_s"] > 0 and row["server_cpu_s"] > 0 for row in rows)
    assert all(row["error"] < 1e-3 for row in rows)
    assert verdict(rows)["client_cpu_met"] is None


def test_an_absent_interpreter_is_none(tmp_path: Path) -> None:
    assert flower_python(None) is None
    assert flower_python(tmp_path) is None
