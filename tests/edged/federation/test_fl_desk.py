"""The supervisor's side: it finds a job, takes part by a child, brings the candidate to trial, or tells why not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from fl_hall import SERVICE, Hall, ended, start

from edged.api import ApiError
from edged.federation.around import Around
from edged.federation.desk import FederationDesk
from edged.federation.front import FederationFront, Subject
from edged.federation.notes import JobNote
from edged.federation.settings import Federation
from edged.learning.parts import Reserved
from edged.spawn import empty_directory
from edgekit.messages import Link
from edgekit.messages.learning import TrainDone
from tests.support.cloud import Cloud

JOB = "ab" * 16


class Linked:
    def __init__(self, hall: Hall, url: str) -> None:
        self.identity = hall.edges[0].device.store.current()
        self.device_id = hall.edges[0].device.id
        self.link = Link(url=url, up=bool(url), identity=str(self.identity.directory) if self.identity else "")


class Trials:
    """What learning is asked and told."""

    def __init__(self, hall: Hall) -> None:
        self.hall, self.busy = hall, 1
        self.offers: list[tuple[str, str, TrainDone]] = []

    async def reserve(self, service: str) -> Reserved:
        return Reserved("small.solder", "1-1", "small@1", self.hall.package.root)

    async def offer(self, service: str, base_ref: str, done: TrainDone) -> None:
        if self.busy:
            self.busy -= 1
            raise ApiError(409, "a trial is under way")
        assert Path(done.directory).is_dir()
        self.offers.append((service, base_ref, done))


class Stand:
    """A desk with everything around it that the supervisor would be."""

    def __init__(self, hall: Hall, url: str, **changes: object) -> None:
        self.hall, edge = hall, hall.edges[0]
        self.reports: list[tuple[str, str, str]] = []
        self.forgotten: list[str] = []
        self.labels, self.running = 24, True
        self.trials = Trials(hall)
        policy = msgspec.structs.replace(edge.policy(hall.plants), **changes)
        self.around = Around(
            state_dir=edge.state,
            empty=empty_directory(edge.state),
            policy=policy,
            link=Linked(hall, url),
            subject=lambda name: Subject(SERVICE, "small@1", hall.package.root) if self.running else None,
            labelled=self._labelled,
            forget=self._forget,
            learning=self.trials,
            report=lambda code, level, text: self.reports.append((code, level, text)),
            look_s=0.2,
        )
        self.desk = FederationDesk(self.around)

    async def _labelled(self, name: str) -> int:
        return self.labels

    async def _forget(self, name: str) -> None:
        self.forgotten.append(name)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[FederationDesk]:
        self.desk.open()
        task = asyncio.create_task(self.desk.run())
        try:
            yield self.desk
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.desk.close()


async def until(true: object, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Hall:
    return Hall(tmp_path_factory.mktemp("hall"), 3)


async def test_a_job_is_found_taken_part_in_and_its_model_put_on_trial(hall: Hall) -> None:
    with Cloud(hall.root / "cloudd") as cloud, contextlib.ExitStack() as stack:
        await hall.join(cloud)
        job = hall.begin(cloud, "together", True, rounds=1)
        async with Stand(hall, cloud.url).at_work() as desk:
            await until(lambda: [view.note.stage for view in desk.jobs() if view.running] == ["waiting"])
        assert not any(view.running for view in desk.jobs()), "the child ends with its supervisor"
        stand = Stand(hall, cloud.url)  # as after a restart
        async with stand.at_work() as desk:
            others = [start(one.order(cloud.url, job, hall.plants)) for one in hall.edges[1:]]
            for child in others:
                stack.callback(child.kill)
            await until(lambda: any(view.running for view in desk.jobs()))
            await until(lambda: desk.jobs()[0].note.stage in ("judging", "done"))
            for child in others:
                assert (await asyncio.to_thread(ended, child))[0] == 0
            await until(lambda: "trial is under way" in desk.jobs()[0].why)
            desk._retry.clear()
            await until(lambda: desk.jobs()[0].note.stage == "done")
            ((service, base, done),) = stand.trials.offers
            assert (service, base, done.ref) == ("solder", "small@1", "small.solder@1-1")
            await until(lambda: not (hall.edges[0].state / "federation" / "jobs" / job).exists())
            assert stand.forgotten == [f"federated.{job[:12]}.solder"]
            state = await desk.state()
            assert state.enabled and not state.lost and state.node
            audit = await desk.audit(10)
            assert (audit.count, audit.wrong) == (1, None)
            with pytest.raises(ApiError):
                await desk.forgive()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"services": ["other"]}, "federation.services"),
        ({"plain": False}, "federation.plain"),
        ({"hours": "00:00-00:01"}, "federation.hours"),
    ],
)
async def test_it_tells_why_it_does_nothing(hall: Hall, changes: dict[str, object], sentence: str) -> None:
    stand = Stand(hall, "https://127.0.0.1:1", **changes)
    if stand.around.link.identity is None:
        pytest.skip("the device has joined no cloudd yet")
    note = JobNote(job=JOB, service="solder", model="small@1", secure=False, private=False, rounds=1)
    local = time.localtime()
    if sentence == "federation.hours" and (local.tm_hour, local.tm_min) == (0, 0):
        pytest.skip("it is midnight")
    assert sentence in await stand.desk._against(note, None)


async def test_a_service_that_does_not_run_or_another_model_is_named(hall: Hall) -> None:
    stand = Stand(hall, "https://127.0.0.1:1")
    note = JobNote(job=JOB, service="solder", model="small@2", secure=True, private=False, rounds=1)
    assert "begins with small@2" in await stand.desk._against(note, None)
    stand.running = False
    assert "does not run here" in await stand.desk._against(note, None)


async def test_an_operator_leaves_a_job_by_the_beginning_of_its_id(hall: Hall) -> None:
    stand = Stand(hall, "")
    stand.desk.open()
    try:
        await stand.desk._note(JobNote(job=JOB, service="solder", model="m@1", secure=True, private=False, rounds=1))
        with pytest.raises(ApiError):
            await stand.desk.refuse("ffff", "")
        await stand.desk.refuse(JOB[:6], "not with our parts")
        (view,) = [one for one in stand.desk.jobs() if one.note.job == JOB]
        assert view.note.stage == "refused"
        state = await stand.desk.state()
        assert any("not with our parts" in event.text for event in state.events)
    finally:
        await stand.desk.close()


async def test_without_a_table_there_is_no_desk_and_one_sentence(tmp_path: Path) -> None:
    front = FederationFront(None, lambda policy: pytest.fail("not asked"))
    front.open()
    assert front.jobs() == []
    with pytest.raises(ApiError, match=r"\[federation\]"):
        _ = front.desk
    assert not Federation().enabled
