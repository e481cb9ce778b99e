"""Devices of a federated job in tests: they speak the real protocol with real keys, and keep asking whatever happens.

Only TLS is missing, so a header names the device (see `federation.site`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from edgekit.federated.evaluation import contribution
from edgekit.federated.opening import open_rules
from edgekit.federated.privacy import noise_sources
from edgekit.federated.rounds import CohortSum, JobRules, read_words
from edgekit.federated.strategy import LocalResult, State
from edgekit.identity import device_id
from edgekit.messages.federation import (
    FederatedJob,
    Invitation,
    Over,
    PlainUpdate,
    Publication,
    Standing,
    Turn,
    decode_turn,
)
from edgekit.packages import Package
from edgekit.secagg import fixedpoint, messages, signatures
from edgekit.secagg.client import ClientRound
from edgekit.secagg.cohort import Cohort
from edgekit.secagg.errors import Refusal
from edgekit.secagg.ledger import MemoryLedger
from edgekit.secagg.policy import Policy
from edgekit.secagg.roster import Membership, node_of, open_rosters
from edgekit.training import WEIGHTS_FILE, read_weights

POLICY = Policy(min_cohort=3)

Update = Callable[[int, int], NDArray[np.float32]]
"""(index of the device, version) -> what it adds to the model."""


def seeded(size: int) -> Update:
    """The same updates whenever they are asked for."""

    def update(index: int, version: int) -> NDArray[np.float32]:
        found = np.random.default_rng([index, version]).standard_normal(size) * 0.01
        return found.astype(np.float32)

    return update


class Gone(Exception):
    """The round is over for the device."""


class Device:
    """One device that keeps asking, whatever happens to cloudd. `vanishes`: step -> it never sends that message."""

    def __init__(
        self,
        index: int,
        key: ec.EllipticCurvePrivateKey,
        url: str,
        update: Update | None = None,
        *,
        vanishes: str = "",
        policy: Policy = POLICY,
    ) -> None:
        self.index, self.key, self.url, self.update = index, key, url, update
        self.id, self.node = device_id(key.public_key()), node_of(key.public_key())
        self.vanishes, self.policy = vanishes, policy
        self.vanished = False
        self.memory: object = None
        """Of a head: what it has in the totals."""
        self.ledger = MemoryLedger()
        self.rounds: dict[int, ClientRound] = {}
        self.masked: dict[int, bytes] = {}
        self.replies: dict[tuple[int, str], messages.FromCloud | None] = {}
        self.job: FederatedJob
        self.rules: JobRules
        self.state: State
        self.start: State
        self.membership: Membership | None = None

    async def __aenter__(self) -> Device:
        self._session = aiohttp.ClientSession(headers={"Device": self.id})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, method: str, route: str, body: bytes | None = None) -> tuple[int, bytes]:
        """A request, again and again until somebody answers."""
        for _ in range(600):
            try:
                async with self._session.request(
                    method, f"{self.url}/v1/federation{route}", data=body, timeout=aiohttp.ClientTimeout(total=30)
                ) as reply:
                    data = await reply.read()
                    if reply.status != 503:
                        return reply.status, data
            except (aiohttp.ClientError, ConnectionError):
                pass
            await asyncio.sleep(0.05)
        raise AssertionError(f"nobody answers {method} {route}")

    async def open(self, job_id: str, plants: dict[str, str]) -> None:
        """Fetch the job, its step and its rosters; hold the state 0."""
        status, data = await self.ask("GET", f"/jobs/{job_id}")
        assert status == 200, data
        self.job = msgspec.json.decode(data, type=FederatedJob)
        files = {}
        for entry in (*self.job.files, *self.job.rosters):
            status, data = await self.ask("GET", f"/jobs/{job_id}/files/{entry.sha256}")
            assert status == 200 and hashlib.sha256(data).hexdigest() == entry.sha256
            files[entry.path] = data
        if self.job.secure:
            trusted = {owner: signatures.from_point(bytes.fromhex(text)) for owner, text in plants.items()}
            rosters = [files[entry.path] for entry in self.job.rosters]
            self.membership = open_rosters(rosters, trusted, now=0.0, floors={})
        self.rules, self.state = opened(self.job, files)
        self.start = self.state

    async def run(self, job_id: str, plants: dict[str, str]) -> Over:
        """The whole job."""
        await self.open(job_id, plants)
        while True:
            turn = await self.next()
            if isinstance(turn, Over):
                return turn
            if isinstance(turn, Publication):
                await self.apply(turn)
            elif isinstance(turn, Invitation) and not self.vanished:
                with contextlib.suppress(Gone):
                    await self.take_part(turn)
            else:
                await asyncio.sleep(0.05)

    async def next(self, **changes: object) -> Turn:
        """What to do now."""
        standing = Standing(version=self.state.version, state=self.rules.digest(self.state).hex(), samples=10)
        standing = msgspec.structs.replace(standing, **changes)
        status, data = await self.ask("POST", f"/jobs/{self.job.id}/next", msgspec.json.encode(standing))
        assert status == 200, data
        return decode_turn(data)

    async def apply(self, publication: Publication) -> None:
        """What was published."""
        for one in publication.rounds:
            sums = []
            for each in one.sums:
                status, data = await self.ask("GET", f"/jobs/{self.job.id}/files/{each.sha256}")
                assert status == 200
                config = messages.from_cloud(each.config)
                assert isinstance(config, messages.RoundConfig)
                words = read_words(data, config)
                sums.append(CohortSum(words, each.survivors, config, frozenset(each.nodes)))
            self.state = self.rules.apply(self.state, sums)
            assert self.state.version == one.version

    def vector(self, kind: str, cohort: Cohort | None = None) -> tuple[NDArray[np.float32], int]:
        """The contribution to a round of the present state."""
        if kind == "evaluate":
            confusion = np.array([[8, 2], [1, 9]])
            made = contribution(self.rules.evaluation, confusion, 0.25)
            return made.vector, made.weight
        update = self.update or seeded(self.rules.strategy.layout.size)
        delta = update(self.index, self.state.version)
        result = LocalResult(delta, samples=10, steps=5, learning_rate=0.01)
        found = self.rules.strategy.contribution(self.state, result, self.memory)
        if self.rules.mechanism is not None and cohort is not None:
            sources = noise_sources(cohort.count, cohort.count // 3, cohort.graph)
            return self.rules.mechanism.hide(found.vector, sources, os.urandom(32)), 1
        return found.vector, found.weight

    async def take_part(self, turn: Invitation) -> None:
        """One round. Raises Gone."""
        config = messages.from_cloud(turn.config)
        assert isinstance(config, messages.RoundConfig)
        self.rules.check(config, turn.kind, self.rules.digest(self.state), turn.number)
        place = f"/jobs/{self.job.id}/rounds/{turn.number}"
        if not self.job.secure:
            if turn.number not in self.masked:
                vector, weight = self.vector(turn.kind)
                self.masked[turn.number] = fixedpoint.encode(
                    vector, weight, fixedpoint.Encoding(config), os.urandom
                ).tobytes()
            sha256 = await self._upload(place, self.masked[turn.number])
            await self._post(f"{place}/plain", msgspec.json.encode(PlainUpdate(sha256=sha256)))
            return
        if turn.number not in self.rounds:
            assert self.membership is not None
            self.rounds[turn.number] = ClientRound(
                config,
                model=config.model,
                node=self.node,
                sign=signatures.signer(self.key),
                membership=self.membership,
                policy=self.policy,
                ledger=self.ledger,
                random=os.urandom,
            )
        mine = self.rounds[turn.number]
        roll = await self._say("keys", place, mine.keys())
        assert isinstance(roll, messages.Roll)
        inbox = await self._say("shares", place, mine.take_roll(roll))
        assert isinstance(inbox, messages.Inbox)
        ready = await self._say("held", place, mine.take_inbox(inbox))
        assert isinstance(ready, messages.Ready)
        masked = mine.take_ready(ready)
        if turn.number not in self.masked:
            self.masked[turn.number] = mine.mask(*self.vector(turn.kind, mine.cohort)).tobytes()
        if self.vanishes == "vector":
            self.vanished = True
            raise Gone
        sha256 = await self._upload(place, self.masked[turn.number])
        survivors = await self._say("masked", f"{place}?sha256={sha256}", masked)
        assert isinstance(survivors, messages.Survivors)
        unmask = await self._say("vote", place, mine.take_survivors(survivors))
        assert isinstance(unmask, messages.Unmask)
        await self._say("reveal", place, mine.take_unmask(unmask))

    async def _say(self, step: str, place: str, message: messages.Wire) -> messages.FromCloud | None:
        """Send a message once; what followed is kept, for a round that is taken up again."""
        here = int(place.partition("?")[0].rpartition("/")[2]), step
        if here in self.replies:
            return self.replies[here]
        if self.vanishes == step:
            self.vanished = True
            raise Gone
        data = await self._post(place, messages.encode(message))
        self.replies[here] = messages.from_cloud(data) if data else None
        return self.replies[here]

    async def _post(self, place: str, body: bytes) -> bytes:
        while True:
            status, data = await self.ask("POST", place, body)
            if status == 410:
                raise Gone
            if status == 409:
                raise Refusal(msgspec.json.decode(data)["rule"], msgspec.json.decode(data)["error"])
            if status != 202:
                assert status in (200, 204), data
                return data

    async def _upload(self, place: str, data: bytes, part: int = 1 << 20) -> str:
        status, reply = await self.ask("GET", f"{place}/vector")
        if status == 410:
            raise Gone
        have = msgspec.json.decode(reply)["size"]
        while have < len(data):
            status, reply = await self.ask("PUT", f"{place}/vector?offset={have}", data[have : have + part])
            if status == 410:
                raise Gone
            if status == 409:
                status, reply = await self.ask("GET", f"{place}/vector")
            have = msgspec.json.decode(reply)["size"]
        return hashlib.sha256(data).hexdigest()


def opened(job: FederatedJob, files: dict[str, bytes]) -> tuple[JobRules, State]:
    """The rules of a job and its state 0, out of its files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return open_rules(job, folder)


