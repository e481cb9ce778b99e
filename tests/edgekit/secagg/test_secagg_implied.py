"""Implied shares: who derives them, that they lie on the same polynomials, and what a lying cloudd makes of them."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_stand import SMALL, assert_exact, fleet, new_stand, some_updates

from benchmarks.secagg_cohort import STEPS, Stand, config
from edgekit.secagg import bitmap, certificate, messages, shamir
from edgekit.secagg.agreement import KeyPair
from edgekit.secagg.cohort import Cohort
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import Keys, Roll

replaced = msgspec.structs.replace


def roll_of(devices: int, degree: int, threshold: int, seed: int) -> Roll:
    chance = random.Random(seed)
    entries = [
        Keys(
            node=place.to_bytes(32, "big"),
            config=bytes(32),
            channel=KeyPair.new(chance.randbytes).public,
            mask=chance.randbytes(32),
            commitment=bytes(32),
            nonce=bytes(16),
            signature=bytes(64),
        )
        for place in range(devices)
    ]
    return Roll(config=bytes(32), degree=degree, threshold=threshold, keys=tuple(entries))


@given(st.integers(3, 24), st.data())
@settings(max_examples=60, deadline=None)
def test_each_neighbour_derives_its_shares_or_has_a_place_in_the_message(devices: int, data: st.DataObject) -> None:
    degree, seed = data.draw(st.integers(2, devices - 1)), data.draw(st.integers(0, 99))
    threshold = data.draw(st.integers(2, degree + 1))
    these = fleet(3)
    cohort = Cohort(roll_of(devices, degree, threshold, seed), config(these.membership(), devices, colluders=1))
    for u in range(devices):
        implied, sealed = cohort.implied(u), cohort.sealed(u)
        assert sorted((*implied, *sealed)) == list(cohort.neighbours[u])
        assert len(implied) == min(threshold - 1, len(cohort.neighbours[u]))
        assert [cohort.sealed_index(u, v) for v in sealed] == list(range(len(sealed)))
        assert all(cohort.sealed_index(u, v) is None for v in implied)
        later = [v for v in cohort.neighbours[u] if v > u]
        assert list(implied[: len(later)]) == later[: len(implied)]


def test_both_sides_derive_the_same_shares_and_each_roll_direction_and_kind_has_its_own() -> None:
    these = fleet(3)
    chance = random.Random(5)
    one, other = KeyPair.new(chance.randbytes), KeyPair.new(chance.randbytes)
    configuration = config(these.membership(), 5, colluders=1)
    cohort, second = (Cohort(roll_of(5, 4, 4, seed), configuration) for seed in (1, 2))
    agreed = one.agree(other.public)
    assert cohort.implied_shares(agreed, 1, 3) == cohort.implied_shares(other.agree(one.public), 1, 3)
    found = {
        share
        for roll, sender, receiver in itertools.product((cohort, second), (1, 3), (1, 3))
        for share in roll.implied_shares(agreed, sender, receiver)
    }
    assert len(found) == 16
    assert all(len(share) == shamir.SHARE and int.from_bytes(share, "big") < shamir.PRIME for share in found)
    key, _ = cohort.channel_key(agreed, 1, 3)
    assert int.from_bytes(key, "big") % shamir.PRIME not in {int.from_bytes(share, "big") for share in found}


@pytest.mark.parametrize("devices", [3, 5, 8])
def test_every_threshold_of_holders_has_the_seeds_whichever_shares_are_implied(devices: int) -> None:
    stand = new_stand(devices)
    for step in STEPS[:3]:
        stand.step(step, stand.plants.nodes, {}, {})
    cohort = stand.server.cohort
    assert cohort is not None
    clients = [stand.clients[node] for node in stand.plants.nodes]
    for u, client in enumerate(clients):
        assert client._state is not None
        pairs = [other._received[u] if other is not client else client._state.own for other in clients]
        for some in itertools.combinations(range(devices), cohort.threshold):
            weights = shamir.weights([v + 1 for v in some])
            seeds = tuple(shamir.combine(weights, [pairs[v][kind] for v in some]) for kind in (0, 1))
            assert seeds == (client._state.own_seed, client._state.mask_seed)


def test_a_device_of_a_complete_cohort_sends_sealed_shares_only_beyond_the_threshold() -> None:
    for devices, sealed in ((3, 0), (5, 1), (8, 2), (32, 10)):
        stand = new_stand(devices)
        stand.step("keys", stand.plants.nodes, {}, {})
        shares = stand.clients[stand.plants.nodes[0]].take_roll(stand.server.close_keys())
        assert len(shares.sealed) == sealed * messages.SEALED


def test_a_device_in_a_cohort_of_a_hundred_uploads_one_percent_more_than_its_parameters() -> None:
    count, parameters = 100, 100_000
    cohort = Cohort(roll_of(count, 99, 67, 1), config(fleet(3).membership(), count))
    assert cohort.quorum == cohort.threshold
    node, roll, signature = bytes(32), bytes(32), bytes(64)
    everybody, around = bytes(bitmap.size(count)), bytes(bitmap.size(count - 1))
    said = (
        cohort.keys[0],
        messages.Shares(node=node, sealed=bytes(messages.SEALED * len(cohort.sealed(0)))),
        messages.Held(node=node, holds=around),
        messages.Masked(node=node, roll=roll, masks_with=around, signature=signature),
        messages.Vote(node=node, roll=roll, survivors=everybody, masks_with=around, signature=signature),
        messages.Reveal(node=node, own=bytes(shamir.SHARE), shares=bytes(shamir.SHARE * (count - 1))),
    )
    up = sum(len(messages.encode(one)) for one in said)
    for word, floats in ((4, 1.01), (2, 0.51)):
        assert up + word * (parameters + 2) <= floats * 4 * parameters


def test_a_device_that_forgot_its_shares_makes_the_same_ones_again() -> None:
    stand = new_stand(6)
    stand.step("keys", stand.plants.nodes, {}, {})
    node = stand.plants.nodes[2]
    before, roll = stand.clients[node].state(), stand.server.close_keys()
    shares = stand.clients[node].take_roll(roll)
    reborn = stand.client(node)
    reborn.restore(before)
    assert reborn.take_roll(roll) == shares


def test_a_device_with_too_few_neighbours_for_its_shares_takes_no_part() -> None:
    stand = new_stand(60, policy=replaced(SMALL, complete_to=8, sparse_bits=1), colluders=6)
    stand.step("keys", stand.plants.nodes, {}, {})
    roll = stand.server.close_keys()
    scarce = replaced(roll, degree=20, threshold=18)
    counts = [len(around) for around in Cohort(scarce, stand.config).neighbours]
    for place in (counts.index(min(counts)), counts.index(max(counts))):
        client = stand.client(stand.plants.nodes[place])
        client.restore(stand.clients[stand.plants.nodes[place]].state())
        if counts[place] + 1 < scarce.threshold:
            with pytest.raises(Refusal, match="the threshold is 18") as refusal:
                client.take_roll(scarce)
            assert refusal.value.rule == "shares"
        else:
            assert len(client.take_roll(scarce).sealed) == messages.SEALED * (counts[place] - 17)


def test_a_device_that_sent_nothing_is_held_by_nobody() -> None:
    stand = new_stand(8)
    nodes = stand.plants.nodes
    stand.step("keys", nodes, {}, {})
    stand.step("shares", nodes[:7], {}, {})
    for place in range(7):
        inbox = stand.server.inbox(nodes[place])
        held = stand.clients[nodes[place]].take_inbox(inbox)
        cohort = stand.server.cohort
        assert cohort is not None
        assert cohort.from_neighbours(place, held.holds) == [v for v in range(7) if v != place]


def _told_that_all_sent(stand: Stand, place: int) -> messages.Inbox:
    """A device's inbox, in which cloudd lists every neighbour as if it had sent its shares; what lacks is zeros."""
    cohort = stand.server.cohort
    assert cohort is not None
    inbox, sealed = stand.server.inbox(stand.plants.nodes[place]), []
    honest, start = cohort.from_neighbours(place, inbox.senders), 0
    for sender in cohort.neighbours[place]:
        if cohort.sealed_index(sender, place) is None:
            continue
        if sender in honest:
            sealed.append(inbox.sealed[start : start + messages.SEALED])
            start += messages.SEALED
        else:
            sealed.append(bytes(messages.SEALED))
    senders = cohort.over_neighbours(place, cohort.neighbours[place])
    return replaced(inbox, senders=senders, sealed=b"".join(sealed))


