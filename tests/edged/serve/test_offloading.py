"""A service with more to do than its one thread can: real uplink, real cloud over TLS, and a model that takes 0.1 s."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from edged.collab.collaboration import Collaboration
from edged.serve.engine import Engine
from edged.serve.loading import LoadedModel
from edged.serve.offloading import Offloader
from edged.serve.refusals import Kept, NotRun
from edged.serve.service_runtime import ServiceRuntime
from edgekit.dispatch.policy import DispatchPolicy
from edgekit.messages import UNSEEN, Decision, HardSample, Verdict
from edgekit.services import HardSamples, Service
from edgekit.vision.classification import Classified, Classifier
from tests.edged.collab_bench import Bench, until
from tests.edged.collab_cloud import FaultyCloud, running
from tests.support.models import make_package

RUN_S = 0.1
PICTURE = b"\xff\xd8" + bytes(30_000)


def slow(data: bytes) -> Classified:
    """The model of the service."""
    time.sleep(RUN_S)
    said = np.array([0.9, 0.1], np.float32)
    return Classified(label="dark", index=0, score=0.9, margin=0.8, probabilities=said)


class Device:
    """A worker's serving half in this process."""

    def __init__(self, bench: Bench, hub: Collaboration, engine: Engine, model: LoadedModel) -> None:
        self.bench, self.hub, self.engine, self.model = bench, hub, engine, model
        self.offloader = Offloader(engine, hub)
        self.runtimes: dict[str, ServiceRuntime] = {}
        self.count = 0

    async def add(self, name: str, **changes: object) -> None:
        hard = HardSamples(mode="off", answer_model="large")
        service = Service(**{"name": name, "model": "brightness", "priority": name, "hard_samples": hard, **changes})  # type: ignore[arg-type]
        collaborator = await self.hub.add(service, self.model.ref)
        self.runtimes[name] = ServiceRuntime(
            service,
            self.model,
            slow,
            "",
            self.engine,
            collaborator,
            {},
            lambda *_, **__: None,
            offloader=self.offloader,
        )

    async def one(self, name: str, deadline_s: float) -> Decision:
        self.count += 1
        return await self.runtimes[name].inspect(
            PICTURE,
            sample_id=f"{name}-{self.count}",
            captured_at=1.8e9,
            serial="7",
            deadline=time.monotonic() + deadline_s,
        )

    async def burst(self, name: str, count: int, deadline_s: float) -> list[Decision | BaseException]:
        """So many at once."""
        return await asyncio.gather(*(self.one(name, deadline_s) for _ in range(count)), return_exceptions=True)

    async def ready(self) -> None:
        """The link is known to work, and what runs take is known, here and in the cloud."""
        await until(lambda: self.usable)
        for _ in range(3):
            await self.one("inline", 5.0)

    @property
    def usable(self) -> bool:
        rules = self.offloader._rules
        return rules is not None and rules.usable


@contextlib.asynccontextmanager
async def device(tmp_path: Path, cloud: FaultyCloud) -> AsyncIterator[Device]:
    package = make_package(tmp_path / "package")
    bench = Bench(tmp_path / "state", cloud)
    engine = Engine(1)
    async with bench.hub() as hub:
        made = Device(bench, hub, engine, LoadedModel(package, Classifier.load(package)))
        beating = asyncio.create_task(made.offloader.run())
        made.offloader.set_policy(DispatchPolicy())
        hub.set_link(bench.link)
        for name in ("alarm", "inline", "audit"):
            await made.add(name)
        try:
            yield made
        finally:
            beating.cancel()
            await made.offloader.close()
            await engine.stop()


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[FaultyCloud]:
    async with running(tmp_path / "cloud") as cloud:
        yield cloud


def by_cloud(found: list[Decision | BaseException]) -> list[Decision]:
    return [one for one in found if isinstance(one, Decision) and one.decided == "cloud"]


async def test_what_would_be_late_here_is_answered_by_the_cloud_in_time(tmp_path: Path, cloud: FaultyCloud) -> None:
    async with device(tmp_path, cloud) as bench:
        await bench.ready()
        found = await bench.burst("inline", 8, 0.5)
        away = by_cloud(found)
        assert len(away) >= 2 and all(one.timings_ms["total"] < 500 for one in away)
        one = away[0]
        assert (one.label, one.model, one.edge.label, one.sent, one.serial) == ("bad", "large@1", UNSEEN, None, "7")
        assert one.edge.model == bench.model.ref and one.timings_ms["cloud"] > 0 and "asked at once" in one.reason
        sample = next(sample for sample in cloud.received if sample.sample_id == one.sample_id)
        assert sample.priority == "inline" and sample.left_ms is not None and 0 < sample.left_ms <= 500
        assert cloud.pictures[one.sample_id] == PICTURE
        report = bench.runtimes["inline"].report()
        assert (report.cloud, report.agreement) == (len(away), None)  # nothing was compared


async def test_nothing_leaves_while_nothing_waits(tmp_path: Path, cloud: FaultyCloud) -> None:
    async with device(tmp_path, cloud) as bench:
        await bench.ready()
        for _ in range(4):
            assert (await bench.one("inline", 0.01)).decided == "edge"  # late, but nobody waits for it
        assert cloud.received == []


