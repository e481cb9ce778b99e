"""An output on the network: first into the queue on the disk, from there to the receiver, however long that is away.

The line waits for none of it: a decision is taken in memory, a thread commits what has come (at most GATHER_S later),
and a task of the event loop delivers in the order of the commits. Only one worker delivers at a time (a lock beside the
queue); while two overlap, both commit to the same queue. What was delivered is marked in batches, so a crash may
repeat some decisions and loses none that was committed: receivers know them by their sample ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from edged.capture.outputs.alarm import Alarm
from edged.capture.outputs.base import Notify, OutputError
from edged.capture.outputs.losses import Losses
from edged.capture.outputs.queue import Message, Queue, lock
from edged.capture.outputs.sending import NotDelivered, Sender
from edged.link.backoff import Backoff
from edged.store import StoreError, is_corrupt
from edgekit.faults import crash_point
from edgekit.messages import Decision, OutputReport
from edgekit.outputs import Output as Definition

log = logging.getLogger("edged.capture")

GATHER_S = 0.1
"""Longest wait for company before a commit: ten commits a second spare a flash disk, and nobody waits for them."""
MAX_PENDING_BYTES = 8 << 20
"""What may wait in memory for a disk that is full or hangs; then the oldest nobody waits for is given up."""
MAX_BATCH = 1000
RETRY_S = 1.0
"""Pause after a failure of the disk."""
POLL_S = 1.0
"""How often an idle delivery looks for what another worker has committed."""
MARK_S = 0.5
"""What was delivered is marked at least this often, which bounds what a crash repeats."""
DELIVER_BATCH = 100
LASTING_S = 30.0
"""A receiver that fails for so long is an item of the health list."""
TRIES = 5
"""How often a decision is offered that the receiver refuses."""
BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 30.0
CLOSE_S = 0.5
"""Half of what closing may take: for what is under way, and again for its good-byes."""
LOCK_S = 0.2

_Disk = (OSError, StoreError, sqlite3.Error)
_Line = tuple[str, bytes, "asyncio.Future[None] | None"]

T = TypeVar("T")


class NetworkOutput:
    """The output of one service to one receiver."""

    def __init__(
        self,
        service: str,
        name: str,
        stem: str,
        definition: Definition,
        directory: Path,
        sender: Sender,
        notify: Notify,
        make_room: Callable[[], bool],
    ) -> None:
        """`name` is what people call the receiver; `stem` names the queue's files in `directory`, and is the key.

        `make_room` frees disk space for the queue (see Database). Starts to deliver at once.
        """
        self.key = stem
        self._service, self._name, self._kind = service, name, definition.kind
        self._sender, self._notify = sender, notify
        room = int(definition.queue_mb * (1 << 20))
        self._queue = Queue(directory / f"{stem}.db", definition.queue_rows, room, make_room)
        self._lock_path = directory / f"{stem}.lock"
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"output-{service}")
        self._pending: deque[_Line] = deque()
        self._pending_bytes = 0
        self._filled, self._urgent = asyncio.Event(), asyncio.Event()  # something waits; somebody waits for it
        self._news, self._ending = asyncio.Event(), asyncio.Event()
        self._waiting = 0  # in the queue, as last seen
        self._full_at = 0
        self._delivered = self._dropped = 0
        self._losses = Losses(notify, stem, service, name)
        self._unmarked: tuple[int, int] | None = None  # number and count of what was delivered and is not marked yet
        self._refusals = (0, 0)  # of the decision with this number
        self._backoff = Backoff(BACKOFF_BASE_S, BACKOFF_CAP_S, floor_s=0.1)
        # The literals stand here, where the documentation's test finds them.
        self._receiver = Alarm(notify, "warning", f"output-failing:{self.key}", LASTING_S)
        self._disk = Alarm(notify, "error", f"output-stuck:{self.key}", 0.0)
        self._full = Alarm(notify, "error", f"output-full:{self.key}", 0.0)
        self._storing = asyncio.create_task(self._store_all())
        self._delivering = asyncio.create_task(self._in_turn())

    def files(self) -> Sequence[Path]:
        """None that people look at."""
        return ()

    def write(self, decision: Decision, line: bytes) -> None:
        """Take a decision; it is committed GATHER_S later, or together with one that somebody waits for."""
        self._take(decision, line, None)

    async def write_durably(self, decision: Decision, line: bytes) -> None:
        """Return once the decision is committed to the queue. Raises OutputError."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._take(decision, line, future)
        await future

    def written(self, service: str) -> Mapping[str, Decision | None]:
        """What waits and what was delivered lately. Blocks; raises StoreError, sqlite3.Error or OSError."""
        try:
            return self._executor.submit(self._queue.known, service).result()
        except RuntimeError as error:  # closed meanwhile
            raise StoreError(str(error)) from None

    def report(self) -> OutputReport:
        """How it gets on."""
        trouble = self._disk if self._disk.since is not None else self._receiver
        return OutputReport(
            name=self._name,
            kind=self._kind,
            delivered=self._delivered,
            waiting=self._waiting + len(self._pending),
            dropped=self._dropped,
            failing_since=trouble.since,
            problem=trouble.problem,
        )

    async def close(self) -> None:
        """Commit what waits in memory, end the delivery; the queue keeps the rest for the next worker."""
        self._ending.set()
        self._filled.set()
        self._urgent.set()
        for alarm in (self._receiver, self._disk, self._full):
            alarm.silence()
        tasks = {self._storing, self._delivering}
        _, late = await asyncio.wait(tasks, timeout=CLOSE_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CLOSE_S)
        lost = 0
        for _, _, future in self._pending:
            if future is None:
                lost += 1
            elif not future.done():
                future.set_exception(
                    OutputError(f"{self._name}: its queue could not be written before the worker ended")
                )
        self._give_up(lost)
        self._losses.tell("output-lost:", "could not be queued on the disk", at_once=True)
        self._executor.submit(self._queue.close)
        self._executor.shutdown(wait=False)

    # --- into the queue ---------------------------------------------------------------------------------------------

    def _take(self, decision: Decision, line: bytes, future: asyncio.Future[None] | None) -> None:
        if self._ending.is_set():
            if future is not None:
                future.set_exception(OutputError(f"the output to {self._name} is closed"))
            else:
                self._give_up(1)
            return
        self._pending.append((decision.sample_id, line, future))
        self._pending_bytes += len(line)
        self._filled.set()
        if future is not None:
            self._urgent.set()
        if self._pending_bytes > MAX_PENDING_BYTES:
            self._give_up_oldest()

    def _give_up_oldest(self) -> None:
        for index, (_, line, future) in enumerate(self._pending):
            if future is None:
                del self._pending[index]
                self._pending_bytes -= len(line)
                self._give_up(1)
                return

    def _give_up(self, count: int) -> None:
        self._dropped += count
        self._losses.add("output-lost:", count)

    async def _store_all(self) -> None:
        while self._pending or not self._ending.is_set():
            if not await self._guarded(self._store) and self._ending.is_set():
                return

    async def _store(self) -> bool:
        """Commit what has come; False if that failed."""
        await self._filled.wait()
        if not self._urgent.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), GATHER_S)
        batch = [self._pending.popleft() for _ in range(min(len(self._pending), MAX_BATCH))]
        size = sum(len(line) for _, line, _ in batch)
        self._pending_bytes -= size
        if not self._pending and not self._ending.is_set():
            self._filled.clear()
            self._urgent.clear()
        if not batch:
            return True
        try:
            stored = await self._thread(lambda: self._queue.put([(sample, line) for sample, line, _ in batch]))
        except BaseException as error:
            self._pending.extendleft(reversed(batch))
            self._pending_bytes += size
            self._filled.set()
            if not isinstance(error, _Disk):
                raise
            await self._stuck(error)
            return False
        crash_point("output.queued")
        self._waiting = stored.waiting
        self._disk.over(f"decisions for {self._name} are queued on the disk again")
        self._losses.tell("output-lost:", "were given up while the disk took nothing")
        for _, _, future in batch:
            if future is not None and not future.done():
                future.set_result(None)
        self._watch_room(stored.dropped)
        self._news.set()
        return True

    def _watch_room(self, dropped: int) -> None:
        self._dropped += dropped
        if dropped:
            self._full_at = self._waiting
            text = f"the queue of {self._service} for {self._name} is full and its oldest decisions are given up"
            self._full.trouble("see queue_mb and queue_rows", text)
        elif self._full.since is not None and self._waiting < 0.9 * self._full_at:
            self._full.over(
                f"the queue of {self._service} for {self._name} has room again; {self._dropped} are missing"
            )

    # --- out of it --------------------------------------------------------------------------------------------------

    async def _in_turn(self) -> None:
        """Deliver as soon as no other worker does, until we are closed."""
        held = None
        try:
            while held is None and not self._ending.is_set():
                held = await self._lock()
            while not self._ending.is_set():
                await self._guarded(self._deliver)
        finally:
            await self._sender.close()
            if held is not None:
                os.close(held)

    async def _lock(self) -> int | None:
        """The lock, or None after a while."""
        try:
            return await self._thread(lambda: lock(self._lock_path))
        except BlockingIOError:
            await self._pause(LOCK_S)
        except OSError as error:
            await self._stuck(error)
        return None

    async def _deliver(self) -> bool:
        """Deliver what waits, or wait for it; False if that failed."""
        self._news.clear()
        try:
            await self._mark()
            await self._sender.keep()
            batch = await self._thread(lambda: self._queue.head(DELIVER_BATCH))
            if batch:
                await self._send(batch)
            else:
                self._waiting = await self._thread(self._queue.waiting)
        except NotDelivered as failure:  # by keep
            await self._failed(failure)
            return False
        except _Disk as error:
            await self._stuck(error)
            return False
        if not batch:
            self._works()
            await self._first(self._news, self._ending, timeout=POLL_S)
        return True

    async def _send(self, batch: Sequence[Message]) -> None:
        """Send in order, mark what has arrived, and see to the first that has not."""
        loop = asyncio.get_running_loop()
        until = loop.time() + MARK_S
        failed: tuple[Message, BaseException] | None = None
        for start in range(0, len(batch), self._sender.window):
            part = batch[start : start + self._sender.window]
            results = await asyncio.gather(*map(self._sender.send, part), return_exceptions=True)
            for count, (message, result) in enumerate(zip(part, results, strict=True), start + 1):
                if result is not None:
                    failed = message, result
                    break
                self._unmarked = message.number, count
            if failed is not None or self._ending.is_set() or loop.time() > until:
                break
        if self._unmarked is not None:
            crash_point("output.delivered")
            self._works()
            await self._mark()
        if failed is not None:
            message, error = failed
            if not isinstance(error, NotDelivered):
                raise error
            await self._failed(error, message)

    async def _mark(self) -> None:
        """Mark what was delivered; it is not sent again while that fails. Raises what the disk raises."""
        if self._unmarked is None:
            return
        number, count = self._unmarked
        self._waiting = await self._thread(lambda: self._queue.delivered(number))
        self._delivered += count
        self._unmarked = None
        self._watch_room(0)

    def _works(self) -> None:
        self._backoff.reset()
        self._receiver.over(f"decisions of {self._service} reach {self._name} again")

    async def _failed(self, failure: NotDelivered, message: Message | None = None) -> None:
        """Wait before the next try, or give the decision up if it was refused often enough."""
        if failure.poison and message is not None:
            number, times = self._refusals
            self._refusals = message.number, times + 1 if number == message.number else 1
            if self._refusals[1] >= TRIES:
                await self._refused(message, failure.text)
                return
        self._receiver.trouble(
            failure.text, f"decisions of {self._service} do not reach {self._name}; they wait on the disk"
        )
        await self._pause(max(self._backoff.next_s(), failure.retry_after_s))

    async def _refused(self, message: Message, reason: str) -> None:
        self._waiting = await self._thread(lambda: self._queue.refused(message, reason, time.time()))
        self._dropped += 1
        self._losses.add("output-refused:", 1)
        self._losses.tell("output-refused:", f"were refused ({reason}; the last was {message.sample_id})")
        self._works()

    # --- common -----------------------------------------------------------------------------------------------------

    async def _stuck(self, error: Exception) -> None:
        """The disk does not play along: say so and pause."""
        if is_corrupt(error):  # opening it anew finds out, and puts it aside
            await self._thread(self._queue.close)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        text = f"decisions for {self._name} cannot be queued on the disk; they wait in memory and inspection goes on"
        self._disk.trouble(reason, text)
        await self._pause(RETRY_S)

    async def _thread(self, work: Callable[[], T]) -> T:
        result = await asyncio.get_running_loop().run_in_executor(self._executor, work)
        moved, self._queue.quarantined = self._queue.quarantined, None
        if moved is not None:
            text = (
                f"the queue of {self._service} for {self._name} was damaged and moved to {moved}; a new one was begun"
            )
            self._notify("warning", "state.quarantined", text, passing=True)
        return result

    async def _guarded(self, step: Callable[[], Awaitable[bool]]) -> bool:
        """One step; an error nobody foresaw is logged and costs a second, not the output."""
        try:
            return await step()
        except Exception:
            log.exception("the output of %s to %s failed", self._service, self._name)
            await self._pause(RETRY_S)
            return False

    async def _pause(self, seconds: float) -> None:
        await self._first(self._ending, timeout=seconds)

    async def _first(self, *events: asyncio.Event, timeout: float) -> None:
        """Until one of the events is set, or the time is over."""
        waiting = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
