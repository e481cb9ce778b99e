"""Whole rounds: who may vanish when, what the sum is, and that a restart changes nothing."""

from __future__ import annotations

import secrets
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_stand import SMALL, assert_exact, fleet, new_stand, some_updates

from benchmarks.secagg_cohort import STEPS, Stand, Step, config
from edgekit.secagg import fixedpoint, messages
from edgekit.secagg.errors import Refusal, Void
from edgekit.secagg.ledger import MemoryLedger
from edgekit.secagg.messages import RoundConfig
from edgekit.secagg.policy import Policy
from edgekit.secagg.server import ServerRound


@given(
    st.integers(3, 8),
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from(STEPS)), max_size=6),
    st.sampled_from(["aes-256-ctr", "chacha20"]),
    st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_whoever_vanishes_whenever_the_sum_is_that_of_the_survivors_or_nothing_is_revealed(
    devices: int, vanishing: list[tuple[int, Step]], prg: Any, seed: int
) -> None:
    stand = new_stand(devices, Policy(min_cohort=3, max_weight=3), prg=prg, max_weight=3, round=seed)
    nodes = stand.plants.nodes
    gone: dict[Step, list[bytes]] = {}
    for place, step in vanishing:
        gone.setdefault(step, []).append(nodes[place % devices])
    updates = some_updates(stand.plants, seed=seed)
    weights = {node: 1 + place % 3 for place, node in enumerate(nodes)}
    left = {step: set(nodes) for step in STEPS}
    present = set(nodes)
    for step in STEPS:
        present -= set(gone.get(step, ()))
        left[step] = set(present)
    joined = len(left["keys"])
    tolerated = joined >= 3 and len(left["reveal"]) >= (joined + stand.config.colluders) // 2 + 1
    try:
        enough = stand.config.colluders <= max(0, joined - 2) and joined >= 3
        result = stand.run(updates, weights, gone)
    except Void:
        assert not (tolerated and enough), "a tolerated number of devices vanished"
        assert stand.server.phase == "void"
        assert stand.server.words is None
        given_away = [c for c in stand.clients.values() if c._state is not None and c._state.reveal is not None]
        cohort = stand.server.cohort
        assert cohort is None or len(given_away) < cohort.threshold, "fewer shares than any secret needs"
        return
    assert tolerated
    assert set(result.survivors) == left["masked"]
    assert_exact(stand, result, updates, weights)


def test_one_more_than_tolerated_voids_the_round_in_every_step() -> None:
    for step in STEPS[1:]:
        stand = new_stand(6)
        with pytest.raises(Void, match=r"needed|too few"):
            stand.run(some_updates(stand.plants), gone={step: stand.plants.nodes[:2]})
        assert stand.server.words is None


def test_as_many_as_tolerated_may_vanish_in_any_step() -> None:
    for step in STEPS[1:]:
        stand = new_stand(6)
        updates = some_updates(stand.plants)
        result = stand.run(updates, gone={step: stand.plants.nodes[2:3]})
        assert len(result.survivors) == (6 if step in ("vote", "reveal") else 5)
        assert_exact(stand, result, updates, {})


def test_vanishing_before_the_keys_costs_no_tolerance() -> None:
    stand = new_stand(8)
    updates = some_updates(stand.plants)
    result = stand.run(updates, gone={"keys": stand.plants.nodes[:2], "reveal": stand.plants.nodes[2:3]})
    assert len(result.survivors) == 6
    assert_exact(stand, result, updates, {})


def test_words_of_16_bits_give_the_sum_within_their_rounding() -> None:
    stand = new_stand(8, bits=16, parameters=3000)
    updates = some_updates(stand.plants, 3000)
    result = stand.run(updates, gone={"masked": stand.plants.nodes[:1]})
    found, weight = fixedpoint.decode(result.words, len(result.survivors), stand.server.encoding)
    wanted = np.sum([updates[node].astype(np.float64) for node in result.survivors], axis=0)
    assert weight == 7
    assert result.words.nbytes == 2 * 3002
    assert np.abs(found - wanted).max() <= 7 * 4.0 / stand.server.encoding.unit


def test_a_masked_vector_looks_like_noise_and_two_rounds_share_no_mask() -> None:
    first, second = new_stand(5, parameters=20_000), new_stand(5, parameters=20_000, round=2)
    second.ledgers = {node: MemoryLedger() for node in second.plants.nodes}
    words = []
    for stand in (first, second):
        for step in STEPS[:3]:
            stand.step(step, stand.plants.nodes, {}, {})
        stand.clients[stand.plants.nodes[0]].take_ready(stand.server.close_held())
        words.append(stand.clients[stand.plants.nodes[0]].mask(np.zeros(20_000, np.float32)))
    for vector in words:
        ones = np.unpackbits(vector.view(np.uint8)).mean()
        assert ones == pytest.approx(0.5, abs=0.004)  # 640,000 bits: 6 standard deviations
    assert np.mean(words[0] == words[1]) < 0.001


