"""Participants against cloudd's own half over HTTP: the same bits as the plain sum, whatever the connection does."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
import pytest
from fl_stage import ALLOWED, MadeUp

from cloudd.federation.service import Federation as CloudFederation
from edged.federation.book import Book
from edged.federation.chain import Chain
from edged.federation.cloud import HttpCloud, Rejected
from edged.federation.files import JobFolder
from edged.federation.participant import Participant, Places
from edged.federation.shared import Shared
from edged.federation.sitting import Signing
from edgekit.identity import device_id
from edgekit.messages.federation import FederatedJob, Over
from edgekit.packages import Package
from edgekit.secagg import signatures
from edgekit.secagg.roster import node_of
from tests.support.federation import Plant, begin, definition, site, small_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return small_package(tmp_path_factory.mktemp("model") / "small")


class Edge:
    def __init__(self, root: Path, plant: Plant, place: int, url: str, job: str, plain: bool) -> None:
        key = plant.devices[place]
        self.root, self.url, self.job, self.key, self.place = root / str(place), url, job, key, place
        self.policy = msgspec.structs.replace(ALLOWED, plain=plain, plants={"north": plant.public})
        self.id = device_id(key.public_key())
        self.state: np.ndarray | None = None
        self.samples = 40

    async def run(self) -> Over:
        book = Book(self.root)
        folder = JobFolder(book.folder / "jobs", self.job, lambda data, name: data, lambda data, name: data)
        places = Places(folder, book, Chain(book.folder / "audit.jsonl"))

        def source(job: FederatedJob, folder: JobFolder, shared: Shared) -> MadeUp:
            return MadeUp(self.place, shared.rules.strategy.layout.size, self.samples)

        identity = Signing(node_of(self.key.public_key()), self.id, signatures.signer(self.key))
        async with aiohttp.ClientSession(headers={"Device": self.id}) as session:
            participant = Participant(
                self.job, HttpCloud(session, self.url), source, identity=identity, policy=self.policy, places=places,
                settle_s=0.05,
            )  # fmt: skip
            try:
                return await participant.run()
            finally:
                places.chain.close()
                book.close()
                with contextlib.suppress(AttributeError):
                    self.state = participant.shared.state.model


async def _job(
    federation: CloudFederation, url: str, package: Package, folder: Path, secure: bool, plan: str = ""
) -> tuple[Plant, list[Edge]]:
    folder.mkdir()
    plant = Plant(4)
    text = definition(plant if secure else None, plan, least=4, rounds=3, name=folder.name.lower())
    row = await begin(federation, package, text, [plant.roster(folder / "r")] if secure else [])
    return plant, [Edge(folder, plant, place, url, row.id, not secure) for place in range(4)]


async def test_secure_plain_and_cloudd_hold_the_same_bits(package: Package, tmp_path: Path) -> None:
    found = []
    async with site(tmp_path / "cloudd") as (federation, url):
        for secure in (True, False):
            _, devices = await _job(federation, url, package, tmp_path / str(secure), secure)
            async with asyncio.timeout(50):
                ends = await asyncio.gather(*(one.run() for one in devices))
            assert [(one.outcome, one.version) for one in ends] == [("finished", 3)] * 4
            for one in devices:
                np.testing.assert_array_equal(one.state, devices[0].state)
            found.append(devices[0].state)
            if secure:
                for path in (tmp_path / "True").glob("*/federation/audit.jsonl"):
                    assert path.read_text().count('"summed"') == 3
    np.testing.assert_array_equal(*found)


class Cut:
    """A TCP relay that drops every connection after so many bytes from the device (`after`) or to it (`down`)."""

    def __init__(self, port: int, after: list[int], down: list[int] | None = None) -> None:
        self._target, self._after, self._down, self.port = port, after, down or [], 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, up = await asyncio.open_connection("127.0.0.1", self._target)
        limit, most = (one.pop(0) if one else 1 << 40 for one in (self._after, self._down))

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, most: int) -> None:
            done = 0
            with contextlib.suppress(ConnectionError):
                while data := await source.read(1024):
                    done += len(data)
                    if done > most:
                        break
                    sink.write(data)
                    await sink.drain()
            writer.close()
            up.close()

        await asyncio.gather(copy(reader, up, limit), copy(there, writer, most))


@pytest.mark.parametrize("secure", [True, False])
async def test_a_connection_that_breaks_in_every_step_costs_nothing_but_time(
    package: Package, tmp_path: Path, secure: bool
) -> None:
    async with site(tmp_path / "cloudd") as (federation, url):
        _, devices = await _job(federation, url, package, tmp_path / "job", secure)
        relay = Cut(int(url.rpartition(":")[2]), [400, 900, 1500, 2500, 4000, 5000, 6000, 7000, 8000, 9000])
        await relay.start()
        devices[0].url = f"http://127.0.0.1:{relay.port}"
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*(one.run() for one in devices))
        relay.stop()
        assert [(one.outcome, one.version) for one in ends] == [("finished", 3)] * 4
        for one in devices:
            np.testing.assert_array_equal(one.state, devices[0].state)


async def test_an_asynchronous_job_moves_every_device_alike(package: Package, tmp_path: Path) -> None:
    plan = '[plan]\nmax_age = 2\n[plan.strategy]\nstrategy = "fedavg"\nclip = 10.0\n'
    async with site(tmp_path / "cloudd") as (federation, url):
        _, devices = await _job(federation, url, package, tmp_path / "job", True, plan)
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*(one.run() for one in devices))
        assert [(one.outcome, one.version) for one in ends] == [("finished", 3)] * 4
        for one in devices:
            np.testing.assert_array_equal(one.state, devices[0].state)


async def test_a_file_comes_in_parts_and_is_whole_or_absent(package: Package, tmp_path: Path) -> None:
    async with site(tmp_path / "cloudd") as (federation, url):
        _, (device, *_) = await _job(federation, url, package, tmp_path / "job", True)
        relay = Cut(int(url.rpartition(":")[2]), [], [2000, 9000, 9000])
        await relay.start()
        async with aiohttp.ClientSession(headers={"Device": device.id}) as session:
            cloud = HttpCloud(session, f"http://127.0.0.1:{relay.port}")
            job = await HttpCloud(session, url).job(device.job)
            entry = max(job.files, key=lambda one: one.size)
            path = tmp_path / "files" / "weights"
            await cloud.fetch(job.id, entry, path)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
            assert [one.name for one in path.parent.iterdir()] == ["weights"]
            wrong = msgspec.structs.replace(entry, size=entry.size - 1)
            with pytest.raises(Rejected):
                await cloud.fetch(job.id, wrong, tmp_path / "wrong")
            assert not (tmp_path / "wrong").exists()
        relay.stop()
