"""The scheduler's policy against a virtual clock: bounds, order, fairness, prediction, overload and recovery."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.serve.lanes import RANK, Entry, Lane, Priority, RunTimes
from edged.serve.refusals import DeadlinePassed, NotRun, Overloaded, QueueFull
from edged.serve.scheduling import FAIR_S, Scheduler

INF = math.inf


def job(lane: str = "a", priority: Priority = "inline", deadline: float = 1e9, **more: object) -> Entry:
    patient = bool(more.get("patient", False))
    start_by = float(more.get("start_by", INF))  # type: ignore[arg-type]
    return Entry(lane, RANK[priority], deadline, INF if patient else deadline, start_by, str(more.get("stream", "")))


def learned(scheduler: Scheduler[Entry], now: float = 0.0, **seconds: float) -> None:
    """Teach the scheduler how long the runs of lanes take, without variation."""
    for lane, value in seconds.items():
        times = scheduler.lane(lane).times
        times.add(value, now)
        times.deviation = 0.0


# --- a simulation -------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Requests of one service: Poisson arrivals at `rate` a second until `until`."""

    lane: str
    priority: Priority
    rate: float
    run_s: float
    deadline_s: float
    spread: float = 0.15
    stream: str = ""
    since: float = 0.0
    until: float = INF


@dataclass
class Tally:
    offered: int = 0
    in_time: int = 0
    late: int = 0
    refused: int = 0
    stale: int = 0
    refused_after: list[float] = field(default_factory=list)
    used_s: float = 0.0
    last_refused_at: float = -INF


class Simulation:
    """Threads, arrivals and the engine's sweep on a virtual clock."""

    def __init__(self, loads: Iterable[Load], threads: int, seconds: float, seed: int = 1) -> None:
        self.scheduler: Scheduler[Entry] = Scheduler(threads)
        self.tallies: dict[str, Tally] = {}
        self.most_waiting = 0
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0
        self._end = seconds
        self._runs: dict[Entry, float] = {}
        for load in loads:
            self.tallies[load.lane] = Tally()
            self._arrive_next(load, load.since)
        self._at(0.0, self._sweep)
        while self._events:
            now, _, event = heapq.heappop(self._events)
            event(now)

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, event))

    def _arrive_next(self, load: Load, now: float) -> None:
        when = now + self._random.expovariate(load.rate)
        if when < min(self._end, load.until):
            self._at(when, lambda now: self._arrive(load, now))

    def _arrive(self, load: Load, now: float) -> None:
        self._arrive_next(load, now)
        tally = self.tallies[load.lane]
        tally.offered += 1
        entry = job(load.lane, load.priority, now + load.deadline_s, stream=load.stream)
        self._runs[entry] = load.run_s * self._random.lognormvariate(0.0, load.spread)
        try:
            older = self.scheduler.admit(entry, now)
        except NotRun:
            self._refused(entry, now, now)
            return
        self.most_waiting = max(self.most_waiting, self.scheduler.waiting)
        if older is not None:
            tally.stale += 1
        self._start(now)

    def _refused(self, entry: Entry, arrived: float, now: float) -> None:
        tally = self.tallies[entry.lane]
        tally.refused += 1
        tally.refused_after.append(now - arrived)
        tally.last_refused_at = now

    def _start(self, now: float) -> None:
        while (entry := self.scheduler.take(now)) is not None:
            self._at(now + self._runs[entry], lambda now, entry=entry: self._end_run(entry, now))  # type: ignore[misc]
        self._told(now)

    def _end_run(self, entry: Entry, now: float) -> None:
        self.scheduler.finished(entry, now)
        tally = self.tallies[entry.lane]
        tally.used_s += now - entry.started
        if now <= entry.expires:
            tally.in_time += 1
        else:
            tally.late += 1
        self._start(now)

    def _told(self, now: float) -> None:
        for entry, _ in self.scheduler.dropped:
            self._refused(entry, entry.arrived, now)
        self.scheduler.dropped.clear()

    def _sweep(self, now: float) -> None:
        self.scheduler.sweep(now)
        self._told(now)
        if now < self._end or self.scheduler.waiting:
            self._at(now + 0.02, self._sweep)


