"""A job on its way through the engine, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from edged.serve.lanes import Entry

T = TypeVar("T")


class EngineStopped(Exception):
    """The engine takes no more work: the worker is shutting down."""


@dataclass(slots=True)
class Outcome(Generic[T]):
    """What a job returned and how it got there; times in milliseconds."""

    value: T
    queue_ms: float
    run_ms: float


Done = Callable[[Outcome[Any] | BaseException], None]
"""Called once in the event loop: with the outcome, with what `work` raised, or with a NotRun."""


class Ticket(Entry):
    """A job on its way. Its only use for a caller is `cancel`."""

    __slots__ = ("_cancel", "done", "ended", "error", "value", "work")

    def __init__(
        self,
        cancel: Callable[[Ticket], None],
        lane: str,
        rank: int,
        deadline: float,
        expires: float,
        start_by: float,
        stream: str,
        work: Callable[[], Any],
        done: Done,
    ) -> None:
        super().__init__(lane, rank, deadline, expires, start_by, stream)
        self._cancel = cancel
        self.work: Callable[[], Any] | None = work
        self.done: Done | None = done
        self.value: Any = None
        self.error: BaseException | None = None
        self.ended = 0.0

    def cancel(self) -> None:
        """Nobody wants the answer any more: `done` will not be called, and what still waits will not run."""
        self.done = None
        self._cancel(self)
