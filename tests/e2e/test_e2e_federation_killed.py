"""edged's own client in a job whose cloudd is killed in each step: nobody contributes twice, no round is lost."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import aiohttp
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from edged.federation.book import Book
from edged.federation.chain import Chain
from edged.federation.cloud import HttpCloud
from edged.federation.files import JobFolder
from edged.federation.participant import Participant, Places
from edged.federation.settings import Federation
from edged.federation.sitting import Signing
from edgekit.federated.strategy import LocalResult, LocalTerm, State
from edgekit.identity import device_id
from edgekit.messages.federation import Over
from edgekit.secagg.roster import node_of
from edgekit.secagg.signatures import signer
from tests.support.federation import Killed, Plant, begin, definition, site, small_package
from tests.support.federation_devices import Update, moved, seeded

POINTS = (
    "federation.keys:4", "federation.shares:2", "federation.held.closed", "federation.masked:2",
    "federation.votes:3", "federation.reveals:2", "federation.published",
)  # fmt: skip


class MadeUp:
    """A Source whose updates a test can make again."""

    samples = 64

    def __init__(self, index: int, update: Update) -> None:
        self._index, self._update = index, update

    def train(self, state: State, term: LocalTerm, version: int) -> LocalResult:
        return LocalResult(self._update(self._index, version), samples=10, steps=5, learning_rate=0.01)

    def evaluate(self, state: State) -> tuple[NDArray[np.int64], float]:
        return np.ones((2, 2), np.int64), 0.5

    def stop(self) -> None:
        pass


async def _edge(
    index: int, key: ec.EllipticCurvePrivateKey, url: str, job: str, plant: Plant, root: Path
) -> tuple[Participant, Over]:
    root.mkdir()
    name = device_id(key.public_key())
    with closing(Book(root)) as book, closing(Chain(root / "audit")) as chain:
        folder = JobFolder(root / "jobs", job, lambda data, _: data, lambda data, _: data)
        async with aiohttp.ClientSession(headers={"Device": name}) as session:
            participant = Participant(
                job,
                HttpCloud(session, url),
                lambda _job, _folder, shared: MadeUp(index, seeded(shared.rules.strategy.layout.size)),
                identity=Signing(node_of(key.public_key()), name, signer(key)),
                policy=Federation(enabled=True, min_cohort=3, plants={"north": plant.public}),
                places=Places(folder, book, chain),
                settle_s=0.1,
            )
            return participant, await participant.run()


async def test_edges_finish_the_job_with_the_exact_model(tmp_path: Path) -> None:
    plant, rounds = Plant(4), 3
    package = small_package(tmp_path / "package")
    async with site(tmp_path / "cloudd") as (federation, _):
        text = definition(plant, least=4, rounds=rounds)
        job = (await begin(federation, package, text, [plant.roster(tmp_path / "r")])).id
    killed = Killed(tmp_path / "cloudd")
    keeping = asyncio.create_task(killed.keep_up(POINTS))
    url = f"http://127.0.0.1:{killed.port}"
    running = asyncio.gather(
        *(_edge(i, key, url, job, plant, tmp_path / f"device-{i}") for i, key in enumerate(plant.devices))
    )
    try:
        done, _ = await asyncio.wait({running, keeping}, timeout=90, return_when=asyncio.FIRST_COMPLETED)
        assert done == {running}, f"it hangs after {killed.deaths} deaths: {keeping}"
        found = running.result()
    finally:
        keeping.cancel()
        running.cancel()
        killed.stop()
    assert killed.deaths == len(POINTS)
    assert [(over.outcome, over.version) for _, over in found] == [("finished", rounds)] * 4
    first = found[0][0].shared
    wanted = moved(first.rules, package, [[0, 1, 2, 3]] * rounds)
    for participant, _ in found:
        assert np.array_equal(participant.shared.state.model, wanted.model)
    async with site(tmp_path / "cloudd") as (federation, _):
        outcomes = [one.outcome for one in await federation.store.rounds(job)]
    assert outcomes == ["summed"] * rounds
