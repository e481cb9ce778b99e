"""The engine: order, bounds, deadlines, clients that hang up, errors."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest

from edged.serve.engine import DeadlinePassed, Engine, EngineStopped, QueueFull


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
    engine = Engine(4, lane_limit=1000)
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
    engine = Engine(4, lane_limit=1000, at_once={"one": 1, "two": 2})
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
