"""A worker with a candidate in the shadow: the service goes on as without, and the report tells both sides."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from edgekit.messages import Drain, ShadowReport
from tests.edged.collab_cloud import FaultyCloud, make_link
from tests.support.detectors import board, make_detector
from tests.support.models import picture
from tests.support.plant import Plant, definition
from tests.support.workers import WorkerProcess

CANDIDATE = "brightness.solder@1"
HARD = {
    "mode": "risk", "risk": 0.3, "confidence": 0.6, "answer_model": "large", "calibration": 20, "audit_share": 1.0,
}  # fmt: skip


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


def candidate(plant: Plant, **options: object) -> dict[str, str]:
    """Install a candidate; what the worker is told of it."""
    plant.packages[CANDIDATE] = plant.package("brightness.solder", **options)
    return {"solder": CANDIDATE}


async def inspect(plant: Plant) -> dict[str, object]:
    """A picture like the one before: as hard, so that a threshold which trusts one trusts them all."""
    status, decision, _ = await plant.post("/v1/services/solder/inspect", picture(0.9))
    assert status == 200
    return decision


async def line(plant: Plant, worker: WorkerProcess, enough: Callable[[ShadowReport], bool]) -> int:
    """Inspect bright pictures until the candidate has seen enough of them; how many there were."""
    async with asyncio.timeout(100.0):
        for number in itertools.count():
            decision = await inspect(plant)
            assert (decision["label"], decision["model"]) == ("bright", "brightness@1")
            report = worker.service("solder")
            if report is not None and report.shadow is not None and enough(report.shadow):
                return number + 1
            await asyncio.sleep(0.05)
    raise AssertionError("unreachable")


def children(worker: WorkerProcess) -> list[psutil.Process]:
    return psutil.Process(worker.pid).children()


async def test_a_candidate_looks_at_live_pictures_and_nobody_hears_of_it(plant: Plant) -> None:
    worker = await plant.start(definition("solder"), shadows=candidate(plant, flip=True))
    await line(plant, worker, lambda shadow: shadow.items >= 3)
    report = worker.service("solder")
    assert report is not None and report.shadow is not None and report.shadow.candidate == CANDIDATE
    assert (report.shadow.agreeing, report.shadow.audits, report.shadow.failure) == (0, 0, "")
    assert (report.shadow.sent, report.shadow.would_send) == (0, 0), "this service asks nobody"
    assert report.gate_facts is None and report.audited == 0
    (child,) = children(worker)
    worker.send(Drain())
    assert await worker.exit_status() == 0
    child.wait(5.0)


async def test_late_answers_reach_the_candidate_and_the_gate_tells_its_facts(plant: Plant, cloud: FaultyCloud) -> None:
    link = make_link(plant.state, cloud.url, cloud.authority)
    cloud.label = "bright"
    service = definition("solder", hard_samples=HARD, deadline_ms=5000)
    worker = await plant.start(service, link=link, shadows=candidate(plant, flip=True))
    for _ in range(20):
        await inspect(plant)
    await worker.until(lambda: (r := worker.service("solder")) and r.gate_facts and r.gate_facts.calibrated, 30.0)
    count = await line(plant, worker, lambda shadow: shadow.audits >= 2)
    report = await worker.until(lambda: (r := worker.service("solder")) and r.audited == count and r, 30.0)
    assert report.audited_differing == 0
    facts, shadow = report.gate_facts, report.shadow
    assert facts is not None and shadow is not None
    assert (facts.alpha, facts.seen, facts.audits, facts.calibrated) == (0.3, count, count, 1.0)
    assert facts.audit_bound is not None and 0.0 < facts.audit_bound < 0.6
    assert shadow.audits >= 2 and shadow.lost == shadow.audits and shadow.gained == 0
    cloud.label = "dark"
    await inspect(plant)
    await worker.until(lambda: (r := worker.service("solder")) and r.audited_differing == 1)


async def test_a_candidate_that_is_broken_or_missing_harms_nobody(plant: Plant) -> None:
    shadows = candidate(plant)
    (plant.packages[CANDIDATE] / "model.onnx").write_bytes(b"broken")
    worker = await plant.start(
        definition("solder"), definition("other"), shadows={**shadows, "other": "nothing@1", "unknown": CANDIDATE}
    )
    report = await worker.until(lambda: (r := worker.service("solder")) and r.shadow and r.shadow.failure and r, 100.0)
    assert report.state == "ready" and report.shadow is not None
    assert "cannot be used" in report.shadow.failure
    other = worker.service("other")
    assert other is not None and other.shadow is not None and other.state == "ready"
    assert other.shadow.failure == "it is not installed"
    codes = {(event.code, event.level, event.passing) for event in worker.events if event.code.startswith("shadow:")}
    assert codes == {("shadow:solder", "warning", True), ("shadow:other", "warning", True)}
    assert (await inspect(plant))["label"] == "bright"


@pytest.mark.parametrize("regions", [{}, {"regions": {}}], ids=["frames", "regions"])
async def test_a_detecting_candidate_is_compared_by_its_one_answer_of_the_frame(
    plant: Plant, tmp_path: Path, regions: dict[str, object]
) -> None:
    plant.packages["cells"] = make_detector(tmp_path / "cells").root
    plant.packages["cells.solder@1"] = make_detector(tmp_path / "weak", "cells.solder", gain=0.5, samples=False).root
    service = definition("solder", "cells", task="detection", **regions)
    worker = await plant.start(service, shadows={"solder": "cells.solder@1"})

    async def seen(picture: bytes, items: int) -> ShadowReport:
        async with asyncio.timeout(100.0):
            while True:
                status, _, _ = await plant.post("/v1/services/solder/inspect", picture)
                assert status == 200
                report = worker.service("solder")
                if report is not None and report.shadow is not None and report.shadow.items >= items:
                    return report.shadow
                await asyncio.sleep(0.05)

    good = await seen(board(), 3)
    assert good.agreeing == good.items and good.failure == "" and good.unusable == 0
    bad = await seen(board((1, 2, "short", 0.8)), good.items + 4)
    assert bad.agreeing < bad.items and bad.audits == 0, "half as sure, it finds nothing there"
