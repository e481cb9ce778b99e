"""What is wrong with the sample store, said once for each change, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgekit.messages import Event, Level


class Trouble:
    """Remembers what was said last."""

    def __init__(self, on_event: Callable[[Event], None], wall: Callable[[], float]) -> None:
        self._on_event, self._wall = on_event, wall
        self._full = self._lately = False
        self._other_key = self._damaged = 0

    def full(self, why: str) -> None:
        """Samples are not kept."""
        self._lately = True
        if not self._full:
            self._full = True
            text = f"Samples for learning are not kept: {why}. Free the disk, or raise quota_mb and count of [samples]."
            self._say("warning", "samples.full", text)

    def over(self) -> None:
        """There is room on the disk. Over it is if no sample had to be refused since this was said last."""
        if self._full and not self._lately:
            self._full = False
            self._say("ok", "samples.full", "Samples for learning are kept again.")
        self._lately = False

    def rebuilt(self, aside: Path) -> None:
        """The index was damaged."""
        text = f"The index of samples was damaged and is rebuilt from the samples themselves; see {aside}."
        self._say("warning", "samples.index-rebuilt", text, passing=True)

    def unreadable(self, other_key: int, damaged: int) -> None:
        """So many samples do not open."""
        if other_key != self._other_key:
            text = (
                f"{_samples(other_key)} cannot be read: sealed with another key-encryption key. They open again when "
                "that key is back, as keys/kek in the state directory or as the systemd credential; if it is lost, so "
                "are they: edged samples remove --unreadable."
                if other_key
                else "No sample for learning is left that another key-encryption key sealed."
            )
            self._say("error" if other_key else "ok", "samples.wrong-key", text)
        if damaged != self._damaged:
            text = (
                f"{_samples(damaged)} cannot be opened: damaged, gone, or of another device. They are left out of "
                "everything; restore the files, or edged samples remove --unreadable."
                if damaged
                else "Every sample for learning can be opened again."
            )
            self._say("warning" if damaged else "ok", "samples.damaged", text)
        self._other_key, self._damaged = other_key, damaged

    def _say(self, level: Level, code: str, text: str, *, passing: bool = False) -> None:
        self._on_event(Event(level=level, code=code, text=text, at=self._wall(), passing=passing))


def _samples(count: int) -> str:
    return "1 sample for learning" if count == 1 else f"{count} samples for learning"
