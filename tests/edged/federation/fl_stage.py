"""A cloudd in memory for the tests of the device's half: the real server half of the protocol and no network.

`Stage` holds a job and its files; `Stage.view(node)` is what one device sees of it. A test that cheats changes what a
view gives.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.federation.book import Book
from edged.federation.chain import Chain
from edged.federation.cloud import Rejected, RoundOver
from edged.federation.files import JobFolder
from edged.federation.participant import Participant, Places
from edged.federation.settings import Federation
from edged.federation.sitting import Signing
from edgekit.autodiff.manifest import MANIFEST, MODEL_DATA, STATE_DATA, StateSpec, StepManifest
from edgekit.federated.plan import Plan
from edgekit.federated.rounds import CohortSum, JobRules
from edgekit.federated.strategy import LocalResult, LocalTerm, State
from edgekit.identity import device_id, generate_key
from edgekit.messages import FileEntry
from edgekit.messages.federation import (
    DeviceRefusal,
    FederatedJob,
    Invitation,
    Later,
    LocalTraining,
    Over,
    Publication,
    PublishedRound,
    PublishedSum,
    RoundKind,
    Standing,
    Turn,
)
from edgekit.secagg import messages, roster, signatures
from edgekit.secagg.errors import Refusal, Void
from edgekit.secagg.messages import Held, Keys, Masked, Reveal, RoundConfig, Shares, Vote
from edgekit.secagg.policy import Policy
from edgekit.secagg.server import ServerRound

NOW = 1_790_000_000.0
WHO: ContextVar[int] = ContextVar("WHO", default=-1)
"""Place of the device that runs."""
SIZES = {"head.w": (3, 4), "norm.s": (4,), "body.w": (2, 4)}
FEDAVG = '{"strategy": {"strategy": "fedavg", "clip": 10.0}}'
ALLOWED = Federation(enabled=True, min_cohort=3)
LABELS = ("bad", "good")


class Plant:
    """One plant's key and its devices."""

    def __init__(self, devices: int) -> None:
        self.key = generate_key()
        self.text = signatures.point(self.key.public_key()).hex()
        self.devices = [generate_key() for _ in range(devices)]
        self.nodes = [roster.node_of(one.public_key()) for one in self.devices]

    def signed(self, serial: int = 1, without: int = 0) -> bytes:
        members = tuple(roster.member(one.public_key()) for one in self.devices[without:])
        body = roster.Roster(plant="p", serial=serial, not_after=NOW + 1e6, members=members)
        return roster.sign_roster(body, self.key)

    def signing(self, place: int) -> Signing:
        key = self.devices[place]
        return Signing(self.nodes[place], device_id(key.public_key()), signatures.signer(key))


def step_files() -> dict[str, bytes]:
    """The files of a train step that nobody executes: names, shapes and first values."""
    specs, data = [], b""
    for name, shape in SIZES.items():
        values = np.full(shape, 0.5, "<f4")
        specs.append(StateSpec(name=name, role="parameter", shape=shape, model_offset=len(data)))
        data += values.tobytes()
    manifest = StepManifest(kind="update", states=tuple(specs), fetched=("loss",), frozen_prefix=False)
    return {
        f"step/{MANIFEST}": msgspec.json.encode(manifest),
        f"step/{MODEL_DATA}": data,
        f"step/{STATE_DATA}": b"",
    }


