"""A disk without room at cloudd: the job waits and says so, cloudd stays, and everything goes on when there is room."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
import pytest

from cloudd.federation import continuing, packing, vectors, views
from cloudd.federation import service as service_module
from cloudd.federation.child import PrepareOrder, ask
from cloudd.federation.cohort import CohortResult
from cloudd.federation.errors import DiskError, FederationError
from cloudd.federation.lineage import Merged
from cloudd.federation.publishing import Publisher
from cloudd.federation.service import Federation
from cloudd.storage import StorageError
from edgekit.messages.federation import Invitation, Over, Publication
from edgekit.packages import Package
from tests.support.disk import fill, mounted
from tests.support.federation import Plant, begin, definition, site
from tests.support.federation_devices import Device, expected, fleet

Here = tuple[Federation, str]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 24 MiB."""
    place = Path(tempfile.mkdtemp(prefix="fl-disk-"))
    try:
        with mounted(place, 24):
            yield place
    finally:
        place.rmdir()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "RESERVE", 0)
    monkeypatch.setattr(service_module, "_RETRY_S", 0.2)
    for module in ("job", "journal"):
        name = "_STORAGE_S" if module == "job" else "_RETRY_S"
        monkeypatch.setattr(f"cloudd.federation.{module}.{name}", 0.2)


@contextlib.asynccontextmanager
async def running(devices: list[Device], job: str, plants: dict[str, str]) -> AsyncIterator[asyncio.Task[list[Over]]]:
    task = asyncio.create_task(fleet(devices, job, plants))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def doing(federation: Federation, says: str, name: str = "job") -> str:
    """What people are told, once it says this."""
    async with asyncio.timeout(20):
        while says not in (told := (await views.detail(federation, name)).job.doing):
            await asyncio.sleep(0.02)
    return told


@pytest.mark.parametrize("secure", [True, False])
async def test_a_round_waits_for_room_says_so_and_ends_with_the_exact_sum(
    small_disk: Path, package: Package, tmp_path: Path, secure: bool
) -> None:
    """The disk fills when everybody is invited, so messages, vectors, sum and state find no room, one after another."""
    plant = Plant(3)
    plants = {"north": plant.public} if secure else {}
    async with site(small_disk / "cloudd") as (federation, url):
        text = definition(plant if secure else None, least=3, rounds=2, most=3)
        row = await begin(federation, package, text, [plant.roster(tmp_path / "r")] if secure else [])
        devices = [Device(index, key, url) for index, key in enumerate(plant.devices)]
        first = devices[0]
        async with first:
            await first.open(row.id, plants)
            async with running(devices[1:], row.id, plants) as others:
                turn = await first.next()
                while not isinstance(turn, Invitation):
                    turn = await first.next()
                hog = fill(small_disk)
                mine = asyncio.create_task(first.run(row.id, plants))
                try:
                    told = await doing(federation, "waiting for storage: ")
                    assert "round 0" in told and ("full" in told or "No space left" in told)
                    with pytest.raises(FederationError, match="cannot begin: No space left on device"):
                        await begin(federation, package, definition(None, name="other"), [])
                    assert not others.done() and not mine.done()
                    await asyncio.sleep(0.5)
                    hog.unlink()
                    async with asyncio.timeout(60):
                        ends = [await mine, *await others]
                finally:
                    mine.cancel()
        assert {(one.outcome, one.version) for one in ends} == {("finished", 2)}
        wanted = expected(first, first.start, [[0, 1, 2]] * 2)
        for device in devices:
            np.testing.assert_array_equal(device.state.model, wanted.model)
        detail = await views.detail(federation, row.id)
        assert [one.outcome for one in detail.rounds] == ["summed", "summed"]
        assert "storage" not in detail.job.doing


async def test_a_round_that_is_void_for_want_of_room_says_so_and_the_next_one_gives_the_sum(
    small_disk: Path, package: Package
) -> None:
    plant = Plant(2)
    async with site(small_disk / "cloudd") as (federation, url):
        text = definition(None, least=2, rounds=1, most=2).replace("train = 61.0", "train = 2.0")
        row = await begin(federation, package, text, [])
        devices = [Device(index, key, url) for index, key in enumerate(plant.devices)]
        async with devices[0]:
            await devices[0].open(row.id, {})
            async with running(devices[1:], row.id, {}) as other:
                turn = await devices[0].next()
                assert isinstance(turn, Invitation)
                hog = fill(small_disk)
                status = await _put(url, row.id, turn.number, devices[0])
                assert status == 503, "it may be sent again"
                await asyncio.sleep(2.2)  # the time for its vector is over
                hog.unlink()
                async with asyncio.timeout(60):
                    ends = [await devices[0].run(row.id, {}), *await other]
        assert {one.outcome for one in ends} == {"finished"}
        rounds = (await views.detail(federation, row.id)).rounds
        assert [one.outcome for one in rounds] == ["summed", "void"]
        assert "devices sent a vector; 2 are needed; storage: No space left on device" in rounds[-1].reason


async def _put(url: str, job: str, number: int, device: Device) -> int:
    place = f"{url}/v1/federation/jobs/{job}/rounds/{number}/vector?offset=0"
    async with (
        aiohttp.ClientSession(headers={"Device": device.id}) as session,
        session.put(place, data=b"x" * 4096) as reply,
    ):
        return reply.status


