"""A device, its uplink and a cloud as a simulation of events, driven by the rules of `edgekit.dispatch` themselves.

The trace is that of the research (`algorithms.md` section 5): alarms of 25 ms with a deadline of 100 ms (25 % of the
requests), inline inspection of 40 / 300 ms (45 %), audits of 60 / 5000 ms (30 %); random (Poisson) arrivals, half as
many again in 30 % of the blocks of 400 requests and 0.8 times as many in the others; run times vary by a normal
distribution. The cloud has two workers and is six times as fast; round trips are lognormal around 30 ms; the uplink has
20 Mbit/s; the link is down at the beginning of each minute, for a share of it.

Harder than the research: the device learns bandwidth, round trip and run times only from what happened, does not know
when the job that runs will end, and not that the link dropped until an answer is overdue or a heartbeat was missed; all
that was on its way is lost. What is random belongs to the trace, so all rules get the same requests and the same luck.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from edgekit.dispatch.dispatcher import Dispatcher
from edgekit.dispatch.policy import PRIORITIES, DispatchPolicy, Job, Place, Priority
from edgekit.dispatch.uplink import UplinkAccount

HEARTBEAT_S, HEARTBEAT_TIMEOUT_S = 1.0, 0.2
ROUND_TRIP_S, ROUND_TRIP_SPREAD = 0.030, 0.25
BYTES_PER_S = 20e6 / 8
CLOUD_WORKERS, CLOUD_SPEED = 2, 6.0
BLOCK, HOT_SHARE, HOT, COLD = 400, 0.3, 1.5, 0.8
MINUTE_S = 60.0


@dataclass(frozen=True)
class Kind:
    """One service: its share of the requests, seconds of a run on the device, deadline, bytes of a picture."""

    priority: Priority
    share: float
    run_s: float
    deadline_s: float
    size: int


KINDS = (
    Kind("alarm", 0.25, 0.025, 0.100, 60_000),
    Kind("inline", 0.45, 0.040, 0.300, 40_000),
    Kind("audit", 0.30, 0.060, 5.000, 120_000),
)
MEAN_RUN_S = sum(kind.share * kind.run_s for kind in KINDS)


@dataclass(frozen=True)
class Scenario:
    """`load`: work that comes, as a multiple of what one thread does. `cv`: of run times. `down`: share of time.

    `block`: requests for which the rate stays the same.
    """

    load: float
    down: float = 0.0
    cv: float = 0.15
    threads: int = 1
    requests: int = 60_000
    seed: int = 7
    uplink: Literal["by class", "in order"] = "by class"
    block: int = BLOCK


@dataclass(slots=True)
class Request:
    """One request, and what fate has for it."""

    number: int
    rank: int
    job: Job
    run_s: float
    cloud_run_s: float
    way_s: float  # each way between device and cloud
    state: Literal["new", "waiting", "running", "away", "over"] = "new"
    started: float = 0.0
    trip: int = 0


@dataclass
class Count:
    """What became of the requests of one class. `lost`: offloads that were not waited for to the end."""

    requests: int = 0
    met: int = 0
    offloaded: int = 0
    spooled: int = 0
    refused: int = 0
    lost: int = 0

    @property
    def slo(self) -> float:
        """Share that was answered within the deadline."""
        return self.met / self.requests if self.requests else math.nan


@dataclass(frozen=True)
class Baseline:
    """Rules of others. `offload_over`: offload while more requests wait; `shed`: drop low classes that are late."""

    by_class: bool = False
    offload_over: float = math.inf
    shed: bool = False


def trace(scenario: Scenario) -> list[Request]:
    """The requests of a scenario in the order of coming; the same for the same numbers."""
    arrivals, fate = random.Random(scenario.seed), random.Random(scenario.seed + 1)  # two: the CV moves no arrival
    requests, now, hot = [], 0.0, False
    for number in range(scenario.requests):
        if number % scenario.block == 0:
            hot = arrivals.random() < HOT_SHARE
        now += arrivals.expovariate(scenario.load * scenario.threads / MEAN_RUN_S * (HOT if hot else COLD))
        rank = _pick(arrivals.random())
        kind = KINDS[rank]
        round_trip = ROUND_TRIP_S * fate.lognormvariate(0.0, ROUND_TRIP_SPREAD)
        run, cloud_run = (kind.run_s * max(0.5, fate.gauss(1.0, scenario.cv)) for _ in range(2))
        job = Job(kind.priority, kind.priority, now, now + kind.deadline_s, kind.size)
        requests.append(Request(number, rank, job, run, cloud_run / CLOUD_SPEED, round_trip / 2))
    return requests


def simulate(scenario: Scenario, rules: DispatchPolicy | Baseline) -> dict[Priority, Count]:
    """Run the trace of a scenario under some rules."""
    return Simulation(scenario, rules).run()


def goodput(counts: dict[Priority, Count]) -> float:
    """Share of all requests that was answered within its deadline."""
    return sum(count.met for count in counts.values()) / sum(count.requests for count in counts.values())


def _pick(uniform: float) -> int:
    for rank, kind in enumerate(KINDS):
        uniform -= kind.share
        if uniform < 0:
            return rank
    return len(KINDS) - 1


class Simulation:
    """One run. Attributes are the state of the world; only `dispatcher` stands for what the device knows of it."""

    def __init__(self, scenario: Scenario, rules: DispatchPolicy | Baseline) -> None:
        self.scenario = scenario
        self.baseline = rules if isinstance(rules, Baseline) else None
        by_class = self.baseline is None and scenario.uplink == "by class"
        self.dispatcher: Dispatcher[int] = Dispatcher(
            rules if isinstance(rules, DispatchPolicy) else DispatchPolicy(),
            UplinkAccount(BYTES_PER_S, by_class),
            ROUND_TRIP_S,
            scenario.threads,
        )
        for kind in KINDS:
            self.dispatcher.service(kind.priority, kind.run_s, kind.run_s / CLOUD_SPEED)
        self.requests = trace(scenario)
        self.counts: dict[Priority, Count] = {priority: Count() for priority in PRIORITIES}
        self.queues: tuple[list[tuple[float, int, Request]], ...] = ([], [], [])
        self.running: dict[int, Request] = {}
        self._check_at = math.inf
        self.cloud_queue: list[tuple[Request, int]] = []
        self.cloud_busy = 0
        self.link_up = True
        self.trips = self.lost_trips = 0  # offloads that began to be sent, and how many of them the last drop ended
        self.now = 0.0
        self._open = len(self.requests)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._event = 0

    def run(self) -> dict[Priority, Count]:
        """To the last request."""
        self._at(0.0, self._heartbeat)
        if self.scenario.down:
            self._at(0.0, self._link_drops)
        self._at(self.requests[0].job.arrived, self._arrives, self.requests[0])
        while self._open:
            self.now, _, happens, arguments = heapq.heappop(self._events)
            happens(*arguments)
        return self.counts

    def _at(self, when: float, happens: Callable[..., None], *arguments: Any) -> None:
        self._event += 1
        heapq.heappush(self._events, (when, self._event, happens, arguments))

    # --- the device -------------------------------------------------------------------------------------------------

    def _arrives(self, request: Request) -> None:
        if request.number + 1 < len(self.requests):
            following = self.requests[request.number + 1]
            self._at(following.job.arrived, self._arrives, following)
        self.counts[request.job.priority].requests += 1
        self._goes(request, self._at_arrival(request))

    def _at_arrival(self, request: Request) -> Place:
        if self.baseline is None:
            return self.dispatcher.arrives(request.job, self._wait_s(request), self.now).place
        crowded = sum(map(len, self.queues)) > self.baseline.offload_over
        return "offload" if crowded and self.dispatcher.usable else "local"

    def _goes(self, request: Request, place: Place) -> None:
        count = self.counts[request.job.priority]
        if place == "offload":
            self.dispatcher.offload(request.number, request.job)
            self._away(request)
        elif place == "local":
            insort(self.queues[self._queue(request)], self._entry(request))
            request.state = "waiting"
            self._start()
        else:
            self._over(request)
            if place == "spool":
                count.spooled += 1
            else:
                count.refused += 1

    def _start(self) -> None:
        """Free threads take what is next."""
        while len(self.running) < self.scenario.threads:
            queue = next((queue for queue in self.queues if queue), None)
            if queue is None:
                return
            request = queue.pop(0)[2]
            place = self._at_turn(request)
            if place == "local":
                request.state, request.started = "running", self.now
                self.running[request.number] = request
                self._at(self.now + request.run_s, self._ran, request)
            else:
                self._goes(request, place)

    def _at_turn(self, request: Request) -> Place:
        if self.baseline is None:
            return self.dispatcher.turn(request.job, self.now).place
        late = self.now + self.dispatcher.run_s(request.job.service) > request.job.deadline
        return "refuse" if self.baseline.shed and late and request.rank > 0 else "local"

    def _ran(self, request: Request) -> None:
        del self.running[request.number]
        self.dispatcher.ran_here(request.job.service, request.run_s)
        self._met(request)
        self._start()
        self._review()

    def _review(self) -> None:
        """A thread or the uplink became free: what waits may leave."""
        if self.baseline is not None or not self.dispatcher.usable:
            return
        for number, _ in self.dispatcher.review(self._waiting(), self.now):
            self._unqueue(self.requests[number])
            self._away(self.requests[number])

    def _waiting(self) -> Iterator[tuple[int, Job, float]]:
        free, behind = self._thread_free_s(), 0.0
        for queue in self.queues:
            for _, number, request in queue:
                yield number, request.job, free + behind
                behind += self.dispatcher.run_s(request.job.service) / self.scenario.threads

    def _wait_s(self, request: Request) -> float:
        """Until a thread is free for it, as the device can know it."""
        run_s = [self.dispatcher.run_s(kind.priority) for kind in KINDS]
        ahead = sum(len(self.queues[rank]) * run_s[rank] for rank in range(request.rank))
        ahead += bisect_left(self.queues[request.rank], self._entry(request)) * run_s[request.rank]
        return self._thread_free_s() + ahead / self.scenario.threads

    def _thread_free_s(self) -> float:
        if len(self.running) < self.scenario.threads:
            return 0.0
        left = []
        for request in self.running.values():
            run_s = self.dispatcher.run_s(request.job.service)
            left.append(max(run_s - (self.now - request.started), 0.1 * run_s))
        return min(left)

    def _queue(self, request: Request) -> int:
        return request.rank if self.baseline is None or self.baseline.by_class else 0

    def _entry(self, request: Request) -> tuple[float, int, Request]:
        return (request.job.deadline if self.baseline is None else request.job.arrived), request.number, request

    def _unqueue(self, request: Request) -> None:
        queue = self.queues[self._queue(request)]
        del queue[bisect_left(queue, self._entry(request))]

    def _met(self, request: Request) -> None:
        """An answer is there; the first one counts."""
        if request.state != "over":
            self._over(request)
            self.counts[request.job.priority].met += self.now <= request.job.deadline

    def _over(self, request: Request) -> None:
        request.state = "over"
        self._open -= 1

    # --- on the way -------------------------------------------------------------------------------------------------

    def _away(self, request: Request) -> None:
        request.state, request.trip = "away", 0  # an answer to an earlier trip is not waited for
        self.counts[request.job.priority].offloaded += 1
        self._send()

    def _send(self) -> None:
        number = self.dispatcher.begin(self.now)
        if number is None:
            return
        request = self.requests[number]
        self.trips += 1
        request.trip = self.trips
        if self.link_up:
            self._at(self.now + request.job.size / BYTES_PER_S, self._sent, request, request.trip)
        self._watch()

    def _sent(self, request: Request, trip: int) -> None:
        if trip <= self.lost_trips or trip != request.trip or not self.dispatcher.on_its_way(request.number):
            return
        self.dispatcher.sent(request.number, self.now)
        self._watch()
        self._at(self.now + request.way_s, self._cloud_got, request, trip)
        self._send()
        self._review()

    def _cloud_got(self, request: Request, trip: int) -> None:
        if trip > self.lost_trips:
            self.cloud_queue.append((request, trip))
            self._cloud_starts()

    def _cloud_starts(self) -> None:
        while self.cloud_queue and self.cloud_busy < CLOUD_WORKERS:
            request, trip = self.cloud_queue.pop(0)
            self.cloud_busy += 1
            self._at(self.now + request.cloud_run_s, self._cloud_ran, request, trip)

    def _cloud_ran(self, request: Request, trip: int) -> None:
        self.cloud_busy -= 1
        self._cloud_starts()
        self._at(self.now + request.way_s, self._answered, request, trip)

    def _answered(self, request: Request, trip: int) -> None:
        if trip <= self.lost_trips or trip != request.trip:
            return
        self.dispatcher.answered(request.number, self.now, request.cloud_run_s)
        if request.state == "waiting":  # it was overdue, and queued again
            self._unqueue(request)
        self._met(request)

    def _watch(self) -> None:
        """See to it that the dispatcher is asked when an answer would be overdue."""
        if self.dispatcher.next_check < self._check_at:
            self._check_at = self.dispatcher.next_check
            self._at(self._check_at, self._check)

    def _check(self) -> None:
        self._check_at = math.inf
        self._lost(self.dispatcher.overdue(self.now))
        self._watch()

    def _lost(self, numbers: list[int]) -> None:
        """What was on its way is decided anew."""
        for number in numbers:
            request = self.requests[number]
            self.counts[request.job.priority].lost += 1
            if self.baseline is None:
                self._goes(request, self.dispatcher.lost(request.job, self._wait_s(request), self.now).place)
            else:
                self._goes(request, "local")
        self._send()

    # --- the link ---------------------------------------------------------------------------------------------------

    def _link_drops(self) -> None:
        self.link_up = False
        self.lost_trips = self.trips
        self._at(self.now + self.scenario.down * MINUTE_S, self._link_returns)
        self._at(self.now + MINUTE_S, self._link_drops)

    def _link_returns(self) -> None:
        self.link_up = True

    def _heartbeat(self) -> None:
        after = ROUND_TRIP_S if self.link_up else HEARTBEAT_TIMEOUT_S
        self._at(self.now + after, self._heard, self.link_up)
        self._at(self.now + HEARTBEAT_S, self._heartbeat)

    def _heard(self, up: bool) -> None:
        if up and self.link_up:
            self.dispatcher.heartbeat(self.now, ROUND_TRIP_S)
        else:
            self._lost(self.dispatcher.link_down())
