"""One round of virtual devices: who answers when, who vanishes, who cheats; for `benchmarks.fleet`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.federated.sums import Sum
from edgekit.secagg import bitmap, fixedpoint, messages, signatures
from edgekit.secagg.client import ClientRound
from edgekit.secagg.errors import Refusal, Void
from edgekit.secagg.ledger import MemoryLedger
from edgekit.secagg.messages import RoundConfig
from edgekit.secagg.policy import Policy
from edgekit.secagg.roster import Membership
from edgekit.secagg.server import ServerRound

Kind = Literal["honest", "forger", "stranger", "garbler", "sealer", "voter", "revealer", "poisoner"]
KINDS: tuple[Kind, ...] = ("forger", "stranger", "garbler", "sealer", "voter", "revealer", "poisoner")
Trick = Literal["none", "model", "threshold", "keys", "quorum", "split"]
TRICKS: tuple[Trick, ...] = ("model", "threshold", "keys", "quorum", "split")
DEADLINES = {"keys": 5.0, "shares": 5.0, "held": 5.0, "masked": 90.0, "vote": 5.0, "reveal": 5.0}


@dataclass
class Device:
    """One virtual device."""

    node: bytes
    sign: signatures.Signer
    kind: Kind
    link_s: float  # one way
    train_s: float
    features: NDArray[np.float64]
    classes: NDArray[np.int64]
    ledger: MemoryLedger = field(default_factory=MemoryLedger)


@dataclass
class Fleet:
    """All devices, and the rosters that a plant signed."""

    devices: dict[bytes, Device]
    membership: Membership


@dataclass
class Outcome:
    """What came of one cohort's round."""

    trick: Trick = "none"
    total: Sum | None = None
    survivors: frozenset[bytes] = frozenset()
    exact: bool = False
    refused: int = 0
    fooled: int = 0
    late: int = 0
    virtual_s: float = 0.0


