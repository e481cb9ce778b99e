"""The worker and the cloud: hard samples answered, kept when the link is down or hung, and delivered later."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgekit.messages import Drain, Held, Link, LinkChanged, PurgeSpool
from tests.edged.collab_cloud import FaultyCloud, make_link
from tests.support.models import picture
from tests.support.plant import Plant, definition

HARD = {"mode": "risk", "answer_model": "large"}


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    plant.package()
    yield plant
    await plant.close()


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[FaultyCloud]:
    cloud = FaultyCloud(tmp_path / "cloud")
    await cloud.start()
    yield cloud
    await cloud.stop()


async def test_hard_samples_get_the_answer_of_the_cloud(plant: Plant, cloud: FaultyCloud) -> None:
    link = make_link(plant.state, cloud.url, cloud.authority)
    out = plant.root / "out.jsonl"
    worker = await plant.start(definition("solder", hard_samples=HARD, deadline_ms=5000, outputs=[str(out)]), link=link)
    for number in range(4):
        cloud.label = "dim" if number == 3 else "bright"
        status, decision, _ = await plant.post("/v1/services/solder/inspect", picture(0.9, seed=number))
        assert (status, decision["decided"], decision["model"]) == (200, "cloud", "large@1")
        assert (decision["label"], decision["edge"]["label"]) == (cloud.label, "bright")
        assert decision["timings_ms"]["cloud"] > 0
    report = await worker.until(lambda: (r := worker.service("solder")) and r.cloud == 4 and r)
    assert (report.agreement, report.offload_share) == (0.75, 1.0)
    assert worker.reports[-1].uplink_bytes > 0
    worker.send(Drain())
    assert await worker.exit_status() == 0
    assert [json.loads(line)["decided"] for line in out.read_text().splitlines()] == ["cloud"] * 4


async def test_spooled_samples_are_delivered_once_when_the_link_returns(plant: Plant, cloud: FaultyCloud) -> None:
    link = make_link(plant.state, cloud.url, cloud.authority, up=False)
    await cloud.stop()
    worker = await plant.start(definition("solder", hard_samples=HARD, deadline_ms=2000), link=link)
    sent = []
    for number in range(6):
        _, decision, _ = await plant.post("/v1/services/solder/inspect", picture(0.9, seed=number))
        assert (decision["decided"], decision["spooled"]) == ("edge-degraded", True)
        sent.append(decision["sample_id"])
    worker.kill()
    await worker.exit_status()
    worker = await plant.start(definition("solder", hard_samples=HARD, deadline_ms=2000), link=link)
    await cloud.start()
    worker.send(LinkChanged(link=Link(url=link.url, up=True, identity=link.identity)))
    await worker.until(lambda: worker.reports and worker.reports[-1].spool.delivered == 6)
    assert sorted(sample.sample_id for sample in cloud.received) == sorted(sent)
    assert all(sample.late for sample in cloud.received)
    report = await worker.until(lambda: (r := worker.service("solder")) and r.agreement is not None and r)
    assert report.agreement == 0.0  # this cloud says "bad" to everything; late answers count, too


async def test_hard_samples_without_a_link_are_spooled_and_the_line_goes_on(plant: Plant) -> None:
    worker = await plant.start(definition("solder", hard_samples=HARD, deadline_ms=2000))
    for number in range(5):
        status, decision, _ = await plant.post("/v1/services/solder/inspect", picture(0.9, seed=number))
        assert status == 200
        assert (decision["label"], decision["decided"], decision["sent"]) == ("bright", "edge-degraded", "calibrating")
        assert decision["spooled"] is True
        assert decision["reason"]
    await worker.until(lambda: worker.reports and worker.reports[-1].spool.items == 5)
    report = worker.service("solder")
    assert report is not None
    assert report.offload_share == 1.0
    assert "Calibrating" in report.gate


async def test_a_hung_cloud_never_holds_an_answer_beyond_its_deadline(plant: Plant) -> None:
    """A listener that accepts and says nothing: the answer comes in time, the sample is kept."""
    held: list[asyncio.StreamWriter] = []

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await asyncio.sleep(60)

    silent = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    link = Link(url=f"https://127.0.0.1:{port}", up=True, identity=str(plant.root / "identity"))
    await plant.start(definition("solder", hard_samples=HARD, deadline_ms=400), link=link)
    loop = asyncio.get_running_loop()
    for number in range(3):
        started = loop.time()
        status, decision, _ = await plant.post("/v1/services/solder/inspect", picture(0.9, seed=number))
        assert loop.time() - started < 1.0
        assert (status, decision["decided"], decision["spooled"]) == (200, "edge-degraded", True)
    for writer in held:
        writer.close()
    silent.close()


async def test_a_link_that_comes_while_the_spool_is_opened_is_used(plant: Plant, cloud: FaultyCloud) -> None:
    (plant.state / "spool").mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(plant.state / "spool" / "index.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")  # the spool waits for it
        worker = await plant.start(definition("solder", hard_samples=HARD, deadline_ms=5000), ready=False)
        await worker.until(lambda: [event for event in worker.events if event.code == "service-loading"])
        await asyncio.sleep(1.5)
        worker.send(LinkChanged(link=make_link(plant.state, cloud.url, cloud.authority)))
        await asyncio.sleep(0.3)
        assert worker.ready is None
        other.execute("ROLLBACK")
    await worker.until_ready()
    await worker.until(lambda: worker.reports and worker.reports[-1].breaker == "closed")
    _, decision, _ = await plant.post("/v1/services/solder/inspect", picture(0.9))
    assert decision["decided"] == "cloud"


async def test_a_purge_while_the_worker_loads_is_not_forgotten(plant: Plant) -> None:
    service = definition("solder", hard_samples=HARD, deadline_ms=2000)
    worker = await plant.start(service)
    await plant.post("/v1/services/solder/inspect", picture(0.9))
    await worker.until(lambda: worker.reports and worker.reports[-1].spool.items == 1)
    worker.kill()
    await worker.exit_status()
    worker = await plant.start(service, ready=False)
    worker.send(PurgeSpool())
    await worker.until_ready()
    await worker.until(lambda: worker.reports and worker.reports[-1].spool.items == 0)


async def test_samples_of_a_removed_service_are_delivered_and_those_of_a_held_one_wait(
    plant: Plant, cloud: FaultyCloud
) -> None:
    worker = await plant.start(definition("solder", hard_samples=HARD), definition("labels", hard_samples=HARD))
    for name in ("solder", "labels"):
        _, decision, _ = await plant.post(f"/v1/services/{name}/inspect", picture(0.9))
        assert decision["spooled"]
    worker.send(Drain())
    assert await worker.exit_status() == 0
    link = make_link(plant.state, cloud.url, cloud.authority)
    worker = await plant.start(definition("other"), link=link, held=["labels"])
    await worker.until(lambda: worker.reports and worker.reports[-1].spool.delivered == 1)
    assert [sample.service for sample in cloud.received] == ["solder"]
    await asyncio.sleep(0.5)
    assert worker.reports[-1].spool.items == 1
    worker.send(Held(services=[]))
    await worker.until(lambda: worker.reports[-1].spool.delivered == 2)


async def test_where_nothing_may_leave_nothing_counts_as_sent(plant: Plant, cloud: FaultyCloud) -> None:
    link = make_link(plant.state, cloud.url, cloud.authority)
    worker = await plant.start(definition("solder", hard_samples=HARD, may_leave="nothing"), link=link)
    for number in range(3):
        _, decision, _ = await plant.post("/v1/services/solder/inspect", picture(0.9, seed=number))
        assert decision.get("sent") is None and "nothing may leave" in decision["reason"]
    report = await worker.until(lambda: (r := worker.service("solder")) and r.inspected == 3 and r)
    assert report.offload_share == 0.0 and report.gate.startswith("Nothing may leave the site")
    assert cloud.requests == 0
