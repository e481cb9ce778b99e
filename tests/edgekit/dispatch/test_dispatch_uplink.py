from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgekit.dispatch.policy import PRIORITIES, Priority
from edgekit.dispatch.uplink import UplinkAccount

RATE = 1e6


def account(**changes: bool) -> UplinkAccount[str]:
    return UplinkAccount(RATE, **changes)


def test_messages_are_sent_one_at_a_time_the_most_important_class_first() -> None:
    uplink = account()
    for key, priority in (("a", "audit"), ("b", "audit"), ("c", "inline"), ("d", "alarm")):
        uplink.queue(key, priority, 10_000)  # type: ignore[arg-type]
    order = []
    for step in range(4):
        key = uplink.begin(step)
        assert key is not None and uplink.begin(step) is None
        order.append(key)
        uplink.sent(key, step + 0.01)
    assert order == ["d", "c", "a", "b"] and uplink.begin(9) is None
    assert {name: (bytes_.queued, bytes_.sent) for name, bytes_ in uplink.classes.items()} == {
        "alarm": (0, 10_000),
        "inline": (0, 10_000),
        "audit": (0, 20_000),
    }


def test_an_alarm_waits_for_the_rest_of_one_message_and_for_other_alarms_only() -> None:
    uplink = account()
    uplink.queue("first", "audit", 100_000)
    uplink.begin(0.0)
    uplink.queue("second", "audit", 100_000)
    uplink.queue("alarm", "alarm", 50_000)
    assert uplink.backlog_s(0.04) == pytest.approx(0.06 + 0.1 + 0.05)
    assert uplink.backlog_s(0.04, "alarm") == pytest.approx(0.06 + 0.05)
    assert account(by_class=False).backlog_s(0.0, "alarm") == 0.0


def test_without_classes_messages_go_in_the_order_of_coming() -> None:
    uplink = account(by_class=False)
    uplink.queue("first", "audit", 100_000)
    uplink.queue("alarm", "alarm", 50_000)
    assert uplink.backlog_s(0.0, "alarm") == pytest.approx(0.15)
    assert uplink.begin(0.0) == "first"


def test_a_link_that_stalls_does_not_look_as_if_it_emptied() -> None:
    uplink = account()
    uplink.queue("a", "audit", 100_000)
    uplink.queue("b", "audit", 100_000)
    uplink.begin(0.0)
    assert uplink.backlog_s(60.0) == pytest.approx(0.1)  # the one on its way may be there; the other is not


def test_the_bandwidth_is_learned_from_what_was_sent() -> None:
    uplink = account()
    now = 0.0
    for number in range(40):
        uplink.queue(str(number), "inline", 50_000)
        uplink.begin(now)
        now += 50_000 / 250_000
        uplink.sent(str(number), now)
    assert uplink.bytes_per_s == pytest.approx(250_000, rel=0.01)
    assert uplink.sending_s(25_000) == pytest.approx(0.1, rel=0.01)


def test_tiny_messages_and_clocks_that_stand_still_teach_nothing_impossible() -> None:
    uplink = account()
    uplink.queue("tiny", "alarm", 100)
    uplink.begin(0.0)
    uplink.sent("tiny", 5.0)
    assert uplink.bytes_per_s == pytest.approx(RATE)
    for number in range(200):
        uplink.queue(str(number), "alarm", 1 << 20)
        uplink.begin(1.0)
        uplink.sent(str(number), 1.0)
    assert 0 < uplink.sending_s(1 << 20) < 1e-3 and math.isfinite(uplink.bytes_per_s)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_bandwidth_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="bandwidth"):
        UplinkAccount(bad)


def test_a_key_counts_once_and_a_size_is_not_negative() -> None:
    uplink = account()
    uplink.queue("a", "audit", 1)
    with pytest.raises(ValueError, match="already"):
        uplink.queue("a", "audit", 1)
    uplink.begin(0.0)
    with pytest.raises(ValueError, match="already"):
        uplink.queue("a", "audit", 1)
    with pytest.raises(ValueError, match="-1 bytes"):
        uplink.queue("b", "audit", -1)


class Books(RuleBasedStateMachine):
    """Whatever happens in whatever order, every byte is in the books exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.uplink: UplinkAccount[int] = UplinkAccount(RATE)
        self.open: dict[int, tuple[Priority, int]] = {}
        self.sending: int | None = None
        self.sent: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self.now = 0.0
        self.keys = 0

    @rule(priority=st.sampled_from(PRIORITIES), size=st.integers(0, 1 << 24))
    def queue(self, priority: Priority, size: int) -> None:
        self.keys += 1
        self.uplink.queue(self.keys, priority, size)
        self.open[self.keys] = priority, size

    @rule(seconds=st.floats(0.0, 100.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin(self) -> None:
        waiting = [key for key in self.open if key != self.sending]
        key = self.uplink.begin(self.now)
        if self.sending is not None or not waiting:
            assert key is None
            return
        assert key == min(waiting, key=lambda one: (PRIORITIES.index(self.open[one][0]), one))
        self.sending = key

    @precondition(lambda self: self.sending is not None)
    @rule()
    def finish(self) -> None:
        assert self.sending is not None
        priority, size = self.open.pop(self.sending)
        self.uplink.sent(self.sending, self.now)
        self.sent[priority] += size
        self.sending = None

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, self.keys + 1))
        self.uplink.forget(key)
        self.open.pop(key, None)
        if key == self.sending:
            self.sending = None

    @invariant()
    def books_agree(self) -> None:
        for priority in PRIORITIES:
            queued = sum(size for one, size in self.open.values() if one == priority)
            assert self.uplink.classes[priority].queued == queued
            assert self.uplink.classes[priority].sent == self.sent[priority]
        waiting = sum(size for key, (_, size) in self.open.items() if key != self.sending)
        assert self.uplink.backlog_s(self.now) >= self.uplink.sending_s(waiting) * 0.999
        assert self.uplink.backlog_s(self.now) <= self.uplink.sending_s(sum(s for _, s in self.open.values())) * 1.001
        assert len(self.uplink.unsent()) == len([key for key in self.open if key != self.sending])


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
