"""Model threads behind one bounded, prioritised queue.

Waiting work is ordered by class (alarm before inline before audit), then by earliest deadline. Plain threads wait on a
`SimpleQueue` of tokens, one token a job, and take the best job from a heap; finished jobs collect in a deque and the
event loop is woken once for all that are there. That costs two thread hops a request and nothing else: no executor, no
future per hop, no lock held while a model runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")

Priority = Literal["alarm", "inline", "audit"]
_RANK: dict[Priority, int] = {"alarm": 0, "inline": 1, "audit": 2}
_SMOOTHING = 0.1
"""Weight of the newest service time in the running mean that predicts the wait."""


class QueueFull(Exception):
    """The lane has as many waiting jobs as it may; `retry_after_s` is when a place should be free."""

    def __init__(self, lane: str, limit: int, retry_after_s: int) -> None:
        super().__init__(f"{lane} has {limit} requests waiting already; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class DeadlinePassed(Exception):
    """The job still waited when its deadline passed, so it was dropped unrun."""

    def __init__(self, lane: str, waited_ms: float, retry_after_s: int) -> None:
        super().__init__(f"{lane} is overloaded: the request waited {waited_ms:.0f} ms, past its deadline")
        self.retry_after_s = retry_after_s


class EngineStopped(Exception):
    """The engine takes no more work: the worker is shutting down."""


@dataclass(slots=True)
class Outcome(Generic[T]):
    """What a job returned and how it got there; times in milliseconds."""

    value: T
    queue_ms: float
    run_ms: float


@dataclass(slots=True)
class _Job:
    lane: str
    work: Callable[[], Any] | None  # None once its client hung up: the picture is freed, the entry stays in the heap
    future: asyncio.Future[Outcome[Any]]
    submitted: float
    expires: float | None
    value: Any = None
    error: BaseException | None = None
    queue_ms: float = 0.0
    run_ms: float = 0.0


@dataclass(slots=True)
class _Shared:
    """What loop and model threads both touch, under `lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    heap: list[tuple[int, float, int, _Job]] = field(default_factory=list)
    waiting: Counter[str] = field(default_factory=Counter)
    running: int = 0
    mean_run_s: float = 0.0


class Engine:
    """`threads` model threads. Create and use it on one event loop; `stop` ends the threads."""

    def __init__(
        self, threads: int, lane_limit: int = 64, clock: Callable[[], float] = time.monotonic, name: str = "model"
    ) -> None:
        if threads < 1 or lane_limit < 1:
            raise ValueError("an engine needs at least one thread and one place in the queue")
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._lane_limit = lane_limit
        self._shared = _Shared()
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._finished: deque[_Job] = deque()
        self._woken = False
        self._sequence = 0
        self._stopped = False
        self._alive = threads
        self._ended = asyncio.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def waiting(self, lane: str) -> int:
        """Jobs of this lane that no thread has taken yet."""
        with self._shared.lock:
            return self._shared.waiting[lane]

    def retry_after_s(self) -> int:
        """Whole seconds (at least 1) until what waits now should have been worked off."""
        with self._shared.lock:
            ahead = len(self._shared.heap) + self._shared.running
            return max(1, math.ceil(ahead * self._shared.mean_run_s / len(self._threads)))

    async def submit(
        self, lane: str, priority: Priority, deadline: float, work: Callable[[], T], *, may_expire: bool = True
    ) -> Outcome[T]:
        """Run `work` in a model thread and return its result.

        `deadline` is a time of the engine's clock: it orders jobs of one class, and with `may_expire` a job that
        still waits then is dropped. Raises QueueFull at once when the lane has no place, DeadlinePassed,
        EngineStopped, or what `work` raised. A caller that is cancelled while its job waits takes the job with it.
        """
        if self._stopped:
            raise EngineStopped("the worker is shutting down; connect again")
        job = _Job(lane, work, self._loop.create_future(), self._clock(), deadline if may_expire else None)
        self._sequence += 1
        with self._shared.lock:
            full = self._shared.waiting[lane] >= self._lane_limit
            if not full:
                self._shared.waiting[lane] += 1
                heapq.heappush(self._shared.heap, (_RANK[priority], deadline, self._sequence, job))
        if full:
            raise QueueFull(lane, self._lane_limit, self.retry_after_s())
        self._tokens.put(True)
        try:
            return await job.future
        except asyncio.CancelledError:
            job.work = None
            raise

    async def stop(self) -> None:
        """Take no more work, finish what is queued, end the threads."""
        self._stopped = True
        for _ in self._threads:
            self._tokens.put(False)
        await self._ended.wait()

    def _run(self) -> None:
        self._work()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._thread_ended)

    def _thread_ended(self) -> None:
        self._alive -= 1
        if self._alive == 0:
            self._ended.set()

    def _work(self) -> None:
        shared = self._shared
        while self._tokens.get():
            with shared.lock:
                job = heapq.heappop(shared.heap)[3]
                shared.waiting[job.lane] -= 1
                shared.running += 1
            ran = self._perform(job)
            with shared.lock:
                shared.running -= 1
                if ran:
                    seconds = job.run_ms / 1000
                    shared.mean_run_s += (seconds - shared.mean_run_s) * (_SMOOTHING if shared.mean_run_s else 1.0)
            self._finished.append(job)
            if not self._woken:
                self._woken = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(self._drain)

    def _perform(self, job: _Job) -> bool:
        """Run one job; False if it was dropped instead."""
        work = job.work
        started = self._clock()
        job.queue_ms = (started - job.submitted) * 1000
        if work is None:
            return False
        if job.expires is not None and started > job.expires:
            job.error = DeadlinePassed(job.lane, job.queue_ms, 1)
            return False
        try:
            job.value = work()
        except BaseException as error:  # handed to the waiter, so that one bad job never ends a thread
            job.error = error
        job.run_ms = (self._clock() - started) * 1000
        return True

    def _drain(self) -> None:
        self._woken = False  # before the loop below: a job finished meanwhile wakes us again or is taken here
        while self._finished:
            job = self._finished.popleft()
            if job.future.done():
                continue
            if job.error is None:
                job.future.set_result(Outcome(job.value, job.queue_ms, job.run_ms))
            elif isinstance(job.error, StopIteration):  # a future refuses it; only a bug raises it
                job.future.set_exception(RuntimeError("the work raised StopIteration"))
            else:
                job.future.set_exception(job.error)
