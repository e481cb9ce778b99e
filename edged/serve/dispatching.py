"""The scheduler with the rules of `edgekit.dispatch`: what would be late here goes to the cloud, or to the disk.

Without rules, and for jobs that were given none, it is the scheduler as it was. The rules are asked about a job that
cannot start at once, when it comes; about what waits, when a thread or the uplink became free; and when it is a job's
turn. A job whose turn comes at once is not asked about: it makes nobody wait.

The rules know only class and deadline, so the wait they are told is that of the plain order, without the fair shares of
lanes; a device whose lanes share a class unfairly offloads a little later than it could.

Not safe for threads, like the scheduler: the engine calls both under its lock. Times are seconds.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from edged.serve.lanes import Lane, LaneCounts
from edged.serve.refusals import DeadlinePassed, Elsewhere, NotRun, Overloaded
from edged.serve.scheduling import E, Scheduler, until_free, whole_seconds
from edgekit.dispatch.dispatcher import Dispatcher
from edgekit.dispatch.policy import PRIORITIES, Decision, Job

GUESS_S = 0.05
"""A run of a service, here or in the cloud, before one was measured."""


class DispatchingScheduler(Scheduler[E]):
    """See the module's docstring. Keys of the dispatcher are the jobs' entries."""

    rules: Dispatcher[Any] | None = None

    def know(self, service: str) -> None:
        """Jobs of this service may come."""
        if self.rules is not None and not self.rules.knows(service):
            lane = self.lanes.get(service)
            guess = lane.times.mean if lane is not None and lane.times.mean > 0 else GUESS_S
            self.rules.service(service, guess, guess)

    def take(self, now: float) -> E | None:
        entry = super().take(now)
        if self.rules is not None:
            self.review(now)  # after the thread has its job: that starts at once
        return entry

    def finished(self, entry: E, now: float) -> None:
        super().finished(entry, now)
        if self.rules is not None:
            self.know(entry.lane)
            self.rules.ran_here(entry.lane, now - entry.started)

    def sweep(self, now: float) -> None:
        """Throw out what is past its deadline, unless its class runs late rather than not at all."""
        if self.rules is None:
            super().sweep(now)
            return
        for active in self._active:
            for queue in list(active.values()):
                for _, _, entry in list(queue.entries):
                    reason = self._past(entry, now)
                    if reason is not None:
                        self._remove(entry)
                        self._drop(entry, reason)
        self.review(now)

    def review(self, now: float) -> None:
        """Let what waits leave for the cloud (to `dropped`), if it would be there in time and is late here."""
        rules = self.rules
        if rules is None or not self.waiting or not rules.usable:
            return
        for entry, decision in rules.review(self._in_order(rules, now), now):
            assert entry.job is not None, "others are not asked about"
            self._remove(entry)
            self._drop(entry, Elsewhere("offload", entry, decision.sentence(entry.job, now)))

    # --- what the scheduler asks --------------------------------------------------------------------------------------

    def _check(self, entry: E, lane: Lane[E], now: float) -> None:
        rules, job = self.rules, entry.job
        if rules is not None and job is not None and entry.expires <= now and entry.returned:
            self._unless_here(entry, rules.lost(job, 0.0, now), now)
        super()._check(entry, lane, now)

    def _no_place(self, entry: E, now: float) -> None:
        rules, job = self.rules, entry.job
        if rules is not None and job is not None:
            never = max(0.0, entry.expires - now)  # without a place it cannot end here in time
            self._unless_here(entry, rules.arrives(job, never, now), now)

    def _check_deadline(self, entry: E, lane: Lane[E], now: float) -> None:
        rules, job = self.rules, entry.job
        if rules is None or job is None:
            super()._check_deadline(entry, lane, now)
            return
        self.know(entry.lane)
        wait = self._wait_in_order(entry, rules, now)
        decision = rules.lost(job, wait, now) if entry.returned else rules.arrives(job, wait, now)
        self._unless_here(entry, decision, now)

    def _hopeless(self, entry: E, now: float) -> NotRun | None:
        rules, job = self.rules, entry.job
        if rules is None or job is None or entry.at_once:
            return super()._hopeless(entry, now)
        if now > entry.start_by:
            return self._late(entry, now)
        self.know(entry.lane)
        return self._elsewhere(entry, rules.turn(job, now), now)

    def _not_run(self, counts: LaneCounts, reason: NotRun) -> None:
        if not isinstance(reason, Elsewhere):
            super()._not_run(counts, reason)
        elif reason.place == "offload":
            counts.offloaded += 1
        else:
            counts.kept += 1

    # --- decisions ----------------------------------------------------------------------------------------------------

    def _unless_here(self, entry: E, decision: Decision, now: float) -> None:
        """Raise where a job goes that has just come, unless it is to wait here."""
        reason = self._elsewhere(entry, decision, now)
        if reason is not None:
            self._not_run(self.lanes[entry.lane].counts, reason)
            raise reason

    def _elsewhere(self, entry: E, decision: Decision, now: float) -> NotRun | None:
        """What a decision means for a job; what is offloaded counts from now on."""
        rules, job = self.rules, entry.job
        assert rules is not None and job is not None, "there was a decision"
        if decision.place == "local":
            return None
        if decision.place == "offload":
            rules.offload(entry, job)
            return Elsewhere("offload", entry, decision.sentence(job, now))
        if decision.place == "spool" and job.may_leave:
            return Elsewhere("spool", entry, decision.sentence(job, now))
        return Overloaded(entry.lane, decision.local_s, entry.expires - now, whole_seconds(self.backlog_s(now)))

    def _past(self, entry: E, now: float) -> NotRun | None:
        """What becomes of a job that waits and cannot be answered in time any more, if not even late."""
        assert self.rules is not None, "somebody has rules"
        if now > entry.start_by:
            return self._late(entry, now)
        if now <= entry.expires:
            return None
        if entry.job is None:
            return self._late(entry, now)
        ending = self.rules.policy.ending(PRIORITIES[entry.rank])
        if ending == "refuse" or (ending == "spool" and not entry.job.may_leave):
            return DeadlinePassed(entry.lane, (now - entry.arrived) * 1000, whole_seconds(self.backlog_s(now)))
        return self._elsewhere(entry, Decision(ending, entry.expires - now), now)

    # --- the plain order ----------------------------------------------------------------------------------------------

    def _wait_in_order(self, entry: E, rules: Dispatcher[Any], now: float) -> float:
        """Seconds until a thread is free for a job that has just come, by class and deadline alone."""
        place = (entry.key, entry.sequence)
        work = sum(queue.work() for higher in self._active[: entry.rank] for queue in higher.values())
        work += sum(
            bisect_left(queue.entries, place) * queue.lane.times.mean for queue in self._active[entry.rank].values()
        )
        return until_free(work * rules.policy.run_factor, self._busy_s(now), self.threads)

    def _in_order(self, rules: Dispatcher[Any], now: float) -> Iterator[tuple[E, Job, float]]:
        """What waits, each with the seconds until a thread is free for it."""
        busy, work = self._busy_s(now), 0.0
        for active in self._active:
            for _, _, entry in heapq.merge(*(queue.entries for queue in active.values())):
                if entry.job is not None:
                    yield entry, entry.job, until_free(work, busy, self.threads)
                work += self.lanes[entry.lane].times.mean * rules.policy.run_factor

    def _busy_s(self, now: float) -> list[float]:
        return [left for lane in self.lanes.values() if lane.running for left in self._remaining(lane, now)]
