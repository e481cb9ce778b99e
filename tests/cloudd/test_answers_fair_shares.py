"""Fair shares on cloudd: a greedy tenant against modest ones, and properties of whatever is asked in whatever order."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudd.answers.admission import FAIR_S, Admission, NotAdmitted, Question
from edgekit.dispatch.policy import PRIORITIES, Priority

RUN_S = 0.01


def ask(tenant: str, priority: Priority = "inline", deadline: float = math.inf, late: bool = False) -> Question[None]:
    return Question(tenant, "large", None, priority=priority, deadline=deadline, late=late)


def admission(workers: int = 1, places: int = 32) -> Admission[None]:
    return Admission(workers, places, guess_s=RUN_S)


def offered(one: Admission[None], *questions: Question[None], now: float = 0.0) -> None:
    for question in questions:
        one.offer(question, now)


# --- a simulation ----------------------------------------------------------------------------------------------------


@dataclass
class Tenant:
    """Poisson questions at `rate` a second, each to be answered within `deadline_s`."""

    name: str
    rate: float
    deadline_s: float
    priority: Priority = "inline"


@dataclass
class Tally:
    asked: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def share(self, name: str) -> float:
        return self.met[name] / self.asked[name]


def simulate(tenants: list[Tenant], seconds: float, workers: int = 1, places: int = 32, seed: int = 5) -> Tally:
    generator = random.Random(seed)
    one, tally = admission(workers, places), Tally()
    events: list[tuple[float, int, Tenant | Question[None]]] = []
    for number, tenant in enumerate(tenants):
        heapq.heappush(events, (generator.expovariate(tenant.rate), number, tenant))
    number = len(tenants)
    while events and events[0][0] < seconds:
        now, _, what = heapq.heappop(events)
        number += 1
        if isinstance(what, Tenant):
            heapq.heappush(events, (now + generator.expovariate(what.rate), number, what))
            tally.asked[what.name] += 1
            try:
                one.offer(ask(what.name, what.priority, now + what.deadline_s), now)
            except NotAdmitted:
                tally.refused[what.name] += 1
        else:
            one.done(what, now)
            tally.met[what.tenant] += now <= what.deadline
        while (taken := one.take(now)) is not None:
            number += 1
            run_s = RUN_S * max(0.5, generator.gauss(1.0, 0.15))
            heapq.heappush(events, (now + run_s, number, taken))
        assert one.waiting <= places * 1.5
    return tally


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("priority", ["inline", "alarm"])
def test_a_greedy_tenant_cannot_make_others_miss(workers: int, priority: Priority) -> None:
    modest = [Tenant(f"m{n}", 10.0 * workers, 0.15) for n in range(4)]  # together 40 % of the capacity
    greedy = Tenant("greedy", 500.0 * workers, 0.15, priority)  # five times the capacity
    tally = simulate([*modest, greedy], 20.0, workers)
    assert min(tally.share(tenant.name) for tenant in modest) >= 0.99
    done = sum(tally.met.values())
    assert done >= 0.95 * 20.0 * workers / RUN_S  # and nothing of the capacity is wasted


def test_under_overload_most_of_what_is_admitted_is_in_time() -> None:
    tenants = [Tenant(f"t{n}", 40.0, 0.1) for n in range(5)]  # twice the capacity
    tally = simulate(tenants, 60.0)
    admitted = sum(tally.asked.values()) - sum(tally.refused.values())
    assert sum(tally.met.values()) >= 0.93 * admitted
    assert max(tally.met.values()) - min(tally.met.values()) < 0.1 * max(tally.met.values())


# --- properties ------------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c", "d"])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), names, st.sampled_from(PRIORITIES), st.booleans()),
        st.tuples(st.just("take")),
        st.tuples(st.just("done")),
        st.tuples(st.just("cancel")),
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(operations, st.integers(1, 3), st.integers(1, 8))
def test_it_stays_within_its_places_loses_nothing_and_leaves_no_worker_idle(
    steps: list[tuple[str, ...]], workers: int, places: int
) -> None:
    one = admission(workers, places)
    waiting: set[Question[None]] = set()
    running: list[Question[None]] = []
    now = 0.0
    for step in steps:
        now += 0.003
        if step[0] == "ask":
            question = ask(step[1], step[2], late=bool(step[3]))  # type: ignore[arg-type]
            try:
                one.offer(question, now)
                waiting.add(question)
            except NotAdmitted as error:
                assert 0.1 <= error.retry_after_s <= 60.0
            for victim, _ in one.dropped:
                waiting.remove(victim)
            one.dropped.clear()
        elif step[0] == "take":
            taken = one.take(now)
            live = [q for q in waiting if not q.late]
            late_running = sum(q.late for q in running)
            if len(running) == workers:
                assert taken is None
            elif live:
                assert taken is not None and not taken.late
            elif waiting and late_running < max(1, workers - 1):
                assert taken is not None and taken.late
            else:
                assert taken is None
            if taken is not None:
                waiting.remove(taken)
                running.append(taken)
        elif step[0] == "done" and running:
            one.done(running.pop(0), now)
        elif step[0] == "cancel" and waiting:
            question = min(waiting, key=lambda q: q.number)
            assert one.cancel(question)
            waiting.remove(question)
        assert one.waiting == len(waiting) and one.running == len(running)
        assert sum(not q.late for q in waiting) <= places
        assert sum(q.late for q in waiting) <= max(1, places // 2)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(names, st.integers(5, 30), min_size=2),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
    st.sampled_from([0.01, 0.04, 0.2]),
)
def test_while_tenants_wait_what_they_got_differs_by_the_slack_and_one_run_at_most(
    counts: dict[str, int], workers: int, generator: random.Random, run_s: float
) -> None:
    one: Admission[None] = Admission(workers, 200, guess_s=run_s)
    questions = [ask(name) for name, count in counts.items() for _ in range(count)]
    generator.shuffle(questions)
    offered(one, *questions)
    left, got, now = Counter(counts), Counter(dict.fromkeys(counts, 0)), 0.0
    running: list[Question[None]] = []
    while all(left.values()):
        while (taken := one.take(now)) is not None:
            got[taken.tenant] += 1
            left[taken.tenant] -= 1
            running.append(taken)
            if not all(left.values()):
                break
            assert (max(got.values()) - min(got.values())) * run_s <= FAIR_S + run_s + 1e-9
        now += run_s
        while running:
            one.done(running.pop(), now)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(names, st.sampled_from(PRIORITIES)), min_size=1, max_size=25), names)
def test_nobody_starves_however_many_others_keep_asking(asked: list[tuple[str, Priority]], rival: str) -> None:
    one = admission(places=400)
    first = [ask(name, priority) for name, priority in asked if name != rival]
    offered(one, *first)
    now = 0.0
    for _ in range(400):  # the rival has an alarm waiting all the time
        offered(one, ask(rival, "alarm"), now=now)
        taken = one.take(now)
        assert taken is not None
        now += RUN_S
        one.done(taken, now)
    assert all(question.state == "over" for question in first)


def test_what_is_remembered_of_tenants_is_bounded() -> None:
    one = admission(places=4)
    for number in range(12_000):  # never idle, and never the same device twice
        offered(one, ask(f"device-{number}"))
        if one.running:
            one.done(next(iter(one._running)), number * RUN_S)
        one.take(number * RUN_S)
    assert len(one._live._known) <= 10_000 + 8
