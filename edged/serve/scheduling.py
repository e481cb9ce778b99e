"""Which waiting job runs next, and which is refused: the engine's policy, without clock, thread or socket.

Class first (alarm, inline, audit), then earliest deadline. A job that is not expected to be answered by its deadline is
refused when it comes, because a refusal at once is worth more to its client than one at the deadline:

    wait   = until a thread has done its part of the runs at hand and ahead, longer by the load of higher classes
    answer = wait + mean run + 2 mean deviations + the loop's delay <= the deadline's share of its class

Times are measured for each lane (a service's queue) as running means, as in RFC 6298. What can start at once is not
asked: it makes nobody wait, and it is how a lane whose times were bad once gets new ones. (Clockwork, OSDI 2020, shows
that model times are predictable enough for this.)

Lanes of one class share model time: the earliest deadline of all goes first as long as its lane has not used more than
`FAIR_S` above the lane that used least. A job may name a stream, say a camera; a newer frame of it takes the place of
one that waits. One thread is kept from jobs so long that an alarm that came meanwhile would be late.

Not safe for threads: the engine calls it under its lock. Times are seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping
from typing import Generic, TypeVar

from edged.serve.lanes import RANK, Entry, Lane, LaneCounts, Queue
from edged.serve.refusals import DeadlinePassed, NotRun, Overloaded, QueueFull

E = TypeVar("E", bound=Entry)

FAIR_S = 0.05
"""Model time by which a lane may be ahead of another of its class before earliest deadline gives way."""
HEADROOM = (1.0, 0.8, 0.5)
"""Share of the time to its deadline that a job of each class may be expected to need."""
CAUTION = (0.5, 2.0, 2.0)
"""Mean deviations that a run of each class is expected to take longer than the mean. A false refusal of an alarm costs
as much as a late one."""
QUEUE_SHARE = (1.0, 0.75, 0.5)
"""Share of all places that each class may see taken; the rest is kept for those above."""

_TRIAL_S = 1.0  # a lane that was refused for so long may try one job
_LOAD_S = 1.0  # over which the load that a class asks for is averaged
_LOAD_STEP_S = 0.01  # what came within it fades together
_ALARMS_S = 10.0  # a thread is kept for alarms for so long after the last one
_LEAST_SHARE = 0.02  # of the threads that a lower class is expected to get at least


class Scheduler(Generic[E]):
    """The policy for `threads` model threads.

    `lane_limit` jobs of a class may wait in each lane, `total_limit` in all; `at_once` limits how many jobs of a lane
    run at the same time. Read `waiting` and `running` freely; `dropped` collects, for the caller to take, what was
    thrown out of the queue and why. `reply_s` is the delay from a job's end to its reply; the engine measures it.
    """

    def __init__(
        self, threads: int, lane_limit: int = 64, total_limit: int = 512, at_once: Mapping[str, int] | None = None
    ) -> None:
        if min(threads, lane_limit, total_limit, *(at_once or {}).values()) < 1:
            raise ValueError("an engine needs at least one thread and one place in the queue")
        self.threads = threads
        self.waiting = self.running = 0
        self.reply_s = 0.0
        self.dropped: list[tuple[E, NotRun]] = []
        self.lanes: dict[str, Lane[E]] = {}
        self._lane_limit = lane_limit
        self._places = tuple(max(1, int(total_limit * share)) for share in QUEUE_SHARE)
        self._at_once = dict(at_once or {})
        self._active: tuple[dict[str, Queue[E]], ...] = tuple({} for _ in RANK)
        self._virtual = [0.0 for _ in RANK]
        self._streams: dict[tuple[str, str], E] = {}
        self._loads = [0.0 for _ in RANK]
        self._loads_at = 0.0
        self._typical = 0.0  # the mean of the lane that ran last: the first guess for a new one
        self._sequence = 0
        self._alarm_at = -math.inf
        self._alarm_slack = math.inf

    def lane(self, name: str) -> Lane[E]:
        """The lane of this name; there is one from now on."""
        lane = self.lanes.get(name)
        if lane is None:
            limit = min(self.threads, self._at_once.get(name, self.threads))
            lane = self.lanes[name] = Lane(name, limit, self._typical)
        return lane

    # --- coming and going -------------------------------------------------------------------------------------------

    def admit(self, entry: E, now: float) -> E | None:
        """Queue a job; returns the older frame that it displaced. Raises NotRun: QueueFull, Overloaded, DeadlinePassed.

        A frame inherits the place of the one it displaces, so that a stream faster than the model is still served.
        """
        lane = self.lane(entry.lane)
        entry.arrived = now
        self._sequence = entry.sequence = self._sequence + 1
        self._asked(entry.rank, lane.times.mean, now)
        if entry.rank == 0:
            self._alarm_came(entry.expires - now - lane.times.mean, now)
        older = self._streams.get((entry.lane, entry.stream)) if entry.stream else None
        if older is not None and older.rank < entry.rank:
            older = None
        if older is None:
            self._check(entry, lane, now)
        queue = lane.queues[entry.rank]
        queue.used = self._used(queue, entry.rank)
        if older is not None:
            self._remove(older)
            lane.counts.stale += 1
            if older.rank == entry.rank:
                entry.key = min(entry.key, older.key)
        self._active[entry.rank][entry.lane] = queue
        insort(queue.entries, (entry.key, entry.sequence, entry))
        entry.state = "waiting"
        self.waiting += 1
        if entry.stream:
            self._streams[entry.lane, entry.stream] = entry
        return older

    def cancel(self, entry: E) -> bool:
        """Take a job that still waits out of the queue; False if it does not."""
        if entry.state != "waiting":
            return False
        self._remove(entry)
        self.lanes[entry.lane].counts.cancelled += 1
        return True

    def take(self, now: float) -> E | None:
        """The job to start now, or None if none may. What proves hopeless on the way goes to `dropped`."""
        if self.running >= self.threads:
            return None
        for rank, active in enumerate(self._active):
            while active and (queue := self._best(rank, now)) is not None:
                entry = queue.entries[0][2]
                virtual = queue.used
                self._remove(entry)
                if (reason := self._hopeless(entry, now)) is not None:
                    self._drop(entry, reason)
                    continue
                self._virtual[rank] = max(self._virtual[rank], virtual)
                entry.charged = queue.lane.times.mean
                queue.used += entry.charged
                entry.state, entry.started = "running", now
                queue.lane.running.append(entry)
                queue.lane.counts.queue_s += now - entry.arrived
                self.running += 1
                return entry
        return None

    def may_start(self, now: float) -> bool:
        """Would `take` find a job, if none has become hopeless?"""
        return self.running < self.threads and any(self._best(rank, now) for rank in RANK.values())

    def finished(self, entry: E, now: float) -> None:
        """A job that `take` gave has ended."""
        lane, seconds = self.lanes[entry.lane], now - entry.started
        entry.state = "over"
        lane.running.remove(entry)
        self.running -= 1
        lane.queues[entry.rank].used += seconds - entry.charged
        self._count(lane, seconds, now)

    def ran_inline(self, lane: Lane[E], seconds: float, now: float) -> None:
        """A job was run past the queue, when nothing waited or ran."""
        lane.counts.inline_runs += 1
        self._count(lane, seconds, now)

    def sweep(self, now: float) -> None:
        """Throw out (to `dropped`) what still waits and cannot be answered in time any more."""
        for active in self._active:
            for queue in list(active.values()):
                for _, _, entry in list(queue.entries):
                    reason = self._late(entry, now)
                    if reason is None and entry.expires < math.inf:
                        wait = self._wait(entry, queue.lane, now)
                        answer = wait + queue.lane.times.mean
                        if now + answer > entry.expires:
                            reason = Overloaded(entry.lane, answer, entry.expires - now, whole_seconds(answer))
                    if reason is not None:
                        self._remove(entry)
                        self._drop(entry, reason)

    def backlog_s(self, now: float) -> float:
        """Seconds until what waits and runs now should have been worked off."""
        waiting = sum(queue.work() for active in self._active for queue in active.values())
        return (waiting + sum(sum(self._remaining(lane, now)) for lane in self.lanes.values())) / self.threads

    # --- the rules --------------------------------------------------------------------------------------------------

    def _check(self, entry: E, lane: Lane[E], now: float) -> None:
        """Raises the reason not to queue this job."""
        queue = lane.queues[entry.rank]
        free = self.running + self.waiting < self.threads and len(lane.running) + lane.waiting < lane.limit
        entry.at_once = free and not self._kept_for_alarms(entry.rank, lane, now)
        if entry.expires <= now or entry.start_by < now:
            lane.counts.expired += 1
            raise DeadlinePassed(entry.lane, 0.0)
        if entry.at_once:
            entry.start_by = math.inf  # it waits only until its thread has woken up
            return
        limit = self._lane_limit
        if len(queue.entries) >= limit or self.waiting >= self._places[entry.rank]:
            self._no_place(entry, now)
            lane.counts.full += 1
            raise QueueFull(entry.lane, min(limit, self.waiting), whole_seconds(self.backlog_s(now)))
        self._check_deadline(entry, lane, now)

    def _no_place(self, entry: E, now: float) -> None:
        """Raises what becomes of a job that finds no place, unless it is refused."""

    def _check_deadline(self, entry: E, lane: Lane[E], now: float) -> None:
        """Raises the reason not to let this job wait, although there is a place."""
        if min(entry.expires, entry.start_by) == math.inf or self._surely_in_time(entry, lane, now):
            return
        wait = self._wait(entry, lane, now)
        left = entry.expires - now
        answer = wait + self.reply_s + lane.times.mean + CAUTION[entry.rank] * lane.times.deviation
        if answer <= left * HEADROOM[entry.rank] and now + wait <= entry.start_by:
            return
        if (
            now - lane.times.at > _TRIAL_S
            and not (lane.running or lane.waiting)
            and wait < min(left, entry.start_by - now)
        ):
            lane.times.forget()
            return
        lane.counts.overloaded += 1
        raise Overloaded(entry.lane, answer, min(left, entry.start_by - now), whole_seconds(answer - left))

    def _surely_in_time(self, entry: E, lane: Lane[E], now: float) -> bool:
        """Would it be in time even if it came last of all, on one thread? Then nobody needs to know when exactly."""
        slowest = left = 0.0
        for other in self.lanes.values():
            mean = other.times.mean
            if mean > slowest:
                slowest = mean
            for running in other.running:
                left += abs(mean - (now - running.started))
        wait = left + self.waiting * slowest
        if entry.rank:
            wait /= _LEAST_SHARE
        times = lane.times
        answer = wait + self.reply_s + times.mean + CAUTION[entry.rank] * times.deviation
        return answer <= (entry.expires - now) * HEADROOM[entry.rank] and now + wait <= entry.start_by

    def _wait(self, entry: E, lane: Lane[E], now: float) -> float:
        """Seconds until this job should start, whether it waits already or not."""
        rank, own = entry.rank, lane.queues[entry.rank]
        place = (entry.key, entry.sequence)
        ahead = bisect_left(own.entries, place) * lane.times.mean
        work = ahead
        for higher in self._active[:rank]:
            for queue in higher.values():
                work += queue.work()
        if len(self._active[rank]) > 1 or not own.entries:
            used = self._used(own, rank) + ahead
            for queue in self._active[rank].values():
                if queue is not own:
                    # By deadline, but no more than brings that lane FAIR_S ahead, and no less than leaves it behind.
                    mean, behind = queue.lane.times.mean, used - queue.used
                    earlier = bisect_left(queue.entries, place) * mean
                    slack = FAIR_S + mean
                    work += min(max(earlier, behind - slack), max(0.0, behind + slack), queue.work())
        running = [self._remaining(lane, now) for lane in self.lanes.values() if lane.running]
        wait = until_free(work, [left for one in running for left in one], self.threads)
        wait *= self.threads / self._left_over(rank, now)
        if lane.limit < self.threads:
            wait = max(wait, until_free(ahead, self._remaining(lane, now), lane.limit))
        return wait

    @staticmethod
    def _remaining(lane: Lane[E], now: float) -> list[float]:
        """Model time that each running job of this lane still needs. One that overran may overrun as much again."""
        mean = lane.times.mean
        return [abs(mean - (now - entry.started)) if mean else 0.0 for entry in lane.running]

    def _used(self, queue: Queue[E], rank: int) -> float:
        """A queue's virtual time. One that was empty keeps no more credit than a lane may be behind anyway."""
        if queue.entries:
            return queue.used
        return max(queue.used, self._virtual[rank] - FAIR_S - queue.lane.times.mean)

    def _left_over(self, rank: int, now: float) -> float:
        """Threads that the higher classes leave to this one if they go on asking for as much as lately."""
        if rank == 0:
            return self.threads
        taken = sum(self._loads[:rank]) * math.exp((self._loads_at - now) / _LOAD_S)
        return max(self.threads - taken, self.threads * _LEAST_SHARE)

    def _best(self, rank: int, now: float) -> Queue[E] | None:
        """The queue of a class whose first job may start now: earliest deadline within fair shares."""
        first: Queue[E] | None = None
        least: Queue[E] | None = None
        for queue in self._active[rank].values():
            lane = queue.lane
            if len(lane.running) >= lane.limit or self._kept_for_alarms(rank, lane, now):
                continue
            if first is None or queue.entries[0] < first.entries[0]:
                first = queue
            if least is None or queue.used < least.used:
                least = queue
        if first is not None and least is not None and first.used - least.used > FAIR_S + first.lane.times.mean:
            return least
        return first

    def _alarm_came(self, slack: float, now: float) -> None:
        """Note how long an alarm may wait: the shortest counts at once, a longer one only by and by."""
        if now - self._alarm_at > _ALARMS_S:
            self._alarm_slack = math.inf
        self._alarm_at = now
        grown = self._alarm_slack + 0.05 * (slack - self._alarm_slack) if slack < math.inf else self._alarm_slack
        self._alarm_slack = slack if self._alarm_slack == math.inf else min(slack, grown)

    def _kept_for_alarms(self, rank: int, lane: Lane[E], now: float) -> bool:
        """Would this lane's job take the last thread for longer than an alarm may wait?"""
        return (
            rank > 0
            and 0 < self.threads - 1 <= self.running
            and lane.times.mean + lane.times.deviation > self._alarm_slack
            and now - self._alarm_at <= _ALARMS_S
        )

    def _late(self, entry: E, now: float) -> NotRun | None:
        if now > entry.expires or now > entry.start_by:
            return DeadlinePassed(entry.lane, (now - entry.arrived) * 1000, whole_seconds(self.backlog_s(now)))
        return None

    def _hopeless(self, entry: E, now: float) -> NotRun | None:
        """Why this job, whose turn it is, should not run after all: it will be late, and others wait for the thread."""
        late = self._late(entry, now)
        mean = self.lanes[entry.lane].times.mean
        if late is None and self.waiting and now + mean > entry.expires:
            return Overloaded(entry.lane, mean, entry.expires - now, whole_seconds(self.backlog_s(now)))
        return late

    # --- bookkeeping ------------------------------------------------------------------------------------------------

    def _remove(self, entry: E) -> None:
        """Out of its queue."""
        queue = self.lanes[entry.lane].queues[entry.rank]
        del queue.entries[bisect_left(queue.entries, (entry.key, entry.sequence))]
        entry.state = "over"
        self.waiting -= 1
        if not queue.entries:
            del self._active[entry.rank][entry.lane]
        if entry.stream and self._streams.get((entry.lane, entry.stream)) is entry:
            del self._streams[entry.lane, entry.stream]

    def _drop(self, entry: E, reason: NotRun) -> None:
        self._not_run(self.lanes[entry.lane].counts, reason)
        self.dropped.append((entry, reason))

    def _not_run(self, counts: LaneCounts, reason: NotRun) -> None:
        """Count why a job that was taken, or had a place, does not run."""
        if isinstance(reason, DeadlinePassed):
            counts.expired += 1
        else:
            counts.overloaded += 1

    def _count(self, lane: Lane[E], seconds: float, now: float) -> None:
        lane.times.add(seconds, now)
        self._typical = lane.times.mean
        lane.counts.runs += 1
        lane.counts.run_s += seconds

    def _asked(self, rank: int, seconds: float, now: float) -> None:
        """Count what a class asks for, also if it is refused: lower classes must not expect to get that."""
        if now - self._loads_at > _LOAD_STEP_S:
            fade = math.exp((self._loads_at - now) / _LOAD_S)
            self._loads = [load * fade for load in self._loads]
            self._loads_at = now
        self._loads[rank] += seconds / _LOAD_S


def until_free(work: float, left: list[float], servers: int) -> float:
    """Seconds until one of `servers` is free for a new job, when those that are busy for `left` share `work` first."""
    left = sorted(left)
    left[:0] = [0.0] * (servers - len(left))
    free_at = total = 0.0
    for number, one in enumerate(left, 1):
        if number > 1 and free_at <= one:
            break
        total += one
        free_at = (work + total) / number
    return free_at


def whole_seconds(time: float) -> int:
    """For Retry-After: whole seconds, at least 1 and at most 60."""
    return max(1, min(60, math.ceil(time))) if time < math.inf else 60
