"""A whole cohort and its cloudd in one process, for benchmarks and tests: who vanishes when, and what it costs whom."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from edgekit.identity import generate_key
from edgekit.secagg import messages, roster, signatures
from edgekit.secagg.client import ClientRound
from edgekit.secagg.ledger import MemoryLedger
from edgekit.secagg.masks import Words
from edgekit.secagg.messages import RoundConfig
from edgekit.secagg.policy import Policy
from edgekit.secagg.roster import Membership, Roster
from edgekit.secagg.server import Result, ServerRound

Step = Literal["keys", "shares", "held", "masked", "vote", "reveal"]
STEPS: tuple[Step, ...] = ("keys", "shares", "held", "masked", "vote", "reveal")
MODEL = hashlib.sha256(b"the global model").digest()
SESSION = b"a session of 16b"
NOW = 1_000_000.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Plants:
    """Device keys by node, and the rosters that the plants signed."""

    keys: Mapping[bytes, ec.EllipticCurvePrivateKey]
    files: tuple[bytes, ...]
    trusted: Mapping[str, ec.EllipticCurvePublicKey]

    @property
    def nodes(self) -> tuple[bytes, ...]:
        """All devices, sorted."""
        return tuple(sorted(self.keys))

    def membership(self) -> Membership:
        """The rosters, opened as one device or cloudd opens them."""
        return roster.open_rosters(self.files, self.trusted, now=NOW, floors={})


def plants(devices: int, owners: int = 1) -> Plants:
    """New devices, dealt to so many plants in turn."""
    keys = [generate_key() for _ in range(devices)]
    files, trusted = [], {}
    for owner in range(owners):
        plant_key = generate_key()
        members = tuple(roster.member(key.public_key()) for key in keys[owner::owners])
        body = Roster(plant=f"plant {owner}", serial=1, not_after=NOW + 1, members=members)
        files.append(roster.sign_roster(body, plant_key))
        trusted[f"plant {owner}"] = plant_key.public_key()
    return Plants({roster.node_of(key.public_key()): key for key in keys}, tuple(files), trusted)


def config(membership: Membership, devices: int, **changes: Any) -> RoundConfig:
    """A configuration that the default policy allows, with changes."""
    values: dict[str, Any] = {
        "session": SESSION,
        "round": 1,
        "invited": devices,
        "colluders": Policy().expected_colluders(devices),
        "parameters": 10,
        "clip": 1000.0,
        "limit": 4.0,
        "max_weight": 1,
        "bits": 32,
        "prg": "aes-256-ctr",
        "model": MODEL,
        "rosters": membership.digest,
    }
    return RoundConfig(**{**values, **changes})


@dataclass
class Costs:
    """CPU seconds and bytes, of cloudd and of each device."""

    clock: Callable[[], float] = time.process_time
    server: float = 0.0
    client: dict[bytes, float] = field(default_factory=dict)
    up: dict[bytes, int] = field(default_factory=dict)
    down: dict[bytes, int] = field(default_factory=dict)

    def of_server(self, work: Callable[[], _T]) -> _T:
        """Run something that cloudd does."""
        start = self.clock()
        result = work()
        self.server += self.clock() - start
        return result

    def of_client(self, node: bytes, work: Callable[[], _T]) -> _T:
        """Run something that a device does."""
        start = self.clock()
        result = work()
        self.client[node] = self.client.get(node, 0.0) + self.clock() - start
        return result


class Stand:
    """Devices and cloudd of one round. Messages pass as bytes, as they do on the wire."""

    def __init__(
        self,
        these: Plants,
        configuration: RoundConfig,
        *,
        policy: Policy | None = None,
        ledgers: Mapping[bytes, MemoryLedger] | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
        dropout: float = 0.3,
    ) -> None:
        self.plants, self.config = these, configuration
        self.policy = policy or Policy()
        self.ledgers = dict(ledgers) if ledgers is not None else {node: MemoryLedger() for node in these.nodes}
        self.costs = Costs()
        self.random = random
        self.membership = these.membership()
        self.clients = {node: self.client(node) for node in these.nodes}
        self.server = ServerRound(
            configuration, membership=self.membership, policy=self.policy, random=random, dropout=dropout
        )

    def client(self, node: bytes, configuration: RoundConfig | None = None, model: bytes = MODEL) -> ClientRound:
        """A device's half, new."""
        return ClientRound(
            configuration or self.config,
            model=model,
            node=node,
            sign=signatures.signer(self.plants.keys[node]),
            membership=self.membership,
            policy=self.policy,
            ledger=self.ledgers[node],
            random=self.random,
        )

    def run(
        self,
        updates: Mapping[bytes, NDArray[np.float32]],
        weights: Mapping[bytes, int] | None = None,
        gone: Mapping[Step, Collection[bytes]] | None = None,
    ) -> Result:
        """The whole round. `gone`: step -> the devices that vanish before they answer it. Raises Void."""
        present = set(self.plants.nodes)
        missing = gone or {}
        server = self.server
        for step in STEPS:
            present -= set(missing.get(step, ()))
            self.step(step, sorted(present), updates, weights or {})
        result = self.costs.of_server(lambda: server.finish(patient=False))
        assert result is not None
        return result

    def step(
        self,
        step: Step,
        present: Collection[bytes],
        updates: Mapping[bytes, NDArray[np.float32]],
        weights: Mapping[bytes, int],
    ) -> None:
        """One step: what cloudd sends goes to all who are present and take part, their answers go back, it closes."""
        server = self.server
        request = self.costs.of_server(lambda: self._opening(step))
        for node in present:
            if step == "masked":
                self._masked(node, request, updates[node], weights.get(node, 1))
                continue
            down = request
            if step == "held":
                down = self.costs.of_server(lambda node=node: messages.encode(server.inbox(node)))
            elif step == "reveal":
                down = self.costs.of_server(lambda node=node: messages.encode(server.unmask(node)))
            self.costs.down[node] = self.costs.down.get(node, 0) + len(down)
            up = self.costs.of_client(node, lambda node=node, down=down: self.answer(step, node, down))
            self.costs.up[node] = self.costs.up.get(node, 0) + len(up)
            self.costs.of_server(lambda up=up: self._receive(up))
        closing = {
            "shares": server.close_shares,
            "vote": server.close_votes,
        }.get(step)
        if closing is not None:
            self.costs.of_server(closing)

    def answer(self, step: Step, node: bytes, data: bytes) -> bytes:
        """What a device answers to a message of cloudd. Raises Refusal."""
        client, message = self.clients[node], messages.from_cloud(data)
        take: Callable[[Any], messages.Wire] = {
            "keys": lambda _: client.keys(),
            "shares": client.take_roll,
            "held": client.take_inbox,
            "vote": client.take_survivors,
            "reveal": client.take_unmask,
        }[step]
        return messages.encode(take(message))

    def _opening(self, step: Step) -> bytes:
        """What cloudd sends to all in a step; nothing where each device gets its own."""
        if step == "keys":
            return messages.encode(self.config)
        if step == "shares":
            return messages.encode(self.server.close_keys())
        if step == "masked":
            return messages.encode(self.server.close_held())
        if step == "vote":
            return messages.encode(self.server.close_masked())
        return b""

    def _receive(self, data: bytes) -> None:
        message = messages.from_device(data)
        take: dict[type, Callable[[Any], None]] = {
            messages.Keys: self.server.receive_keys,
            messages.Shares: self.server.receive_shares,
            messages.Held: self.server.receive_held,
            messages.Vote: self.server.receive_vote,
            messages.Reveal: self.server.receive_reveal,
        }
        take[type(message)](message)

    def _masked(self, node: bytes, down: bytes, update: NDArray[np.float32], weight: int) -> None:
        def masked() -> tuple[bytes, Words]:
            ready = messages.from_cloud(down)
            assert isinstance(ready, messages.Ready)
            return messages.encode(self.clients[node].take_ready(ready)), self.clients[node].mask(update, weight)

        def receive() -> None:
            message = messages.from_device(up)
            assert isinstance(message, messages.Masked)
            self.server.receive_masked(message, words)

        up, words = self.costs.of_client(node, masked)
        self.costs.down[node] += len(down)
        self.costs.up[node] += len(up) + words.nbytes
        self.costs.of_server(receive)
