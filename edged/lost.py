"""The book of accelerators that stopped working: for which model, since when, and when each is tried again. Pure.

An accelerator that failed for one model may work for another, so the entries are by candidate and model. Trying again
happens in a process of its own; the services stay on the CPU until it has succeeded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edged.governor import Retry
from edged.hardware.settings import Choice, Setting
from edged.status.hardware import LostState

GIVE_UP = 8
"""Failed tries in a row (about four hours) until the setting counts as one that cannot work on this device."""
PEACE_S = 3600.0
"""An accelerator that has worked for so long starts with a clean slate."""


@dataclass
class Lost:
    """One entry. `setting` is what is tried again; `since` is the wall clock, the rest monotonic."""

    ref: str
    setting: Setting
    reason: str
    since: float
    retry: Retry
    back_at: float | None = None
    """When it worked again; None while it is lost."""

    @property
    def candidate(self) -> str:
        return self.setting.candidate


class LostBook:
    """All entries. Times of `now` are monotonic seconds."""

    def __init__(self, first_s: float = 60.0) -> None:
        """`first_s` seconds after it was lost an accelerator is tried for the first time."""
        self._first_s = first_s
        self._entries: dict[tuple[str, str], Lost] = {}

    def lose(self, ref: str, setting: Setting, reason: str, now: float, wall: float) -> Lost:
        """The setting does not work for the model `ref` (any more). One that was lost lately too waits longer."""
        entry = self._entries.get((setting.candidate, ref))
        peaceful = entry is not None and entry.back_at is not None and now - entry.back_at > PEACE_S
        if entry is None or peaceful:
            entry = self._entries[setting.candidate, ref] = Lost(ref, setting, reason, wall, Retry(self._first_s))
        elif entry.back_at is not None:
            entry.since = wall
        entry.setting, entry.reason, entry.back_at = setting, reason, None
        entry.retry.failed(now)
        return entry

    def found(self, entry: Lost, now: float) -> None:
        """It works again."""
        entry.back_at = now

    def soon(self, entry: Lost) -> None:
        """There is a sign that it is back: try it now, unless it has deceived us before."""
        if entry.retry.failures == 1:
            entry.retry = Retry(self._first_s)

    def forget(self, entry: Lost) -> None:
        """It is not waited for any more."""
        self._entries.pop((entry.candidate, entry.ref), None)

    def now(self) -> list[Lost]:
        """What is lost at the moment."""
        return [entry for entry in self._entries.values() if entry.back_at is None]

    def due(self, now: float) -> Lost | None:
        """One that should be tried again."""
        return next((entry for entry in self.now() if entry.retry.due(now)), None)

    def broken(self, ref: str, choice: Choice | None) -> set[str]:
        """Keys of the choice's settings that need something lost."""
        if choice is None:
            return set()
        gone = {entry.candidate for entry in self.now() if entry.ref == ref}
        known = [choice.setting, *choice.alternatives, *(one.setting for one in choice.measurements)]
        return {setting.key for setting in known if setting.accelerated and setting.candidate in gone}

    def states(self, services: Callable[[str], Iterable[str]]) -> list[LostState]:
        """For people; `services` names those that use a model."""
        return [
            LostState(
                candidate=entry.candidate,
                services=sorted(services(entry.ref)),
                reason=entry.reason,
                since=entry.since,
                failures=entry.retry.failures,
            )
            for entry in self.now()
        ]
