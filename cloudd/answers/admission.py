"""Which question is answered next and which is refused, so that no device makes the others wait: pure, without clock.

A tenant is who must not suffer from others: a site if it is known, else a device. Every tenant has used some model
time, and one that comes anew begins where the others are, so idleness earns nothing (virtual time as in start-time fair
queueing: Goyal, Vin, Cheng 1996). Of those that are no more than `FAIR_S` ahead of the one that used least, the highest
class goes first, and then the earliest deadline. So while two tenants wait, what they got differs by `FAIR_S` and one
run at most: a tenant that floods, or calls everything an alarm, gains that much and no more.

A question is refused when it comes if it would be late under this order, by times that were measured, and `Retry-After`
says when there should be room. While nobody else waits it is tried all the same: else a model that was slow once would
be refused, and so never measured, for ever. When all places are taken, the tenant with most questions gives one up for
a tenant that has clearly fewer. Samples from a spool, for which nobody waits, have places of their own and are taken
only while nobody waits, by all workers but one (or by the only one).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from edgekit.dispatch.policy import PRIORITIES, Priority
from edgekit.dispatch.service_times import ServiceTimes

T = TypeVar("T")

FAIR_S = 0.05
"""Model time by which a tenant may be ahead of another and still go first. Without it, whoever came last with a quiet
tenant would overtake older questions all the time, and make those late that were admitted by an honest prediction."""
LATE_SHARE = 0.5
"""Places for samples from spools, as a share of the places of those for whom somebody waits."""

_RUN_FACTOR, _STEADY_CV = 1.15, 0.3  # as edgekit.dispatch predicts a run
_LEAST_RETRY_S, _LONGEST_RETRY_S = 0.1, 60.0
_TENANTS = 10_000  # remembered while there is work; beyond, the one that asked longest ago begins anew
_MODELS = 256  # whose times are remembered
_NOT_YET = 1 << 62  # after all that came


class NotAdmitted(Exception):
    """The question is not answered now; it may be asked again after `retry_after_s` seconds."""

    def __init__(self, text: str, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = min(max(retry_after_s, _LEAST_RETRY_S), _LONGEST_RETRY_S)


class Question(Generic[T]):
    """One question as admission sees it; `item` is the caller's.

    `model` names what is timed. `deadline` is a time of the caller's clock, infinite if it has none. `late`: it comes
    from a spool. `runs`: it takes as long as so many runs of its model.
    """

    __slots__ = ("cost", "deadline", "item", "late", "model", "number", "rank", "runs", "state", "tenant")

    def __init__(
        self,
        tenant: str,
        model: str,
        item: T,
        *,
        priority: Priority = "inline",
        deadline: float = math.inf,
        late: bool = False,
        runs: int = 1,
    ) -> None:
        self.tenant, self.model, self.item, self.late, self.runs = tenant, model, item, late, runs
        self.rank = PRIORITIES.index(priority)
        self.deadline = deadline
        self.number = _NOT_YET  # in the order of coming
        self.cost = 0.0  # seconds that it was charged for when it was taken
        self.state = "new"  # then waiting, running, over


class _Tenant(Generic[T]):
    __slots__ = ("running", "used", "waiting")

    def __init__(self) -> None:
        self.used = 0.0
        self.running = 0
        self.waiting: list[tuple[int, float, int, Question[T]]] = []  # by class, deadline, order of coming


class _Fair(Generic[T]):
    """Waiting questions in the order of fair shares."""

    def __init__(self) -> None:
        self.count = 0  # waiting
        self._running = 0
        self._virtual = 0.0  # what the tenant that waits and used least had used when a question was taken last
        self._known: OrderedDict[str, _Tenant[T]] = OrderedDict()  # the one that asked longest ago first
        self._active: dict[str, _Tenant[T]] = {}  # those that wait

    def waiting(self, tenant: str) -> list[tuple[int, float, int, Question[T]]]:
        """What waits of a tenant, best first."""
        return self._active[tenant].waiting if tenant in self._active else []

    def all(self) -> Iterator[Question[T]]:
        """Everything that waits, in no order."""
        return (one for tenant in self._active.values() for *_, one in tenant.waiting)

    def most(self) -> list[tuple[int, float, int, Question[T]]]:
        """What waits of the tenant with most questions."""
        return max((tenant.waiting for tenant in self._active.values()), key=len, default=[])

    def add(self, question: Question[T]) -> None:
        tenant = self._known[question.tenant] = self._tenant(question.tenant)
        self._active[question.tenant] = tenant
        self._known.move_to_end(question.tenant)
        insort(tenant.waiting, _place(question))
        self.count += 1
        if len(self._known) > _TENANTS:
            oldest = next(iter(self._known))
            if self._busy(oldest):
                self._known.move_to_end(oldest)
            else:
                del self._known[oldest]

    def remove(self, question: Question[T]) -> None:
        waiting = self._active[question.tenant].waiting
        del waiting[bisect_left(waiting, _place(question))]
        self.count -= 1
        if not waiting:
            del self._active[question.tenant]

    def next(self) -> Question[T] | None:
        """The question to take now."""
        least = min((tenant.used for tenant in self._active.values()), default=0.0)
        first = (tenant.waiting[0] for tenant in self._active.values() if tenant.used <= least + FAIR_S)
        best = min(first, default=None)
        return best[-1] if best is not None else None

    def start(self, question: Question[T], cost: float) -> None:
        """The question is taken out to run, and its tenant charged."""
        self._virtual = max(self._virtual, min(tenant.used for tenant in self._active.values()))
        self.remove(question)
        tenant = self._known[question.tenant]
        tenant.running += 1
        tenant.used += cost
        self._running += 1

    def end(self, question: Question[T], more: float) -> None:
        """It ran, for `more` seconds than its tenant was charged."""
        tenant = self._known[question.tenant]
        tenant.running -= 1
        tenant.used += more
        self._running -= 1
        if not self._busy(question.tenant) and tenant.used <= self._virtual:
            del self._known[question.tenant]  # it would be no different if it came anew
        if not self._running and not self.count:
            self._known.clear()  # nobody is behind anybody any more
            self._virtual = 0.0

    def ahead_s(self, question: Question[T], run_s: Callable[[Question[T]], float]) -> float:
        """Model time of what would go before a question that has just come."""
        me, place = self._tenant(question.tenant), _place(question)
        own = sum(run_s(one) for *_, one in me.waiting[: bisect_left(me.waiting, place)])
        ahead = own
        for name, other in self._active.items():
            if name == question.tenant:
                continue
            used = other.used
            for entry in other.waiting:
                if used > me.used + own + (FAIR_S if entry < place else -FAIR_S):
                    break
                used += run_s(entry[-1])
            ahead += used - other.used
        return ahead

    def _tenant(self, name: str) -> _Tenant[T]:
        """A tenant as it is when it comes now."""
        tenant = self._known.get(name) or _Tenant()
        if not tenant.waiting:
            tenant.used = max(tenant.used, self._virtual)
        return tenant

    def _busy(self, name: str) -> bool:
        return name in self._active or self._known[name].running > 0


class Admission(Generic[T]):
    """See the module's docstring. `workers` questions run at a time.

    `dropped` collects, for the caller to answer, what was given up after it had been admitted, and why. Not safe for
    threads: it belongs to one event loop. Times are seconds of any monotonic clock.
    """

    def __init__(self, workers: int = 1, places: int = 32, guess_s: float = 0.1) -> None:
        """`guess_s` is the run of a model that was never measured. Raises ValueError without worker or place."""
        if workers < 1 or places < 1:
            raise ValueError(f"{workers} workers with {places} places cannot answer anything; both are 1 at least")
        self.workers = workers
        self.dropped: list[tuple[Question[T], NotAdmitted]] = []
        self._places, self._late_places = places, max(1, int(places * LATE_SHARE))
        self._guess_s = guess_s
        self._live: _Fair[T] = _Fair()
        self._late: _Fair[T] = _Fair()
        self._running: dict[Question[T], float] = {}  # since when
        self._late_running = 0
        self._times: OrderedDict[str, ServiceTimes] = OrderedDict()
        self._numbers = itertools.count(1)

    @property
    def waiting(self) -> int:
        """Questions that wait, those from spools included."""
        return self._live.count + self._late.count

    @property
    def running(self) -> int:
        return len(self._running)

    # --- coming -----------------------------------------------------------------------------------------------------

    def check(self, tenant: str, late: bool = False, priority: Priority = "inline") -> None:
        """Raises NotAdmitted if such a question of this tenant would find no place; ask it before reading a body."""
        full = self._late.count >= self._late_places if late else self._live.count >= self._places
        if full and (late or self._victim(tenant, PRIORITIES.index(priority)) is None):
            raise self._no_place(tenant, late)

    def offer(self, question: Question[T], now: float) -> None:
        """Let a question wait. Raises NotAdmitted if it has no place, or would be answered too late."""
        question.number = next(self._numbers)
        if question.late:
            self.check(question.tenant, late=True)
            self._late.add(question)
        else:
            self._check_deadline(question, now)
            self._make_room(question)
            self._live.add(question)
        question.state = "waiting"

    def cancel(self, question: Question[T]) -> bool:
        """Nobody waits for it any more; False if it does not wait in the queue."""
        if question.state != "waiting":
            return False
        (self._late if question.late else self._live).remove(question)
        question.state = "over"
        return True

    def predicted_wait_s(self, question: Question[T], now: float) -> float:
        """Seconds until a worker would take a question that comes now."""
        ahead = self._live.ahead_s(question, self._all_runs_s)
        left = [abs(self._all_runs_s(one) - (now - since)) for one, since in self._running.items()]
        free = self.workers - len(left)
        if free > 0 and not ahead:
            return 0.0
        return max(0.0 if free > 0 else min(left), (ahead + sum(left)) / self.workers)

    def backlog_s(self) -> float:
        """Seconds in which the workers could do all that waits now."""
        waiting = (*self._live.all(), *self._late.all())
        return sum(map(self._mean_s, waiting)) / self.workers

    def run_s(self, model: str) -> float:
        """Seconds that a run of a model is predicted to take."""
        times = self._times.get(model)
        return times.predicted(_RUN_FACTOR, _STEADY_CV) if times is not None else self._guess_s

    # --- running ----------------------------------------------------------------------------------------------------

    def take(self, now: float) -> Question[T] | None:
        """The question for a free worker; None if there is none, or all work. What is too late goes to `dropped`."""
        if len(self._running) >= self.workers:
            return None
        while (question := self._live.next()) is not None:
            in_time = now + self._mean_s(question) <= question.deadline
            if in_time or (now < question.deadline and self._idle(1)):
                return self._start(self._live, question, now)
            self._live.remove(question)
            self._drop(question, "the sample waited past its deadline")
        if self._late_running >= max(1, self.workers - 1) or (question := self._late.next()) is None:
            return None
        self._late_running += 1
        return self._start(self._late, question, now)

    def begun(self, question: Question[T], now: float) -> None:
        """A question that `take` gave runs from now on: its model had to be loaded, for which nobody is charged."""
        self._running[question] = now

    def done(self, question: Question[T], now: float, measured: bool = True) -> None:
        """A question that `take` gave has ended. Not `measured`: it failed, or its time says nothing of its model."""
        seconds = max(0.0, now - self._running.pop(question))
        question.state = "over"
        self._late_running -= question.late
        (self._late if question.late else self._live).end(question, seconds - question.cost)
        if measured:
            times = self._times.pop(question.model, None) or ServiceTimes(self._guess_s)
            times.add(seconds / question.runs)
            self._times[question.model] = times
            if len(self._times) > _MODELS:
                self._times.popitem(last=False)

    # --- the rules --------------------------------------------------------------------------------------------------

    def _check_deadline(self, question: Question[T], now: float) -> None:
        answer_s = self.predicted_wait_s(question, now) + self._all_runs_s(question)
        left_s = question.deadline - now
        if answer_s > left_s and not (left_s > 0 and self._idle(0)):
            left_s = max(0.0, left_s)
            text = f"an answer would take {answer_s * 1e3:.0f} ms, and {left_s * 1e3:.0f} ms are left to the deadline"
            raise NotAdmitted(text, answer_s - left_s)

    def _idle(self, waiting: int) -> bool:
        """Nobody waits for anything, but for so many questions in the queue."""
        return self._live.count == waiting and all(one.late for one in self._running)

    def _make_room(self, question: Question[T]) -> None:
        if self._live.count < self._places:
            return
        victim = self._victim(question.tenant, question.rank)
        if victim is None:
            raise self._no_place(question.tenant, late=False)
        self._live.remove(victim)
        self._drop(victim, "the sample gave its place to a device that has fewer waiting, or to a higher class")

    def _victim(self, tenant: str, rank: int) -> Question[T] | None:
        """Who gives its place up for a question of this tenant and class, when all are taken."""
        mine, most = self._live.waiting(tenant), self._live.most()
        if len(most) > len(mine) + 1:
            return most[-1][-1]
        return mine[-1][-1] if mine and mine[-1][0] > rank else None

    def _start(self, queue: _Fair[T], question: Question[T], now: float) -> Question[T]:
        question.cost = self._mean_s(question)
        queue.start(question, question.cost)
        question.state = "running"
        self._running[question] = now
        return question

    def _drop(self, question: Question[T], text: str) -> None:
        question.state = "over"
        self.dropped.append((question, NotAdmitted(text, self.backlog_s())))

    def _no_place(self, tenant: str, late: bool) -> NotAdmitted:
        if late:
            return NotAdmitted(f"{self._late.count} samples from spools wait already", self.backlog_s())
        own = len(self._live.waiting(tenant))
        return NotAdmitted(f"{self._live.count} samples wait for an answer already, {own} from here", self.backlog_s())

    def _all_runs_s(self, question: Question[T]) -> float:
        return self.run_s(question.model) * question.runs

    def _mean_s(self, question: Question[T]) -> float:
        times = self._times.get(question.model)
        return (times.mean if times is not None else self._guess_s) * question.runs


def _place(question: Question[T]) -> tuple[int, float, int, Question[T]]:
    return question.rank, question.deadline, question.number, question