def test_a_large_cohort_masks_in_a_random_graph() -> None:
    policy = Policy(complete_to=16, one_in_large=10, sparse_bits=10)
    these = fleet(60)
    stand = Stand(these, config(these.membership(), 60, colluders=6), policy=policy, dropout=0.1)
    updates = some_updates(these)
    result = stand.run(
        updates, gone={"masked": these.nodes[::20], "vote": these.nodes[1:2], "reveal": these.nodes[2:3]}
    )
    cohort = stand.server.cohort
    assert cohort is not None
    assert cohort.graph.degree < 45
    assert len(result.survivors) == 57
    assert_exact(stand, result, updates, {})


def test_a_device_that_was_sent_a_broken_share_and_its_sender_do_not_both_stay() -> None:
    stand = new_stand(8)
    nodes = stand.plants.nodes
    for step in STEPS[:1]:
        stand.step(step, nodes, {}, {})
    roll = stand.server.close_keys()
    for place, node in enumerate(nodes):
        shares = stand.clients[node].take_roll(roll)
        if place == 3:  # a saboteur: garbage for places 1 and 2, the only ones who do not derive theirs
            shares = msgspec.structs.replace(shares, sealed=bytes(2 * messages.SEALED))
        stand.server.receive_shares(shares)
    stand.server.close_shares()
    stand.step("held", nodes, {}, {})
    others = [node for node in nodes if node != nodes[3]]
    for step in STEPS[3:]:
        stand.step(step, others, some_updates(stand.plants), {})
        if step == "masked":
            with pytest.raises(Refusal, match="to mask with"):
                stand.clients[nodes[3]].take_ready(stand.server.ready())
    result = stand.server.finish()
    assert result is not None
    assert set(result.survivors) == set(nodes) - {nodes[3]}
    assert_exact(stand, result, some_updates(stand.plants), {})


def test_a_survivor_that_reveals_wrong_shares_is_found_out_while_there_are_others() -> None:
    stand = new_stand(8)
    nodes = stand.plants.nodes
    updates = some_updates(stand.plants)
    for step in STEPS[:5]:
        stand.step(step, nodes, updates, {})
    for place, node in enumerate(nodes):
        reveal = stand.clients[node].take_unmask(stand.server.unmask(node))
        if place == 2:
            reveal = msgspec.structs.replace(reveal, shares=bytes(len(reveal.shares)), own=bytes(16))
        stand.server.receive_reveal(reveal)
    result = stand.server.finish()
    assert result is not None
    assert_exact(stand, result, updates, {})


def test_wrong_shares_beyond_repair_void_the_round() -> None:
    stand = new_stand(6)
    nodes = stand.plants.nodes
    for step in STEPS[:5]:
        stand.step(step, nodes, some_updates(stand.plants), {})
    for place, node in enumerate(nodes):
        reveal = stand.clients[node].take_unmask(stand.server.unmask(node))
        stand.server.receive_reveal(
            msgspec.structs.replace(reveal, shares=bytes(len(reveal.shares))) if place < 2 else reveal
        )
    with pytest.raises(Void, match="wrong ones"):
        stand.server.finish()
    assert stand.server.words is None


def test_cloudd_waits_for_shares_while_they_may_still_come() -> None:
    stand = new_stand(6)
    nodes = stand.plants.nodes
    updates = some_updates(stand.plants)
    for step in STEPS[:5]:
        stand.step(step, nodes, updates, {})
    for node in nodes[:4]:
        stand.server.receive_reveal(stand.clients[node].take_unmask(stand.server.unmask(node)))
    assert stand.server.finish() is None
    stand.server.receive_reveal(stand.clients[nodes[4]].take_unmask(stand.server.unmask(nodes[4])))
    result = stand.server.finish()
    assert result is not None
    assert_exact(stand, result, updates, {})


@pytest.mark.parametrize("who", ["cloudd", "devices"])
def test_a_restart_after_every_step_changes_nothing(who: str) -> None:
    stand = new_stand(5)
    updates = some_updates(stand.plants)
    for step in STEPS:
        stand.step(step, stand.plants.nodes[1:] if step == "reveal" else stand.plants.nodes, updates, {})
        if who == "cloudd":
            state, words = stand.server.state(), stand.server.words
            stand.server = ServerRound(
                stand.config, membership=stand.plants.membership(), policy=SMALL, random=secrets.token_bytes
            )
            stand.server.restore(state, None if words is None else words.copy())
        else:
            for node in stand.plants.nodes:
                state = stand.clients[node].state()
                stand.clients[node] = stand.client(node)
                stand.clients[node].restore(state)
    result = stand.server.finish()
    assert result is not None
    assert_exact(stand, result, updates, {})


