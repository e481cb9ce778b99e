"""Which halves are timed within a budget, and what is said of the others; the clock is virtual."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from edgekit.splitting.cuts import Cut
from edgekit.splitting.graph import CutTensor
from edgekit.splitting.profile import MAX_RUNS, MIN_RUNS, HalfTime, profile_halves, time_runs

WHOLE_MS = 100.0


class Machine:
    """Runs take the virtual time that they are told; opening a half takes `open_s`."""

    def __init__(self, ms: Callable[[Cut], float], open_s: float = 0.0) -> None:
        self.now = 50.0
        self.opened: list[int] = []
        self.runs = 0
        self._ms = ms
        self._open_s = open_s

    def clock(self) -> float:
        return self.now

    def open_half(self, cut: Cut) -> Callable[[], object]:
        self.opened.append(cut.index)
        self.now += self._open_s

        def run() -> None:
            self.runs += 1
            self.now += self._ms(cut) / 1e3

        return run


def cut(index: int, work: float, values: int) -> Cut:
    tensor = CutTensor(name=f"t{index}", shape=(1, values), dtype="float32")
    return Cut(index=index, tensors=(tensor,), work=work, bytes=4 * values, wire_bytes=values)


# Candidates by bytes: 1, 3, 5 and 7; each of the others has as many bytes as the one before it.
CUTS = [cut(i, work, values) for i, work, values in zip(
    range(1, 8), (0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.9), (900, 900, 500, 500, 200, 200, 50), strict=True
)]  # fmt: skip


def profiled(machine: Machine, budget_s: float, side: str = "head") -> dict[int, HalfTime]:
    times = profile_halves(CUTS, side, WHOLE_MS, machine.open_half, machine.clock, budget_s)  # type: ignore[arg-type]
    assert [one.index for one in times] == [one.index for one in CUTS]
    return {one.index: one for one in times}


def test_candidates_are_measured_and_the_rest_lies_between_them_by_work() -> None:
    times = profiled(Machine(lambda one: {1: 20.0, 3: 50.0, 5: 60.0, 7: 80.0}[one.index]), budget_s=60)
    assert {index for index, one in times.items() if one.measured} == {1, 3, 5, 7}
    assert [times[index].ms for index in (1, 3, 5, 7)] == pytest.approx([20, 50, 60, 80])
    assert times[2].ms == pytest.approx(30)  # a third of the way from 20 to 50
    assert times[4].ms == pytest.approx(55)
    assert times[6].ms == pytest.approx(60 + 20 / 3)


def test_a_tail_is_timed_against_the_work_that_is_left() -> None:
    times = profiled(Machine(lambda one: 90 * (1 - one.work)), 60, "tail")
    assert [times[index].ms for index in (1, 4, 7)] == pytest.approx([81, 45, 9])


def test_without_time_every_half_is_estimated_from_the_whole() -> None:
    machine = Machine(lambda one: 1.0)
    times = profiled(machine, budget_s=0)
    assert machine.opened == []
    assert [times[one.index].ms for one in CUTS] == pytest.approx([WHOLE_MS * one.work for one in CUTS])
    assert not any(one.measured for one in times.values())


def test_a_short_budget_measures_the_middle_first_and_is_exceeded_by_one_half_at_most() -> None:
    machine = Machine(lambda one: 1000 * one.work, open_s=1.0)
    started = machine.now
    times = profiled(machine, budget_s=2.0)
    assert machine.opened == [3]
    assert times[3].measured
    assert machine.now - started == pytest.approx(1.0 + 0.4 * (MIN_RUNS + 1))


def test_a_long_budget_makes_no_more_runs_than_are_of_use() -> None:
    machine = Machine(lambda one: 1.0)
    profiled(machine, budget_s=1e6)
    assert machine.runs == 4 * (MAX_RUNS + 1)


def test_what_a_device_needs_of_splitting_needs_no_onnx_package() -> None:
    code = "import sys; sys.modules['onnx'] = None; import edgekit.splitting.features, edgekit.splitting.profile"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).stderr == b""


def test_the_median_ignores_the_first_run_and_a_slow_one() -> None:
    durations = iter([5.0, 0.002, 0.9, 0.002, 0.002, 0.002])
    now = [0.0]

    def run() -> None:
        now[0] += next(durations)

    assert time_runs(run, lambda: now[0], until=5.905) == pytest.approx(2.0)
