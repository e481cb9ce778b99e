"""Saying what is wrong once, and once that it is over."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.messages import Level

Report = Callable[[Level, str, str], None]
"""(level, stable code, sentence)"""

MAX_SKEW_S = 300.0
"""More than this between the clocks of device and cloudd makes times in records misleading."""


class Reporter:
    """Passes a report on only if it is news."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._raised: dict[str, tuple[Level, str]] = {}

    def raise_(self, level: Level, code: str, text: str) -> None:
        """Something is wrong ("warning" or "error"); the same again is no news."""
        if self._raised.get(code) != (level, text):
            self._raised[code] = (level, text)
            self._report(level, code, text)

    def clear(self, code: str, text: str) -> None:
        """It is over; no news if it was never raised."""
        if self._raised.pop(code, None) is not None:
            self._report("ok", code, text)

    def clear_prefix(self, prefix: str, text: str) -> None:
        """As clear, for every code that begins with `prefix`."""
        for code in [code for code in self._raised if code.startswith(prefix)]:
            self.clear(code, text)

    def say(self, level: Level, code: str, text: str) -> None:
        """raise_ or clear, whichever the level means."""
        if level == "ok":
            self.clear(code, text)
        else:
            self.raise_(level, code, text)

    def raised(self, code: str) -> bool:
        """Whether this is wrong now."""
        return code in self._raised


def compare_clocks(health: Reporter, theirs: float, ours: float) -> None:
    """Say whether the clocks of cloudd and of this device agree (wall clock, seconds)."""
    skew = abs(theirs - ours)
    if skew > MAX_SKEW_S:
        health.raise_("warning", "clock", f"the clocks of this device and cloudd differ by {skew:.0f} seconds")
    else:
        health.clear("clock", "the clocks of this device and cloudd agree")
