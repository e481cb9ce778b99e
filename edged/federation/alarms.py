"""What people must know of federated jobs, as items of the daemon's health; and its health, as jobs may ask for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from edged.federation.machine import write_health
from edged.federation.notes import Event
from edgekit.messages import Level


class Alarms:
    """`report` takes (code, level, text)."""

    def __init__(self, report: Callable[[str, Level, str], None]) -> None:
        self._report = report
        self._raised: set[str] = set()
        self._told: Level | None = None

    def say(self, trouble: str, events: Sequence[Event], listed: Collection[str]) -> None:
        """`trouble` with the ledger ("": none), and what happened lately in the jobs that are listed."""
        alarm = next((one for one in events if one.level == "alarm" and one.job in listed), None)
        self._say("federation.ledger", "error", trouble, "The federation ledger is in order again.")
        text = f"In the federated job {alarm.job[:12]} cloudd contradicted itself: {alarm.text}" if alarm else ""
        self._say("federation.alarm", "error", text, "The job that cloudd contradicted itself in is over.")

    def tell(self, folder: Path, level: Level) -> None:
        """Tell the child process how the device is. Blocks; a full disk is tried again at the next look."""
        if level != self._told:
            with contextlib.suppress(OSError):
                write_health(folder, level)
                self._told = level

    def _say(self, code: str, level: Level, trouble: str, over: str) -> None:
        if trouble:
            self._report(code, level, trouble)
            self._raised.add(code)
        elif code in self._raised:
            self._report(code, "ok", over)
            self._raised.discard(code)