def mix(load: float, threads: int, until: float = INF, scale: float = 1.0) -> list[Load]:
    """Alarm, inline and audit together asking for `load` times what the threads can do."""
    unit = threads / (0.25 * 0.010 + 0.45 * 0.015 + 0.30 * 0.025) * load / scale
    return [
        Load("alarm", "alarm", unit * 0.25, 0.010 * scale, 0.100 * scale, until=until),
        Load("inline", "inline", unit * 0.45, 0.015 * scale, 0.300 * scale, until=until),
        Load("audit", "audit", unit * 0.30, 0.025 * scale, 5.0 * scale, until=until),
    ]


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("load", [1.2, 2.0])
def test_overload_keeps_alarms_refuses_at_once_and_wastes_nothing(load: float, threads: int) -> None:
    seconds = 60.0
    run = Simulation(mix(load, threads), threads, seconds)
    alarm, inline, audit = (run.tallies[name] for name in ("alarm", "inline", "audit"))
    assert alarm.in_time >= 0.99 * alarm.offered
    assert inline.in_time >= (0.95 if load < 1.5 else 0.3) * inline.offered
    for tally in (alarm, inline, audit):
        assert tally.in_time + tally.late + tally.refused + tally.stale == tally.offered, "each is answered or refused"
        assert tally.late <= 0.01 * tally.offered
        waited = sum(delay > 0 for delay in tally.refused_after)
        assert waited <= 0.15 * tally.refused, "a refusal comes at once, not after a wait"
    assert sum(t.used_s for t in run.tallies.values()) >= 0.95 * threads * seconds, "the threads were never idle"
    assert run.most_waiting < 512


def test_at_half_load_nothing_is_refused() -> None:
    run = Simulation(mix(0.5, 2), 2, 60.0)
    assert [(t.refused, t.late) for t in run.tallies.values()] == [(0, 0)] * 3


def test_recovers_within_a_second_after_the_load_falls() -> None:
    gentle = [
        Load(f"{one.lane}-after", one.priority, one.rate, one.run_s, one.deadline_s, since=20.0) for one in mix(0.4, 2)
    ]
    run = Simulation([*mix(2.0, 2, until=20.0), *gentle], 2, 40.0)
    for name in ("alarm-after", "inline-after", "audit-after"):
        assert run.tallies[name].last_refused_at <= 21.0, name
        assert run.tallies[name].in_time >= 0.9 * run.tallies[name].offered


def test_services_of_one_class_share_the_model_time() -> None:
    """One asks for five times its share and has the earlier deadlines; the other gets all it asks for."""
    greedy = Load("greedy", "inline", 500.0, 0.010, 0.1)
    modest = Load("modest", "inline", 80.0, 0.010, 0.3)
    run = Simulation([greedy, modest], 2, 60.0)
    assert run.tallies["modest"].in_time >= 0.97 * run.tallies["modest"].offered
    both = Simulation([greedy, Load("second", "inline", 500.0, 0.010, 0.1)], 2, 60.0)
    used = [tally.used_s for tally in both.tallies.values()]
    assert used[0] == pytest.approx(used[1], rel=0.1)


def test_a_stream_faster_than_the_model_is_served_with_its_newest_frames() -> None:
    camera = Load("camera", "inline", 100.0, 0.040, 1.0, stream="cam-1")
    run = Simulation([camera, Load("other", "inline", 100.0, 0.040, 1.0)], 1, 60.0)
    assert run.tallies["camera"].in_time > 0.35 * 60 / 0.040
    assert run.tallies["camera"].stale > 0 and run.tallies["camera"].refused <= 0.02 * run.tallies["camera"].offered


def test_one_thread_is_kept_when_long_audits_would_make_alarms_late() -> None:
    loads = [
        Load("alarm", "alarm", 10.0, 0.010, 0.050, spread=0.1),
        Load("long", "audit", 50.0, 0.500, 60.0, spread=0.1),
    ]
    run = Simulation(loads, 2, 120.0)
    assert run.tallies["alarm"].in_time >= 0.98 * run.tallies["alarm"].offered
    assert run.tallies["long"].in_time > 100, "the other thread works on the audits"


# --- single rules ---------------------------------------------------------------------------------------------------


def test_what_would_be_late_is_refused_with_when_to_come_back() -> None:
    scheduler: Scheduler[Entry] = Scheduler(1)
    learned(scheduler, a=0.5)
    for _ in range(3):
        scheduler.admit(job(deadline=100.0), 0.0)
    assert scheduler.take(0.0) is not None
    scheduler.admit(job("a", "alarm", 1.1), 0.0)
    with pytest.raises(Overloaded, match="deadline is in 1000 ms") as refusal:
        scheduler.admit(job(deadline=1.0), 0.0)
    assert refusal.value.retry_after_s >= 1
    with pytest.raises(Overloaded):
        scheduler.admit(job(deadline=100.0, start_by=0.3), 0.0)
    scheduler.admit(job(deadline=1.0, patient=True), 0.0)
    assert scheduler.lane("a").counts.overloaded == 2


def test_what_can_start_at_once_is_run_however_slow_the_lane_was() -> None:
    scheduler: Scheduler[Entry] = Scheduler(1)
    learned(scheduler, a=10.0)
    entry = job(deadline=0.1, start_by=1e-6)
    scheduler.admit(entry, 0.0)
    assert entry.at_once and scheduler.take(1e-4) is entry


