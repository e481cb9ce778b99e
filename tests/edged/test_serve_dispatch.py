"""The worker as a process under more load than it can bear: rules of dispatch from its start, changed while it runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgekit.dispatch.policy import DispatchPolicy
from edgekit.messages import DispatchChanged, ServiceReport
from tests.edged.collab_cloud import FaultyCloud, make_link
from tests.support.models import picture
from tests.support.plant import Plant, definition
from tests.support.workers import WorkerProcess

OFF = {"mode": "off", "answer_model": "large"}


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    plant.package("slow", work=150)
    yield plant
    await plant.close()


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[FaultyCloud]:
    cloud = FaultyCloud(tmp_path / "cloud")
    await cloud.start()
    yield cloud
    await cloud.stop()


async def burst(plant: Plant, name: str = "solder", count: int = 16) -> Counter[str]:
    """What became of so many requests that came together: where they were decided, or the status."""
    replies = await asyncio.gather(
        *(plant.post(f"/v1/services/{name}/inspect", picture(0.9, seed=number)) for number in range(count))
    )
    return Counter(reply["decided"] if status == 200 else str(status) for status, reply, _ in replies)


async def overloaded(plant: Plant, worker: WorkerProcess, where: str, tries: int = 20) -> Counter[str]:
    """Bursts until one of them has this outcome; before the first heartbeat nothing can leave."""
    for _ in range(tries):
        found = await burst(plant)
        if found[where]:
            return found
        await asyncio.sleep(0.2)
    raise AssertionError(f"nothing became {where}: {found}")


async def test_rules_hold_from_the_start_and_change_while_the_worker_runs(plant: Plant, cloud: FaultyCloud) -> None:
    link = make_link(plant.state, cloud.url, cloud.authority)
    service = definition("solder", model="slow", hard_samples=OFF, deadline_ms=400)
    worker = await plant.start(service, link=link, threads=1, dispatch=DispatchPolicy())
    await overloaded(plant, worker, "cloud")
    worker.send(DispatchChanged(policy=None))
    await asyncio.sleep(0.2)
    before = cloud.requests
    found = await burst(plant)
    assert found["503"] and not found["cloud"] and cloud.requests == before
    worker.send(DispatchChanged(policy=DispatchPolicy()))
    await overloaded(plant, worker, "cloud")


async def test_what_is_kept_for_later_is_no_error(plant: Plant) -> None:
    service = definition("solder", model="slow", hard_samples=OFF, deadline_ms=300, priority="audit")
    worker = await plant.start(service, threads=1, dispatch=DispatchPolicy())
    replies = await asyncio.gather(
        *(plant.post("/v1/services/solder/inspect", picture(0.9, seed=number)) for number in range(30))
    )
    kept = [reply for status, reply, _ in replies if status == 202]
    assert kept and all(reply["kept"] is True and "waits on the disk" in reply["reason"] for reply in kept)
    assert len({reply["sample_id"] for reply in kept}) == len(kept)
    report = await worker.until(lambda: (r := worker.service("solder")) and r.not_run.get("kept") == len(kept) and r)
    assert isinstance(report, ServiceReport) and report.shed == 0
    assert worker.reports[-1].spool.items == len(kept)
