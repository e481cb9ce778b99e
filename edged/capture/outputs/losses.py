"""Decisions that an output lost: told one by one while they are rare, else together."""

from __future__ import annotations

import time

from edged.capture.outputs.base import Notify

TELL_S = 60.0
"""Losses are told one by one only if they are this far apart."""


class Losses:
    """What one output of a service lost."""

    def __init__(self, notify: Notify, key: str, service: str, name: str) -> None:
        """`key` is the output's, `name` what people call its receiver."""
        self._notify, self._key, self._service, self._name = notify, key, service, name
        self._untold: dict[str, int] = {}
        self._told_at: dict[str, float] = {}

    def add(self, what: str, count: int) -> None:
        """Decisions were lost; `what` begins the code of the event that will tell so."""
        if count:
            self._untold[what] = self._untold.get(what, 0) + count

    def tell(self, what: str, how: str, at_once: bool = False) -> None:
        """Say what was lost, now or together with what will be lost soon."""
        count, now = self._untold.get(what, 0), time.monotonic()
        if not count or (not at_once and now < self._told_at.get(what, -TELL_S) + TELL_S):
            return
        self._untold[what], self._told_at[what] = 0, now
        text = f"{count} decisions of {self._service} {how}, so they are missing at {self._name}"
        self._notify("error", f"{what}{self._key}", text, passing=True)
