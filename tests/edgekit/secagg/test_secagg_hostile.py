"""Hostile devices, hostile bytes, and a cloudd that picks the survivors by the graph."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from secagg_stand import SMALL, assert_exact, new_stand, some_updates

from benchmarks.secagg_cohort import STEPS, Stand, config, plants
from edgekit.secagg import bitmap, messages
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import Survivors
from edgekit.secagg.policy import Policy


def test_cloudd_refuses_what_a_cheating_device_sends() -> None:
    stand = new_stand(5)
    nodes = stand.plants.nodes
    first, second = stand.clients[nodes[0]].keys(), stand.clients[nodes[1]].keys()
    stand.server.receive_keys(first)
    replaced = msgspec.structs.replace
    for wrong in (
        replaced(first, nonce=bytes(16)),
        replaced(second, mask=first.mask),
        replaced(second, node=bytes(32)),
        replaced(second, config=bytes(32)),
        replaced(second, signature=bytes(64)),
    ):
        with pytest.raises(Refusal):
            stand.server.receive_keys(wrong)
    for node in nodes[1:]:
        stand.server.receive_keys(stand.clients[node].keys())
    roll = stand.server.close_keys()
    shares = stand.clients[nodes[0]].take_roll(roll)
    for wrong_shares in (replaced(shares, sealed=shares.sealed[1:]), replaced(shares, node=bytes(32))):
        with pytest.raises(Refusal):
            stand.server.receive_shares(wrong_shares)


def test_a_key_that_nobody_can_agree_with_is_kept_out() -> None:
    stand = new_stand(5)
    node = stand.plants.nodes[0]
    keys = msgspec.structs.replace(stand.clients[node].keys(), mask=bytes(32))
    signature = stand.clients[node]._sign("keys", messages.statement(keys))
    with pytest.raises(Refusal, match="cannot be used"):
        stand.server.receive_keys(msgspec.structs.replace(keys, signature=signature))


def _damaged(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    match chance.randrange(3):
        case 0:
            return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
        case 1:
            return data[:place] + chance.randbytes(chance.randrange(1, 9)) + data[place:]
    return data[:place] + data[place + chance.randrange(1, 9) :]


def test_damaged_messages_are_refused_or_answered_but_never_anything_else() -> None:
    stand = new_stand(4)
    nodes = stand.plants.nodes
    chance = random.Random(7)
    requests: dict[str, Any] = {
        "shares": lambda: stand.server.close_keys(),
        "held": lambda: stand.server.inbox(nodes[0]),
        "vote": lambda: stand.server.close_masked(),
        "reveal": lambda: stand.server.unmask(nodes[0]),
    }
    updates = some_updates(stand.plants)
    for step in STEPS:
        if step in requests:
            state, server_state, words = stand.clients[nodes[0]].state(), stand.server.state(), stand.server.words
            honest = messages.encode(requests[step]())
            for _ in range(60):
                client = Stand(stand.plants, stand.config, policy=SMALL).clients[nodes[0]]
                client.restore(state)
                stand.clients[nodes[0]], kept = client, stand.clients[nodes[0]]
                try:
                    answer = stand.answer(step, nodes[0], _damaged(honest, chance))
                    stand._receive(_damaged(answer, chance))
                except Refusal:
                    pass
                stand.clients[nodes[0]] = kept
            stand.server.restore(server_state, words)
        stand.step(step, nodes, updates, {})
    result = stand.server.finish()
    assert result is not None
    assert_exact(stand, result, updates, {})


def test_what_needs_no_numpy_imports_none() -> None:
    names = [
        "audit",
        "certificate",
        "cohort",
        "errors",
        "graph",
        "ledger",
        "messages",
        "parameters",
        "policy",
        "roster",
        "shamir",
    ]
    code = f"import sys\nfor name in {names}: __import__('edgekit.secagg.' + name)\nprint('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_victim_all_of_whose_honest_neighbours_are_called_vanished_stays_hidden() -> None:
    """The attack that a random graph invites: the quorum signs, every device reveals, and still nobody can unmask."""
    these = plants(130)
    stand = Stand(these, config(these.membership(), 130, colluders=13), policy=Policy())
    for step in STEPS[:4]:
        stand.step(step, these.nodes, some_updates(these), {})
    cohort = stand.server.cohort
    assert cohort is not None
    assert cohort.graph.degree < 70
    victim, colluders = 0, set(range(117, 130))
    around = sorted(set(cohort.neighbours[victim]) - colluders)
    kept = [v for v in range(130) if v not in around]
    survivors = sorted(kept + around[: max(0, cohort.quorum - len(kept))])
    request = Survivors(roll=cohort.digest, survivors=bitmap.pack(survivors, 130))
    for place in survivors:
        stand.clients[these.nodes[place]].take_survivors(request)
    holders = colluders.intersection(cohort.neighbours[victim]) | {victim}
    holders |= set(survivors).intersection(cohort.neighbours[victim])
    assert len(holders) < cohort.threshold, "too few will ever give a share of the victim's own mask"
