"""A watched folder served by a real worker: every picture exactly once, through crashes and hand-overs."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.messages import Drain, PurgeSpool, Recalibrate
from tests.support.models import expected_label, picture
from tests.support.plant import LABELS, Plant, definition


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    plant.package()
    (tmp_path / "in").mkdir()
    yield plant
    await plant.close()


def folder_service(plant: Plant, **rest: Any) -> str:
    source = {"kind": "folder", "path": str(plant.root / "in"), "settle_ms": 60}
    return definition("solder", source=source, outputs=[str(plant.root / "out.jsonl")], **rest)


def drop(plant: Plant, numbers: range) -> None:
    for number in numbers:
        temporary = plant.root / "in" / f".{number}"
        temporary.write_bytes(picture((number % 10) / 10 + 0.05, seed=number))
        temporary.rename(plant.root / "in" / f"board-{number:03}.png")


def lines(plant: Plant) -> list[dict[str, Any]]:
    path = plant.root / "out.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def done(plant: Plant) -> int:
    return len(list((plant.root / "in" / "done").glob("*.png")))


async def test_pictures_are_sorted_and_bad_ones_put_aside(plant: Plant) -> None:
    drop(plant, range(10))
    (plant.root / "in" / "torn.jpg").write_bytes(picture(0.5, side=200, kind=".jpg", seed=1)[:-300])
    worker = await plant.start(folder_service(plant))
    refused = plant.root / "in" / "refused" / "torn.jpg"
    await worker.until(lambda: done(plant) == 10 and refused.exists())
    assert "cut short" in refused.with_name("torn.jpg.txt").read_text()
    for line in lines(plant):
        number = int(line["serial"].removeprefix("board-"))
        assert line["label"] == expected_label((number % 10) / 10 + 0.05, LABELS)
    report = await worker.until(lambda: (r := worker.service("solder")) and r.inspected == 10 and r)
    assert report.refused == 1
    assert any(event.code == "picture-refused:solder" for event in worker.events)


@pytest.mark.parametrize("point", ["folder.decided:2", "folder.moved", "kill"])
async def test_crashes_lose_and_repeat_nothing(plant: Plant, point: str) -> None:
    drop(plant, range(30))
    environment = {} if point == "kill" else {"EDGED_CRASH_AT": point}
    worker = await plant.start(folder_service(plant), ready=False, environment=environment)
    if point == "kill":
        await worker.until(lambda: len(lines(plant)) > 3)
        worker.kill()
    assert await worker.exit_status() == -signal.SIGKILL
    worker = await plant.start(folder_service(plant))
    await worker.until(lambda: done(plant) == 30)
    worker.send(Drain())
    assert await worker.exit_status() == 0
    assert Counter(line["serial"] for line in lines(plant)) == Counter(f"board-{n:03}" for n in range(30))


async def test_a_hand_over_under_load_repeats_nothing(plant: Plant) -> None:
    drop(plant, range(40))
    old = await plant.start(folder_service(plant))
    new = await plant.start(folder_service(plant))
    old.send(Drain())
    drop(plant, range(40, 60))
    assert await old.exit_status() == 0
    await new.until(lambda: done(plant) == 60)
    assert Counter(line["serial"] for line in lines(plant)) == Counter(f"board-{n:03}" for n in range(60))


async def test_hard_samples_of_a_folder_are_spooled_purged_and_the_gate_begins_anew(plant: Plant) -> None:
    drop(plant, range(6))
    service = folder_service(plant, hard_samples={"mode": "risk", "answer_model": "large"}, deadline_ms=1000)
    worker = await plant.start(service)
    await worker.until(lambda: done(plant) == 6)
    assert all(line["spooled"] and line["decided"] == "edge-degraded" for line in lines(plant))
    await worker.until(lambda: worker.reports and worker.reports[-1].spool.items == 6)
    worker.send(PurgeSpool(service="solder"))
    worker.send(Recalibrate(service="solder"))
    await worker.until(lambda: worker.reports[-1].spool.items == 0)
    report = worker.service("solder")
    assert report is not None
    assert report.gate.startswith("Calibrating")
