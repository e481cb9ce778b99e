"""The scheduler with the rules of dispatch: what would be late here leaves; what starts at once is not asked about.

A virtual clock, one thread, runs of 50 ms, and an uplink of 1 MB/s to a cloud that takes 10 ms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from edged.serve.dispatching import DispatchingScheduler
from edged.serve.lanes import RANK, Entry, Priority
from edged.serve.refusals import DeadlinePassed, Elsewhere, NotRun, Overloaded, QueueFull
from edgekit.dispatch.dispatcher import Dispatcher
from edgekit.dispatch.policy import DispatchPolicy, Endings, Job
from edgekit.dispatch.uplink import UplinkAccount

RUN_S, CLOUD_S, RTT_S = 0.05, 0.01, 0.02
BYTES_PER_S = 1e6


class Unasked(Dispatcher[Entry]):
    """Rules that must not be asked."""

    def arrives(self, job: Job, wait_s: float, now: float) -> object:  # type: ignore[override]
        raise AssertionError("asked about a job that could start at once")

    turn = arrives  # type: ignore[assignment]


def rules(
    policy: DispatchPolicy | None = None, *, up: bool = True, kind: type[Dispatcher[Entry]] = Dispatcher
) -> Dispatcher[Entry]:
    found = kind(policy or DispatchPolicy(), UplinkAccount(BYTES_PER_S), RTT_S)
    for lane in RANK:
        found.service(lane, RUN_S, CLOUD_S)
    if up:
        found.heartbeat(0.0, RTT_S)
    return found


def scheduler(found: Dispatcher[Entry] | None, lane_limit: int = 64) -> DispatchingScheduler[Entry]:
    made: DispatchingScheduler[Entry] = DispatchingScheduler(1, lane_limit)
    made.rules = found
    for lane in RANK:
        times = made.lane(lane).times
        times.add(RUN_S, 0.0)
        times.deviation = 0.0
    return made


def entry(
    priority: Priority,
    now: float,
    deadline_s: float,
    *,
    size: int = 1000,
    may_leave: bool = True,
    patient: bool = False,
) -> Entry:
    deadline = now + deadline_s
    made = Entry(priority, RANK[priority], deadline, math.inf if patient else deadline, math.inf, "")
    if not patient:
        made.job = Job(priority, priority, now, deadline, size, may_leave)
    return made


def fill(busy: DispatchingScheduler[Entry], count: int, now: float = 0.0) -> Entry:
    """A job runs and so many that nobody hurries wait; gives the running one."""
    busy.admit(entry("inline", now, 1e6), now)
    running = busy.take(now)
    assert running is not None
    for _ in range(count):
        busy.admit(entry("inline", now, 1e6), now)
    return running


def dropped(busy: DispatchingScheduler[Entry]) -> Iterator[tuple[Entry, NotRun]]:
    yield from busy.dropped
    busy.dropped.clear()


def test_a_job_that_can_start_at_once_is_not_asked_about() -> None:
    idle = scheduler(rules(kind=Unasked))
    one = entry("inline", 0.0, 0.001)  # hopeless, if anybody asked
    idle.admit(one, 0.0)
    assert idle.take(0.0) is one and not idle.dropped


def test_a_job_that_would_end_late_here_goes_to_the_cloud_when_it_comes() -> None:
    found = rules()
    busy = scheduler(found)
    fill(busy, 4)
    one = entry("inline", 0.0, 0.2)
    with pytest.raises(Elsewhere) as caught:
        busy.admit(one, 0.0)
    assert (caught.value.place, caught.value.key) == ("offload", one)
    assert found.on_its_way(one) and found.begin(0.0) is one
    assert busy.lanes["inline"].counts.offloaded == 1 and busy.waiting == 4
    assert "the cloud answers it" in str(caught.value)


@pytest.mark.parametrize("why", ["link down", "may not leave", "no time for the cloud"])
def test_a_job_that_nobody_can_answer_in_time_waits_here_until_its_turn_and_is_refused_then(why: str) -> None:
    busy = scheduler(rules(up=why != "link down"))
    running = fill(busy, 0)
    slow = 10_000_000 if why == "no time for the cloud" else 1000
    one = entry("inline", 0.0, 0.08, size=slow, may_leave=why != "may not leave")
    busy.admit(one, 0.0)
    assert busy.waiting == 1
    busy.finished(running, 0.05)
    assert busy.take(0.05) is None
    ((who, reason),) = dropped(busy)
    assert who is one and isinstance(reason, Overloaded)
    assert busy.lanes["inline"].counts.overloaded == 1


def test_what_waits_leaves_when_the_uplink_became_free() -> None:
    found = rules()
    busy = scheduler(found)
    fill(busy, 2)
    first, second = (entry("inline", 0.0, 0.15, size=45_000) for _ in range(2))
    with pytest.raises(Elsewhere):
        busy.admit(first, 0.0)
    assert found.begin(0.0) is first
    busy.admit(second, 0.0)  # the uplink is busy for 45 ms, and the class may see 40
    assert busy.waiting == 3 and not busy.dropped
    found.sent(first, 0.02)
    busy.review(0.02)
    ((who, reason),) = dropped(busy)
    assert who is second and isinstance(reason, Elsewhere) and busy.waiting == 2


def test_a_hopeless_audit_goes_to_the_disk_if_it_may_ever_leave_and_is_refused_if_not() -> None:
    for may_leave, expected in ((True, Elsewhere), (False, Overloaded)):
        busy = scheduler(rules(up=False))
        fill(busy, 10)
        with pytest.raises(expected) as caught:
            busy.admit(entry("audit", 0.0, 0.3, may_leave=may_leave), 0.0)
        counts = busy.lanes["audit"].counts
        assert (counts.kept, counts.overloaded) == ((1, 0) if may_leave else (0, 1))
        if isinstance(caught.value, Elsewhere):
            assert caught.value.place == "spool"


def test_an_alarm_that_is_late_runs_all_the_same() -> None:
    busy = scheduler(rules(up=False))
    running = fill(busy, 0)
    one = entry("alarm", 0.0, 0.06)
    busy.admit(one, 0.0)
    busy.sweep(0.1)
    assert not busy.dropped
    busy.finished(running, 0.1)
    assert busy.take(0.1) is one


def test_the_sweep_throws_out_what_is_past_its_deadline() -> None:
    policy = DispatchPolicy(hopeless=Endings(inline="refuse", audit="spool"))
    busy = scheduler(rules(policy, up=False))
    fill(busy, 0)
    inline, audit = entry("inline", 0.0, 0.2), entry("audit", 0.0, 0.5)
    busy.admit(inline, 0.0)
    busy.admit(audit, 0.0)
    busy.sweep(0.15)
    assert busy.waiting == 2 and not busy.dropped
    busy.sweep(1.0)
    reasons = dict(dropped(busy))
    assert isinstance(reasons[inline], DeadlinePassed)
    kept = reasons[audit]
    assert isinstance(kept, Elsewhere) and kept.place == "spool"


def test_a_job_without_a_place_goes_to_the_cloud_rather_than_away() -> None:
    busy = scheduler(rules(), lane_limit=2)
    fill(busy, 2)
    with pytest.raises(Elsewhere):
        busy.admit(entry("inline", 0.0, 10.0), 0.0)
    down = scheduler(rules(up=False), lane_limit=2)
    fill(down, 2)
    with pytest.raises(QueueFull):
        down.admit(entry("inline", 0.0, 10.0), 0.0)


def test_a_job_that_came_back_is_not_sent_again_when_it_comes() -> None:
    busy = scheduler(rules())
    fill(busy, 1)
    one = entry("inline", 0.0, 0.3)
    one.returned = True
    busy.admit(one, 0.0)
    assert one.state == "waiting"
    late = entry("inline", 0.0, 0.06)
    late.returned = True
    with pytest.raises(Overloaded):
        busy.admit(late, 0.0)


def test_whoever_is_patient_is_never_asked_about() -> None:
    busy = scheduler(rules())
    running = fill(busy, 20)
    one = entry("inline", 0.0, 0.1, patient=True)
    busy.admit(one, 0.0)
    busy.sweep(5.0)
    assert one.state == "waiting"
    busy.finished(running, 5.0)
    assert busy.take(5.0) is one  # it has the earliest deadline


def test_runs_are_measured_for_the_rules() -> None:
    found = rules()
    busy = scheduler(found)
    now = 0.0
    for _ in range(50):
        busy.admit(entry("audit", now, 1.0), now)
        running = busy.take(now)
        assert running is not None
        now += 0.2
        busy.finished(running, now)
    assert found.run_s("audit") == pytest.approx(0.23, rel=0.01)


def test_without_rules_it_is_the_scheduler_as_it_was() -> None:
    busy = scheduler(None)
    fill(busy, 10)
    with pytest.raises(Overloaded):
        busy.admit(entry("inline", 0.0, 0.06), 0.0)
