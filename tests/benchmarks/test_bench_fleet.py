"""The fleet's own arithmetic: what is counted, and that cheats get nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.fleet import fleet, layout, loss_and_gradient, simulate
from benchmarks.fleet_round import KINDS, TRICKS


def test_honest_devices_and_cloud_complete_every_round_exactly() -> None:
    row = simulate(40, 4, 6, dropout=0.0, cheats=0.0, bad_cloud=0.0)
    assert (row["rounds"], row["void"], row["refused"], row["fooled"]) == (4, 0, 0, 0)
    assert row["exact"] == 1.0
    assert row["loss_last"] < 0.8 * row["loss_first"]
    assert row["virtual_round_s"] > 1


def test_a_cloud_that_always_cheats_gets_no_sum_and_is_refused_by_every_device() -> None:
    row = simulate(60, 6, 8, dropout=0.0, cheats=0.0, bad_cloud=1.0, seed=3)
    assert (row["completed"], row["fooled"], row["bad_cloud"]) == (0, 0, row["rounds"])
    assert row["refused"] >= 6 * 8
    assert row["loss_last"] == row["loss_first"]


def test_cheating_devices_and_dropouts_leave_the_sums_exact() -> None:
    row = simulate(80, 6, 12, dropout=0.2, cheats=0.2, bad_cloud=0.0, seed=2)
    assert row["completed"] >= 1
    assert row["refused"] > 0
    assert row["exact"] == 1.0


def test_buckets_make_one_step_of_a_robust_mean() -> None:
    row = simulate(120, 12, 6, buckets=3, dropout=0.0, cheats=0.0, bad_cloud=0.0)
    assert (row["rounds"], row["completed"]) == (12, 12)
    assert row["loss_last"] < row["loss_first"]


def test_a_fleet_has_every_kind_of_cheat_and_there_is_every_trick() -> None:
    devices = fleet(200, 0.7, np.random.default_rng(1)).devices.values()
    assert {one.kind for one in devices} == {"honest", *KINDS}
    assert len(TRICKS) == 5


def test_the_gradient_is_that_of_the_loss() -> None:
    device: Any = next(iter(fleet(1, 0.0, np.random.default_rng(1)).devices.values()))
    model = np.random.default_rng(2).standard_normal(layout().size).astype(np.float32)
    gradient = loss_and_gradient(model, device.features, device.classes)[1]
    for place in (0, 5, 43):
        step = np.zeros_like(model)
        step[place] = 1e-2
        up, down = (loss_and_gradient(model + sign * step, device.features, device.classes)[0] for sign in (1, -1))
        assert gradient[place] == pytest.approx((up - down) / 2e-2, abs=1e-3)
