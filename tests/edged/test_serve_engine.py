"""The engine: order, bounds, deadlines, clients that hang up, errors."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from edged.serve.engine import (
    DeadlinePassed,
    Engine,
    EngineStopped,
    NotRun,
    Outcome,
    Overloaded,
    QueueFull,
    StaleFrame,
)


class Gate:
    """Holds model threads until opened."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.entered = threading.Semaphore(0)

    def hold(self) -> str:
        self.entered.release()
        assert self.event.wait(5)
        return "held"


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine(1, lane_limit=3)
    yield engine
    await engine.stop()


async def occupied(engine: Engine) -> tuple[Gate, asyncio.Task[object]]:
    """A gate that the only thread is stuck in."""
    gate = Gate()
    task: asyncio.Task[object] = asyncio.create_task(engine.submit("gate", "alarm", 1e12, gate.hold))  # type: ignore[arg-type]
    assert await asyncio.to_thread(gate.entered.acquire, True, 5)
    return gate, task


async def test_result_and_times_come_back(engine: Engine) -> None:
    outcome = await engine.submit("a", "inline", time.monotonic() + 1, lambda: time.sleep(0.02) or "done")
    assert outcome.value == "done"
    assert outcome.run_ms >= 20
    assert 0 <= outcome.queue_ms < 1000


async def test_class_before_deadline_before_arrival(engine: Engine) -> None:
    gate, held = await occupied(engine)
    order: list[str] = []
    now = time.monotonic()
    tasks = [
        asyncio.create_task(engine.submit(lane, priority, now + seconds, lambda name=name: order.append(name)))  # type: ignore[misc, arg-type]
        for lane, priority, seconds, name in (
            ("x", "audit", 5, "audit-soon"),
            ("x", "inline", 90, "inline-late"),
            ("x", "inline", 60, "inline-soon"),
            ("y", "alarm", 99, "alarm-late"),
            ("y", "alarm", 50, "alarm-soon"),
            ("y", "audit", 5, "audit-soon-second"),
        )
    ]
    await asyncio.sleep(0.01)
    gate.event.set()
    await asyncio.gather(*tasks, held)
    assert order == ["alarm-soon", "alarm-late", "inline-soon", "inline-late", "audit-soon", "audit-soon-second"]


