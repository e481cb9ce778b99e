"""No room for hard samples: local answers go on, the least valuable samples go first, and nobody has to help."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.collab.spool_view import SpooledSample
from edgekit.messages import Decision
from tests.support.disk import fill, mounted
from tests.support.edged import wait_for
from tests.support.models import picture
from tests.support.stage import EASY, Plant, Template, assert_whole

MIB = 1 << 20
SIDE = 224
"""Pixels; with its noise such a picture has about 100 kB as a PNG."""


def line(plant: Plant, count: int, first: int = 0) -> list[Decision]:
    """`count` hard samples of growing hardness between easy ones; the decisions about the hard ones.

    Also checks the point of it all: every easy picture is answered at the edge, whatever the disk does.
    """
    hard = []
    for number in range(first, first + count):
        for _ in range(3):
            easy = plant.edge.inspect("solder", picture(EASY))
            assert (easy.decided, easy.label) == ("edge", "dark")
        # From 0.46 towards 0.5, where the model is least sure: margins from 0.8 to 0.
        brightness = 0.5 - 0.04 * (1 - (number - first) / count)
        decision = plant.edge.inspect("solder", picture(brightness, SIDE, seed=1000 + number))
        assert decision.decided == "edge-degraded" and decision.sent == "hard", decision
        hard.append(decision)
    return hard


def waiting(plant: Plant) -> list[SpooledSample]:
    return plant.edge.client.get("/spool?limit=1000", list[SpooledSample])


def health(plant: Plant, code: str) -> bool:
    return any(item.code == code for item in plant.edge.status().health.items)


def evicted(plant: Plant) -> int:
    spool = plant.edge.status().spool
    return 0 if spool is None else spool.evicted


def check_recovered(plant: Plant, waited: set[str]) -> None:
    """cloudd is back: what waited arrives, each once, and new hard samples are answered or kept again."""
    plant.wait_drained(120.0)
    arrived = plant.arrived()
    assert waited <= arrived.keys() and set(arrived.values()) == {1}
    wait_for(lambda: plant.send("solder", 0.49).decided == "cloud")
    plant.kill_edge()  # one that started on a full disk keeps its database to itself
    assert_whole(plant.edge, plant.cloud)


def test_a_full_quota_keeps_the_most_valuable_and_says_so(template: Template) -> None:
    with Plant(template, config="[spool]\nquota_mb = 1\nreserve_mb = 1\n") as plant:
        plant.start_edge(plant.reserve(), wait_for_link=False)
        worker = plant.worker_pid
        decisions = line(plant, 20)
        assert all(decision.spooled for decision in decisions), "each was worth more than the one it replaced"
        kept = waiting(plant)
        assert sum(sample.bytes for sample in kept) <= MIB
        assert len(kept) >= 5
        hardest = sorted(decisions, key=lambda decision: decision.edge.margin)[: len(kept)]
        assert {sample.id for sample in kept} == {decision.sample_id for decision in hardest}
        assert sorted((sample.value for sample in kept), reverse=True) == [sample.value for sample in kept]
        # What is worth less than everything in there is turned away, and the answer says so.
        easy_case = plant.edge.inspect("solder", picture(0.455, SIDE, seed=1))
        assert easy_case.decided == "edge-degraded" and not easy_case.spooled
        assert "nothing in it is worth less" in easy_case.reason
        plant.edge.wait_for(lambda: health(plant, "spool.full"), "to say that the spool is full")
        plant.edge.wait_for(lambda: evicted(plant) == 20 - len(kept) + 1, "to count what it dropped")
        assert plant.worker_pid == worker
        plant.cloud.start()
        check_recovered(plant, {sample.id for sample in kept})


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 48 MiB that is the device's state directory."""
    place = Path(tempfile.mkdtemp(prefix="e2e-"))
    mount = place / "edge"
    mount.mkdir()
    try:
        with mounted(mount, 48):
            yield place
    finally:
        shutil.rmtree(place)


def test_a_really_full_disk_costs_only_samples_and_heals_by_itself(template: Template, small_disk: Path) -> None:
    config = "[spool]\nquota_mb = 64\nreserve_mb = 1\n"
    with Plant(template, config=config, place=small_disk) as plant:
        plant.start_edge(plant.reserve(), wait_for_link=False)
        disk, supervisor, worker = small_disk / "edge", plant.edge.pid, plant.worker_pid
        before = line(plant, 30)  # more than the megabyte that is kept free for others
        assert all(decision.spooled for decision in before)
        hog = fill(disk)

        during = line(plant, 8, first=100)
        kept = {sample.id for sample in waiting(plant)}
        for decision in during:
            assert decision.spooled or "not stored" in decision.reason or "being stored" in decision.reason
        assert {decision.sample_id for decision in during if decision.spooled} & kept, "harder ones replaced others"
        lost = [decision.edge.margin for decision in before if decision.sample_id not in kept]
        stayed = [decision.edge.margin for decision in before if decision.sample_id in kept]
        assert lost and stayed and min(lost) >= max(stayed), "the least valuable went first"
        assert (plant.edge.pid, plant.worker_pid) == (supervisor, worker)
        assert plant.edge.status().worker.restarts == 0
        plant.edge.wait_for(lambda: health(plant, "spool.full"), "to say that the spool is full")

        hog.unlink()
        after = line(plant, 4, first=200)
        assert all(decision.spooled for decision in after), "no restart, no command"
        waited = {sample.id for sample in waiting(plant)}
        assert {decision.sample_id for decision in after} <= waited
        plant.cloud.start()
        check_recovered(plant, waited)


@pytest.mark.parametrize("end", ["power", "restart"])
def test_a_device_that_starts_on_a_full_disk_inspects(template: Template, small_disk: Path, end: str) -> None:
    """The ballast is used up and others take every freed block; then the power fails, or somebody restarts the daemon.

    Not even a database can be opened as usual. The device answers all the same; with room again it finds what waited.
    """
    config = "[spool]\nquota_mb = 64\nreserve_mb = 1\n"
    with Plant(template, config=config, place=small_disk) as plant:
        disk = small_disk / "edge"
        plant.start_edge(plant.reserve(), wait_for_link=False)
        before = line(plant, 4)
        assert all(decision.spooled for decision in before)
        fill(disk)
        line(plant, 2, first=100)  # whoever can still give room has given it
        kept = {sample.id for sample in waiting(plant)}
        assert kept == {decision.sample_id for decision in before}
        fill(disk)
        if end == "power":
            plant.kill_edge()
        else:
            plant.edge.stop()
        assert not (plant.edge.state_dir / "spool" / "ballast").exists()
        hog = fill(disk)
        plant.edge.start()
        for brightness, label in ((EASY, "dark"), (0.9, "bright")):
            decision = plant.send("solder", brightness)
            # Without its memory the gate trusts nobody, so it may have wanted to ask; the answer is the local one.
            assert decision.decided in ("edge", "edge-degraded") and decision.label == label
        hog.unlink()
        wait_for(lambda: plant.edge.inspect("solder", picture(0.499, SIDE, seed=9)).spooled, 60.0, 0.5)
        waited = {sample.id for sample in waiting(plant)}
        assert kept <= waited, "what waited still waits"
        plant.cloud.start()
        check_recovered(plant, waited)