def test_a_slow_lane_that_never_found_a_free_thread_may_try_again() -> None:
    scheduler: Scheduler[Entry] = Scheduler(1)
    learned(scheduler, slow=10.0, other=0.01)
    scheduler.admit(job("other", deadline=9.0), 0.5)
    with pytest.raises(Overloaded):
        scheduler.admit(job("slow", deadline=1.5), 0.5)
    again = job("slow", deadline=2.5)
    scheduler.admit(again, 1.5)
    scheduler.sweep(1.6)
    assert not scheduler.dropped and scheduler.take(1.6) is again and scheduler.waiting == 1


def test_jobs_that_alarms_displaced_are_thrown_out_soon() -> None:
    scheduler: Scheduler[Entry] = Scheduler(1)
    learned(scheduler, a=0.1, b=0.1)
    assert scheduler.admit(job("b", deadline=50.0), 0.0) is None and scheduler.take(0.0)
    displaced = job("b", deadline=0.5)
    scheduler.admit(displaced, 0.0)
    for _ in range(6):
        scheduler.admit(job("a", "alarm", 5.0), 0.0)
    scheduler.sweep(0.02)
    assert [(entry, type(reason)) for entry, reason in scheduler.dropped] == [(displaced, Overloaded)]


def test_a_newer_frame_takes_the_place_of_the_one_that_waits_and_only_that() -> None:
    scheduler: Scheduler[Entry] = Scheduler(1)
    first, second, third = (job(deadline=float(at), stream="cam") for at in (5, 6, 7))
    scheduler.admit(first, 0.0)
    assert scheduler.take(0.0) is first
    assert scheduler.admit(job(deadline=5.5, stream="other-cam"), 0.0) is None
    assert scheduler.admit(second, 0.0) is None, "a running frame is left alone"
    assert scheduler.admit(job(deadline=6.5), 0.0) is None, "no stream, no newer frame"
    assert scheduler.admit(third, 0.0) is second
    assert scheduler.admit(job("b", deadline=7.0, stream="cam"), 0.0) is None, "of another service"
    scheduler.finished(first, 0.1)
    order = []
    while (entry := scheduler.take(0.1)) is not None:
        order.append(entry)
        scheduler.finished(entry, 0.1)
    assert order.index(third) == 1, "in the older frame's place"
    assert scheduler.lane("a").counts.stale == 1


def test_queues_are_bounded_and_the_last_places_are_for_alarms() -> None:
    scheduler: Scheduler[Entry] = Scheduler(1, lane_limit=5, total_limit=12)

    def fill(lane: str, priority: Priority) -> int:
        count = 0
        while count < 100:
            try:
                scheduler.admit(job(lane, priority), 0.0)
            except QueueFull:
                return count
            count += 1
        return count

    scheduler.admit(job("busy"), 0.0)
    assert scheduler.take(0.0)
    assert fill("a", "audit") == 5
    assert fill("b", "audit") == 1, "half of all places"
    assert fill("b", "inline") == 3, "three quarters"
    assert fill("b", "alarm") == 3 and scheduler.waiting == 12


def test_a_lane_is_quick_if_nearly_all_of_its_runs_are() -> None:
    times = RunTimes()
    for _ in range(200):
        times.add(0.0003, 0.0)
    assert times.quick
    for _ in range(4):
        times.add(0.002, 0.0)
        times.add(0.0003, 0.0)
    assert times.quick, "a busy machine interrupts a run now and then, which says nothing about the model"
    for _ in range(20):
        times.add(0.002, 0.0)
        times.add(0.0003, 0.0)
    assert not times.quick, "more than one of ten"
    for _ in range(256):
        times.add(0.0003, 0.0)
    assert times.quick
    times.add(0.05, 0.0)
    assert not times.quick, "the mean is too long until more runs show that it was an accident"
    for _ in range(40):
        times.add(0.0003, 0.0)
    assert times.quick
    few = RunTimes()
    few.add(0.0001, 0.0)
    assert not few.quick


def test_a_job_that_is_late_already_is_refused_and_a_cancelled_one_is_gone() -> None:
    scheduler: Scheduler[Entry] = Scheduler(1)
    with pytest.raises(DeadlinePassed):
        scheduler.admit(job(deadline=1.0), 2.0)
    entry = job()
    scheduler.admit(entry, 0.0)
    assert scheduler.cancel(entry) and not scheduler.cancel(entry)
    assert scheduler.take(0.0) is None and scheduler.waiting == 0


# --- whatever happens -----------------------------------------------------------------------------------------------

