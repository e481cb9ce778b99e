"""The rules under the research's trace, shortened: the goals hold with a margin, and against what others do."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest

from benchmarks.schedule_sim import KINDS, Baseline, Count, Scenario, goodput, simulate, trace
from edgekit.dispatch.policy import DispatchPolicy, Priority

REQUESTS = 12_000
FIFO, PRIORITY = Baseline(), Baseline(by_class=True)


@cache
def run(load: float, down: float = 0.0, cv: float = 0.15, rules: Baseline | None = None) -> dict[Priority, Count]:
    return simulate(Scenario(load, down, cv, requests=REQUESTS), rules or DispatchPolicy())


def test_at_a_fifth_more_than_the_device_can_do_all_classes_are_served() -> None:
    counts = run(1.2)
    assert counts["alarm"].slo >= 0.995
    assert counts["inline"].slo >= 0.995
    assert goodput(counts) >= 0.99


def test_at_twice_as_much_alarms_are_served() -> None:
    counts = run(2.0)
    assert counts["alarm"].slo >= 0.993
    assert goodput(counts) >= 0.95


def test_with_the_link_down_for_30_percent_of_the_time_alarms_are_served_and_nothing_is_forgotten() -> None:
    counts = run(1.2, down=0.3)
    assert counts["alarm"].slo >= 0.993
    assert goodput(counts) >= 0.96
    assert sum(count.lost for count in counts.values()) > 0  # some were on their way when it dropped
    assert counts["audit"].refused == 0 and counts["audit"].spooled > 0
    assert counts["alarm"].refused == counts["alarm"].spooled == 0


def test_without_any_link_alarms_fare_as_well_as_under_strict_priority() -> None:
    counts = run(1.2, down=1.0)
    assert counts["alarm"].slo >= run(1.2, rules=PRIORITY)["alarm"].slo - 0.003
    assert sum(count.offloaded for count in counts.values()) == 0


def test_run_times_that_vary_twice_as_much_cost_less_than_one_alarm_in_a_hundred() -> None:
    assert run(1.2, cv=0.3)["alarm"].slo >= 0.99


def test_first_come_first_served_and_strict_priority_do_what_the_research_says_of_them() -> None:
    assert goodput(run(1.2, rules=FIFO)) < 0.1
    strict = run(1.2, rules=PRIORITY)
    assert strict["alarm"].slo == pytest.approx(0.99, abs=0.01)
    assert strict["audit"].slo < 0.1
    assert goodput(strict) == pytest.approx(0.63, abs=0.06)


def test_below_capacity_almost_nothing_leaves_the_device() -> None:
    counts = run(0.5)
    assert goodput(counts) > 0.999
    assert sum(count.offloaded for count in counts.values()) < 0.03 * REQUESTS


def test_the_same_scenario_gives_the_same_figures() -> None:
    scenario = Scenario(1.5, 0.3, requests=2_000)
    assert simulate(scenario, DispatchPolicy()) == simulate(scenario, DispatchPolicy())


def test_the_trace_is_the_researchs() -> None:
    requests = trace(Scenario(1.2, requests=REQUESTS))
    assert all(one.job.arrived <= two.job.arrived for one, two in pairwise(requests))
    for rank, kind in enumerate(KINDS):
        mine = [one for one in requests if one.rank == rank]
        assert len(mine) / REQUESTS == pytest.approx(kind.share, abs=0.02)
        assert sum(one.run_s for one in mine) / len(mine) == pytest.approx(kind.run_s, rel=0.02)
        assert all(one.job.deadline - one.job.arrived == pytest.approx(kind.deadline_s) for one in mine)
    assert [one.job.arrived for one in trace(Scenario(1.2, cv=0.5, requests=50))] == [
        one.job.arrived for one in requests[:50]
    ]


@pytest.mark.parametrize("threads", [2, 4])
def test_several_threads_do_several_times_as_much(threads: int) -> None:
    counts = simulate(Scenario(1.0, threads=threads, requests=4_000), DispatchPolicy())
    assert counts["alarm"].slo >= 0.999 and counts["inline"].slo >= 0.999