async def test_a_merged_model_is_packed_when_there_is_room_for_it(
    small_disk: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums are what a job was for: the disk must not cost them at the very end."""
    refused = asyncio.Event()
    right = packing.pack

    async def pack(run: object, registry: object) -> str:
        try:
            return await right(run, registry)  # type: ignore[arg-type]
        except (DiskError, StorageError, OSError):
            refused.set()
            raise

    monkeypatch.setattr(packing, "pack", pack)
    async with site(small_disk / "cloudd") as (federation, url):
        row = await begin(federation, package, definition(None, least=2, rounds=1, most=2), [])
        devices = [Device(index, key, url) for index, key in enumerate(Plant(2).devices)]
        hog: list[Path] = []
        insist = federation._insist

        async def full_before_packing(row: object, status: str, *rest: str) -> None:
            await insist(row, status, *rest)  # type: ignore[arg-type]
            if status == "packing":
                hog.append(fill(small_disk))

        monkeypatch.setattr(federation, "_insist", full_before_packing)
        async with asyncio.timeout(60):
            ends = await fleet(devices, row.id, {})
            assert {one.outcome for one in ends} == {"finished"}
            await refused.wait()
            told = await doing(federation, "waiting for storage")
            assert told.startswith("the merged model is being packed")
            hog[0].unlink()
            while (found := await federation.find(row.id)).ended_at is None:
                await asyncio.sleep(0.05)
        assert (found.status, found.result) == ("finished", "small@1-job")


async def test_a_job_that_cannot_be_taken_up_for_want_of_room_begins_later_and_its_devices_are_not_told_that_it_ended(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = Plant(2)
    async with site(tmp_path / "cloudd") as (federation, _):
        row = await begin(federation, package, definition(None, least=2, rounds=1, most=2), [])
    room = False
    right = continuing.caught_up

    async def caught_up(*args: object) -> object:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))
        return await right(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(continuing, "caught_up", caught_up)
    async with site(tmp_path / "cloudd") as (federation, url):
        told = await doing(federation, "waiting for storage")
        assert told == "running; waiting for storage: No space left on device"
        body = msgspec.json.encode({"version": 0, "state": "0" * 64})
        device = Device(0, plant.devices[0], url)
        async with (
            aiohttp.ClientSession(headers={"Device": device.id}) as session,
            session.post(f"{url}/v1/federation/jobs/{row.id}/next", data=body) as reply,
        ):
            assert (reply.status, reply.headers["Retry-After"]) == (503, "10")
        room = True
        devices = [Device(index, key, url) for index, key in enumerate(plant.devices)]
        ends = await asyncio.wait_for(fleet(devices, row.id, {}), 60)
        assert {one.outcome for one in ends} == {"finished"}


async def test_a_job_that_cannot_be_stopped_for_want_of_room_goes_on(
    here: Here, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, url = here
    row = await begin(federation, package, definition(None, least=2, rounds=1, most=2), [])

    async def full(*_: object) -> None:
        raise StorageError("the database failed: database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(federation.store, "set_status", full)
        with pytest.raises(StorageError):
            await federation.stop("job")
    devices = [Device(index, key, url) for index, key in enumerate(Plant(2).devices)]
    ends = await asyncio.wait_for(fleet(devices, row.id, {}), 60)
    assert {one.outcome for one in ends} == {"finished"}


async def test_a_child_without_room_says_so_in_another_way_than_one_that_refuses(tmp_path: Path) -> None:
    child = tmp_path / "fl_child.py"
    child.write_text(
        "import sys\n"
        "from cloudd.federation.child import PrepareOrder, Prepared, carry_out\n"
        "def work(order):\n"
        "    if order.folder == 'full': raise OSError(28, 'No space left on device', '/x')\n"
        "    raise ValueError('never')\n"
        "sys.exit(carry_out(PrepareOrder, work, lambda error: Prepared(error=error), (ValueError,)))\n"
    )
    order = PrepareOrder(base="", definition="", folder="full")
    script = [sys.executable, str(child)]
    for folder, status, says in (("full", 75, b"/x: No space left on device"), ("other", 1, b"never")):
        given = msgspec.json.encode(msgspec.structs.replace(order, folder=folder))
        done = subprocess.run(script, input=given, capture_output=True)
        assert done.returncode == status and says in done.stdout
    with pytest.raises(FederationError, match="ended with status"):
        await ask("cloudd.federation.nodes", order, Merged, 20.0)


async def test_the_file_of_a_sum_that_leads_nowhere_is_not_kept(here: Here, package: Package) -> None:
    federation, url = here
    row = await begin(federation, package, definition(None, least=2, rounds=1, most=2), [])
    devices = [Device(index, key, url) for index, key in enumerate(Plant(2).devices)]
    async with running(devices, row.id, {}):
        run, store = federation.runs[row.id], federation.store
        async with asyncio.timeout(20):
            while not run.cohorts:
                await asyncio.sleep(0.01)
        (cohort,) = run.cohorts.values()
        words = np.arange(cohort.vectors.size // 4, dtype=np.uint32)
        publisher = Publisher(run.progress, store)
        await publisher.keep({cohort.row.number: CohortResult(words, (devices[0].node, devices[1].node))})
        (sha256,) = publisher._kept.values()
        assert await store.blobs.exists(sha256)
        following = await publisher.next_state(
            [cohort], {cohort.row.number: CohortResult(words, (devices[0].node, devices[1].node))}
        )
        assert isinstance(following, str) and "the sum cannot be used" in following
        await publisher.let_go()
        assert not await store.blobs.exists(sha256)
        async with asyncio.timeout(30):
            while row.id in federation.runs:
                await asyncio.sleep(0.05)
        async with Device(0, devices[0].key, url) as late:
            await late.open(row.id, {})
            turn = await late.next()
            assert isinstance(turn, Publication)
            (one,) = turn.rounds[0].sums
            assert await store.blobs.exists(one.sha256), "a published one stays"