async def test_a_silent_cloud_costs_a_request_its_prediction_and_no_more(tmp_path: Path, cloud: FaultyCloud) -> None:
    async with device(tmp_path, cloud) as bench:
        await bench.ready()
        await bench.burst("inline", 6, 0.5)
        cloud.mode = "hang"
        found = await bench.burst("alarm", 3, 0.4)
        assert all(isinstance(one, Decision) and one.decided == "edge" for one in found)
        await until(lambda: not bench.usable and bench.hub.breaker_state != "closed")
        cloud.mode = "answer"
        await until(lambda: bench.usable and bench.hub.breaker_state == "closed", within=5.0)


async def test_a_hopeless_audit_is_kept_on_the_disk_and_answered_later(tmp_path: Path, cloud: FaultyCloud) -> None:
    async with device(tmp_path, cloud) as bench:
        await bench.ready()
        cloud.mode = "hang"
        await until(lambda: not bench.usable)
        found = await bench.burst("audit", 12, 0.5)
        kept = [one for one in found if isinstance(one, Kept)]
        offered = bench.runtimes["audit"].report().not_run["kept"]
        assert kept and len(kept) <= offered  # a disk may be too slow to say so of all of them
        await until(lambda: bench.hub.spool_report().items == offered)
        cloud.mode = "answer"
        await until(lambda: bench.hub.spool_report().delivered == offered)
        late = {sample.sample_id: sample for sample in cloud.received if sample.late}
        assert {one.sample_id for one in kept} <= set(late)
        assert all(sample.priority == "audit" and sample.left_ms is None for sample in late.values())
        assert bench.bench.compared == []  # there is nothing to compare the answers with


async def test_an_inline_request_that_nobody_can_answer_in_time_is_refused(tmp_path: Path, cloud: FaultyCloud) -> None:
    async with device(tmp_path, cloud) as bench:
        await bench.ready()
        cloud.mode = "hang"
        await until(lambda: not bench.usable)
        found = await bench.burst("inline", 10, 0.4)
        refused = [one for one in found if isinstance(one, NotRun)]
        assert refused and not any(isinstance(one, Kept) for one in refused)
        assert bench.runtimes["inline"].statistics.shed == len(refused)


async def test_a_service_whose_model_the_cloud_does_not_know_stays_here(tmp_path: Path, cloud: FaultyCloud) -> None:
    async with device(tmp_path, cloud) as bench:
        await bench.ready()
        cloud.mode = "status 404"
        await bench.burst("inline", 6, 0.5)
        assert not bench.offloader.takes("inline") and bench.offloader.takes("alarm")
        asked = cloud.requests
        await bench.burst("inline", 6, 0.5)
        assert cloud.requests == asked
        assert "warning:answers.unknown-model.inline" in bench.bench.codes


async def test_a_cloud_that_wants_a_rest_gets_it(tmp_path: Path, cloud: FaultyCloud) -> None:
    async with device(tmp_path, cloud) as bench:
        await bench.ready()
        cloud.mode = "busy 2"
        began = time.monotonic()
        await bench.burst("inline", 5, 0.5)
        asked = cloud.requests
        assert asked >= 1
        cloud.mode = "answer"
        await asyncio.sleep(1.2)  # a heartbeat was answered meanwhile
        await bench.burst("inline", 5, 0.5)
        if time.monotonic() - began < 2.0:
            assert cloud.requests == asked


async def test_pictures_that_may_not_leave_stay(tmp_path: Path, cloud: FaultyCloud) -> None:
    async with device(tmp_path, cloud) as bench:
        await bench.add("inline", may_leave="nothing")
        await bench.ready()
        await bench.burst("inline", 8, 0.3)
        assert cloud.requests == 0


async def test_rules_come_and_go_while_requests_wait(tmp_path: Path, cloud: FaultyCloud) -> None:
    async with device(tmp_path, cloud) as bench:
        await bench.ready()
        cloud.delay = 0.2
        burst = asyncio.create_task(bench.burst("inline", 8, 1.0))
        await asyncio.sleep(0.1)
        bench.offloader.set_policy(None)
        assert all(isinstance(one, Decision | NotRun) for one in await burst)
        cloud.received.clear()
        cloud.delay = 0.0
        await bench.burst("inline", 8, 0.5)
        assert cloud.received == []
        bench.offloader.set_policy(DispatchPolicy())
        await until(lambda: bench.usable)
        assert by_cloud(await bench.burst("inline", 8, 0.5))


async def test_bodies_leave_by_class_one_at_a_time_whoever_sends_them(tmp_path: Path, cloud: FaultyCloud) -> None:
    async with device(tmp_path, cloud) as bench:
        await bench.ready()
        order: list[str] = []

        async def send(name: str) -> object:
            verdict = Verdict(label="ok", score=1.0, margin=1.0, model="small@1")
            sample = HardSample(
                sample_id=name, service="s", answer_model="m", edge=verdict, reason="hard", captured_at=0.0,
                priority=name.split("-")[0],  # type: ignore[arg-type]
            )  # fmt: skip
            key = await bench.offloader.begin(sample, 1000)
            order.append(name)
            return key

        first = await send("audit-1")
        waiting = []
        for name in ("audit-2", "inline-1", "alarm-1", "inline-2", "alarm-2"):
            waiting.append(asyncio.create_task(send(name)))
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert order == ["audit-1"]
        waiting[4].cancel()  # alarm-2: nobody waits for it any more
        bench.offloader.sent(first, fresh=False)
        for _ in range(4):
            await asyncio.sleep(0.01)
            done = [task for task in waiting if task.done() and not task.cancelled()]
            bench.offloader.end(done[-1].result())
            waiting = [task for task in waiting if task not in done and not task.cancelled()]
        assert order == ["audit-1", "alarm-1", "inline-1", "inline-2", "audit-2"]
        bench.offloader.end(first)