class VirtualRound:
    """One round: who answers when, who vanishes, who cheats."""

    def __init__(
        self,
        these: Fleet,
        cohort: Sequence[Device],
        config: RoundConfig,
        vectors: Callable[[Device], tuple[NDArray[np.float32], int]],
        *,
        trick: Trick,
        dropout: float,
        rng: np.random.Generator,
    ) -> None:
        self.rng, self.trick, self.config, self.vectors = rng, trick, config, vectors
        self.policy = Policy()
        self.server = ServerRound(config, membership=these.membership, policy=self.policy, random=rng.bytes)
        self.outcome = Outcome(trick)
        self.present = {one.node: one for one in cohort}
        self.vanishes = {node: step for node in self.present for step in _vanishing(rng, dropout)}
        self.plain = np.zeros(self.server.encoding.words, f"<u{config.bits // 8}")
        self.encoded: dict[bytes, NDArray[Any]] = {}
        self.now = 0.0
        self.clients = {
            one.node: ClientRound(
                config,
                model=config.model,
                node=one.node,
                sign=one.sign,
                membership=these.membership,
                policy=self.policy,
                ledger=one.ledger,
                random=rng.bytes,
            )
            for one in cohort
        }

    def run(self) -> Outcome:
        """The whole round."""
        try:
            if self.trick == "model":
                self._other_model()
            self._step("keys", lambda node: self.config)
            roll = self.server.close_keys()
            self._step("shares", lambda node: self._spoiled(roll))
            self.server.close_shares()
            self._step("held", self.server.inbox)
            ready = self.server.close_held()
            self._step("masked", lambda node: ready)
            survivors = self.server.close_masked()
            if self.trick in ("quorum", "split"):
                self._other_survivors(survivors)
            self._step("vote", lambda node: survivors)
            self.server.close_votes()
            self._step("reveal", self.server.unmask)
            result = self.server.finish(patient=False)
            assert result is not None
            self.outcome.survivors = frozenset(result.survivors)
            for node in result.survivors:
                self.plain += self.encoded[node]
            self.outcome.exact = bool(np.array_equal(self.plain, result.words))
            self.outcome.total = Sum.of_words(result.words, len(result.survivors), self.config)
        except Void:
            pass
        self.outcome.virtual_s = self.now
        return self.outcome

    def _step(self, step: str, request: Callable[[bytes], messages.Wire]) -> None:
        """One step: answers arrive in the order of their times until all are there or the deadline passes."""
        deadline, arrivals = self.now + DEADLINES[step], []
        for device in list(self.present.values()):
            if self.vanishes.get(device.node) == step:
                del self.present[device.node]
                continue
            work = 0.02 * float(self.rng.exponential())
            starts = self.now + device.link_s
            if step == "masked":
                starts = max(starts, device.train_s)  # training began with the round
            arrivals.append((starts + work + device.link_s, device))
        arrivals.sort(key=lambda one: one[0])
        for at, device in arrivals:
            if at > deadline:
                self.outcome.late += 1
                if step not in ("vote", "reveal"):
                    del self.present[device.node]
                continue
            if (step == "vote" and self.server.certified) or (step == "reveal" and self.server.phase == "done"):
                continue
            self.now = at
            try:
                asked = request(device.node)
            except Refusal:  # nothing there for a device whose last message was refused
                self.present.pop(device.node, None)
                continue
            self._exchange(step, device, messages.encode(asked))
        if any(at > deadline for at, _ in arrivals):
            self.now = deadline

    def _exchange(self, step: str, device: Device, down: bytes) -> None:
        try:
            answer = self._answer(step, device, down)
        except Refusal:
            self.outcome.refused += 1
            self.present.pop(device.node, None)
            return
        if self.trick == "model" or (self.trick in ("threshold", "keys") and step == "shares"):
            self.outcome.fooled += device.kind == "honest"
        try:
            self._receive(device, self._cheated(step, device, answer))
        except Refusal:
            self.outcome.refused += 1

    def _answer(self, step: str, device: Device, down: bytes) -> messages.Wire:
        client, message = self.clients[device.node], messages.from_cloud(down)
        if isinstance(message, messages.Roll):
            return client.take_roll(message)
        if isinstance(message, messages.Inbox):
            return client.take_inbox(message)
        if isinstance(message, messages.Ready):
            return client.take_ready(message)
        if isinstance(message, messages.Survivors):
            return client.take_survivors(message)
        if isinstance(message, messages.Unmask):
            return client.take_unmask(message)
        return client.keys()

    def _cheated(self, step: str, device: Device, answer: messages.Wire) -> bytes:
        """What a cheating device really sends."""
        if device.kind == "garbler":
            return self.rng.bytes(100)
        if device.kind == "sealer" and isinstance(answer, messages.Shares):
            answer = msgspec.structs.replace(answer, sealed=self.rng.bytes(len(answer.sealed)))
        if device.kind == "voter" and isinstance(answer, messages.Vote):
            other = bytes([answer.survivors[0] ^ 1]) + answer.survivors[1:]
            answer = msgspec.structs.replace(answer, survivors=other, signature=bytes(64))
            answer = msgspec.structs.replace(answer, signature=device.sign("vote", messages.statement(answer)))
        if device.kind == "revealer" and isinstance(answer, messages.Reveal):
            answer = msgspec.structs.replace(answer, shares=self.rng.bytes(len(answer.shares)))
        return messages.encode(answer)

    def _receive(self, device: Device, data: bytes) -> None:
        message = messages.from_device(data)
        if isinstance(message, messages.Masked):
            vector, weight = self.vectors(device)
            words = self.clients[device.node].mask(vector, weight)
            self.encoded[device.node] = fixedpoint.encode(vector, weight, self.server.encoding, self.rng.bytes)
            self.server.receive_masked(message, words)
        elif isinstance(message, messages.Keys):
            self.server.receive_keys(message)
        elif isinstance(message, messages.Shares):
            self.server.receive_shares(message)
        elif isinstance(message, messages.Held):
            self.server.receive_held(message)
        elif isinstance(message, messages.Vote):
            self.server.receive_vote(message)
        else:
            self.server.receive_reveal(message)

    # --- a cheating cloudd ------------------------------------------------------------------------------------------

    def _other_model(self) -> None:
        """Offer the round for a model that no device holds."""
        offered = msgspec.structs.replace(self.config, model=bytes(32))
        for client in self.clients.values():
            client.config = offered

    def _spoiled(self, roll: messages.Roll) -> messages.Roll:
        if self.trick == "threshold":
            return msgspec.structs.replace(roll, threshold=2)
        if self.trick == "keys":
            keys = [msgspec.structs.replace(one, mask=self.rng.bytes(32)) for one in roll.keys]
            return msgspec.structs.replace(roll, keys=tuple(keys))
        return roll

    def _other_survivors(self, honest: messages.Survivors) -> None:
        """Ask everybody to sign a set below the quorum; or, after half has signed the true one, another one."""
        cohort = self.server.cohort
        assert cohort is not None
        places = bitmap.unpack(honest.survivors, cohort.count)
        fewer = places[: cohort.quorum - 1] if self.trick == "quorum" else places[1:]
        other = msgspec.structs.replace(honest, survivors=bitmap.pack(fewer, cohort.count))
        # cloudd has nothing to gain from its own devices' votes here: only honest ones are asked
        asked = [cohort.node(place) for place in places if self.present.get(cohort.node(place), None)]
        asked = [node for node in asked if self.present[node].kind == "honest"]
        for node in asked:
            try:
                if self.trick == "split":
                    self.clients[node].take_survivors(honest)
                self.clients[node].take_survivors(other)
            except Refusal:
                self.outcome.refused += 1
            else:
                self.outcome.fooled += 1
        self.server.void("a cheating cloudd gives up")
        raise Void("a cheating cloudd gives up")


def _vanishing(rng: np.random.Generator, dropout: float) -> list[str]:
    """The first step before which a device vanishes, if any: `dropout` is the chance over the whole round."""
    return [list(DEADLINES)[rng.integers(len(DEADLINES))]] if rng.random() < dropout else []
