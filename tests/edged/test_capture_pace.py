"""The frame clock and the drop policy against a virtual clock."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.capture.pace import FASTEST, FrameClock, NewestWins

rates = st.floats(0.1, FASTEST)
gaps = st.lists(st.floats(0.0, 2.0), min_size=1, max_size=200)


def let_through(fps: float, gaps: list[float]) -> list[float]:
    clock, now, passed = FrameClock(fps), 0.0, []
    for gap in gaps:
        now += gap
        if clock.due(now):
            passed.append(now)
    return passed


@settings(deadline=None)
@given(rates, gaps)
def test_never_more_than_the_rate_and_never_two_close_together(fps: float, gaps: list[float]) -> None:
    passed = let_through(fps, gaps)
    assert all(after - before >= 0.5 / fps * (1 - 1e-9) for before, after in pairwise(passed))
    for start in range(len(passed)):
        for end in range(start + 1, len(passed)):
            assert end - start + 1 <= (passed[end] - passed[start]) * fps + 2.25 + 1e-6


@settings(deadline=None)
@given(rates, st.floats(1.0, 8.0), st.floats(0.0, 0.2), st.randoms(use_true_random=False))
def test_a_camera_that_is_fast_enough_keeps_the_rate(fps: float, faster: float, jitter: float, random: object) -> None:
    """Frames come `faster` times as often as wanted, each up to `jitter` of its interval early or late."""
    interval = 1 / (fps * faster)
    times = [(number + jitter * random.uniform(-1, 1)) * interval for number in range(150)]  # type: ignore[attr-defined]
    clock = FrameClock(fps)
    passed = sum(clock.due(now) for now in times)
    assert passed >= 0.7 * 150 / faster - 2


@pytest.mark.parametrize(("camera", "wanted"), [(30, 30), (30, 25), (30, 20), (30, 10), (60, 50), (25, 30)])
def test_usual_rates(camera: int, wanted: int) -> None:
    passed = let_through(wanted, [1 / camera] * (camera * 60))
    assert len(passed) == pytest.approx(60 * min(camera, wanted), rel=0.02)


def test_no_rate_stands_for_the_fastest() -> None:
    assert len(let_through(0.0, [0.0005] * 2000)) == pytest.approx(FASTEST, abs=3)


def test_a_frame_at_once_after_a_pause() -> None:
    clock = FrameClock(1.0)
    assert clock.due(0.0) and not clock.due(0.5) and clock.due(100.0) and clock.due(101.0)


events = st.lists(st.sampled_from(["frame", "end"]), max_size=200)


@settings(deadline=None)
@given(st.integers(1, 4), events)
def test_few_are_under_way_one_waits_and_the_newest_is_never_the_one_given_up(limit: int, events: list[str]) -> None:
    policy: NewestWins[int] = NewestWins(limit)
    newest, running, started = 0, 0, []
    for event in events:
        if event == "frame":
            newest += 1
            begun = policy.offer(newest)
        elif running:
            running -= 1
            begun = policy.ended()
        else:
            continue
        if begun is not None:
            running += 1
            started.append(begun)
        assert policy.under_way == running <= limit
        assert started == sorted(set(started)), "in order, each once"
        assert len(started) + policy.dropped + policy.waiting == newest, "none is lost without being counted"
        if newest:
            assert policy.waiting or started[-1] == newest, "the newest waits or has begun"
        assert not policy.waiting or running == limit, "nothing waits without need"


def test_a_policy_needs_room() -> None:
    with pytest.raises(ValueError):
        NewestWins(0)