async def fleet(devices: list[Device], job_id: str, plants: dict[str, str]) -> list[Over]:
    """Run all devices until the job is over."""
    async with contextlib.AsyncExitStack() as stack:
        for device in devices:
            await stack.enter_async_context(device)
        return list(await asyncio.gather(*(device.run(job_id, plants) for device in devices)))


def expected(device: Device, start: State, rounds: list[list[int]], *, single: bool = False) -> State:
    """The state that the plain sums of the devices of these indices, round by round, lead to.

    `single`: as if the job had neither buckets nor privacy.
    """
    rules = device.rules
    if single:
        plain = msgspec.structs.replace(rules.plan, robust=None, privacy=None)
        job = msgspec.structs.replace(device.job, plan=msgspec.json.encode(plain).decode())
        rules = JobRules(job, {slot.name: slot.shape for slot in rules.strategy.layout.slots})
    return _moved(rules, start, rounds, device.update)


def moved(rules: JobRules, package: Package, rounds: list[list[int]]) -> State:
    """The same for seeded updates, from the weights of the registered model."""
    weights = read_weights(package.path(WEIGHTS_FILE))
    start = rules.start({slot.name: weights[slot.name] for slot in rules.strategy.layout.slots})
    return _moved(rules, start, rounds, None)


def _moved(rules: JobRules, state: State, rounds: list[list[int]], update: Update | None) -> State:
    update = update or seeded(rules.strategy.layout.size)
    for number, members in enumerate(rounds):
        config = rules.config("learn", bytes(32), number=number, colluders=1, prg="aes-256-ctr", rosters=bytes(32))
        encoding = fixedpoint.Encoding(config)
        words = np.zeros(encoding.words, f"<u{config.bits // 8}")
        for index in members:
            result = LocalResult(update(index, state.version), samples=10, steps=5, learning_rate=0.01)
            made = rules.strategy.contribution(state, result, None)
            words += fixedpoint.encode(made.vector, made.weight, encoding, os.urandom)
        state = rules.apply(state, [CohortSum(words, len(members), config)])
    return state
