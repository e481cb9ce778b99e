from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.dispatch.blocking import Load, blockings
from edgekit.dispatch.service_times import ServiceTimes


def measured(cv: float, count: int = 400, mean: float = 0.04, seed: int = 3) -> ServiceTimes:
    generator = random.Random(seed)
    times = ServiceTimes(1.0)
    for _ in range(count):
        times.add(mean * max(0.1, generator.gauss(1.0, cv)))
    return times


def test_the_guess_stands_until_something_is_measured() -> None:
    times = ServiceTimes(0.05)
    assert times.mean == 0.05 and times.cv == 0.0
    times.add(0.02)
    assert times.mean == pytest.approx(0.02)  # the guess weighs nothing any more


def test_steady_runs_are_predicted_by_their_mean_with_a_margin() -> None:
    times = measured(cv=0.15)
    assert times.cv == pytest.approx(0.15, abs=0.05)
    assert times.predicted(1.15, 0.3) == pytest.approx(1.15 * times.mean) == pytest.approx(0.046, rel=0.1)


def test_unsteady_runs_are_predicted_by_their_95th_percentile() -> None:
    times = measured(cv=0.5)
    assert times.cv > 0.3
    assert times.predicted(1.15, 0.3) == pytest.approx(0.04 * (1 + 1.64 * 0.5), rel=0.15)
    assert times.predicted(1.15, 10.0) == pytest.approx(1.15 * times.mean)  # another limit, the same state


def test_a_device_that_gets_slower_is_noticed_within_a_few_runs() -> None:
    times = measured(cv=0.1)
    for _ in range(15):
        times.add(0.08)
    assert times.mean > 0.07
    assert times.predicted(1.15, 10.0) > 0.08


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.01, 0.0])
def test_what_is_no_time_is_not_counted_and_no_guess(bad: float) -> None:
    times = measured(cv=0.1)
    before = times.mean, times.cv
    times.add(bad)
    assert (times.mean, times.cv) == before
    with pytest.raises(ValueError, match="guess"):
        ServiceTimes(bad)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=300))
def test_the_prediction_lies_between_the_mean_and_what_was_ever_measured_with_the_margin(runs: list[float]) -> None:
    times = ServiceTimes(0.1)
    for seconds in runs:
        times.add(seconds)
    assert times.mean * 0.999 <= times.predicted(1.15, 0.3) <= 1.15 * max(runs) * 1.001


# --- services that block each other ----------------------------------------------------------------------------------

ALARM = Load("press", "alarm", 0.100, 0.025)


def test_services_whose_runs_fit_before_an_alarm_are_well_together() -> None:
    assert blockings([ALARM, Load("joints", "inline", 0.3, 0.04), Load("surface", "audit", 5.0, 0.075)]) == []


def test_a_run_that_is_too_long_for_an_alarm_to_wait_for_is_named_with_what_can_be_done() -> None:
    (sentence,) = blockings([ALARM, Load("joints", "inline", 0.3, 0.04), Load("surface", "audit", 5.0, 0.09)])
    assert sentence.startswith(
        'an alarm of "press" would be late behind one run of "surface": that takes 90 ms, and the alarm can wait '
        "for 75 ms (deadline 100 ms, run 25 ms); "
    )
    assert "two threads" in sentence


def test_a_second_thread_is_kept_for_alarms_so_nothing_blocks_them() -> None:
    assert blockings([ALARM, Load("surface", "audit", 5.0, 0.5)], threads=2) == []


def test_an_alarm_that_cannot_be_met_even_alone_is_named_whatever_the_threads() -> None:
    for threads in (1, 2):
        (sentence,) = blockings([Load("press", "alarm", 0.02, 0.025), Load("surface", "audit", 5.0, 0.5)], threads)
        assert '"press" take 25 ms and have a deadline of 20 ms' in sentence
