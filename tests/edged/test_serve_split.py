"""A worker with a service that splits: heads loaded beside the model, and the plan in its report."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgekit.messages import ServiceReport
from edgekit.packages import open_package
from tests.edged.collab_cloud import FaultyCloud, make_link
from tests.support.halves import MODELS, Halves, samples
from tests.support.plant import Plant, definition

SERVICE = definition(
    "solder",
    "solder-small@1",
    may_leave="features",
    deadline_ms=5000,
    hard_samples={"answer_model": "solder-large"},
    split={"heads": "solder-large-head@1"},
    decision={"pass": ["normal"], "fail": ["bridge"]},
)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return Halves(tmp_path_factory.mktemp("halves"))


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    plant.packages["solder-small@1"] = MODELS / "solder-small"
    yield plant
    await plant.close()


@pytest.fixture
async def cloud(tmp_path: Path, halves: Halves) -> AsyncIterator[FaultyCloud]:
    cloud = FaultyCloud(tmp_path / "cloud")
    cloud.model, cloud.label = halves.tail.ref, "bridge"
    await cloud.start()
    yield cloud
    await cloud.stop()


async def test_the_worker_answers_by_a_split_and_reports_the_plan(
    plant: Plant, cloud: FaultyCloud, halves: Halves
) -> None:
    plant.packages["solder-large-head@1"] = halves.head.root
    worker = await plant.start(SERVICE, link=make_link(plant.state, cloud.url, cloud.authority))
    report = await worker.until(lambda: (r := worker.service("solder")) and r.plan and r)
    assert isinstance(report, ServiceReport) and report.plan is not None
    assert {row.name for row in report.plan.routes} >= {"edge", "edge-whole", "frame", f"split@{halves.cuts[0]}"}
    picture = samples(halves.whole)["bridge"]

    async def decided() -> dict[str, object]:
        status, decision, _ = await plant.post("/v1/services/solder/inspect", picture)
        assert status == 200
        return decision

    # The whole model is here too and needs no link, so it is quicker than any cloud.
    decision = await decided()
    assert (decision["decided"], decision["route"], decision["model"]) == ("edge", "edge-whole", "solder-large@1")
    assert (decision["label"], decision["verdict"]) == ("bridge", "fail")
    assert cloud.received == []
    report = await worker.until(lambda: (r := worker.service("solder")) and r.edge == 1 and r)
    assert report.agreement is not None and report.stage_counts["infer"]


async def test_a_worker_without_the_head_says_so_and_goes_on(plant: Plant, cloud: FaultyCloud) -> None:
    worker = await plant.start(SERVICE, link=make_link(plant.state, cloud.url, cloud.authority))
    (event,) = await worker.until(lambda: [event for event in worker.events if event.code == "split:solder"])
    assert event.level == "warning"
    assert event.text == "solder runs without a split: the head package solder-large-head@1 is not installed."
    status, decision, _ = await plant.post(
        "/v1/services/solder/inspect", samples(open_package(MODELS / "solder-large"))["normal"]
    )
    assert (status, decision["decided"], decision.get("sent")) == (200, "edge", None)
    report = await worker.until(lambda: (r := worker.service("solder")) and r.inspected == 1 and r)
    assert report.plan is None and report.gate.startswith("No risk is certified: only features may leave the site")
    assert cloud.received == []
