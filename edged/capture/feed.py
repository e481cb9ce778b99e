"""Frames of one stream on their way to decisions: few at a time, the newest first, each fault counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

import msgspec

from edged.capture.pace import NewestWins
from edged.serve.engine import EngineStopped, NotRun, StaleFrame
from edgekit.messages import Decision
from edgekit.runtimes import ModelError
from edgekit.vision.sniff import ImageError

log = logging.getLogger("edged.capture")

UNDER_WAY = 16
"""Frames of one stream between arrival and decision: most of them wait for the cloud, one at most for the model."""


class InspectFrame(Protocol):
    """Decides about one frame. Raises NotRun, ImageError, ModelError, EngineStopped."""

    def __call__(self, picture: bytes, *, captured_at: float, serial: str, stream: str) -> Awaitable[Decision]: ...


class Counts(msgspec.Struct):
    """What became of the frames of a stream."""

    frames: int = 0  # that arrived
    decided: int = 0
    stale: int = 0  # given up for a newer one
    shed: int = 0  # overload, or too late
    refused: int = 0  # no readable picture
    failed: int = 0  # faults of the model


class _Waiting(NamedTuple):
    picture: bytes
    captured_at: float
    serial: str


class Feed:
    """Takes frames in and never blocks. `stream` names them to the engine. Use it on the event loop."""

    def __init__(
        self,
        stream: str,
        inspect: InspectFrame,
        decided: Callable[[Decision], None] = lambda decision: None,
        refused: Callable[[str], None] = lambda text: None,
        limit: int = UNDER_WAY,
    ) -> None:
        """`decided` and `refused` hear of every frame that was decided, or was no readable picture."""
        self.counts = Counts()
        self._stream, self._inspect = stream, inspect
        self._decided, self._refused = decided, refused
        self._policy: NewestWins[_Waiting] = NewestWins(limit)
        self._tasks: dict[asyncio.Task[None], int] = {}  # with the bytes of their pictures
        self._changed = asyncio.Event()

    def offer(self, picture: bytes, captured_at: float, serial: str = "") -> None:
        """A new frame. If there are too many already it waits, and the one that waited before is given up."""
        self.counts.frames += 1
        dropped = self._policy.dropped
        frame = self._policy.offer(_Waiting(picture, captured_at, serial))
        self.counts.stale += self._policy.dropped - dropped
        if frame is not None:
            self._start(frame)

    @property
    def held(self) -> int:
        """Bytes of the pictures under way."""
        return sum(self._tasks.values())

    async def room(self) -> None:
        """Return as soon as no frame waits."""
        while self._policy.waiting:
            self._changed.clear()
            await self._changed.wait()

    async def settled(self) -> None:
        """Return when every frame is decided or given up."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    def _start(self, frame: _Waiting) -> None:
        task = asyncio.create_task(self._decide(frame))
        self._tasks[task] = len(frame.picture)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        frame = self._policy.ended()
        if frame is not None:
            self._start(frame)
        self._changed.set()

    async def _decide(self, frame: _Waiting) -> None:
        counts = self.counts
        try:
            decision = await self._inspect(
                frame.picture, captured_at=frame.captured_at, serial=frame.serial, stream=self._stream
            )
        except StaleFrame:
            counts.stale += 1
        except (NotRun, EngineStopped):
            counts.shed += 1
        except ImageError as error:
            counts.refused += 1
            self._refused(str(error))
        except ModelError:  # the service says so itself
            counts.failed += 1
        except Exception:
            counts.failed += 1
            log.exception("a frame of %s could not be decided", self._stream)
        else:
            counts.decided += 1
            self._decided(decision)
