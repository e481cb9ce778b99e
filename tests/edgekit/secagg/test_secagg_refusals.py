"""Every refusal rule against a cloudd that tries it; and that the attacks are real where a rule is missing."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from benchmarks import secagg_attacks
from benchmarks.secagg_cohort import STEPS
from edgekit.secagg import fixedpoint, masks, messages, shamir
from edgekit.secagg.agreement import KeyPair
from edgekit.secagg.errors import Refusal
from edgekit.secagg.ledger import RoundLedger
from edgekit.secagg.masks import Mask

RULES = {
    "both shares": {"survivors", "once", "certificate"},
    "split survivor sets": {"certificate", "once"},
    "cut graph": {"policy"},
    "swapped keys": {"identity"},
    "own keys": {"keys", "identity"},
    "sybils": {"identity"},
    "lowered threshold": {"policy"},
    "inconsistent models": {"binding"},
    "replay": {"binding", "once"},
    "re-trained vector": {"once"},
    "cohort of two": {"policy", "survivors"},
    "withheld shares": {"shares", "lists", "identity"},
    "invented shares": {"lists", "identity"},
    "weak certificate": {"certificate", "identity"},
}


@pytest.mark.parametrize("attack", secagg_attacks.ATTACKS)
def test_a_cheating_cloudd_gets_nothing(attack: str) -> None:
    assert set(secagg_attacks.ATTACKS[attack]()) == RULES[attack]


def test_an_attack_that_is_answered_is_told_from_one_that_is_refused() -> None:
    with pytest.raises(secagg_attacks.Answered):
        secagg_attacks.refused(lambda: None)


def test_both_shares_of_a_device_would_give_its_update_away() -> None:
    """Why the rules matter: with the shares that the devices hold and refuse, cloudd computes the victim's update."""
    stand = secagg_attacks.stand_after("held")
    nodes, cohort = stand.plants.nodes, stand.server.cohort
    assert cohort is not None
    update = secagg_attacks.updates(stand.plants)[nodes[0]]
    stand.clients[nodes[0]].take_ready(stand.server.close_held())
    words = stand.clients[nodes[0]].mask(update)
    places = list(range(1, cohort.threshold + 1))
    weights = shamir.weights([place + 1 for place in places])
    pairs = [stand.clients[nodes[place]]._received[0] for place in places]
    seed, secret = (shamir.combine(weights, [pair[kind] for pair in pairs]) for kind in (0, 1))
    pair = KeyPair.from_seed(secret, cohort.salt(0))
    found = [Mask(cohort.self_mask_key(seed), add=False)]
    found += [Mask(cohort.pair_mask_key(pair, 0, v), add=v < 0) for v in range(1, cohort.count)]
    masks.apply(words, found, stand.config.prg)
    np.testing.assert_array_equal(
        words, fixedpoint.encode(update, 1, fixedpoint.Encoding(stand.config), lambda count: bytes(count))
    )


def test_an_equivocating_cloudd_raises_an_alarm_that_the_record_keeps() -> None:
    stand = secagg_attacks.stand_after("vote")
    node = stand.plants.nodes[0]
    cohort = stand.server.cohort
    assert cohort is not None
    other = messages.Survivors(roll=cohort.digest, survivors=b"\x1f")
    with pytest.raises(Refusal) as refusal:
        stand.clients[node].take_survivors(other)
    assert refusal.value.rule == "once"
    record = stand.clients[node].audit("refused", at=1.0, previous="")
    assert record.alarm
    assert [one.rule for one in record.refusals] == ["once"]
    assert record.mask_shares_revealed == 0


def test_after_a_crash_the_ledger_still_refuses_the_second_survivor_set() -> None:
    stand = secagg_attacks.stand_after("masked")
    node = stand.plants.nodes[0]
    before = stand.clients[node].state()
    stand.clients[node].take_survivors(stand.server.close_masked())
    reborn = stand.client(node)
    reborn.restore(before)  # the state file is older than the vote: the ledger is not
    cohort = stand.server.cohort
    assert cohort is not None
    with pytest.raises(Refusal, match="survivors") as refusal:
        reborn.take_survivors(messages.Survivors(roll=cohort.digest, survivors=b"\x1f"))
    assert refusal.value.rule == "once"
    assert reborn.take_survivors(stand.server.survivors()).survivors == b"\x3f"


def test_a_ledger_that_cannot_write_stops_the_step() -> None:
    stand = secagg_attacks.stand_after("held")
    client = stand.clients[stand.plants.nodes[0]]
    client.take_ready(stand.server.close_held())

    class FullDisk:
        def settle(self, key: bytes, value: bytes) -> bytes:
            raise OSError("no space left on device")

    client._ledger = RoundLedger(FullDisk(), stand.config.session, stand.config.round)
    with pytest.raises(OSError, match="no space"):
        client.mask(np.zeros(10, np.float32))


def test_a_second_contribution_to_a_model_needs_the_plants_word() -> None:
    stand = secagg_attacks.stand_after("masked")
    policy = msgspec.structs.replace(stand.policy, repeats=1)
    for number, allowed in ((2, True), (3, False)):
        again = secagg_attacks.Stand(
            stand.plants,
            msgspec.structs.replace(stand.config, round=number),
            policy=policy,
            ledgers=stand.ledgers,
        )
        for step in STEPS[:3]:
            again.step(step, again.plants.nodes, {}, {})
        client = again.clients[again.plants.nodes[0]]
        client.take_ready(again.server.close_held())
        if allowed:
            client.mask(np.zeros(10, np.float32))
        else:
            with pytest.raises(Refusal, match="repeats"):
                client.mask(np.zeros(10, np.float32))


def test_the_rolls_signatures_are_checked_one_by_one() -> None:
    for place in range(secagg_attacks.SIZE):
        stand = secagg_attacks.stand_after("keys")
        roll = stand.server.close_keys()
        keys = list(roll.keys)
        keys[place] = msgspec.structs.replace(keys[place], nonce=bytes(16))
        with pytest.raises(Refusal) as refusal:
            stand.clients[stand.plants.nodes[0]].take_roll(msgspec.structs.replace(roll, keys=tuple(keys)))
        assert refusal.value.rule == "identity"
