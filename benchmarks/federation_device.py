"""One device of `benchmarks.federation`: the real client of edged in a process of its own, but for the training.

Its updates are made up, so that a round's time is that of keys, masks, disks and the wire. The order is one JSON
document on stdin; the process ends with its job, and says how much CPU time
that took.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.collab.sealing import Kek
from edged.federation.book import AUDIT, Book
from edged.federation.chain import Chain
from edged.federation.cloud import HttpCloud
from edged.federation.files import JobFolder
from edged.federation.participant import Participant, Places
from edged.federation.settings import Federation
from edged.federation.shared import Shared
from edged.federation.sitting import Signing
from edged.federation.updates import SourceError
from edged.link.http import open_session
from edgekit.federated.strategy import LocalResult, LocalTerm, State
from edgekit.identity import IdentityStore, client_context
from edgekit.messages.federation import FederatedJob
from edgekit.secagg.roster import node_of
from edgekit.secagg.signatures import signer


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Which device of which job."""

    place: int
    state_dir: str
    url: str
    job: str
    plants: dict[str, str]


class MadeUp:
    """A Source whose update is there at once; it differs with the device and the version."""

    samples = 64

    def __init__(self, place: int, size: int) -> None:
        self._update = np.random.default_rng(place).standard_normal(size, np.float32) * np.float32(1e-3)

    def train(self, state: State, term: LocalTerm, version: int) -> LocalResult:
        """See Source."""
        delta = self._update * np.float32(1 / (1 + version))
        return LocalResult(delta, samples=self.samples, steps=4, learning_rate=0.01)

    def evaluate(self, state: State) -> tuple[NDArray[np.int64], float]:
        """See Source."""
        raise SourceError("made-up updates have nothing to be judged by")

    def stop(self) -> None:
        """See Source."""


def _source(place: int, job: FederatedJob, folder: JobFolder, shared: Shared) -> MadeUp:
    return MadeUp(place, shared.rules.strategy.layout.size)


async def _run(order: Order) -> None:
    state = Path(order.state_dir)
    store = IdentityStore(state / "identity")
    identity = store.current()
    assert identity is not None
    context = client_context(identity.authority_path, identity.certificate_path, identity.key_path)
    kek = Kek.open(state / "keys" / "kek", None)
    with closing(Book(state)) as book, closing(Chain(book.folder / AUDIT)) as chain:
        folder = JobFolder(
            book.folder / "jobs",
            order.job,
            lambda data, name: kek.seal(data, store.device_id, name),
            lambda data, name: kek.unseal(data, store.device_id, name),
        )
        async with open_session(context) as session:
            await Participant(
                order.job,
                HttpCloud(session, order.url),
                lambda job, place, shared: _source(order.place, job, place, shared),
                identity=Signing(node_of(store.key.public_key()), store.device_id, signer(store.key)),
                policy=Federation(enabled=True, plain=True, min_cohort=3, plants=order.plants),
                places=Places(folder, book, chain),
            ).run()


if __name__ == "__main__":
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    before = time.process_time()
    asyncio.run(_run(order))
    print(time.process_time() - before)
