"""The event loop that looks once more before it sleeps."""

from __future__ import annotations

import asyncio
import selectors
import socket

from hypothesis import given
from hypothesis import strategies as st

from edged.serve.eager import WINDOW_S, Eagerness, EagerSelector

CLOSE, FAR = WINDOW_S / 2, WINDOW_S * 2


def test_it_does_not_look_before_requests_came_close_to_each_other():
    eagerness = Eagerness()
    assert not eagerness.pays
    for _ in range(10):
        eagerness.slept(True, FAR)
    assert not eagerness.pays


def test_it_looks_once_two_requests_in_a_row_came_close():
    eagerness = Eagerness()
    eagerness.slept(True, CLOSE)
    assert not eagerness.pays
    eagerness.slept(True, FAR)
    eagerness.slept(True, CLOSE)
    assert not eagerness.pays, "the one in between came late"
    eagerness.slept(True, CLOSE)
    assert eagerness.pays


def test_a_timer_that_fires_soon_is_no_request():
    eagerness = Eagerness()
    for _ in range(10):
        eagerness.slept(False, CLOSE)
    assert not eagerness.pays


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_looks_in_vain_are_bounded_by_those_that_found_something(found):
    eagerness = Eagerness()
    eagerness.slept(True, CLOSE)
    eagerness.slept(True, CLOSE)
    looks = vain = 0
    for one in found:
        if not eagerness.pays:
            break
        looks += 1
        vain += not one
        eagerness.looked(one)
    assert vain <= 4 * (looks - vain + 1)


def test_a_selector_that_looks_finds_what_comes_and_keeps_to_its_timeout():
    here, there = socket.socketpair()
    with here, there, EagerSelector() as selector:
        selector.register(here, selectors.EVENT_READ)
        for _ in range(20):  # sleeping at first, then looking, then sleeping again
            there.send(b"x")
            selector.expect()
            assert [key.fileobj for key, _ in selector.select(5.0)] == [here]
            assert here.recv(1) == b"x"
        for _ in range(20):
            selector.expect()
            assert selector.select(0.0005) == []
        assert selector.select(0) == []


def test_an_event_loop_works_with_it():
    selector = EagerSelector()

    async def work() -> int:
        loop = asyncio.get_running_loop()
        total = 0
        for number in range(50):
            selector.expect()
            total += await loop.run_in_executor(None, lambda one=number: one)
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return total

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        assert runner.run(work()) == sum(range(50))
