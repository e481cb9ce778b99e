"""Devices that ask at the same time, with a real worker: who is next, who is refused, and who waits for whom."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloudd.answers.looks import WHOLE, Look
from cloudd.answers.pool import _UNFINISHED, Busy, PoolSettings
from cloudd.answers.process import Worker
from cloudd.storage import StorageError
from edgekit.dispatch.policy import Priority
from edgekit.messages import Answer, ModelAnswer
from tests.support.answers import Cloud, cloud, sample, until
from tests.support.models import make_package, picture

PLACES = 4


class Stage:
    """A cloudd whose worker can be stopped in the middle of an answer while others come."""

    def __init__(self, here: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here = here
        self.order: list[str] = []  # "device sample" as the worker got them, and models that it loaded
        self._pictures: dict[bytes, str] = {}
        ask_worker = Worker.ask

        async def ask(
            worker: Worker, model: str, directory: str, payload: bytes, timeout: float, look: Look = WHOLE
        ) -> tuple[ModelAnswer, bytes]:
            self.order.append(self._pictures.get(payload, model))
            return await ask_worker(worker, model, directory, payload, timeout, look)

        monkeypatch.setattr(Worker, "ask", ask)

    async def begin(self, device: str) -> asyncio.Task[Answer]:
        """A question of this device is being answered, and its worker stops."""
        await self.here.answers.answer("nobody", sample(0), picture(0.5))
        self.order.clear()
        os.kill(self.here.pool.pids[0], signal.SIGSTOP)
        task = self.start(device, 100)
        await until(lambda: bool(self.order))
        return task

    def go_on(self) -> None:
        os.kill(self.here.pool.pids[0], signal.SIGCONT)

    def start(
        self, device: str, number: int, priority: Priority = "inline", left_ms: float | None = None, late: bool = False
    ) -> asyncio.Task[Answer]:
        data = picture(0.9, seed=sum(device.encode()) * 1000 + number)
        self._pictures[data] = f"{device} {number}"
        asked = sample(number, priority=priority, left_ms=left_ms, late=late)
        return asyncio.create_task(self.here.answers.answer(device, asked, data))

    async def wait(
        self, device: str, number: int, priority: Priority = "inline", left_ms: float | None = None, late: bool = False
    ) -> asyncio.Task[Answer]:
        """As `start`; returns when the question has its place in the queue."""
        before = self.here.pool.load().waiting
        task = self.start(device, number, priority, left_ms, late)
        await until(lambda: self.here.pool.load().waiting > before or task.done())
        return task


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    async with cloud(tmp_path, PoolSettings(queue=PLACES)) as here:
        await here.registry.add(make_package(tmp_path / "p", "big", "1").root)
        yield Stage(here, monkeypatch)


async def test_who_asks_little_does_not_wait_behind_who_floods(stage: Stage) -> None:
    tasks = [await stage.begin("greedy")]
    for number in range(3):
        tasks.append(await stage.wait("greedy", number))
    tasks.append(await stage.wait("modest", 9))
    stage.go_on()
    await asyncio.gather(*tasks)
    assert stage.order == ["greedy 100", "modest 9", "greedy 0", "greedy 1", "greedy 2"]


async def test_an_alarm_goes_before_what_the_same_device_asked_earlier(stage: Stage) -> None:
    tasks = [await stage.begin("a")]
    tasks += [await stage.wait("a", 1, "audit"), await stage.wait("a", 2), await stage.wait("a", 3, "alarm")]
    stage.go_on()
    await asyncio.gather(*tasks)
    assert stage.order == ["a 100", "a 3", "a 2", "a 1"]


async def test_of_one_class_what_must_be_answered_first_goes_first(stage: Stage) -> None:
    tasks = [await stage.begin("a")]
    tasks += [await stage.wait("a", 1), await stage.wait("a", 2, left_ms=60_000), await stage.wait("a", 3, left_ms=9e3)]
    stage.go_on()
    await asyncio.gather(*tasks)
    assert stage.order == ["a 100", "a 3", "a 2", "a 1"]


async def test_when_all_places_are_taken_the_greedy_gives_one_up(stage: Stage) -> None:
    first = await stage.begin("greedy")
    waiting = [await stage.wait("greedy", number) for number in range(PLACES)]
    modest = stage.start("modest", 1)
    with pytest.raises(Busy, match="gave its place") as caught:
        await waiting.pop()
    assert caught.value.retry_after_s > 0
    with pytest.raises(Busy, match=r"4 samples wait for an answer already, 3 from here"):
        await stage.start("greedy", 50)
    stage.go_on()
    await asyncio.gather(first, modest, *waiting)
    assert stage.order[:2] == ["greedy 100", "modest 1"]
    assert stage.here.pool.load().refused == 2


async def test_what_would_be_late_is_refused_when_it_comes(stage: Stage) -> None:
    first = await stage.begin("a")
    with pytest.raises(Busy, match=r"an answer would take \d+ ms, and 0 ms are left"):
        await stage.start("a", 1, left_ms=0.4)
    with pytest.raises(Busy, match="0 ms are left"):
        await stage.start("a", 2, left_ms=-1e300)
    stage.go_on()
    await first
    assert (await stage.start("a", 1, left_ms=30_000)).verdict.label == "bright"
    assert (await stage.start("a", 3, left_ms=-1.0, late=True)).verdict.label == "bright"  # nobody waits


async def test_what_waited_past_its_deadline_costs_no_run(stage: Stage) -> None:
    first = await stage.begin("a")
    hopeless, patient = await stage.wait("a", 1, "alarm", left_ms=400), await stage.wait("a", 2)
    await asyncio.sleep(0.5)
    stage.go_on()
    with pytest.raises(Busy, match="waited past its deadline"):
        await hopeless
    await asyncio.gather(first, patient)
    assert stage.order == ["a 100", "a 2"]


async def test_the_time_of_an_upload_is_taken_from_what_was_left(stage: Stage) -> None:
    now = stage.here.answers.now()
    with pytest.raises(Busy, match="0 ms are left"):
        await stage.here.answers.answer("a", sample(1, left_ms=500.0), picture(0.9), arrived=now - 0.6)


async def test_an_answer_says_how_long_it_waited_and_how_long_it_took(stage: Stage) -> None:
    first = await stage.begin("a")
    second = await stage.wait("b", 1)
    await asyncio.sleep(0.3)
    stage.go_on()
    answers = await asyncio.gather(first, second)
    assert answers[1].waited_ms >= 300  # the worker was stopped in the middle of the first
    assert all(0 < answer.compute_ms < 300 or answer is answers[0] for answer in answers)
    again = await stage.here.answers.answer("b", sample(1), picture(0.9))
    assert again.repeated and again.waited_ms == 0


async def test_models_are_loaded_ahead_only_while_nobody_asks(stage: Stage, tmp_path: Path) -> None:
    other = make_package(tmp_path / "q", "other", "1")
    tasks = [await stage.begin("a")]
    warming = asyncio.create_task(stage.here.pool.warm("other@1", other.root))
    tasks += [await stage.wait("a", 1), await stage.wait("a", 2, late=True)]
    stage.go_on()
    await asyncio.gather(*tasks, warming)
    assert stage.order == ["a 100", "a 1", "a 2", "other@1"]


async def test_neither_loading_nor_the_first_run_counts_as_the_time_of_a_model(stage: Stage) -> None:
    pool = stage.here.pool
    await stage.start("a", 0)
    assert pool._admission.run_s("big@1 ") == pool._admission._guess_s
    await stage.start("a", 1)
    assert 0 < pool._admission.run_s("big@1 ") < pool._admission._guess_s


async def test_a_device_that_hangs_up_or_gives_up_leaves_no_question_behind(tmp_path: Path) -> None:
    async with cloud(tmp_path, PoolSettings(total_s=1.0)) as here:
        entry = await here.registry.add(make_package(tmp_path / "p", "big", "1").root)
        await here.pool.warm("big@1", await here.registry.materialise(entry))
        os.kill(here.pool.pids[0], signal.SIGSTOP)
        asked = [here.answers.answer("a", sample(number), picture(0.9, seed=number)) for number in (1, 2, 3)]
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(outcome, Busy) and "in time" in str(outcome)
        assert here.pool.load().waiting == 0
        os.kill(here.pool.pids[0], signal.SIGCONT)
        await until(lambda: here.pool.load().running == 0)


async def test_while_answers_are_being_stored_others_wait_in_the_order_of_admission(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storing can take longer than the model. Then the flood waits in the queue, and not before the store."""
    store, keep = stage.here.store, stage.here.store.keep
    storing = most = 0
    slow = asyncio.Event()

    async def slowly(*arguments: Any) -> Answer:
        nonlocal storing, most
        storing += 1
        most = max(most, storing)
        await slow.wait()
        try:
            return await keep(*arguments)
        finally:
            storing -= 1

    await stage.start("nobody", 0)
    stage.order.clear()
    monkeypatch.setattr(store, "keep", slowly)
    tasks = [stage.start("greedy", number) for number in range(4)]
    await until(lambda: storing == _UNFINISHED)
    await asyncio.sleep(0.2)
    assert len(stage.order) == most == _UNFINISHED
    alarm = await stage.wait("modest", 9, "alarm")
    slow.set()
    await asyncio.gather(alarm, *tasks)
    assert stage.order[_UNFINISHED] == "modest 9"
    assert most == _UNFINISHED and not stage.here.pool._unfinished


async def test_a_sample_that_cannot_be_stored_frees_its_place(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> Answer:
        raise StorageError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(stage.here.store, "keep", fails)
        for number in range(2 * _UNFINISHED + 1):
            with pytest.raises(StorageError):
                await stage.start("a", number)
    assert (await stage.start("a", 0)).verdict.label == "bright"
