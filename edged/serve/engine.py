"""Model threads behind one bounded, prioritised queue.

Waiting work is ordered by class (alarm before inline before audit), then by earliest deadline. Plain threads wait on a
`SimpleQueue` of tokens, one token a job, and take the best job from the lanes' heaps; finished jobs collect in a deque
and the event loop is woken once for all that are there. That costs two thread hops a request and nothing else: no
executor, no future per hop, no lock held while a model runs.

A lane may have a limit: no more of its jobs run at once. A token that meets only lanes at their limit is parked, and
the thread that ends a job goes on with a parked one.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
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
class _Lane:
    """One lane's waiting jobs, best first, and when each that runs was started."""

    limit: int
    heap: list[tuple[int, float, int, _Job]] = field(default_factory=list)
    started: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Shared:
    """What loop and model threads both touch, under `lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    lanes: dict[str, _Lane] = field(default_factory=dict)
    parked: int = 0
    mean_run_s: float = 0.0


class Engine:
    """`threads` model threads. Create and use it on one event loop; `stop` ends the threads."""

    def __init__(
        self,
        threads: int,
        lane_limit: int = 64,
        clock: Callable[[], float] = time.monotonic,
        name: str = "model",
        at_once: Mapping[str, int] | None = None,
    ) -> None:
        """`lane_limit` jobs of a lane may wait; `at_once` says how many of a lane may run, the others may fill all."""
        if threads < 1 or lane_limit < 1 or min((at_once or {"": 1}).values(), default=1) < 1:
            raise ValueError("an engine needs at least one thread and one place in the queue")
        self._at_once = dict(at_once or {})
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
            known = self._shared.lanes.get(lane)
            return len(known.heap) if known else 0

    def longest_run_s(self, lane: str) -> float:
        """Seconds that the oldest job of this lane has been running, 0.0 if none runs."""
        with self._shared.lock:
            known = self._shared.lanes.get(lane)
            return self._clock() - min(known.started) if known and known.started else 0.0

    def retry_after_s(self) -> int:
        """Whole seconds (at least 1) until what waits now should have been worked off."""
        with self._shared.lock:
            ahead = sum(len(lane.heap) + len(lane.started) for lane in self._shared.lanes.values())
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
            if lane not in self._shared.lanes:
                self._shared.lanes[lane] = _Lane(self._at_once.get(lane, len(self._threads)))
            heap = self._shared.lanes[lane].heap
            full = len(heap) >= self._lane_limit
            if not full:
                heapq.heappush(heap, (_RANK[priority], deadline, self._sequence, job))
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
            going_on = True
            while going_on:
                with shared.lock:
                    lane = self._best_lane()
                    if lane is None:
                        shared.parked += 1
                        break
                    job = heapq.heappop(lane.heap)[3]
                    started = self._clock()
                    lane.started.append(started)
                ran = self._perform(job)
                with shared.lock:
                    lane.started.remove(started)
                    if ran:
                        seconds = job.run_ms / 1000
                        shared.mean_run_s += (seconds - shared.mean_run_s) * (_SMOOTHING if shared.mean_run_s else 1.0)
                    going_on = shared.parked > 0
                    shared.parked -= going_on
                self._finished.append(job)
                if not self._woken:
                    self._woken = True
                    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                        self._loop.call_soon_threadsafe(self._drain)

    def _best_lane(self) -> _Lane | None:
        """The lane whose first job is the best of all that may start now. Under the lock."""
        best: _Lane | None = None
        for lane in self._shared.lanes.values():
            if lane.heap and len(lane.started) < lane.limit and (best is None or lane.heap[0] < best.heap[0]):
                best = lane
        return best

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
