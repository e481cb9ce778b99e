"""The governor and the retry schedule, by a virtual clock."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edged.governor import (
    COOL_S,
    GAP_S,
    HOT_S,
    LATE_S,
    MAX_COOL_S,
    SETTLE_S,
    Governor,
    Limits,
    Order,
    Reading,
    Retry,
)

TICK = 5.0
COOL, WARM, HOT, CRITICAL = (Reading(celsius=value) for value in (50.0, 77.0, 85.0, 96.0))


class Bench:
    """Feeds a governor every five seconds and keeps what it ordered."""

    def __init__(self, deepest: int = 3) -> None:
        self.governor = Governor(Limits(soft_c=80.0, hard_c=95.0))
        self.deepest, self.now = deepest, 1000.0
        self.orders: list[tuple[float, Order]] = []

    def feed(self, reading: Reading, seconds: float) -> list[Order]:
        """Read the same for a while; the orders of this while."""
        before = len(self.orders)
        end = self.now + seconds
        while self.now < end:
            self.now += TICK
            order = self.governor.observe(self.now, reading, self.deepest)
            if order is not None:
                self.orders.append((self.now, order))
        return [order for _, order in self.orders[before:]]

    @property
    def level(self) -> int:
        return self.governor.level


def test_a_short_peak_changes_nothing() -> None:
    bench = Bench()
    for _ in range(20):
        assert bench.feed(HOT, HOT_S - TICK) == []
        assert bench.feed(COOL, 10) == []
    assert bench.level == 0


def test_sustained_heat_steps_down_one_at_a_time_and_waits_for_the_heat_sink() -> None:
    bench = Bench()
    orders = bench.feed(HOT, HOT_S + 10 * SETTLE_S)
    assert [order.level for order in orders] == [1, 2, 3]
    assert "80 °C" in orders[0].reason and "85 °C" in orders[0].reason
    times = [at for at, _ in bench.orders]
    assert all(later - earlier >= SETTLE_S for earlier, later in itertools.pairwise(times))


def test_the_hard_limit_takes_the_gentlest_at_once() -> None:
    bench = Bench()
    (order,) = bench.feed(CRITICAL, TICK)
    assert order.level == 3 and "hard limit" in order.reason


def test_throttling_counts_as_heat_and_gives_the_reason() -> None:
    bench = Bench()
    voltage = Reading(celsius=50.0, throttled=["The power supply gives too little voltage."])
    (order,) = bench.feed(voltage, HOT_S + TICK)
    assert order.level == 1 and "too little voltage" in order.reason


def test_coolness_steps_up_slowly_and_warmth_in_between_waits() -> None:
    bench = Bench()
    bench.feed(HOT, HOT_S + 2 * SETTLE_S)
    deep = bench.level
    assert deep >= 2
    assert bench.feed(WARM, 10 * COOL_S) == [], "between the limits nothing changes"
    ups = bench.feed(COOL, (deep + 1) * COOL_S)
    assert [order.level for order in ups] == list(range(deep - 1, -1, -1))


def test_a_step_up_that_brings_the_heat_back_doubles_the_patience() -> None:
    bench = Bench(deepest=1)
    waits = []
    for _ in range(6):
        bench.feed(HOT, HOT_S + SETTLE_S)
        assert bench.level == 1
        begun = bench.now
        bench.feed(COOL, 0)
        while bench.level == 1:
            bench.feed(COOL, TICK)
        waits.append(bench.now - begun)
    assert waits[1] >= 1.9 * waits[0] and waits[2] >= 1.9 * waits[1]
    assert waits[-1] <= MAX_COOL_S + 2 * TICK, "but never for ever"
    bench.feed(COOL, MAX_COOL_S + TICK)
    bench.feed(HOT, HOT_S + SETTLE_S)
    begun = bench.now
    while bench.level == 1:
        bench.feed(COOL, TICK)
    assert bench.now - begun <= COOL_S + 2 * TICK, "an hour of peace forgives"


def test_no_sensor_is_no_heat() -> None:
    bench = Bench()
    assert bench.feed(Reading(), 10 * SETTLE_S) == []
    bench.feed(HOT, HOT_S + TICK)
    assert bench.level == 1
    bench.feed(Reading(), COOL_S + TICK)
    assert bench.level == 0, "a sensor that went away does not hold the device back for ever"


def test_after_a_suspend_old_heat_says_nothing() -> None:
    bench = Bench()
    bench.feed(HOT, HOT_S - TICK)
    bench.now += GAP_S + TICK
    assert bench.feed(HOT, TICK) == []
    assert bench.level == 0


def test_without_gentler_settings_it_only_says_that_it_is_hot() -> None:
    bench = Bench(deepest=0)
    assert bench.feed(HOT, 10 * SETTLE_S) == []
    assert bench.governor.lasting
    bench.feed(COOL, TICK)
    assert not bench.governor.lasting


def test_a_shorter_ladder_lowers_the_level() -> None:
    bench = Bench()
    bench.feed(CRITICAL, TICK)
    bench.deepest = 1
    (order,) = bench.feed(WARM, TICK)
    assert order.level == 1


def test_slow_services_are_named_after_a_while_and_only_when_heat_does_not_explain_it() -> None:
    bench = Bench()
    slow = Reading(celsius=50.0, late=frozenset({"solder"}))
    bench.feed(slow, LATE_S - TICK)
    assert bench.governor.late == frozenset()
    bench.feed(slow, 2 * TICK)
    assert bench.governor.late == {"solder"}
    bench.feed(COOL, TICK)
    assert bench.governor.late == frozenset()
    bench.feed(Reading(celsius=85.0, late=frozenset({"solder"})), 2 * LATE_S)
    assert bench.governor.late == frozenset()


@given(st.lists(st.tuples(st.sampled_from([COOL, WARM, HOT, CRITICAL, Reading()]), st.floats(1, 400)), max_size=40))
def test_the_level_stays_in_its_range_and_never_changes_twice_within_seconds(
    history: list[tuple[Reading, float]],
) -> None:
    bench = Bench()
    for reading, seconds in history:
        bench.feed(reading, seconds)
        assert 0 <= bench.level <= bench.deepest
    times = [at for at, order in bench.orders if "hard limit" not in order.reason]
    assert all(later - earlier >= HOT_S for earlier, later in itertools.pairwise(times))


def test_retries_grow_to_an_hour() -> None:
    retry = Retry(60.0)
    assert retry.due(0.0)
    delays = [retry.failed(0.0) for _ in range(10)]
    assert delays[:4] == [60.0, 120.0, 240.0, 480.0] and delays[-1] == 3600.0
    assert not retry.due(3599.0) and retry.due(3600.0)
