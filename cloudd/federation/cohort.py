"""What secure and plain cohorts share: who is invited, uploads, refusals, waiting, deadlines.

Messages are taken under one lock, and in a task of their own: a device that hangs up, or a thread that still adds its
vector, leaves no half-done step behind.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from cloudd.federation.errors import FederationError, storage_text
from cloudd.federation.journal import CLOSE, Journal, closed_step
from cloudd.federation.store import MAX_REFUSALS, Entry, RefusalRecord, RoundRow, StepRecord
from cloudd.federation.vectors import Vectors
from cloudd.web import STORAGE_ERRORS
from edgekit.identity.device_id import format_digest, short_id
from edgekit.messages.federation import WAIT_S, Deadlines
from edgekit.secagg import messages
from edgekit.secagg.errors import Refusal
from edgekit.secagg.fixedpoint import Encoding
from edgekit.secagg.masks import Words
from edgekit.secagg.messages import RoundConfig
from edgekit.text import printable

T = TypeVar("T")

GRACE_S = 1.0
"""Time for those who are late when enough have answered that the round does not need them."""


class RoundOver(Exception):
    """The round is over for this device: void, done, or closed without it."""


@dataclass(frozen=True, eq=False)
class CohortResult:
    """What a cohort came to: the words that are published, and whose updates are in them."""

    words: Words
    survivors: tuple[bytes, ...]


class Bell:
    """Wakes everybody who waits."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Until it rings, at most so long."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._event.wait()
        except TimeoutError:
            pass


