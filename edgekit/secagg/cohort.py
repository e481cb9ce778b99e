"""A roll, checked and worked out: places, neighbours, share holders, quorum. Both halves see a round through it."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Collection, Mapping

from edgekit.secagg import agreement, bitmap, graph, messages, parameters, shamir
from edgekit.secagg.agreement import KeyPair
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import Held, Keys, Masked, Roll, RoundConfig, Vote
from edgekit.secagg.parameters import GraphParameters
from edgekit.secagg.roster import Membership


class Cohort:
    """The devices of one round. Makes no check; `verify_roll` does."""

    def __init__(self, roll: Roll, config: RoundConfig) -> None:
        self.roll = roll
        self.digest = messages.digest(roll)
        """What every later message and key is bound to (H0 in docs/secagg.md)."""
        self.keys = roll.keys
        self.count = len(roll.keys)
        self.graph = GraphParameters(roll.degree, roll.threshold)
        self.threshold = roll.threshold
        self.quorum = parameters.quorum(self.count, config.colluders)
        self.position = {one.node: place for place, one in enumerate(roll.keys)}
        self.neighbours = graph.neighbours(self.digest, self.count, roll.degree)

    def node(self, place: int) -> bytes:
        """The device at a place."""
        return self.keys[place].node

    def holders(self, place: int) -> tuple[int, ...]:
        """Who holds shares of the secrets of the device at a place: its neighbours and itself, ascending."""
        return tuple(sorted((*self.neighbours[place], place)))

    def implied(self, place: int) -> tuple[int, ...]:
        """The neighbours whose shares follow from the channel keys: the first threshold - 1 after its place, cyclic.

        Fewer only where the device has fewer neighbours, and then it cannot take part.
        """
        return self._after(place)[: self.threshold - 1]

    def sealed(self, place: int) -> tuple[int, ...]:
        """The other neighbours, to whom the device at a place sends sealed shares, in their order in the message."""
        return self._after(place)[self.threshold - 1 :]

    def sealed_index(self, sender: int, receiver: int) -> int | None:
        """Where in `sealed(sender)` a neighbour of the sender stands; None if its shares are implied."""
        around = self.neighbours[sender]
        index = (bisect_left(around, receiver) - bisect_left(around, sender)) % len(around) - (self.threshold - 1)
        return index if index >= 0 else None

    def _after(self, place: int) -> tuple[int, ...]:
        around = self.neighbours[place]
        first = bisect_left(around, place)
        return around[first:] + around[:first]

    def over_neighbours(self, place: int, devices: Collection[int]) -> bytes:
        """A set of devices, as far as they are neighbours of a place, as a bitmap over those."""
        around = self.neighbours[place]
        return bitmap.pack((i for i, v in enumerate(around) if v in devices), len(around))

    def from_neighbours(self, place: int, data: bytes) -> list[int]:
        """The devices of a bitmap over the neighbours of a place, ascending. Raises Refusal."""
        around = self.neighbours[place]
        return [around[i] for i in bitmap.unpack(data, len(around))]

    def covers(self, place: int, masks_with: bytes, survivors: Collection[int]) -> bool:
        """Whether the device at a place masked with each of its surviving neighbours. Raises Refusal (malformed)."""
        masked = set(self.from_neighbours(place, masks_with))
        return all(v in masked for v in self.neighbours[place] if v in survivors)

    def salt(self, place: int) -> bytes:
        """What the seeds of the device at a place are salted with."""
        return self.keys[place].node + self.keys[place].nonce

    def self_mask_key(self, seed: bytes) -> bytes:
        """Key of the mask that a device adds alone."""
        return agreement.derive(seed, self.digest, b"self")

    def pair_mask_key(self, pair: KeyPair, own: int, other: int) -> bytes:
        """Key of the mask of two devices; the one with the lower place adds it. Raises Refusal for an unusable key."""
        info = b"pair" + self.node(min(own, other)) + self.node(max(own, other))
        return agreement.derive(self.agree(pair, other, self.keys[other].mask), self.digest, info)

    def channel_key(self, agreed: bytes, sender: int, receiver: int) -> tuple[bytes, bytes]:
        """(key, associated data) of the shares that one device seals for another."""
        info = b"share" + self.node(sender) + self.node(receiver)
        return agreement.derive(agreed, self.digest, info), self.digest + info

    def implied_shares(self, agreed: bytes, sender: int, receiver: int) -> tuple[bytes, bytes]:
        """The shares of the sender's two seeds, own mask and mask key, that an implied receiver has without a message.

        `agreed`: the secret of their channel keys. Both sides derive them; the sender's polynomials go through them.
        """
        nodes = self.node(sender) + self.node(receiver)
        own, mask = (agreement.derive(agreed, self.digest, kind + nodes) for kind in (b"own share", b"key share"))
        return shamir.element(own), shamir.element(mask)

    def agree(self, pair: KeyPair, other: int, public: bytes) -> bytes:
        """The secret shared with a public key of another device. Raises Refusal if the key is of low order."""
        try:
            return pair.agree(public)
        except ValueError:
            raise Refusal("keys", f"a key of {self.node(other)[:4].hex()} cannot be used") from None


def verify_keys(keys: Keys, config_digest: bytes, membership: Membership) -> None:
    """Raises Refusal unless the keys are a member's, signed by it, and of this round's configuration."""
    if keys.config != config_digest:
        raise Refusal("binding", f"the keys of {keys.node[:4].hex()} belong to another round, configuration or model")
    membership.check(keys.node, "keys", messages.statement(keys), keys.signature)


def verify_roll(roll: Roll, config: RoundConfig, membership: Membership, own: Keys) -> Cohort:
    """The cohort of a roll. Raises Refusal unless all keys are signed, by members, for this round, and different.

    `own`: the keys of the device that asks, which it knows.
    """
    config_digest = messages.digest(config)
    if roll.config != config_digest:
        raise Refusal("binding", "the roll belongs to another round, configuration or model")
    nodes = [one.node for one in roll.keys]
    if any(a >= b for a, b in itertools.pairwise(nodes)):
        raise Refusal("keys", "the roll is not sorted, or lists a device twice")
    if len(nodes) > config.invited:
        raise Refusal("policy", f"the roll has {len(nodes)} devices; the configuration has room for {config.invited}")
    if roll.degree > len(nodes) - 1:
        raise Refusal("malformed", f"degree {roll.degree} in a roll of {len(nodes)}")
    publics = [key for one in roll.keys for key in (one.channel, one.mask)]
    if len(set(publics)) != len(publics):
        raise Refusal("keys", "two devices of the roll, or two purposes, share a key")
    for one in roll.keys:
        if one != own:
            verify_keys(one, config_digest, membership)
    return Cohort(roll, config)


def verify_masked(masked: Masked, cohort: Cohort, membership: Membership) -> int:
    """The place of the device. Raises Refusal unless it is in the cohort and has signed its list for this roll."""
    check_roll(masked.roll, cohort)
    place = check_sender(masked.node, cohort)
    cohort.from_neighbours(place, masked.masks_with)
    membership.check(masked.node, "masked", messages.statement(masked), masked.signature)
    return place


def verify_vote(vote: Vote, cohort: Cohort, membership: Membership) -> int:
    """The place of the voter. Raises Refusal unless it is in the cohort and has signed its vote for this roll."""
    check_roll(vote.roll, cohort)
    place = check_sender(vote.node, cohort)
    cohort.from_neighbours(place, vote.masks_with)
    membership.check(vote.node, "vote", messages.statement(vote), vote.signature)
    return place


def check_roll(roll: bytes, cohort: Cohort) -> None:
    """Raises Refusal for another roll."""
    if roll != cohort.digest:
        raise Refusal("binding", "the message belongs to another roll")


def check_sender(node: bytes, cohort: Cohort) -> int:
    """The place of a sender. Raises Refusal for a stranger."""
    if node not in cohort.position:
        raise Refusal("identity", f"the device {node[:4].hex()} is not in the roll")
    return cohort.position[node]


def without_conflicts(cohort: Cohort, held: Mapping[int, Held]) -> set[int]:
    """The devices that remain when of each two neighbours of which one lacks the other's shares, one has gone.

    The one with most such conflicts goes first, and of equals the one whose shares were not accepted.
    """
    left = {v: set(cohort.from_neighbours(v, one.holds)) for v, one in held.items()}
    against: dict[int, set[int]] = {v: set() for v in left}
    refused_by = dict.fromkeys(left, 0)
    for u in left:
        for v in cohort.neighbours[u]:
            if v in left and v not in left[u]:
                against[u].add(v)
                against[v].add(u)
                refused_by[v] += 1
    while any(against.values()):
        worst = max(against, key=lambda v: (len(against[v]), refused_by[v], v))
        for v in against.pop(worst):
            against[v].discard(worst)
    return set(against)
