"""Two tiers on loopback without TLS: an upper cloudd, sites with a cloudd each, their leaders and devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from fl_stage import ALLOWED
from numpy.typing import NDArray

from cloudd.federation import sites
from cloudd.federation.service import Federation as CloudFederation
from edged.federation.book import Book
from edged.federation.chain import Chain
from edged.federation.cloud import HttpCloud
from edged.federation.files import JobFolder
from edged.federation.lead import speak
from edged.federation.notes import JobNote
from edged.federation.participant import Participant, Places
from edged.federation.settings import Federation
from edged.federation.shared import Shared
from edged.federation.site import SiteCloud
from edged.federation.sitting import Signing
from edgekit.federated.strategy import LocalResult, LocalTerm, State
from edgekit.identity import device_id, generate_key
from edgekit.messages.federation import FederatedJob, Over
from edgekit.packages import Package
from edgekit.secagg import signatures
from edgekit.secagg.roster import node_of
from tests.support.federation import Plant, begin, definition

PLAN = """[plan.strategy]
strategy = "fedavg"
clip = 10.0
weighting = {most = 8, samples = 1000}
"""
"""Each device weighs 1, and each site as much as its devices."""


def update_of(index: int, version: int, size: int) -> NDArray[np.float32]:
    return (np.random.default_rng([index, version]).standard_normal(size) * 0.01).astype(np.float32)


class MadeUp:
    """A Source whose updates a test can make again."""

    samples = 64

    def __init__(self, index: int, size: int) -> None:
        self._index, self._size = index, size

    def train(self, state: State, term: LocalTerm, version: int) -> LocalResult:
        delta = update_of(self._index, version, self._size)
        return LocalResult(delta=delta, samples=10, steps=5, learning_rate=0.01)

    def evaluate(self, state: State) -> tuple[NDArray[np.int64], float]:
        return np.array([[self._index + 1, 1], [0, 2]], np.int64), 0.5

    def stop(self) -> None:
        pass


class One:
    """A device that goes on where it was when it is run again. `index` says which updates it makes."""

    def __init__(self, root: Path, key: ec.EllipticCurvePrivateKey, index: int, plants: dict[str, str]) -> None:
        self.root, self.key, self.index = root, key, index
        self.policy: Federation = msgspec.structs.replace(ALLOWED, plants=plants, max_weight=8)
        self.id, self.node = device_id(key.public_key()), node_of(key.public_key())
        self.model: NDArray[np.float32] | None = None
        self.note: JobNote | None = None

    @property
    def audit(self) -> Path:
        return self.root / "federation" / "audit.jsonl"

    async def learn(self, url: str, job: str) -> Over:
        """Take part with its own updates."""

        def source(_: FederatedJob, folder: JobFolder, shared: Shared) -> MadeUp:
            return MadeUp(self.index, shared.rules.strategy.layout.size)

        async with self._places(job) as at, aiohttp.ClientSession(headers={"Device": self.id}) as session:
            participant = Participant(
                job, HttpCloud(session, url), source, identity=self._signing(), policy=self.policy, places=at,
                settle_s=0.05,
            )  # fmt: skip
            return await participant.run()

    async def lead(self, url: str, job: str, upper: str) -> Over:
        """Take part in the upper job for the site whose cloudd is at `url`."""
        async with self._places(job) as at, aiohttp.ClientSession(headers={"Device": self.id}) as session:
            clouds = SiteCloud(session, url), HttpCloud(session, upper)
            return await speak(job, *clouds, self._signing(), self.policy, at, settle_s=0.05)

    def _signing(self) -> Signing:
        return Signing(self.node, self.id, signatures.signer(self.key))

    @contextlib.asynccontextmanager
    async def _places(self, job: str):  # type: ignore[no-untyped-def]
        with closing(Book(self.root)) as book, closing(Chain(self.audit)) as chain:
            folder = JobFolder(book.folder / "jobs", job, lambda data, _: data, lambda data, _: data)
            try:
                yield Places(folder, book, chain)
            finally:
                self.note = book.job(job)
                kept = folder.read_bytes("state")
                if kept is not None:
                    told = msgspec.json.decode((folder.path / "job.json").read_bytes(), type=FederatedJob)
                    self.model = Shared(told, folder).state.model


class Group:
    """Sites that have agreed to learn together: their leaders and lone devices stand in one roster."""

    def __init__(
        self, root: Path, package: Package, lone: int = 1, names: tuple[str, ...] = ("north", "south")
    ) -> None:
        self.root, self.package = root, package
        self.plant = Plant(0, "group")
        self.sites = [
            SiteOf(root / name, name, 10 * place, {"group": self.plant.public}) for place, name in enumerate(names)
        ]
        self.lone = [One(root / f"lone-{i}", generate_key(), 90 + i, {"group": self.plant.public}) for i in range(lone)]
        self.plant.devices = [one.leader.key for one in self.sites] + [one.key for one in self.lone]

    async def begin(
        self, federation: CloudFederation, plan: str = PLAN, short: bool = False, **changes: object
    ) -> FederatedJob:
        """Start the job between sites. `short`: it does not wait long for anybody."""
        self.root.mkdir(parents=True, exist_ok=True)
        least = len(self.plant.devices)
        text = definition(self.plant, plan, **{"name": "group", "least": least, "most": max(4, least), **changes})
        if short:
            text = text.replace("keys = 20.0\ntrain = 61.0", "keys = 3.0\ntrain = 10.0")
        return (await begin(federation, self.package, text, [self.plant.roster(self.root / "group.roster")])).job


class SiteOf:
    """One site's devices, plant and leader."""

    def __init__(self, root: Path, name: str, first: int, above: dict[str, str], devices: int = 3) -> None:
        self.root, self.name, self.plain = root, name, False
        root.mkdir(parents=True, exist_ok=True)
        self.plant = Plant(devices, name)
        own = {name: self.plant.public}
        self.devices = [One(root / f"{i}", key, first + i, own) for i, key in enumerate(self.plant.devices)]
        self.leader = One(root / "leader", generate_key(), -1, above)
        self.job = ""

    def definition(self, upper: FederatedJob, edit: Callable[[str], str] = lambda text: text) -> str:
        """As `cloudd fl start` sends it."""
        text = definition(None if self.plain else self.plant, "-", name=self.name, leader=self.leader.id, upper="file")
        text = "\n".join(line for line in text.splitlines() if line != "-" and not line.startswith("rounds"))
        return sites.composed(edit(text), msgspec.json.encode(upper))

    async def begin(self, federation: CloudFederation, package: Package, upper: FederatedJob) -> FederatedJob:
        """Start the site's part of the job."""
        for one in self.devices:
            one.policy = msgspec.structs.replace(one.policy, plain=self.plain)
        rosters = [] if self.plain else [self.plant.roster(self.root / "roster")]
        row = await begin(federation, package, self.definition(upper), rosters)
        self.job = row.id
        return row.job
