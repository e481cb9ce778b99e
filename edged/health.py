"""The health list: what is wrong now, in sentences, logged once when it comes and once when it goes.

A health item has a stable code ("worker.crashing"). Raising it again changes its text but writes no second line to the
log, so a fault that lasts a week costs two lines. The list is bounded; its users are the page, `status` and the link.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from edged.status.state import Health as HealthState
from edged.status.state import HealthEvent, HealthItem
from edgekit.messages import Event, Level

log = logging.getLogger("edged.health")

MAX_EVENTS = 20
"""Events kept for the page. The journal has all of them."""
MAX_ITEMS = 64
"""More codes than the daemon has: only a worker gone mad could fill it, and then the first ones say why."""

_LOG_LEVEL = {"ok": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_RANK = {"error": 0, "warning": 1, "ok": 2}


class Health:
    """What is wrong now and what happened lately. Use it from the event loop's thread only."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._items: dict[str, HealthItem] = {}
        self._events: deque[HealthEvent] = deque(maxlen=MAX_EVENTS)

    def report(self, code: str, severity: Level, text: str) -> None:
        """Raise, change or (severity "ok") clear the item `code`. Says so in the log only when its severity changes.

        "ok" for a code that is not on the list is good news without a fault before it: an event.
        """
        if severity == "ok":
            if code in self._items:
                self.clear(code, text)
            else:
                self.note("ok", code, text)
            return
        known = self._items.get(code)
        if known is None and len(self._items) >= MAX_ITEMS:
            return
        since = known.since if known else self._wall()
        self._items[code] = HealthItem(code=code, severity=severity, text=text, since=since)
        if known is None or known.severity != severity:
            self.note(severity, code, text)

    def clear(self, code: str, text: str = "") -> None:
        """The item is over. Does nothing if there is none."""
        item = self._items.pop(code, None)
        if item is not None:
            self.note("ok", code, text or f"Over: {item.text}")

    def clear_prefix(self, prefix: str, keep: set[str] | None = None) -> None:
        """Clear every item whose code starts with `prefix` and is not in `keep`."""
        for code in [code for code in self._items if code.startswith(prefix) and code not in (keep or set())]:
            self.clear(code)

    def note(self, level: Level, code: str, text: str) -> None:
        """Something happened that is no lasting item: one line in the log and in the events."""
        log.log(_LOG_LEVEL[level], "%s", text)
        self._events.appendleft(HealthEvent(at=self._wall(), level=level, code=code, text=text))

    def take(self, event: Event) -> None:
        """What a part of the daemon says, passing or lasting."""
        if event.passing:
            self.note(event.level, event.code, event.text)
        else:
            self.report(event.code, event.level, event.text)

    def items(self) -> list[HealthItem]:
        """Errors first, then warnings; inside each the oldest first."""
        return sorted(self._items.values(), key=lambda item: (_RANK[item.severity], item.since))

    def level(self) -> Level:
        """The worst severity on the list."""
        return next((item.severity for item in self.items()), "ok")

    def state(self) -> HealthState:
        """The list as the page shows it."""
        items = self.items()
        return HealthState(level=self.level(), verdict=verdict(items), items=items, events=list(self._events))


class WorkerItems:
    """The part of the list that workers fill.

    An item ends with the worker that raised it. During a swap there are two: then the last one that raised it counts.
    """

    def __init__(self, health: Health) -> None:
        self._health = health
        self._raised: dict[str, set[int]] = {}  # code -> process ids

    def take(self, pid: int, event: Event) -> None:
        """An event of the worker `pid`, which lives."""
        if not event.passing:
            if event.level != "ok":
                if len(self._raised) < MAX_ITEMS:
                    self._raised.setdefault(event.code, set()).add(pid)
            elif self._drop(event.code, pid):
                return
        self._health.take(event)

    def ended(self, pid: int) -> None:
        """The worker `pid` has ended, and what it alone raised with it."""
        for code in [code for code, pids in self._raised.items() if pid in pids]:
            if not self._drop(code, pid):
                self._health.clear(code)

    def _drop(self, code: str, pid: int) -> bool:
        """True if another worker still says so."""
        others = self._raised.pop(code, set()) - {pid}
        if others:
            self._raised[code] = others
        return bool(others)


def verdict(items: list[HealthItem]) -> str:
    """One sentence about the whole list, which is sorted worst first."""
    if not items:
        return "Everything works."
    more = f" (and {len(items) - 1} more)" if len(items) > 1 else ""
    word = "Needs attention" if items[0].severity == "error" else "Works, with a warning"
    return f"{word}: {items[0].text}{more}"
