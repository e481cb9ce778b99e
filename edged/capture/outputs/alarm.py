"""A trouble that comes and goes, and becomes an item of the health list when it lasts."""

from __future__ import annotations

import asyncio
import time

from edged.capture.outputs.base import Notify
from edgekit.messages import Level


class Alarm:
    """One trouble of one output. Use it on the event loop; it tells about every coming and going once."""

    def __init__(self, notify: Notify, level: Level, code: str, patience_s: float) -> None:
        """`patience_s`: a trouble that is over before is never told."""
        self._notify, self._level, self._code, self._patience_s = notify, level, code, patience_s
        self._timer: asyncio.TimerHandle | None = None
        self._told = False
        self.problem = ""  # what is wrong now
        self.since: float | None = None  # wall clock

    def trouble(self, problem: str, text: str) -> None:
        """It is there, or there still; `text` is what the health list says if this is the first time."""
        self.problem = problem
        if self.since is None:
            self.since = time.time()
            self._timer = asyncio.get_running_loop().call_later(self._patience_s, self._tell, text)

    def over(self, text: str) -> None:
        """It is over, if it was there."""
        self.problem, self.since = "", None
        self.silence()
        if self._told:
            self._told = False
            self._notify("ok", self._code, text)

    def silence(self) -> None:
        """Tell nothing any more about what is there now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, text: str) -> None:
        self._told = True
        self._notify(self._level, self._code, f"{text} ({self.problem})")
