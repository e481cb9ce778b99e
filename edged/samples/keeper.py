"""The worker's side of the sample store: takes decided pictures off the line, and never makes it wait.

One thread of its own hashes, encrypts and writes. What waits for it is bounded; what does not fit is dropped and
counted. Nothing here raises into the line.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from edged.collab.sealing import SealError
from edged.samples import policy
from edged.samples.records import SampleError, Source
from edged.samples.store import SamplesFull, SampleStore
from edged.samples.thumbprint import difference_hash
from edged.store import StoreError
from edgekit.messages import Answer, Decision, Event, HardSample, Level
from edgekit.services.definition import Samples
from edgekit.vision.sniff import ImageError

log = logging.getLogger("edged.samples")

T = TypeVar("T")

MAX_WAITING = 64
MAX_WAITING_BYTES = 64 << 20
"""Pictures that wait for the disk; a camera's frame has about 1 MiB."""
UPKEEP_EVERY_S = 60.0


class KeeperReport(msgspec.Struct, frozen=True, kw_only=True):
    """Since the worker started."""

    kept: int
    repeated: int  # the same bytes were here already
    dropped: int  # too many waited for the disk
    refused: int  # no room, or no picture
    waiting: int


class SampleKeeper:
    """Belongs to one event loop; `run` it, `close` it."""

    def __init__(
        self,
        opener: Callable[[], SampleStore],
        services: Mapping[str, Samples],
        rng: Callable[[], float],
        on_event: Callable[[Event], None],
        wall: Callable[[], float],
    ) -> None:
        """`opener` opens the store (blocking) and is called again when that failed. `services`: their `[samples]`."""
        self._opener, self._services = opener, dict(services)
        self._rng, self._on_event, self._wall = rng, on_event, wall
        self._store: SampleStore | None = None
        self._broken = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="edged-samples")
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._kept = self._repeated = self._dropped = self._refused = 0
        self._loop = asyncio.get_running_loop()

    @property
    def wanted(self) -> bool:
        """Whether any service keeps samples; without one, there is nothing to open."""
        return any(one.keep != "none" for one in self._services.values())

    def offer(self, decision: Decision, picture: bytes | bytearray) -> None:
        """Keep a decided picture if its service's policy says so. Returns at once and never raises."""
        samples = self._services.get(decision.service)
        source = policy.source_of(samples, decision, self._rng()) if samples is not None else None
        if source is None:
            return
        if len(self._tasks) >= MAX_WAITING or self._bytes + len(picture) > MAX_WAITING_BYTES:
            self._dropped += 1
            return
        data = bytes(picture)
        self._bytes += len(data)
        self._begin(lambda store: self._add(store, decision, source, data), len(data), is_sample=True)

    def answered(self, header: HardSample, answer: Answer) -> None:
        """The cloud's answer to a sample came after its decision. Returns at once and never raises."""
        opinion = policy.late_opinion(header, answer)
        if opinion is not None and header.service in self._services and len(self._tasks) < MAX_WAITING:
            self._begin(lambda store: store.answered(header.service, header.sample_id, opinion))

    def report(self) -> KeeperReport:
        """Free of I/O."""
        return KeeperReport(
            kept=self._kept,
            repeated=self._repeated,
            dropped=self._dropped,
            refused=self._refused,
            waiting=len(self._tasks),
        )

    async def run(self) -> None:
        """Upkeep, until cancelled."""
        while True:
            await self._work(lambda store: store.maintain())
            await asyncio.sleep(UPKEEP_EVERY_S)

    async def close(self) -> None:
        """Wait until everything begun is on the disk, then close the store."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        store, self._store = self._store, None
        if store is not None:
            await self._loop.run_in_executor(self._executor, store.close)
        self._executor.shutdown(wait=False)

    def _begin(self, work: Callable[[SampleStore], object], size: int = 0, is_sample: bool = False) -> None:
        task = asyncio.create_task(self._work(work, size, is_sample))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, work: Callable[[SampleStore], object], size: int = 0, is_sample: bool = False) -> None:
        done = False
        try:
            await self._loop.run_in_executor(self._executor, self._with_store, work)
            done = True
            self._works()
        except (SamplesFull, SampleError, ImageError) as error:
            log.info("A sample was not kept: %s", error)
        except (StoreError, SealError, OSError, sqlite3.Error) as error:
            self._trouble(error)
        except Exception:  # a fault of ours must not reach the line
            log.exception("A sample could not be kept")
        finally:
            self._bytes -= size
            self._refused += is_sample and not done

    def _with_store(self, work: Callable[[SampleStore], object]) -> None:
        """In the keeper's thread."""
        if self._store is None:
            self._store = self._opener()
        work(self._store)

    def _add(self, store: SampleStore, decision: Decision, source: Source, data: bytes) -> None:
        added = store.add(policy.noted(decision, source, difference_hash(data)), data)
        if added.new:
            self._kept += 1
        else:
            self._repeated += 1

    def _trouble(self, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            self._say("error", f"Samples for learning cannot be kept: {error}. The line goes on without them.")

    def _works(self) -> None:
        if self._broken:
            self._broken = False
            self._say("ok", "Samples for learning are kept again.")

    def _say(self, level: Level, text: str) -> None:
        self._on_event(Event(level=level, code="samples.unusable", text=text, at=self._wall()))
