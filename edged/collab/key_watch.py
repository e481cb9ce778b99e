"""Says how many waiting samples do not open, once for each change, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from edgekit.messages import Level


class Unreadable(NamedTuple):
    """How many samples do not open."""

    other_key: int  # sealed with another key-encryption key than the present one
    damaged: int  # damaged, or sealed by another device

    def __bool__(self) -> bool:
        return any(self)


class Say(Protocol):
    """Receives level, stable code and sentence."""

    def __call__(self, level: Level, code: str, text: str) -> None: ...


class KeyWatch:
    """Remembers what was said last."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.said = Unreadable(0, 0)

    def tell(self, now: Unreadable) -> None:
        """Raise or clear the health items for the present numbers."""
        before, self.said = self.said, now
        if now.other_key == before.other_key:
            pass
        elif now.other_key:
            text = (
                f"The key-encryption key does not open {_samples(now.other_key)}, sealed with another key. "
                "They are kept, and delivered when that key is back: as keys/kek in the state directory, or as the "
                "systemd credential with a restart. If it is lost, they leave first when room is needed, "
                "or by edged spool purge --all."
            )
            self._say("error", "spool.wrong-key", text)
        else:
            self._say("ok", "spool.wrong-key", "No sample waits any more that another key-encryption key sealed.")
        if now.damaged == before.damaged:
            pass
        elif now.damaged:
            text = (
                f"{_samples(now.damaged)} cannot be opened: damaged, or of another device. They are kept until room is "
                "needed; edged spool purge removes them."
            )
            self._say("warning", "spool.unreadable", text)
        else:
            self._say("ok", "spool.unreadable", "Every waiting sample can be opened again.")


def _samples(count: int) -> str:
    return "1 waiting sample" if count == 1 else f"{count} waiting samples"
