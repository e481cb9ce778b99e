"""Model threads behind one bounded, prioritised queue. The policy is in `scheduling`; here are threads and the loop.

A job that comes wakes an idle thread, if there is one, through a `SimpleQueue`; a thread that ends a job takes the next
one under the same lock. Ended jobs collect in a deque and the event loop is woken once for all that are there. That
costs two thread hops a request and nothing else: no executor, no task, no lock held while a model runs. Where even that
would be most of the time, `inline` runs the job in the loop.

What callers must expect, all NotRun except the last, all with a sentence for the client (HTTP: 503, see docs/http-api):

    QueueFull        at once    the lane, or the engine, has no place
    Overloaded       at once, or later if jobs of a higher class came    it would be late
    DeadlinePassed   at once or later    it is late
    StaleFrame       later      a newer frame of the same stream came
    Elsewhere        at once or later    only with rules (see `dispatching`): the cloud is to be asked, or the disk
    EngineStopped    at once    the worker is shutting down
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from edged.serve.dispatching import DispatchingScheduler
from edged.serve.lanes import RANK, LaneCounts, Priority
from edged.serve.refusals import DeadlinePassed, Elsewhere, NotRun, Overloaded, QueueFull, StaleFrame
from edged.serve.ticket import Done, EngineStopped, Outcome, Ticket
from edgekit.dispatch.dispatcher import Dispatcher
from edgekit.dispatch.policy import Job

__all__ = (
    "DeadlinePassed",
    "Done",
    "Elsewhere",
    "Engine",
    "EngineStopped",
    "LaneCounts",
    "NotRun",
    "Outcome",
    "Overloaded",
    "Priority",
    "QueueFull",
    "StaleFrame",
    "Ticket",
)

log = logging.getLogger("edged.serve")

T = TypeVar("T")

LOOP_S = 0.0015
"""So long the event loop may be busy with a few requests that came together; more of them are for the threads, which
work beside each other but cost half as much again: the interpreter's lock goes from hand to hand."""
_SWEEP_S = 0.04
"""How often what waits is looked through for jobs that cannot be answered in time any more."""
_SMOOTHING = 0.1