@pytest.mark.parametrize("where", ["on no roll", "on another roll"])
def test_what_is_revealed_for_a_device_that_is_not_on_the_roll_is_no_share_of_its_seed(where: str) -> None:
    """Its keys are in the roll but it never took it; others mask with it, cloudd calls it vanished, they reveal."""
    stand, absent = new_stand(8), 3
    nodes, victim = stand.plants.nodes, stand.clients[stand.plants.nodes[3]]
    stand.step("keys", nodes, {}, {})
    others = [v for v in range(8) if v != absent]
    stand.step("shares", [nodes[v] for v in others], {}, {})
    cohort = stand.server.cohort
    assert cohort is not None
    if where == "on another roll":
        victim.take_roll(replaced(cohort.roll, keys=cohort.roll.keys[:7], degree=6, threshold=5))
    everybody = messages.Ready(roll=cohort.digest, ready=bitmap.pack(range(8), 8))
    survivors = messages.Survivors(roll=cohort.digest, survivors=bitmap.pack(others, 8))
    votes = {}
    for v in others:
        client = stand.clients[nodes[v]]
        client.take_inbox(_told_that_all_sent(stand, v))
        client.take_ready(everybody)
        client.mask(some_updates(stand.plants)[nodes[v]])
        votes[v] = client.take_survivors(survivors)
    request = certificate.request(cohort, survivors.survivors, votes, ())
    revealed = {}
    for v in others:
        reveal, around = stand.clients[nodes[v]].take_unmask(request), stand.clients[nodes[v]]._masks_with()
        if absent in around:
            start = shamir.SHARE * around.index(absent)
            revealed[v] = reveal.shares[start : start + shamir.SHARE]
    assert set(revealed) == set(cohort.implied(absent)), "who has nothing to open masks with it"
    assert victim.cohort is None or victim.cohort.digest != cohort.digest
    if victim.cohort is not None:  # what the same holders have of its polynomials has nothing to do with it
        for v in set(revealed) & set(victim.cohort.implied(absent)):
            assert revealed[v] not in victim.cohort.implied_shares(victim._agreed[v], absent, v)
    assert victim._state is not None
    for secret in (victim._state.mask_seed, victim._state.own_seed):
        for some in itertools.combinations(sorted(revealed), 5):
            assert shamir.combine(shamir.weights([v + 1 for v in some]), [revealed[v] for v in some]) != secret


def test_a_sum_comes_out_when_exactly_the_implied_holders_of_a_vanished_device_are_left() -> None:
    stand = new_stand(8)
    nodes, updates = stand.plants.nodes, some_updates(stand.plants)
    for step in STEPS[:3]:
        stand.step(step, nodes, {}, {})
    cohort = stand.server.cohort
    assert cohort is not None
    assert cohort.sealed(7) == (5, 6)
    left = [node for node in nodes if node not in (nodes[7], nodes[5])]
    for step in STEPS[3:]:
        stand.step(step, left, updates, {})
    result = stand.server.finish(patient=False)
    assert result is not None
    assert_exact(stand, result, updates, {})
