"""Looking once more before sleeping: an event loop whose next request usually comes within microseconds.

A thread that sleeps in epoll is woken by another CPU through an interrupt, and that CPU may have to leave an idle state
first: 40 to 100 us, as much as a small model's run. A client that asks again as soon as it has its answer is back
sooner than that. So after a request that was answered in the loop itself, the loop looks for a moment without sleeping.

It is given up after a few looks in vain until requests come that close again, so a line with a picture every few
milliseconds does not pay for it. After a run in a thread nobody looks: it takes longer, and its client does, too.
"""

from __future__ import annotations

import os
import selectors
import time

WINDOW_S = 150e-6
"""How long is looked. Waking up costs about as much, so a look in vain at most doubles the price of one sleep."""
_VAIN = 4
_CLOSE = 2


class Eagerness:
    """Whether looking pays at the moment. Pure: it is told what became of each wait."""

    def __init__(self) -> None:
        self._vain = _VAIN
        self._close = 0

    @property
    def pays(self) -> bool:
        """Look before the next sleep."""
        return self._vain < _VAIN

    def looked(self, found: bool) -> None:
        """A look found something, or it was in vain."""
        self._vain = 0 if found else self._vain + 1
        self._close = 0

    def slept(self, found: bool, seconds: float) -> None:
        """A wait without a look ended after so many seconds, because something came or not."""
        if self.pays:
            return
        self._close = self._close + 1 if found and seconds < WINDOW_S else 0
        if self._close >= _CLOSE:
            self._vain = 0


class EagerSelector(selectors.EpollSelector):
    """A selector for asyncio. After `expect` it looks for WINDOW_S before it sleeps, while that pays."""

    def __init__(self) -> None:
        super().__init__()
        self._eagerness = Eagerness()
        self._expecting = False

    def expect(self) -> None:
        """Something was answered that may be followed by the next request at once."""
        self._expecting = True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As that of its base."""
        if not self._expecting or (timeout is not None and timeout <= 0):
            return super().select(timeout)
        self._expecting = False
        began = time.perf_counter()
        if not self._eagerness.pays:
            events = super().select(timeout)
            self._eagerness.slept(bool(events), time.perf_counter() - began)
            return events
        until = began + (WINDOW_S if timeout is None else min(WINDOW_S, timeout))
        while not (events := super().select(0)) and time.perf_counter() < until:
            pass
        self._eagerness.looked(bool(events))
        return events or super().select(timeout)


def may_look() -> bool:
    """Whether this process may: on a single CPU, looking would keep the client itself from running."""
    return len(os.sched_getaffinity(0)) > 1
