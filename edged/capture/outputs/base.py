"""What every output does, whatever is behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgekit.messages import Decision, Level, OutputReport


class Notify(Protocol):
    """Receives level, code and sentence, from any thread. `passing`: it has happened and nothing lasts."""

    def __call__(self, level: Level, code: str, text: str, *, passing: bool = False) -> None: ...


class OutputError(Exception):
    """The decision could not be made durable; whoever waits for it keeps the picture and tries again later."""


class Output(Protocol):
    """One destination of decisions. Its methods belong to the event loop, unless they say otherwise."""

    @property
    def key(self) -> str:
        """What tells this output from all others of the worker."""
        ...

    def files(self) -> Sequence[Path]:
        """The files it writes for people; a watched folder that they lie in must not take them for pictures."""
        ...

    def write(self, decision: Decision, line: bytes) -> None:
        """Take a decision (`line` is its JSON) without ever blocking; it is durable within a second, or soon told."""
        ...

    async def write_durably(self, decision: Decision, line: bytes) -> None:
        """Return once the decision survives a power cut. Raises OutputError if that cannot be had."""
        ...

    def written(self, service: str) -> Mapping[str, Decision | None]:
        """The newest durable decisions of a service by sample id; None where the output does not keep them whole.

        Blocks, so it is called in a thread. Raises OSError, StoreError or sqlite3.Error.
        """
        ...

    def report(self) -> OutputReport:
        """How it gets on."""
        ...

    async def close(self) -> None:
        """Make durable what waits in memory (one last try), then end; within about a second unless a disk hangs."""
        ...