class Cohort(ABC):
    """One try of one cohort. Subclasses take messages and run the steps."""

    def __init__(
        self,
        row: RoundRow,
        journal: Journal,
        vectors: Vectors,
        deadlines: Deadlines,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        config = messages.from_cloud(row.config)
        assert isinstance(config, RoundConfig)
        self.row, self.config = row, config
        self.invited = frozenset(row.invited)
        self.vectors, self.deadlines = vectors, deadlines
        self.over = ""
        """Why nothing follows any more; "" while it goes on."""
        self.waits = ""
        """What storage said when something could not be kept last; "" once it could again."""
        self.stopping = False
        """cloudd is about to end: nobody is held, the round goes on when it is started again."""
        self.steps: list[StepRecord] = []
        self.refusals: list[RefusalRecord] = []
        self.bell = Bell()
        self._journal, self._clock, self._wall = journal, clock, wall
        self._lock = asyncio.Lock()
        self._writing: dict[bytes, asyncio.Lock] = {}
        self._whole: set[bytes] = set()
        self._away: set[bytes] = set()
        self._accepted: dict[str, dict[bytes, bytes]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._vector_until = clock() + deadlines.train

    # --- for a job --------------------------------------------------------------------------------------------------

    @abstractmethod
    async def run(self) -> CohortResult:
        """All steps to the end. Raises Void, StorageError, OSError. Cancelled, the round can be taken up again."""

    async def resume(self) -> None:
        """Go to where the journal ends. Raises StorageError, OSError, and FederationError if it cannot be followed.

        Whoever gets that voids the round.
        """
        entries = await self._journal.read()
        try:
            await asyncio.to_thread(self._replay, entries)
        except Refusal as refusal:
            raise FederationError(f"its journal cannot be followed: {refusal}") from None
        except FileNotFoundError as error:
            raise FederationError(f"a vector or sum is missing: {error.filename}") from None

    def end(self, reason: str) -> None:
        """Whoever waits hears that it is over."""
        self.over = self.over or reason
        self.bell.ring()

    def asked(self, node: bytes) -> bool:
        """Whether this device still has something to do here."""
        return node in self.invited and node not in self._away and not self.over and not self.finished(node)

    @abstractmethod
    def finished(self, node: bytes) -> bool:
        """Whether a device has done all that it can."""

    @property
    def left_s(self) -> float:
        """Seconds until vectors must be there."""
        return max(0.0, self._vector_until - self._clock())

    @property
    @abstractmethod
    def delivered(self) -> int:
        """Vectors that are in the sum."""

    # --- for devices ------------------------------------------------------------------------------------------------

    async def upload(self, node: bytes, offset: int, data: bytes | bytearray) -> int:
        """A part of a vector; returns how much is there. Raises RoundOver, FederationError, OSError."""
        self._check(node)
        return await self._settled(self._write(node, offset, data))

    def uploaded(self, node: bytes) -> int:
        """How much of its vector is there. Raises RoundOver."""
        self._check(node)
        return self.vectors.received(node)

    def refuse(self, node: bytes, rule: str, text: str) -> None:
        """A device says that it does not go on: nobody waits for it."""
        if node in self.invited and node not in self._away:
            self._away.add(node)
            self.note_refusal(node, "device", rule, text)
            self.bell.ring()

    def note_refusal(self, node: bytes, by: Any, rule: str, text: str) -> None:
        """For the record; the first hundred."""
        if len(self.refusals) < MAX_REFUSALS:
            self.refusals.append(
                RefusalRecord(
                    device=short_id(format_digest(node)),
                    by=by,
                    rule=printable(rule[:40]),
                    text=printable(text[:500]),
                    at=self._wall(),
                )
            )

    def wait_for(self, text: str) -> None:
        """Storage keeps the round from going on (""): it does not."""
        self.waits = text

    @property
    def hints(self) -> str:
        """What may be behind a round that is void, to stand behind the reason; texts of devices are not for others."""
        rules = Counter(one.rule for one in self.refusals if one.by == "device")
        found = [f"{count} refused ({rule})" for rule, count in sorted(rules.items())]
        found += [f"storage: {self.waits}"] if self.waits else []
        return "".join(f"; {one}" for one in found)

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _write(self, node: bytes, offset: int, data: bytes | bytearray) -> int:
        async with self._writing.setdefault(node, asyncio.Lock()):
            if self.over:
                raise RoundOver(self.over)
            if node in self._whole:
                return self.vectors.size
            return await asyncio.to_thread(self.vectors.write, node, offset, data)

    def _check(self, node: bytes) -> None:
        if self.over:
            raise RoundOver(self.over)
        if node not in self.invited:
            raise RoundOver("this device is not invited to the round")

    async def _make_whole(self, node: bytes, sha256: str) -> None:
        """Hash a vector and make it durable, beside others that do the same. Raises FederationError, OSError."""
        async with self._writing.setdefault(node, asyncio.Lock()):
            if node not in self._whole:
                await asyncio.to_thread(self.vectors.settle, node, sha256)
                self._whole.add(node)

    async def _settled(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of work that goes on if whoever waits for it is cancelled."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            found = await asyncio.shield(task)
        except (*STORAGE_ERRORS, OSError) as error:
            self.wait_for(storage_text(error))
            raise
        self.wait_for("")
        return found

    async def settle(self) -> None:
        """Wait for work whose askers have gone."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _of(self, step: str) -> dict[bytes, bytes]:
        """Node -> digest of the message that was accepted of it in a step."""
        return self._accepted.setdefault(step, {})

    async def _until(self, *conditions: tuple[Callable[[], bool], float]) -> None:
        """Wait until one of the conditions holds after its number of seconds, counted from now."""
        begun = self._clock()
        while True:
            passed = self._clock() - begun
            waits = [seconds - passed for holds, seconds in conditions if seconds > passed]
            if any(passed >= seconds and holds() for holds, seconds in conditions) or not waits:
                return
            await self.bell.wait(min(waits))

    async def _hold(self, answer: Callable[[], bytes | None]) -> bytes | None:
        """What `answer` gives as soon as it gives something; None after WAIT_S. Raises RoundOver."""
        until = self._clock() + WAIT_S
        while True:
            if self.over:
                raise RoundOver(self.over)
            found = answer()
            left = until - self._clock()
            if found is not None or left <= 0 or self.stopping:
                return found
            await self.bell.wait(left)

    def _step(self, step: str, devices: int) -> StepRecord:
        return StepRecord(step=step, at=self._wall(), devices=devices)

    def _replay(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.kind == CLOSE:
                record = closed_step(entry)
                self._replay_close(record.step)
                self.steps.append(record)
            else:
                self._replay_message(entry)

    @abstractmethod
    def _replay_close(self, step: str) -> None:
        """Close the step in the machine again."""

    @abstractmethod
    def _replay_message(self, entry: Entry) -> None:
        """Give the machine an accepted message again."""


def vector_bytes(config: RoundConfig) -> int:
    """Of one device."""
    return Encoding(config).words * config.bits // 8