async def test_full_lane_is_refused_at_once_and_others_are_not(engine: Engine) -> None:
    gate, held = await occupied(engine)
    waiting = [asyncio.create_task(engine.submit("a", "inline", 1e9, lambda: 1)) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert engine.waiting("a") == 3
    started = time.monotonic()
    with pytest.raises(QueueFull) as refusal:
        await engine.submit("a", "inline", 1e9, lambda: 1)
    assert time.monotonic() - started < 0.5
    assert refusal.value.retry_after_s >= 1
    other = asyncio.create_task(engine.submit("b", "inline", 1e9, lambda: 2))
    await asyncio.sleep(0.01)
    gate.event.set()
    assert (await other).value == 2
    await asyncio.gather(*waiting, held)
    assert engine.waiting("a") == 0


async def test_late_work_is_dropped_unless_it_may_not_expire(engine: Engine) -> None:
    gate, held = await occupied(engine)
    ran: list[str] = []
    late = asyncio.create_task(engine.submit("a", "inline", time.monotonic() + 0.02, lambda: ran.append("late")))
    patient = asyncio.create_task(
        engine.submit("a", "inline", time.monotonic() + 0.02, lambda: ran.append("patient"), may_expire=False)
    )
    await asyncio.sleep(0.06)
    gate.event.set()
    with pytest.raises(DeadlinePassed, match="past its deadline"):
        await late
    await asyncio.gather(patient, held)
    assert ran == ["patient"]


async def test_work_of_a_client_that_hung_up_does_not_run(engine: Engine) -> None:
    gate, held = await occupied(engine)
    ran: list[str] = []
    gone = asyncio.create_task(engine.submit("a", "inline", 1e9, lambda: ran.append("gone")))
    stays = asyncio.create_task(engine.submit("a", "inline", 1e9, lambda: ran.append("stays")))
    await asyncio.sleep(0.01)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    gate.event.set()
    await asyncio.gather(stays, held)
    assert ran == ["stays"]


@pytest.mark.parametrize("error", [ValueError("bad"), StopIteration(), SystemExit(3)])
async def test_errors_reach_their_waiter_and_the_thread_lives(engine: Engine, error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises((ValueError, RuntimeError, SystemExit)):
        await engine.submit("a", "inline", 1e9, fail)
    assert (await engine.submit("a", "inline", 1e9, lambda: 7)).value == 7


async def test_stop_finishes_what_is_queued_and_refuses_more() -> None:
    engine = Engine(2, lane_limit=100)
    tasks = [asyncio.create_task(engine.submit("a", "inline", 1e9, lambda i=i: i)) for i in range(50)]  # type: ignore[misc]
    await asyncio.sleep(0)
    await engine.stop()
    assert sorted(outcome.value for outcome in await asyncio.gather(*tasks)) == list(range(50))
    with pytest.raises(EngineStopped):
        await engine.submit("a", "inline", 1e9, lambda: 1)


async def test_many_callers_and_threads_lose_nothing() -> None:
    engine = Engine(4, lane_limit=1000, total_limit=2000)
    results = await asyncio.gather(*(engine.submit("a", "inline", 1e9, lambda i=i: i * i) for i in range(800)))  # type: ignore[misc]
    assert [outcome.value for outcome in results] == [i * i for i in range(800)]
    await engine.stop()


async def test_a_lane_at_its_limit_leaves_the_other_threads_to_other_lanes() -> None:
    engine = Engine(3, at_once={"narrow": 1})
    gate, now = Gate(), time.monotonic()
    narrow = [asyncio.create_task(engine.submit("narrow", "alarm", now + 9, gate.hold)) for _ in range(3)]
    assert await asyncio.to_thread(gate.entered.acquire, True, 5)
    for _ in range(5):
        outcome = await asyncio.wait_for(engine.submit("wide", "audit", now + 99, lambda: "through"), 5)
        assert outcome.value == "through"
    assert not gate.entered.acquire(blocking=False), "one at a time"
    assert engine.waiting("narrow") == 2
    assert engine.longest_run_s("narrow") > 0 and engine.longest_run_s("wide") == 0
    gate.event.set()
    assert [outcome.value for outcome in await asyncio.wait_for(asyncio.gather(*narrow), 5)] == ["held"] * 3
    await engine.stop()


async def test_no_job_is_lost_between_limits_threads_and_the_end() -> None:
    engine = Engine(4, lane_limit=1000, total_limit=2000, at_once={"one": 1, "two": 2})
    running: dict[str, int] = {"one": 0, "two": 0, "free": 0}
    most = dict(running)
    lock = threading.Lock()

    def work(lane: str) -> None:
        with lock:
            running[lane] += 1
            most[lane] = max(most[lane], running[lane])
        time.sleep(0.0005)
        with lock:
            running[lane] -= 1

    tasks = [
        asyncio.create_task(engine.submit(lane, "inline", 1e12, lambda lane=lane: work(lane)))  # type: ignore[misc]
        for number in range(600)
        for lane in [("one", "two", "free")[number % 3]]
    ]
    await asyncio.sleep(0.01)
    await engine.stop()  # with most of it still waiting
    await asyncio.gather(*tasks)
    assert most["one"] == 1 and most["two"] <= 2 and most["free"] <= 4


# --- without coroutines -----------------------------------------------------------------------------------------------


class Replies(list[object]):
    """Collects what `done` is called with."""

    async def have(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self) < count:
                await asyncio.sleep(0.002)


async def test_call_tells_the_outcome_or_the_error_in_the_loop(engine: Engine) -> None:
    replies, threads = Replies(), set()

    def done(result: object) -> None:
        threads.add(threading.get_ident())
        replies.append(result)

    engine.call("a", "inline", 1e9, lambda: "good", done)
    engine.call("a", "inline", 1e9, lambda: 1 // 0, done)
    await replies.have(2)
    assert isinstance(replies[0], Outcome) and replies[0].value == "good"
    assert isinstance(replies[1], ZeroDivisionError)
    assert threads == {threading.get_ident()}


async def test_a_reply_that_fails_does_not_keep_the_others(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    replies = Replies()

    def broken(_: object) -> None:
        raise ValueError("a fault of the caller's")

    gate, held = await occupied(engine)
    engine.call("a", "inline", 1e9, lambda: 1, broken)
    engine.call("a", "inline", 1e9, lambda: 2, replies.append)
    gate.event.set()
    await replies.have(1)
    await held
    assert "a reply could not be made" in caplog.text


async def test_a_cancelled_ticket_is_never_told_and_frees_its_place_and_its_picture(engine: Engine) -> None:
    gate, held = await occupied(engine)
    replies = Replies()

    work = Work(b"picture")
    freed = weakref.ref(work)
    ticket = engine.call("a", "inline", 1e9, work, replies.append)
    del work
    assert engine.waiting("a") == 1
    ticket.cancel()
    assert engine.waiting("a") == 0 and freed() is None
    second = Gate()
    running = engine.call("b", "inline", 1e9, second.hold, replies.append)
    gate.event.set()
    await held
    assert await asyncio.to_thread(second.entered.acquire, True, 5)
    running.cancel()  # it runs on, and nobody is told
    second.event.set()
    await engine.submit("b", "audit", 1e9, lambda: None)
    assert not replies


class Work:
    def __init__(self, picture: bytes) -> None:
        self.picture = picture

    def __call__(self) -> int:
        return len(self.picture)


async def test_the_older_frame_of_a_stream_is_told_that_a_newer_one_came(engine: Engine) -> None:
    gate, held = await occupied(engine)
    replies = Replies()
    for number in range(6):  # more than the lane has places
        engine.call("a", "inline", 1e9, lambda number=number: number, replies.append, stream="camera")  # type: ignore[misc]
    await replies.have(5)
    assert all(isinstance(reply, StaleFrame) for reply in replies)
    assert "a newer frame of this stream came" in str(replies[0])
    gate.event.set()
    await replies.have(6)
    await held
    last = replies[5]
    assert isinstance(last, Outcome) and last.value == 5
    counts = engine.counts("a")
    assert (counts.stale, counts.runs) == (5, 1)


async def test_what_waits_longer_than_its_timeout_is_told_so_though_every_thread_is_stuck(engine: Engine) -> None:
    gate, held = await occupied(engine)
    replies = Replies()
    started = time.monotonic()
    engine.call("a", "inline", 1e9, lambda: 1, replies.append, timeout_s=0.03, may_expire=False)
    await replies.have(1)
    assert 0.03 <= time.monotonic() - started < 1.0
    assert isinstance(replies[0], DeadlinePassed)
    gate.event.set()
    await held


async def test_predicted_lateness_is_refused_at_once(engine: Engine) -> None:
    for _ in range(5):
        await engine.submit("a", "inline", 1e9, lambda: time.sleep(0.03))
    waiting = [asyncio.create_task(engine.submit("a", "inline", 1e9, lambda: time.sleep(0.03))) for _ in range(2)]
    await asyncio.sleep(0)
    started = time.monotonic()
    with pytest.raises(Overloaded) as refusal:
        engine.call("a", "inline", time.monotonic() + 0.05, lambda: 1, lambda _: None)
    assert time.monotonic() - started < 0.02 and refusal.value.retry_after_s == 1
    await asyncio.gather(*waiting)
    assert engine.counts("a").overloaded == 1


async def test_inline_runs_in_the_loop_only_if_the_lane_is_quick_and_nothing_waits(engine: Engine) -> None:
    here = threading.get_ident()
    assert engine.inline("a", threading.get_ident) is None, "nothing is known about the lane"
    for _ in range(300):
        await engine.submit("a", "inline", 1e9, threading.get_ident)
    outcome = engine.inline("a", threading.get_ident)
    assert outcome is not None and outcome.value == here and outcome.queue_ms == 0.0
    with pytest.raises(ZeroDivisionError):
        engine.inline("a", lambda: 1 // 0)
    assert engine.counts("a").inline_runs == 2
    gate, held = await occupied(engine)
    assert engine.inline("a", threading.get_ident) is None, "a model runs"
    gate.event.set()
    await held
    for _ in range(20):
        await engine.submit("slow", "inline", 1e9, lambda: time.sleep(0.002))
    for _ in range(100):
        await engine.submit("slow", "inline", 1e9, lambda: None)
    assert engine.inline("slow", threading.get_ident) is None, "some of its runs took too long"


async def test_an_overload_is_survived_and_nothing_is_left() -> None:
    """Twice what one thread can do: alarms are answered in time, all others answered or refused, nothing is left."""
    engine = Engine(1)
    tallies: dict[str, Counter[str]] = {name: Counter() for name in ("alarm", "inline", "audit")}
    plan = (("alarm", 0.25, 0.5), ("inline", 0.75, 0.6), ("audit", 1.0, 1.0))  # share of the thread, deadline
    pending, run_s = 0, 0.01

    def ask(name: str, deadline_s: float) -> None:
        nonlocal pending
        due = time.monotonic()

        def done(result: object) -> None:
            nonlocal pending
            pending -= 1
            late = time.monotonic() - due > deadline_s
            tallies[name]["refused" if not isinstance(result, Outcome) else "late" if late else "good"] += 1

        try:
            engine.call(name, name, due + deadline_s, lambda: time.sleep(run_s), done)  # type: ignore[arg-type]
        except NotRun:
            tallies[name]["refused"] += 1
        else:
            pending += 1

    async def offer(name: str, share: float, deadline_s: float) -> int:
        began, asked = time.monotonic(), 0
        while (elapsed := time.monotonic() - began) < 2.0:
            while asked < elapsed * share / run_s:
                ask(name, deadline_s)
                asked += 1
            await asyncio.sleep(0.002)
        return asked

    asked = await asyncio.gather(*(offer(*one) for one in plan))
    async with asyncio.timeout(2.0):
        while pending:
            await asyncio.sleep(0.005)
    assert [tally.total() for tally in tallies.values()] == asked
    assert tallies["alarm"]["good"] >= 0.9 * asked[0], tallies
    assert tallies["audit"]["refused"] > tallies["audit"]["good"]
    assert engine.waiting("alarm") == engine.waiting("inline") == engine.waiting("audit") == 0
    await engine.stop()