_step = st.one_of(
    st.tuples(
        st.just("come"),
        st.sampled_from(["a", "b", "narrow"]),
        st.sampled_from(["alarm", "inline", "audit"]),
        st.floats(0.001, 3.0),
        st.sampled_from(["", "", "cam"]),
        st.booleans(),
    ),
    st.tuples(st.just("take")),
    st.tuples(st.just("end"), st.integers(0, 7)),
    st.tuples(st.just("cancel"), st.integers(0, 99)),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("pass"), st.floats(0.0, 1.0)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_step, max_size=120), st.integers(1, 3))
def test_every_job_ends_once_and_all_bounds_hold(steps: list[tuple], threads: int) -> None:  # type: ignore[type-arg]
    scheduler: Scheduler[Entry] = Scheduler(threads, lane_limit=4, total_limit=16, at_once={"narrow": 1})
    now, came, running = 0.0, [], []
    ends: Counter[Entry] = Counter()

    def dropped() -> None:
        for entry, reason in scheduler.dropped:
            assert entry.expires < INF and isinstance(reason, Overloaded | DeadlinePassed)
            ends[entry] += 1
        scheduler.dropped.clear()

    def take() -> bool:
        waiting = [entry for entry in came if entry.state == "waiting"]
        entry = scheduler.take(now)
        if entry is not None:
            running.append(entry)
            better = [
                one for one in waiting if one.rank < entry.rank and one.state == "waiting" and one.lane != "narrow"
            ]
            assert not better, "a lower class never goes first"
        dropped()
        return entry is not None

    def end(entry: Entry) -> None:
        running.remove(entry)
        scheduler.finished(entry, now)
        ends[entry] += 1

    for kind, *rest in steps:
        if kind == "come":
            lane, priority, seconds, stream, patient = rest
            entry = job(lane, priority, now + seconds, stream=stream, patient=patient)
            try:
                older = scheduler.admit(entry, now)
            except NotRun as refusal:
                assert 1 <= refusal.retry_after_s <= 60
                continue
            came.append(entry)
            if older is not None:
                ends[older] += 1
        elif kind == "take":
            take()
        elif kind == "end" and running:
            end(running[rest[0] % len(running)])
        elif kind == "cancel" and came:
            ends[came[rest[0] % len(came)]] += scheduler.cancel(came[rest[0] % len(came)])
        elif kind == "sweep":
            scheduler.sweep(now)
            dropped()
        elif kind == "pass":
            now += rest[0]
        assert scheduler.waiting == sum(lane.waiting for lane in scheduler.lanes.values()) <= 16
        assert scheduler.running == len(running) <= threads
        assert len(scheduler.lane("narrow").running) <= 1
        assert all(
            len(queue.entries) <= 4 + (queue.lane.name != "")
            for lane in scheduler.lanes.values()
            for queue in lane.queues
        )
    while scheduler.waiting or running:
        while take():
            pass
        assert running or not scheduler.waiting, "what waits is never stuck"
        now += 0.01
        if running:
            end(running[0])
    assert all(ends[entry] == 1 for entry in came)
    assert not scheduler._streams and not any(scheduler._active)
    assert FAIR_S > 0


class _Exact(Scheduler[Entry]):
    """Works out when each job would start, also where there is no doubt."""

    def _surely_in_time(self, entry: Entry, lane: Lane[Entry], now: float) -> bool:
        return False


@settings(max_examples=150, deadline=None)
@given(st.lists(_step, max_size=120), st.integers(1, 3))
def test_what_is_surely_in_time_would_be_admitted_by_the_exact_reckoning(
    steps: list[tuple],  # type: ignore[type-arg]
    threads: int,
) -> None:
    def outcomes(scheduler: Scheduler[Entry]) -> list[object]:
        now, came, running, seen = 0.0, list[Entry](), list[Entry](), list[object]()
        learned(scheduler, a=0.002, b=0.2, narrow=0.02)
        for kind, *rest in steps:
            if kind == "come":
                lane, priority, seconds, stream, patient = rest
                entry = job(lane, priority, now + seconds, stream=stream, patient=patient)
                try:
                    scheduler.admit(entry, now)
                    came.append(entry)
                    seen.append("admitted")
                except NotRun as refusal:
                    seen.append((type(refusal), refusal.retry_after_s))
            elif kind == "take" and (taken := scheduler.take(now)) is not None:
                running.append(taken)
                seen.append(taken.sequence)
            elif kind == "end" and running:
                scheduler.finished(running.pop(rest[0] % len(running)), now)
            elif kind == "cancel" and came:
                scheduler.cancel(came[rest[0] % len(came)])
            elif kind == "sweep":
                scheduler.sweep(now)
            elif kind == "pass":
                now += rest[0]
        return seen

    assert outcomes(Scheduler(threads, lane_limit=20)) == outcomes(_Exact(threads, lane_limit=20))
