"""cloudd's half of one round: it relays, adds masked vectors as they come, and takes the masks off the sum.

    receive_keys*   close_keys   -> Roll
    receive_shares* close_shares,   inbox -> Inbox
    receive_held*   close_held   -> Ready
    receive_masked* close_masked -> Survivors
    receive_vote*   close_votes,    unmask -> Unmask
    receive_reveal* finish       -> Result

The caller decides when to close a step (deadline, or everybody has answered) and has authenticated who sends. A message
that breaks a rule raises Refusal and changes nothing; too few devices raise Void, and the sum is deleted. Memory: one
vector, and some hundred bytes a device and neighbour. `state` with `words` and `restore` carry a round over a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec
import numpy as np

from edgekit.secagg import bitmap, certificate, fixedpoint, masks, messages, parameters, shamir
from edgekit.secagg.agreement import KeyPair
from edgekit.secagg.cohort import Cohort, check_sender, verify_keys, verify_masked, verify_vote, without_conflicts
from edgekit.secagg.errors import Refusal, Void
from edgekit.secagg.masks import Words
from edgekit.secagg.messages import (
    SEALED,
    Held,
    Inbox,
    Keys,
    Masked,
    Ready,
    Reveal,
    Roll,
    RoundConfig,
    Shares,
    Survivors,
    Unmask,
    Vote,
)
from edgekit.secagg.policy import Policy
from edgekit.secagg.reconstruction import masks_to_remove
from edgekit.secagg.roster import Membership

_Kept = TypeVar("_Kept", Shares, Held, Vote, Reveal)
Phase = Literal["keys", "shares", "held", "masked", "votes", "reveals", "done", "void"]


@dataclass(frozen=True)
class Result:
    """The sum: `words` (shape (parameters + 2,)) is what cloudd publishes; `fixedpoint.decode` reads it."""

    words: Words
    survivors: tuple[bytes, ...]
    """The devices whose updates are in it."""


class _State(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """All of a round but the sum. Holds nothing that cloudd could not have read anyway."""

    phase: Phase
    keys: tuple[Keys, ...]
    roll: Roll | None
    shares: tuple[Shares, ...]
    held: tuple[Held, ...]
    ready: tuple[int, ...]
    summed: tuple[Masked, ...]
    votes: tuple[Vote, ...]
    reveals: tuple[Reveal, ...]


class ServerRound:
    """One round at cloudd.

    `policy` is what the devices are known to demand: cloudd chooses the graph by it and voids early what they would
    refuse. `dropout`: the share of devices that the graph must be able to lose (only large cohorts are asked).
    """

    def __init__(
        self,
        config: RoundConfig,
        *,
        membership: Membership,
        policy: Policy,
        random: Callable[[int], bytes],
        dropout: float = 0.3,
    ) -> None:
        self.config = config
        self.phase: Phase = "keys"
        self.cohort: Cohort | None = None
        self.encoding = fixedpoint.Encoding(config)
        self.words: Words | None = None
        """The sum so far, still masked; with `state` it is the round."""
        self._membership, self._policy, self._dropout = membership, policy, dropout
        self._probe = KeyPair.new(random)  # finds public keys that nobody can agree with
        self._config_digest = messages.digest(config)
        self._keys: dict[bytes, Keys] = {}
        self._taken: set[bytes] = set()
        self._shares: dict[int, Shares] = {}
        self._held: dict[int, Held] = {}
        self._ready: set[int] = set()
        self._summed: dict[int, Masked] = {}
        self._votes: dict[int, Vote] = {}
        self._reveals: dict[int, Reveal] = {}

    # --- step 0 -----------------------------------------------------------------------------------------------------

    def receive_keys(self, keys: Keys) -> None:
        """A device joins."""
        self._check_phase("keys")
        if self._keys.get(keys.node) == keys:
            return
        if keys.node in self._keys:
            raise Refusal("once", "the device has sent other keys for this round")
        if len(self._keys) >= self.config.invited:
            raise Refusal("policy", f"the round has its {self.config.invited} devices")
        verify_keys(keys, self._config_digest, self._membership)
        if keys.channel == keys.mask or not self._taken.isdisjoint((keys.channel, keys.mask)):
            raise Refusal("keys", "a key is not this device's alone")
        try:
            self._probe.agree(keys.channel)
            self._probe.agree(keys.mask)
        except ValueError:
            raise Refusal("keys", "a key cannot be used") from None
        self._keys[keys.node] = keys
        self._taken.update((keys.channel, keys.mask))

    def close_keys(self) -> Roll:
        """Fix the cohort and the graph."""
        self._check_phase("keys")
        count, colluders = len(self._keys), self.config.colluders
        if count < max(3, self._policy.min_cohort):
            raise self._void(f"{count} devices joined; {max(3, self._policy.min_cohort)} are needed")
        graph = parameters.choose(
            count, colluders, self._dropout, self._policy.complete_to, float(self._policy.sparse_bits)
        )
        try:
            self._policy.check_roll(count, colluders, graph)
        except Refusal as refusal:
            raise self._void(str(refusal)) from None
        roll = Roll(
            config=self._config_digest,
            degree=graph.degree,
            threshold=graph.threshold,
            keys=tuple(self._keys[node] for node in sorted(self._keys)),
        )
        self.cohort = Cohort(roll, self.config)
        self.phase = "shares"
        return roll

    # --- step 1 -----------------------------------------------------------------------------------------------------

    def receive_shares(self, shares: Shares) -> None:
        """Sealed shares of one device for its neighbours."""
        cohort = self._expect("shares")
        place = check_sender(shares.node, cohort)
        if len(shares.sealed) != SEALED * len(cohort.sealed(place)):
            raise Refusal("malformed", "the shares do not fit the device's neighbours")
        self._keep(self._shares, place, shares)

    def close_shares(self) -> None:
        """From now on `inbox` tells each device whose shares it has, and gives it those that were sealed for it."""
        cohort = self._expect("shares")
        self._enough(self._shares, cohort, "sent shares")
        self.phase = "held"

    def inbox(self, node: bytes) -> Inbox:
        """For one device. Raises Refusal for a device that sent no shares."""
        cohort = self._cohort()
        place = cohort.position.get(node, -1)
        if self.phase != "held" or place not in self._shares:
            raise Refusal("order", "there are no shares for this device")
        senders = [v for v in cohort.neighbours[place] if v in self._shares]
        sealed = []
        for v in senders:
            index = cohort.sealed_index(v, place)
            if index is not None:
                sealed.append(self._shares[v].sealed[SEALED * index : SEALED * (index + 1)])
        return Inbox(roll=cohort.digest, senders=cohort.over_neighbours(place, senders), sealed=b"".join(sealed))

    def receive_held(self, held: Held) -> None:
        """Whose shares one device holds."""
        cohort = self._expect("held")
        place = check_sender(held.node, cohort)
        cohort.from_neighbours(place, held.holds)
        if place not in self._shares:
            raise Refusal("order", "the device sent no shares")
        self._keep(self._held, place, held)

    def close_held(self) -> Ready:
        """Fix who may be in the sum: a set in which everybody holds shares of all its neighbours.

        Where one did not get another's shares, one of both must go: the one with most such conflicts, and of equals
        the one whose shares were not accepted.
        """
        cohort = self._expect("held")
        self._ready = without_conflicts(cohort, self._held)
        self._enough(self._ready, cohort, "hold each other's shares")
        self._shares.clear()
        self._held.clear()
        self.phase = "masked"
        return self.ready()

    def ready(self) -> Ready:
        """What each device is told before it masks."""
        cohort = self._cohort()
        return Ready(roll=cohort.digest, ready=bitmap.pack(self._ready, cohort.count))

    # --- step 2 -----------------------------------------------------------------------------------------------------

    def receive_masked(self, masked: Masked, vector: bytes | memoryview | Words) -> None:
        """Add a device's masked vector (whole) to the sum. The same device again changes nothing."""
        cohort = self._expect("masked")
        place = verify_masked(masked, cohort, self._membership)
        if place not in self._ready:
            raise Refusal("order", "no vector of this device can be in the sum")
        if masked.masks_with != cohort.over_neighbours(place, self._ready):
            raise Refusal("lists", "the device does not mask with all its neighbours that are ready")
        if place in self._summed:
            return
        wanted = self.encoding.words * self.config.bits // 8
        size = vector.nbytes if isinstance(vector, np.ndarray | memoryview) else len(vector)
        if size != wanted:
            raise Refusal("malformed", f"the vector has {size} bytes instead of {wanted}")
        if self.words is None:
            self.words = np.zeros(self.encoding.words, masks.dtype(self.config.bits))
        np.add(self.words, np.frombuffer(vector, self.words.dtype), out=self.words)
        self._summed[place] = masked

    def close_masked(self) -> Survivors:
        """Fix the survivors."""
        cohort = self._expect("masked")
        self._enough(self._summed, cohort, "sent a vector")
        try:
            self._policy.check_owners({self._membership.owner(cohort.node(v)) for v in self._summed})
        except Refusal as refusal:
            raise self._void(str(refusal)) from None
        self.phase = "votes"
        return self.survivors()

    # --- step 3 -----------------------------------------------------------------------------------------------------

    def survivors(self) -> Survivors:
        """What each survivor is asked to sign."""
        cohort = self._cohort()
        return Survivors(roll=cohort.digest, survivors=bitmap.pack(self._summed, cohort.count))

    def receive_vote(self, vote: Vote) -> None:
        """A survivor's signature."""
        cohort = self._expect("votes")
        place = verify_vote(vote, cohort, self._membership)
        if place not in self._summed or vote.survivors != self.survivors().survivors:
            raise Refusal("survivors", "the vote is not for this survivor set, or not of a survivor")
        if vote.masks_with != self._summed[place].masks_with:
            raise Refusal("lists", "the vote names other neighbours than the device named before")
        self._keep(self._votes, place, vote)

    @property
    def certified(self) -> bool:
        """Whether a quorum has voted."""
        return self.cohort is not None and len(self._votes) >= self.cohort.quorum

    def close_votes(self) -> None:
        """From now on `unmask` gives the certificate."""
        cohort = self._expect("votes")
        self._enough(self._votes, cohort, "signed the survivor set")
        self.phase = "reveals"

    def unmask(self, node: bytes) -> Unmask:
        """The request for one survivor: a quorum of votes, its neighbours' first, and its other neighbours' lists."""
        cohort = self._expect("reveals")
        place = cohort.position.get(node, -1)
        if place not in self._summed:
            raise Refusal("order", "the device is no survivor")
        near = [v for v in cohort.neighbours[place] if v in self._summed]
        voted = [v for v in near if v in self._votes]
        others = (v for v in sorted(self._votes) if v not in set(voted))
        chosen = voted + [v for v, _ in zip(others, range(cohort.quorum - len(voted)), strict=False)]
        absent = tuple(self._summed[v] for v in near if v not in self._votes)
        return certificate.request(cohort, self.survivors().survivors, {v: self._votes[v] for v in chosen}, absent)

    # --- step 4 -----------------------------------------------------------------------------------------------------

    def receive_reveal(self, reveal: Reveal) -> None:
        """A survivor's shares."""
        cohort = self._expect("reveals")
        place = check_sender(reveal.node, cohort)
        if place not in self._summed:
            raise Refusal("order", "the device is no survivor")
        if len(reveal.shares) != shamir.SHARE * len(cohort.from_neighbours(place, self._summed[place].masks_with)):
            raise Refusal("malformed", "the shares do not fit the devices that they are of")
        self._keep(self._reveals, place, reveal)

    @property
    def revealed(self) -> int:
        """Devices that have revealed their shares; with all survivors' `finish` succeeds if anything can."""
        return len(self._reveals)

    def finish(self, *, patient: bool = True) -> Result | None:
        """Take the masks off. None if shares are missing that may still come (`patient`), else Void.

        Takes (survivors + vanished times their surviving neighbours) masks of CPU time, about 0.7 ms a million words.
        """
        cohort = self._expect("reveals")
        assert self.words is not None, "close_masked saw vectors"
        lists = {v: cohort.from_neighbours(v, one.masks_with) for v, one in self._summed.items()}
        found = masks_to_remove(cohort, lists, self._reveals)
        if found is None:
            if patient and len(self._reveals) < len(self._summed):
                return None
            raise self._void("too few shares were revealed, or wrong ones")
        masks.apply(self.words, found, self.config.prg)
        self.phase = "done"
        return Result(self.words, tuple(cohort.node(v) for v in sorted(self._summed)))

    # --- restart and parts --------------------------------------------------------------------------------------------

    def state(self) -> bytes:
        """The round but for `words`: both are to be kept together, so that each vector is in the sum exactly once."""
        return msgspec.msgpack.encode(
            _State(
                phase=self.phase,
                keys=tuple(self._keys.values()),
                roll=self.cohort.roll if self.cohort else None,
                shares=tuple(self._shares.values()),
                held=tuple(self._held.values()),
                ready=tuple(sorted(self._ready)),
                summed=tuple(self._summed.values()),
                votes=tuple(self._votes.values()),
                reveals=tuple(self._reveals.values()),
            )
        )

    def restore(self, state: bytes, words: Words | None) -> None:
        """Go on where `state` and a copy of `words` were taken. Raises Refusal if they cannot be read."""
        try:
            kept = msgspec.msgpack.decode(state, type=_State)
        except msgspec.DecodeError as error:
            raise Refusal("malformed", f"the saved round cannot be read: {error}") from None
        if kept.summed and words is None:
            raise Refusal("malformed", "the sum of the saved round is missing")
        self.phase, self.words = kept.phase, words
        self._keys = {one.node: one for one in kept.keys}
        self._taken = {key for one in kept.keys for key in (one.channel, one.mask)}
        if kept.roll is not None:
            self.cohort = Cohort(kept.roll, self.config)
        place = self.cohort.position if self.cohort else {}
        self._shares = {place[one.node]: one for one in kept.shares}
        self._held = {place[one.node]: one for one in kept.held}
        self._ready = set(kept.ready)
        self._summed = {place[one.node]: one for one in kept.summed}
        self._votes = {place[one.node]: one for one in kept.votes}
        self._reveals = {place[one.node]: one for one in kept.reveals}

    def void(self, reason: str) -> None:
        """Give the round up: delete the sum and all that was collected."""
        self._void(reason)

    def _void(self, reason: str) -> Void:
        if self.words is not None:
            self.words.fill(0)
        self.words = None
        self.phase = "void"
        for collected in (self._shares, self._held, self._summed, self._votes, self._reveals):
            collected.clear()
        return Void(reason)

    def _expect(self, phase: Phase) -> Cohort:
        """The cohort, if the round is in that step."""
        self._check_phase(phase)
        return self._cohort()

    def _check_phase(self, phase: Phase) -> None:
        if self.phase != phase:
            raise Refusal("order", f'the round is in the step "{self.phase}", not "{phase}"')

    def _cohort(self) -> Cohort:
        if self.cohort is None:
            raise Refusal("order", "the round has no roll yet")
        return self.cohort

    def _enough(self, devices: Collection[int], cohort: Cohort, what: str) -> None:
        if len(devices) < cohort.quorum:
            raise self._void(f"{len(devices)} of {cohort.count} devices {what}; {cohort.quorum} are needed")

    @staticmethod
    def _keep(kept: dict[int, _Kept], place: int, message: _Kept) -> None:
        if kept.setdefault(place, message) != message:
            raise Refusal("once", "the device has sent something else in this step")
