"""The circuit breaker on a virtual clock."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from edged.collab.breaker import Breaker, BreakerSettings, State


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def closed(clock: Clock, rng: float = 0.5, settings: BreakerSettings | None = None) -> Breaker:
    breaker = Breaker(clock, lambda: rng, settings)
    ticket = breaker.probe()
    assert ticket is not None
    breaker.success(ticket)
    assert breaker.state == "closed"
    return breaker


def admit(breaker: Breaker) -> int:
    ticket = breaker.admit()
    assert ticket is not None
    return ticket


def test_it_starts_open_and_the_first_good_probe_closes_it() -> None:
    changes: list[State] = []
    breaker = Breaker(Clock(), lambda: 0.5, on_change=changes.append)
    assert breaker.state == "open" and breaker.admit() is None
    ticket = breaker.probe()
    assert ticket is not None and breaker.probe() is None, "one probe at a time"
    breaker.success(ticket)
    assert changes == ["half-open", "closed"]


def test_three_consecutive_failures_open_it_but_not_two_and_a_success() -> None:
    breaker = closed(Clock())
    for _ in range(5):
        breaker.failure(admit(breaker))
        breaker.failure(admit(breaker))
        breaker.success(admit(breaker))
    assert breaker.state == "closed"
    for _ in range(3):
        breaker.failure(admit(breaker))
    assert breaker.state == "open" and breaker.admit() is None


def test_slow_answers_are_strikes() -> None:
    breaker = closed(Clock())
    for _ in range(3):
        breaker.success(admit(breaker), slow=True)
    assert breaker.state == "open"


def test_backoff_doubles_with_full_jitter_up_to_the_cap_and_a_success_resets_it() -> None:
    clock = Clock()
    breaker = closed(clock, rng=0.5, settings=BreakerSettings(first_backoff=1.0, longest_backoff=8.0))
    for _ in range(3):
        breaker.failure(admit(breaker))
    waits = []
    for _ in range(6):
        waits.append(breaker.retry_in)
        clock.now += breaker.retry_in - 0.001
        assert breaker.probe() is None
        clock.now += 0.002
        ticket = breaker.probe()
        assert ticket is not None and breaker.state == "half-open"
        breaker.failure(ticket)
    assert [round(w, 3) for w in waits] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    clock.now += 10
    ticket = breaker.probe()
    assert ticket is not None
    breaker.success(ticket)
    for _ in range(3):
        breaker.failure(admit(breaker))
    assert round(breaker.retry_in, 3) == 0.5


def test_late_results_of_an_older_phase_do_not_count() -> None:
    clock = Clock()
    breaker = closed(clock)
    old = [admit(breaker) for _ in range(6)]
    for ticket in old[:3]:
        breaker.failure(ticket)
    clock.now += 1
    probe = breaker.probe()
    assert probe is not None
    breaker.failure(old[3])
    assert breaker.state == "half-open", "an old failure must not spoil the probe"
    breaker.success(old[4])
    assert breaker.state == "half-open", "an old success must not replace the probe"
    breaker.success(probe)
    breaker.failure(old[5])
    assert breaker.state == "closed"


def test_hints_of_the_control_channel() -> None:
    clock = Clock()
    breaker = closed(clock)
    breaker.link_down()
    assert breaker.state == "open" and breaker.probe() is None
    breaker.link_up()
    ticket = breaker.probe()
    assert ticket is not None, "link-up allows the probe at once"
    breaker.link_down()
    assert breaker.state == "open"
    breaker.success(ticket)
    assert breaker.state == "open", "the probe was of before the link went down"
    clock.now += 60
    assert breaker.probe() is not None, "a wrong hint does not keep it open for ever"


def test_pause_and_least_backoff_wait_at_least_as_long_as_told() -> None:
    breaker = closed(Clock())
    breaker.pause(admit(breaker), 17.0)
    assert breaker.retry_in == 17.0
    breaker = closed(Clock())
    breaker.failure(admit(breaker), least_backoff=60.0)
    assert breaker.state == "open" and breaker.retry_in == 60.0


def test_an_abandoned_probe_can_be_repeated_at_once() -> None:
    breaker = closed(Clock())
    breaker.link_down()
    breaker.link_up()
    ticket = breaker.probe()
    assert ticket is not None
    breaker.abandon(ticket)
    assert breaker.state == "open" and breaker.probe() is not None


@given(
    st.lists(st.sampled_from(["ok", "slow", "fail", "down", "up", "tick", "probe", "pause"]), max_size=80), st.randoms()
)
def test_invariants_under_any_sequence(steps: list[str], rng: random.Random) -> None:
    clock = Clock()
    breaker = Breaker(clock, rng.random)
    tickets = [0]
    for step in steps:
        for ticket in (breaker.admit(), breaker.probe() if step == "probe" else None):
            if ticket is not None:
                tickets.append(ticket)
        ticket = rng.choice(tickets)
        match step:
            case "ok" | "slow":
                breaker.success(ticket, slow=step == "slow")
            case "fail":
                breaker.failure(ticket)
            case "pause":
                breaker.pause(ticket, 5.0)
            case "down":
                breaker.link_down()
                assert breaker.state == "open"
            case "up":
                breaker.link_up()
                assert breaker.retry_in == 0.0
            case "tick":
                clock.now += rng.random() * 10
        assert 0.0 <= breaker.retry_in <= 30.0
        assert (breaker.admit() is not None) == (breaker.state == "closed")
    clock.now += 31
    if breaker.state == "open":
        assert breaker.probe() is not None, "it can always be probed again"