def entry_of(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


class Stage:
    """One job at an obedient cloudd. Devices in `gone` are not waited for."""

    def __init__(self, plant: Plant, plan: str = FEDAVG, **changes: object) -> None:
        self.plant = plant
        files = step_files()
        signed = plant.signed()
        fields: dict[str, object] = {
            "id": secrets.token_hex(16),
            "service": "solder",
            "model": "solder-small@1",
            "package": "0" * 64,
            "labels": LABELS,
            "plan": msgspec.json.encode(msgspec.json.decode(plan, type=Plan)).decode(),
            "local": LocalTraining(),
            "rounds": 3,
            "least": 3,
            "most": len(plant.nodes),
            "rosters": (entry_of("north", signed),),
            "files": tuple(entry_of(path, data) for path, data in files.items()),
        }
        self.job = msgspec.convert({**fields, **changes}, FederatedJob)
        self.blobs = {hashlib.sha256(data).hexdigest(): data for data in (*files.values(), signed)}
        self.membership = roster.open_rosters([signed], {"north": plant.key.public_key()}, now=NOW, floors={})
        first = {name: np.full(shape, 0.5, np.float32) for name, shape in SIZES.items()}
        self.rules = JobRules(self.job, SIZES)
        self.state = self.rules.start(first)
        self.published: list[PublishedRound] = []
        self.refusals: list[tuple[bytes, DeviceRefusal]] = []
        self.gone: set[bytes] = set()
        self.standings: dict[bytes, Standing] = {}
        self.rounds: dict[int, Round] = {}
        self.wanted = len(plant.nodes)
        self.kinds: list[RoundKind] = []
        self.figures: list[object] = []
        self._number = 0
        self._bell = asyncio.Event()

    def view(self, place: int) -> View:
        return View(self, self.plant.nodes[place])

    def ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()

    async def until(self, true: Callable[[], object]) -> None:
        while not true():
            bell = self._bell
            async with asyncio.timeout(20):  # unlike wait_for it never swallows a cancellation
                await bell.wait()

    def drop(self, node: bytes) -> None:
        """A device is gone for good."""
        self.gone.add(node)
        for one in self.rounds.values():
            one.settle()
        self.ring()

    @property
    def open(self) -> Round | None:
        return next((one for one in self.rounds.values() if one.outcome == ""), None)

    def begin(self) -> None:
        """A round of all that stand ready, if they are enough."""
        ready = {n for n, one in self.standings.items() if one.version == self.state.version and n not in self.gone}
        if self.open is not None or len(ready) < self.wanted - len(self.gone) or self.state.version >= self.job.rounds:
            return
        kind = self.kinds.pop(0) if self.kinds else "learn"
        colluders = Policy(min_cohort=3).expected_colluders(len(ready))
        config = self.rules.config(
            kind, self.rules.digest(self.state), number=self._number, colluders=colluders, prg="aes-256-ctr",
            rosters=self.membership.digest if self.job.secure else bytes(32),
        )  # fmt: skip
        self.rounds[self._number] = Round(self, config, kind, ready)
        self._number += 1
        self.standings.clear()
        self.ring()

    def publish(self, one: Round, words: NDArray[np.unsignedinteger], survivors: int) -> None:
        data = words.tobytes()
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        found = CohortSum(words, survivors, one.config)
        if one.kind == "evaluate":
            self.figures.append(self.rules.figures(found))
        else:
            self.state = self.rules.apply(self.state, [found])
            made = PublishedSum(
                number=one.config.round, config=messages.encode(one.config), sha256=sha256, size=len(data),
                survivors=survivors,
            )  # fmt: skip
            self.published.append(PublishedRound(version=self.state.version, sums=(made,)))
        one.outcome = "summed"
        self.ring()


class Round:
    """One round: the real server half, closed step by step when all who are left have spoken."""

    def __init__(self, stage: Stage, config: RoundConfig, kind: RoundKind, invited: set[bytes]) -> None:
        self.stage, self.config, self.kind, self.invited = stage, config, kind, invited
        self.server = ServerRound(
            config, membership=stage.membership, policy=Policy(min_cohort=3), random=secrets.token_bytes
        )
        self.outcome = ""
        self.heard: dict[type, dict[bytes, messages.FromDevice]] = {}
        self.vectors: dict[bytes, bytes] = {}
        self.replies: dict[type, dict[bytes, bytes]] = {}

    def take(self, message: messages.FromDevice) -> None:
        kind = type(message)
        if self.heard.setdefault(kind, {}).get(message.node) == message:
            return
        if kind in self.replies:
            raise RoundOver
        if isinstance(message, Keys):
            self.server.receive_keys(message)
        elif isinstance(message, Shares):
            self.server.receive_shares(message)
        elif isinstance(message, Held):
            self.server.receive_held(message)
        elif isinstance(message, Masked):
            self.server.receive_masked(message, self.vectors[message.node])
        elif isinstance(message, Vote):
            self.server.receive_vote(message)
        else:
            self.server.receive_reveal(message)
        self.heard[kind][message.node] = message
        self.settle()

    def settle(self) -> None:
        """Close every step in which nobody is missing any more."""
        try:
            self._settle()
        except Void:
            self.outcome = "void"
        self.stage.ring()

    def _settle(self) -> None:
        nodes = self.invited - self.stage.gone
        for kind, close in (
            (Keys, self._close_keys),
            (Shares, self._close_shares),
            (Held, self._close_held),
            (Masked, self._close_masked),
            (Vote, self._close_votes),
            (Reveal, self._close_reveals),
        ):
            if kind in self.replies or self.outcome:
                continue
            heard = self.heard.get(kind, {})
            if not heard or not nodes <= set(heard):
                return
            close(set(heard))

    def _close_keys(self, nodes: set[bytes]) -> None:
        data = messages.encode(self.server.close_keys())
        self.replies[Keys] = dict.fromkeys(nodes, data)

    def _close_shares(self, nodes: set[bytes]) -> None:
        self.server.close_shares()
        self.replies[Shares] = {node: messages.encode(self.server.inbox(node)) for node in nodes}

    def _close_held(self, nodes: set[bytes]) -> None:
        data = messages.encode(self.server.close_held())
        self.replies[Held] = dict.fromkeys(nodes, data)

    def _close_masked(self, nodes: set[bytes]) -> None:
        data = messages.encode(self.server.close_masked())
        self.replies[Masked] = dict.fromkeys(nodes, data)

    def _close_votes(self, nodes: set[bytes]) -> None:
        self.server.close_votes()
        self.replies[Vote] = {node: messages.encode(self.server.unmask(node)) for node in nodes}

    def _close_reveals(self, nodes: set[bytes]) -> None:
        self.replies[Reveal] = {}
        result = self.server.finish()
        assert result is not None
        self.stage.publish(self, result.words, len(result.survivors))


class View:
    """`edged.federation.cloud.Cloud` for one device."""

    def __init__(self, stage: Stage, node: bytes) -> None:
        self.stage, self.node = stage, node
        self.sent: list[bytes] = []

    async def job(self, job: str) -> FederatedJob:
        return self.stage.job

    async def fetch(self, job: str, entry: FileEntry, path: Path, *, durable: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.stage.blobs[entry.sha256])

    async def next(self, job: str, standing: Standing) -> Turn:
        stage = self.stage
        if standing.version < stage.state.version:
            return Publication(rounds=tuple(stage.published[standing.version :]))
        assert standing.state == stage.rules.digest(stage.state).hex(), "the device holds another state"
        if stage.state.version >= stage.job.rounds and not stage.kinds:
            return Over(outcome="finished", version=stage.state.version)
        if standing.health == "error":
            stage.standings[self.node] = standing
            await asyncio.sleep(0.05)
            return Later(reason="you are not well")
        here = stage.open
        if here is None or self.node not in here.invited or Reveal in here.replies:
            stage.standings[self.node] = standing
            stage.begin()
        version = stage.state.version

        def turn() -> bool:
            one = stage.open
            return stage.state.version > version or (one is not None and self.node in one.invited)

        try:
            async with asyncio.timeout(0.5):
                await stage.until(turn)
        except TimeoutError:
            return Later(reason="not enough devices")
        one = stage.open
        if stage.state.version > version or one is None:
            return Later(reason="a sum was published")
        if self.node in one.heard.get(Reveal, {}):
            await asyncio.sleep(0.01)
            return Later(reason="the round goes on")
        return Invitation(
            number=one.config.round, kind=one.kind, version=stage.state.version, config=messages.encode(one.config),
            left_s=60.0,
        )  # fmt: skip

    async def refuse(self, job: str, refusal: DeviceRefusal) -> None:
        self.stage.refusals.append((self.node, refusal))
        self.stage.drop(self.node)

    async def step(self, job: str, number: int, message: bytes, sha256: str = "") -> bytes | None:
        self.sent.append(message)
        one = self.stage.rounds[number]
        said = messages.from_device(message)
        assert said.node == self.node
        if one.outcome:
            if isinstance(said, Reveal) and one.outcome == "summed":
                return None
            raise RoundOver
        if isinstance(said, Masked):
            assert hashlib.sha256(one.vectors[self.node]).hexdigest() == sha256
        try:
            one.take(said)
        except Refusal as refusal:
            raise Rejected(refusal.rule, str(refusal), 409) from None
        if isinstance(said, Reveal):
            return None
        await self.stage.until(lambda: type(said) in one.replies or one.outcome)
        if self.node not in one.replies.get(type(said), {}):
            raise RoundOver
        return one.replies[type(said)][self.node]

    async def upload(self, job: str, number: int, path: Path, plain: str = "") -> None:
        one = self.stage.rounds[number]
        one.vectors[self.node] = path.read_bytes()
        if not plain:
            return
        assert hashlib.sha256(one.vectors[self.node]).hexdigest() == plain
        one.heard.setdefault(Masked, {})[self.node] = Masked(
            node=self.node, roll=bytes(32), masks_with=b"", signature=bytes(64)
        )
        if one.invited - self.stage.gone <= set(one.heard[Masked]) and not one.outcome:
            dtype = np.dtype(f"<u{one.config.bits // 8}")
            total = np.zeros(one.config.parameters + 2, dtype)
            for node in one.heard[Masked]:
                total += np.frombuffer(one.vectors[node], dtype)
            self.stage.publish(one, total, len(one.heard[Masked]))


class MadeUp:
    """A Source: each device's update follows from its number and the version."""

    def __init__(self, place: int, size: int, samples: int = 40) -> None:
        self.place, self.size, self.samples = place, size, samples
        self.trained: list[int] = []

    def train(self, state: State, term: LocalTerm, version: int) -> LocalResult:
        self.trained.append(version)
        return LocalResult(delta=update_of(self.place, version, self.size), samples=40, steps=5, learning_rate=0.1)

    def evaluate(self, state: State) -> tuple[NDArray[np.int64], float]:
        return np.array([[self.place + 1, 1], [0, 2]], np.int64), 0.5

    def stop(self) -> None:
        pass


def update_of(place: int, version: int, size: int) -> NDArray[np.float32]:
    return np.random.default_rng([place, version]).uniform(-1, 1, size).astype(np.float32)


class Edge:
    """One device: its folders outlive its participants."""

    def __init__(self, root: Path, stage: Stage, place: int, policy: Federation = ALLOWED, **plants: str) -> None:
        self.root, self.stage, self.place = root / f"device-{place}", stage, place
        self.policy = msgspec.structs.replace(policy, plants=plants or {"north": stage.plant.text})
        self.cloud = stage.view(place)
        self.source: MadeUp | None = None

    def places(self) -> Places:
        book = Book(self.root, lambda: NOW)
        folder = JobFolder(book.folder / "jobs", self.stage.job.id, lambda data, name: data, lambda data, name: data)
        return Places(folder, book, Chain(book.folder / "audit.jsonl"))

    async def run(self) -> Over:
        """A process of this device from its start to its end."""
        WHO.set(self.place)
        at = self.places()
        try:
            participant = self.participant(at)
            return await participant.run()
        finally:
            at.chain.close()
            at.book.close()

    def participant(self, at: Places) -> Participant:
        def source(job: FederatedJob, folder: JobFolder, shared: object) -> MadeUp:
            self.source = MadeUp(self.place, shared.rules.strategy.layout.size)  # type: ignore[attr-defined]
            return self.source

        return Participant(
            self.stage.job.id,
            self.cloud,
            source,
            identity=self.stage.plant.signing(self.place),
            policy=self.policy,
            places=at,
            wall=lambda: NOW,
            settle_s=0.01,
        )


def edges(root: Path, stage: Stage, policy: Federation = ALLOWED) -> list[Edge]:
    return [Edge(root, stage, place, policy) for place in range(len(stage.plant.nodes))]


async def all_of(devices: list[Edge]) -> list[Over | BaseException]:
    async with asyncio.timeout(60):
        return await asyncio.gather(*(one.run() for one in devices), return_exceptions=True)
