"""Heat and speed, watched with patience: when to run models more gently, and when to go back. Pure: time is passed in.

Level 0 is the chosen setting; each level above it is one step down the list of gentler settings. Sustained heat or
throttling takes one step down and then gives it time to work; sustained coolness takes one step up. A step up that
brings the heat back doubles the patience before the next one, so that a device in a hot cabinet does not swap for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

SOFT_C = 80.0
HARD_C = 95.0
"""Limits in °C where no profile names any. Most boards throttle by themselves from 80 to 100."""
HYSTERESIS_C = 5.0
"""A device is cool again this far below the soft limit."""
HOT_S = 30.0
"""Heat that lasts this long is no peak of one picture."""
SETTLE_S = 90.0
"""A heat sink needs about this long to show what a step down brought."""
COOL_S = 300.0
"""Coolness that lasts this long is worth a step up. Doubles after each step up that did not last."""
MAX_COOL_S = 3600.0
RELAPSE_S = 900.0
"""Heat within this time after a step up is that step's doing."""
GAP_S = 60.0
"""Nobody looked for longer than this (suspend, a stopped process): what was seen before says nothing about now."""
LATE_S = 60.0
"""Answers that are slow for this long are a fact, not a burst."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Temperatures in °C: be gentle from `soft_c`, as gentle as can be from `hard_c`."""

    soft_c: float = SOFT_C
    hard_c: float = HARD_C


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the device."""

    celsius: float | None = None  # the hottest zone that counts; None without a sensor
    throttled: list[str] = []  # sentences about what slows the machine down
    late: frozenset[str] = frozenset()  # services whose p95 is above what was measured, beyond all noise


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the level, and why as one sentence."""

    level: int
    reason: str


class Governor:
    """Feed it readings in the order of their time; it says when the level changes."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.level = 0
        self.hot = False
        """The newest reading was hot or throttled."""
        self.lasting = False
        """It has been hot for HOT_S: no peak of one picture."""
        self.late: frozenset[str] = frozenset()
        """Services that have been slow for LATE_S while the device was cool: heat does not explain it."""
        self._hot_since: float | None = None
        self._cool_since: float | None = None
        self._late_since: dict[str, float] = {}
        self._stepped_at: float | None = None
        self._raised_at: float | None = None
        self._patience = COOL_S
        self._seen_at: float | None = None

    def observe(self, now: float, reading: Reading, deepest: int) -> Order | None:
        """Take one reading at `now` (monotonic seconds). `deepest` is the number of gentler settings there are.

        Returns the new level if it changes. The level also falls to `deepest` when the list became shorter.
        """
        if self._seen_at is not None and not 0 <= now - self._seen_at <= GAP_S:
            self._hot_since = self._cool_since = None
            self._late_since.clear()
        self._seen_at = now
        self._look(now, reading)
        self._look_late(now, reading.late)
        if self.level > deepest:
            self.level = max(0, deepest)
            return Order(level=self.level, reason="there are fewer gentler settings than before")
        return self._down(now, reading, deepest) or self._up(now)

    def _look(self, now: float, reading: Reading) -> None:
        soft = self.limits.soft_c
        self.hot = bool(reading.throttled) or (reading.celsius is not None and reading.celsius >= soft)
        cool = not reading.throttled and (reading.celsius is None or reading.celsius < soft - HYSTERESIS_C)
        self._hot_since = (now if self._hot_since is None else self._hot_since) if self.hot else None
        self._cool_since = (now if self._cool_since is None else self._cool_since) if cool else None
        self.lasting = self._hot_since is not None and now - self._hot_since >= HOT_S

    def _look_late(self, now: float, late: Iterable[str]) -> None:
        names = set() if self.hot or self.level else set(late)
        self._late_since = {name: self._late_since.get(name, now) for name in names}
        self.late = frozenset(name for name, since in self._late_since.items() if now - since >= LATE_S)

    def _down(self, now: float, reading: Reading, deepest: int) -> Order | None:
        if self._hot_since is None or self.level >= deepest:
            return None
        critical = reading.celsius is not None and reading.celsius >= self.limits.hard_c
        if not critical:
            settled = self._stepped_at is None or now - self._stepped_at >= SETTLE_S
            if now - self._hot_since < HOT_S or not settled:
                return None
        if self._raised_at is not None and now - self._raised_at <= RELAPSE_S:
            self._patience = min(self._patience * 2, MAX_COOL_S)
        self._raised_at = None
        self._stepped_at = now
        self.level = deepest if critical else self.level + 1
        return Order(level=self.level, reason=_why(reading, self.limits, critical))

    def _up(self, now: float) -> Order | None:
        if self.level == 0:
            if self._cool_since is not None and now - self._cool_since >= MAX_COOL_S:
                self._patience = COOL_S  # an hour of peace at full speed: whatever it was is over
            return None
        since = self._cool_since
        if since is None or now - since < self._patience:
            return None
        self.level -= 1
        self._raised_at = now
        self._cool_since = now  # the next step up needs its own patience
        return Order(level=self.level, reason=f"it has been cool for {self._patience / 60:.0f} minutes")


def _why(reading: Reading, limits: Limits, critical: bool) -> str:
    if critical and reading.celsius is not None:
        return f"the device has {reading.celsius:.0f} °C, its hard limit is {limits.hard_c:.0f} °C"
    if reading.throttled:
        return "; ".join(text.rstrip(".") for text in reading.throttled[:3])
    return f"the device has stayed above {limits.soft_c:.0f} °C (now {reading.celsius or 0.0:.0f} °C)"


class Retry:
    """When to try again what failed: after `first_s` seconds, then twice as long each time, at least every hour."""

    LAST_S = 3600.0

    def __init__(self, first_s: float = 60.0) -> None:
        self.failures = 0
        self._first_s = first_s
        self._due = 0.0

    def failed(self, now: float) -> float:
        """It failed at `now`; the seconds until the next try."""
        self.failures += 1
        delay = min(self._first_s * 2.0 ** min(self.failures - 1, 16), self.LAST_S)
        self._due = now + delay
        return delay

    def due(self, now: float) -> bool:
        """Whether the time for the next try has come."""
        return now >= self._due
