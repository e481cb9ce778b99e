"""cloudd is killed in every step of a round, and started again: the job ends with the very same model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.messages.federation import Invitation
from edgekit.packages import Package
from tests.support.federation import Killed, Plant, begin, definition, site
from tests.support.federation_devices import Device, expected, fleet

SECURE = (
    "federation.opened", "federation.keys:4", "federation.keys.closing", "federation.keys.closed",
    "federation.shares:2", "federation.shares.closed", "federation.held:4", "federation.held.closed",
    "federation.masked:2", "federation.masked:4", "federation.masked.closing", "federation.masked.closed",
    "federation.votes:3", "federation.votes.closing", "federation.votes.closed", "federation.reveals:2",
    "federation.unmasked", "federation.sum", "federation.published",
)  # fmt: skip
PLAIN = ("federation.plain.vector:2", "federation.plain.closed", "federation.sum", "federation.published")


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Killed]:
    """Storage is in tmp_path/cloudd."""
    found = Killed(tmp_path / "cloudd")
    yield found
    found.stop()


@pytest.mark.parametrize(("secure", "points"), [(True, SECURE), (False, PLAIN)])
async def test_a_job_ends_with_the_same_model_when_cloudd_is_killed_in_every_step(
    tmp_path: Path, package: Package, killed: Killed, secure: bool, points: tuple[str, ...]
) -> None:
    plant, rounds = Plant(4), 8
    async with site(tmp_path / "cloudd") as (federation, _):
        text = definition(plant if secure else None, least=4, rounds=rounds)
        rosters = [plant.roster(tmp_path / "r")] if secure else []
        job = (await begin(federation, package, text, rosters)).id
    devices = [Device(i, key, f"http://127.0.0.1:{killed.port}") for i, key in enumerate(plant.devices)]
    keeping = asyncio.create_task(killed.keep_up(points))
    running = asyncio.create_task(fleet(devices, job, {"north": plant.public}))
    done, _ = await asyncio.wait({running, keeping}, timeout=100, return_when=asyncio.FIRST_COMPLETED)
    keeping.cancel()
    running.cancel()
    assert done == {running}, f"it hangs after {killed.deaths} deaths, before {points[killed.deaths :][:1]}: {keeping}"
    assert killed.deaths == len(points), f"never reached: {points[killed.deaths]}"
    assert {(one.outcome, one.version) for one in running.result()} == {("finished", rounds)}
    wanted = expected(devices[0], devices[0].start, [[0, 1, 2, 3]] * rounds)
    for device in devices:
        assert np.array_equal(device.state.model, wanted.model)


BEGINNING = """
import asyncio, sys
from pathlib import Path
from edgekit.packages import open_package
from tests.support.federation import begin, definition, site

async def main() -> None:
    async with site(Path(sys.argv[1])) as (federation, _):
        await begin(federation, open_package(Path(sys.argv[2])), definition(None, least=2, rounds=1), [])

asyncio.run(main())
"""


@pytest.mark.parametrize(("point", "begun"), [("federation.files", False), ("federation.started", True)])
async def test_a_job_that_was_being_started_when_cloudd_was_killed_is_there_or_not(
    tmp_path: Path, package: Package, point: str, begun: bool
) -> None:
    command = [sys.executable, "-c", BEGINNING, str(tmp_path / "cloudd"), str(package.root)]
    child = await asyncio.create_subprocess_exec(*command, env={**os.environ, "EDGED_CRASH_AT": point})
    assert await asyncio.wait_for(child.wait(), 60) == -signal.SIGKILL
    async with site(tmp_path / "cloudd") as (federation, address):
        rows = await federation.store.jobs()
        assert len(rows) == begun
        row = rows[0] if begun else await begin(federation, package, definition(None, least=2, rounds=1), [])
        devices = [Device(i, key, address) for i, key in enumerate(Plant(2).devices)]
        ends = await asyncio.wait_for(fleet(devices, row.id, {}), 30)
        assert {(one.outcome, one.version) for one in ends} == {("finished", 1)}


async def test_a_job_whose_cloudd_is_killed_at_its_end_is_packed_when_it_is_started_again(
    tmp_path: Path, package: Package, killed: Killed
) -> None:
    devices = [Device(i, key, f"http://127.0.0.1:{killed.port}") for i, key in enumerate(Plant(2).devices)]
    async with site(tmp_path / "cloudd") as (federation, _):
        job = (await begin(federation, package, definition(None, least=2, rounds=1), [])).id
    killed.start("federation.packing")
    running = asyncio.create_task(fleet(devices, job, {}))
    while killed.alive:
        await asyncio.sleep(0.02)
    async with site(tmp_path / "cloudd", killed.port) as (federation, _):
        ends = await asyncio.wait_for(running, 20)
        assert {(one.outcome, one.version) for one in ends} == {("finished", 1)}
        while (row := await federation.find(job)).ended_at is None:
            await asyncio.sleep(0.05)
        assert (row.status, row.result) == ("finished", "small@1-job")
        assert await federation.registry.resolve("small@1-job") is not None


async def test_a_round_whose_vectors_were_lost_is_void_and_held_again(tmp_path: Path, package: Package) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    devices = [Device(i, key, f"http://127.0.0.1:{port}") for i, key in enumerate(Plant(3).devices)]
    async with site(tmp_path / "cloudd", port) as (federation, _):
        row = await begin(federation, package, definition(None, least=3, most=3, rounds=1), [])
        first = asyncio.create_task(fleet(devices[:2], row.id, {}))
        async with devices[2]:
            await devices[2].open(row.id, {})
            assert isinstance(await devices[2].next(), Invitation)
        while not any(cohort.delivered for run in federation.runs.values() for cohort in run.cohorts.values()):
            await asyncio.sleep(0.01)
    for path in (tmp_path / "cloudd" / "federation").glob("*/round-0/*.vector"):
        path.unlink()
    async with site(tmp_path / "cloudd", port) as (federation, _):
        last = asyncio.create_task(fleet(devices[2:], row.id, {}))
        ends = await asyncio.wait_for(asyncio.gather(first, last), 30)
        assert {one.outcome for group in ends for one in group} == {"finished"}
        rounds = await federation.store.rounds(row.id)
        assert [(one.number, one.outcome) for one in rounds] == [(1, "summed"), (0, "void")]
        assert "is missing" in rounds[1].reason


async def test_a_stopped_cloudd_goes_on_inside_the_round(tmp_path: Path, package: Package) -> None:
    plant = Plant(4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    devices = [Device(i, key, f"http://127.0.0.1:{port}") for i, key in enumerate(plant.devices)]
    async with site(tmp_path / "cloudd", port) as (federation, _):
        text = definition(plant, least=4, rounds=1)
        row = await begin(federation, package, text, [plant.roster(tmp_path / "r")])
        running = asyncio.create_task(fleet(devices, row.id, {"north": plant.public}))
        while not any(cohort.steps for run in federation.runs.values() for cohort in run.cohorts.values()):
            await asyncio.sleep(0.001)
    async with site(tmp_path / "cloudd", port) as (federation, _):
        ends = await asyncio.wait_for(running, 30)
        assert {one.outcome for one in ends} == {"finished"}
        rounds = await federation.store.rounds(row.id)
        assert [(one.number, one.outcome) for one in rounds] == [(0, "summed")]
    wanted = expected(devices[0], devices[0].start, [[0, 1, 2, 3]])
    assert np.array_equal(devices[0].state.model, wanted.model)