def test_asking_again_gets_the_same_answer() -> None:
    stand = new_stand(5)
    nodes = stand.plants.nodes
    client = stand.clients[nodes[0]]
    for step in STEPS[:1]:
        stand.step(step, nodes, {}, {})
    assert client.keys() == client.keys()
    roll = stand.server.close_keys()
    for node in nodes:
        stand.server.receive_shares(stand.clients[node].take_roll(roll))
    assert client.take_roll(roll) == client.take_roll(roll)
    stand.server.close_shares()
    inbox = stand.server.inbox(nodes[0])
    assert client.take_inbox(inbox) == client.take_inbox(inbox)
    for node in nodes:
        stand.server.receive_held(stand.clients[node].take_inbox(stand.server.inbox(node)))
    stand.step("masked", nodes, some_updates(stand.plants), {})
    before = np.array(stand.server.words)
    masked = client.take_ready(stand.server.ready())
    assert masked == client.take_ready(stand.server.ready())
    stand.server.receive_masked(masked, b"\1" * before.nbytes)
    np.testing.assert_array_equal(before, stand.server.words)
    survivors = stand.server.close_masked()
    assert client.take_survivors(survivors) == client.take_survivors(survivors)
    for node in nodes:
        stand.server.receive_vote(stand.clients[node].take_survivors(survivors))
    assert stand.server.certified
    stand.server.close_votes()
    assert client.take_unmask(stand.server.unmask(nodes[0])) == client.take_unmask(stand.server.unmask(nodes[0]))
    assert not client.alarm


def test_steps_out_of_order_are_refused_by_both_halves() -> None:
    stand = new_stand(5)
    client, node = stand.clients[stand.plants.nodes[0]], stand.plants.nodes[0]
    keys = client.keys()
    for early in (
        lambda: client.mask(np.zeros(10, np.float32)),
        lambda: client.take_survivors(messages.Survivors(roll=bytes(32), survivors=b"\x1f")),
        lambda: stand.server.inbox(node),
        stand.server.close_held,
        lambda: stand.server.unmask(node),
        stand.server.close_masked,
        stand.server.finish,
    ):
        with pytest.raises(Refusal) as refusal:
            early()
        assert refusal.value.rule == "order"
    client.close()
    with pytest.raises(Refusal, match="left the round"):
        client.keys()
    assert client.state() == b""
    stand.server.receive_keys(keys)


def test_clouds_memory_does_not_grow_with_the_devices() -> None:
    length = 200_000

    def peak(devices: int) -> int:
        stand = new_stand(devices, parameters=length)
        for step in STEPS[:3]:
            stand.step(step, stand.plants.nodes, {}, {})
        zeros = np.zeros(length, np.float32)
        tracemalloc.start()
        stand.step("masked", stand.plants.nodes, dict.fromkeys(stand.plants.nodes, zeros), {})
        stand.step("vote", stand.plants.nodes, {}, {})
        stand.step("reveal", stand.plants.nodes, {}, {})
        assert stand.server.finish() is not None
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(4), peak(12)
    assert many - few < 0.2 * 4 * length, "the sum, one vector on its way and buffers, whatever the cohort"


def test_the_audit_record_says_what_left() -> None:
    stand = new_stand(6)
    nodes = stand.plants.nodes
    stand.run(some_updates(stand.plants), gone={"masked": nodes[:1]})
    record = stand.clients[nodes[1]].audit("summed", at=5.0, previous="")
    assert record.version == "secagg/2"
    assert (record.cohort, record.quorum, record.threshold, record.survivors) == (6, 5, 5, 5)
    assert (record.mask_shares_revealed, record.key_shares_revealed) == (5, 1)
    assert [left.step for left in record.left] == ["keys", "shares", "held", "masked", "vector", "vote", "reveal"]
    assert record.left[4].bytes == 48
    assert not record.refusals
    assert not record.alarm


def test_a_configuration_is_the_same_for_everybody_or_it_is_another_round() -> None:
    stand = new_stand(5)
    changed = msgspec.structs.replace(stand.config, limit=3.0)
    assert isinstance(changed, RoundConfig)
    other = stand.client(stand.plants.nodes[1], changed)
    with pytest.raises(Refusal, match="another round"):
        stand.server.receive_keys(other.keys())