class Engine:
    """`threads` model threads. Create and use it on one event loop; `stop` ends the threads."""

    def __init__(
        self,
        threads: int,
        lane_limit: int = 64,
        clock: Callable[[], float] = time.monotonic,
        name: str = "model",
        at_once: Mapping[str, int] | None = None,
        total_limit: int = 512,
        on_inline: Callable[[], None] = lambda: None,
    ) -> None:
        """At most `lane_limit` jobs of a class wait in each lane, and `total_limit` in all; `at_once` says how many of
        a lane may run, the others may fill all threads. `on_inline` is called after each run in the event loop.
        Raises ValueError if any of the numbers is below 1."""
        self._scheduler: DispatchingScheduler[Ticket] = DispatchingScheduler(threads, lane_limit, total_limit, at_once)
        self.threads = threads
        self._lock = threading.Lock()
        self._idle = threads  # threads that wait for a token and were sent none; under the lock
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._on_inline = on_inline
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._finished: deque[Ticket] = deque()
        self._woken = False
        self._sweeping = False
        self._stopped = False
        self._alive = threads
        self._ended = asyncio.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    # --- what can be seen -------------------------------------------------------------------------------------------

    def waiting(self, lane: str) -> int:
        """Jobs of this lane that no thread has taken yet."""
        with self._lock:
            known = self._scheduler.lanes.get(lane)
            return known.waiting if known else 0

    def counts(self, lane: str) -> LaneCounts:
        """What became of this lane's jobs until now."""
        with self._lock:
            known = self._scheduler.lanes.get(lane)
            return replace(known.counts) if known else LaneCounts()

    def longest_run_s(self, lane: str) -> float:
        """Seconds that the oldest job of this lane has been running, 0.0 if none runs."""
        with self._lock:
            known = self._scheduler.lanes.get(lane)
            return self._clock() - min(e.started for e in known.running) if known and known.running else 0.0

    def retry_after_s(self) -> int:
        """Whole seconds (at least 1) until what waits now should have been worked off."""
        with self._lock:
            return max(1, math.ceil(self._scheduler.backlog_s(self._clock())))

    # --- the rules of dispatch --------------------------------------------------------------------------------------

    def set_rules(self, rules: Dispatcher[Any] | None) -> None:
        """Ask these rules where jobs go that cannot start at once; None: all of them stay here, or are refused.

        They belong to the engine from now on: touch them only while `reviewing`.
        """
        with self._lock:
            self._scheduler.rules = rules

    @contextlib.contextmanager
    def reviewing(self) -> Iterator[None]:
        """Hold the rules to tell them what happened; then what waits may leave. In the event loop, and not for long."""
        with self._lock:
            yield
            self._scheduler.review(self._clock())
            self._collect_dropped()
        self._wake()

    @property
    def crowded(self) -> bool:
        """Something waits for a thread."""
        return self._scheduler.waiting > 0

    # --- three ways to have work done -------------------------------------------------------------------------------

    def call(
        self,
        lane: str,
        priority: Priority,
        deadline: float,
        work: Callable[[], Any],
        done: Done,
        *,
        stream: str = "",
        may_expire: bool = True,
        timeout_s: float | None = None,
        job: Job | None = None,
        returned: bool = False,
    ) -> Ticket:
        """Run `work` in a model thread, then call `done` in the event loop.

        `deadline` is a time of the engine's clock. It orders jobs of one class, and with `may_expire` a job that will
        not be answered by then is refused. `timeout_s` is how long the job may wait, whatever its deadline. Of jobs
        with the same non-empty `stream` only the newest waits. Raises QueueFull, Overloaded, DeadlinePassed or
        EngineStopped at once, without calling `done`; `done` gets what happens later. It must not raise.

        `job` is for the rules of dispatch, if there are any: one that may leave may end with Elsewhere. Then the
        caller has to see to it, and may bring the job back with `returned`: it goes by `Dispatcher.lost` then.
        """
        if self._stopped:
            raise EngineStopped("the worker is shutting down; connect again")
        now = self._clock()
        ticket = Ticket(
            self._cancel,
            lane,
            RANK[priority],
            deadline,
            deadline if may_expire else math.inf,
            math.inf if timeout_s is None else now + timeout_s,
            stream,
            work,
            done,
        )
        if self._scheduler.rules is not None and may_expire:
            ticket.job = job or Job(lane, priority, now, deadline, 0, may_leave=False)
            ticket.returned = returned
        with self._lock:
            older = self._scheduler.admit(ticket, now)
            wake = self._idle > 0
            if wake:
                self._idle -= 1
        if wake:
            self._tokens.put(True)
        if older is not None:
            older.error = StaleFrame(lane)
            self._hand_over(older)
        if not (ticket.at_once or self._sweeping):
            self._sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)
        return ticket

    async def submit(
        self,
        lane: str,
        priority: Priority,
        deadline: float,
        work: Callable[[], T],
        *,
        stream: str = "",
        may_expire: bool = True,
        timeout_s: float | None = None,
        job: Job | None = None,
        returned: bool = False,
    ) -> Outcome[T]:
        """As `call`, for coroutines: returns the outcome, and raises what `call` raises or its `done` would get.

        A caller that is cancelled while its job waits takes the job with it.
        """
        future: asyncio.Future[Outcome[T]] = self._loop.create_future()

        def done(result: Outcome[T] | BaseException) -> None:
            if future.done():
                return
            if isinstance(result, Outcome):
                future.set_result(result)
            elif isinstance(result, StopIteration):  # a future refuses it; only a bug raises it
                future.set_exception(RuntimeError("the work raised StopIteration"))
            else:
                future.set_exception(result)

        ticket = self.call(
            lane,
            priority,
            deadline,
            work,
            done,
            stream=stream,
            may_expire=may_expire,
            timeout_s=timeout_s,
            job=job,
            returned=returned,
        )
        try:
            return await future
        except asyncio.CancelledError:
            ticket.cancel()
            raise

    def inline(self, lane: str, work: Callable[[], T], together: int = 1) -> Outcome[T] | None:
        """Run `work` now, in this event loop, if that is quicker for everyone; None: it was not run, so queue it.

        It is when the lane is quick (see `lanes`), nothing waits, runs or still has to be replied to, and what came
        together will not keep the loop for longer than LOOP_S. Raises what `work` raises.
        """
        scheduler = self._scheduler
        if scheduler.waiting or scheduler.running or self._finished or self._stopped:
            return None
        known = scheduler.lanes.get(lane)
        if known is None or not known.times.quick or together * known.times.mean > LOOP_S:
            return None
        started = self._clock()
        try:
            value = work()
        finally:
            # Without the lock: nothing waits or runs, so no thread touches what this changes.
            now = self._clock()
            scheduler.ran_inline(known, now - started, now)
            self._on_inline()
        return Outcome(value, 0.0, (now - started) * 1000)

    async def stop(self) -> None:
        """Take no more work, finish what is queued, end the threads."""
        self._stopped = True
        for _ in self._threads:
            self._tokens.put(False)
        await self._ended.wait()

    # --- in the event loop ------------------------------------------------------------------------------------------

    def _cancel(self, ticket: Ticket) -> None:
        with self._lock:
            if self._scheduler.cancel(ticket):
                ticket.work = None  # the picture is freed now, not when the client's last reference goes
            elif self._scheduler.rules is not None:
                self._scheduler.rules.cancel(ticket)  # it may have left the queue for the cloud a moment ago

    def _sweep(self) -> None:
        with self._lock:
            self._scheduler.sweep(self._clock())
            self._collect_dropped()
            self._sweeping = self._scheduler.waiting > 0
        self._wake()
        if self._sweeping:
            self._loop.call_later(_SWEEP_S, self._sweep)

    def _drain(self) -> None:
        self._woken = False  # before the loop below: a job finished meanwhile wakes us again or is taken here
        finished, scheduler = self._finished, self._scheduler
        if finished and finished[0].ended:
            scheduler.reply_s += _SMOOTHING * (self._clock() - finished[0].ended - scheduler.reply_s)
        while finished:
            ticket = finished.popleft()
            done, ticket.done, ticket.work = ticket.done, None, None
            if done is None:
                continue
            try:
                if ticket.error is not None:
                    done(ticket.error)
                else:
                    started = ticket.started
                    done(Outcome(ticket.value, (started - ticket.arrived) * 1000, (ticket.ended - started) * 1000))
            except Exception:
                log.exception("a reply could not be made")
            ticket.value = ticket.error = None

    # --- in the model threads ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._work()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._thread_ended)

    def _thread_ended(self) -> None:
        self._alive -= 1
        if self._alive == 0:
            self._ended.set()

    def _work(self) -> None:
        scheduler, clock, lock, tokens = self._scheduler, self._clock, self._lock, self._tokens
        while tokens.get():
            with lock:
                ticket = self._next(clock())
            self._wake()
            while ticket is not None:
                work = ticket.work
                try:
                    ticket.value = work() if work is not None else None
                except BaseException as error:  # handed to the waiter, so that one bad job never ends a thread
                    ticket.error = error
                ticket.ended = now = clock()
                with lock:
                    scheduler.finished(ticket, now)
                    following = self._next(now)
                    # A lane that was at its limit may start a job now beside the one this thread goes on with.
                    another = following is not None and self._idle > 0 and scheduler.may_start(now)
                    if another:
                        self._idle -= 1
                if another:
                    tokens.put(True)
                self._hand_over(ticket)
                ticket = following

    def _next(self, now: float) -> Ticket | None:
        """The job that this thread goes on with, or None: it is idle from now on. Under the lock."""
        ticket = self._scheduler.take(now)
        if ticket is None:
            self._idle += 1
        if self._scheduler.dropped:
            self._collect_dropped()
        return ticket

    def _collect_dropped(self) -> None:
        for ticket, reason in self._scheduler.dropped:
            ticket.error = reason
            self._finished.append(ticket)
        self._scheduler.dropped.clear()

    def _hand_over(self, ticket: Ticket) -> None:
        self._finished.append(ticket)
        self._wake()

    def _wake(self) -> None:
        """Have the loop drain what is finished, unless it will anyway."""
        if self._finished and not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._drain)
