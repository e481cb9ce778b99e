"""Each message belongs to one round, one roll and one place in it: elsewhere it is refused, by both halves."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from secagg_stand import SMALL, new_stand, some_updates

from benchmarks import secagg_attacks
from benchmarks.secagg_cohort import STEPS, Plants, Stand, config, plants
from edgekit.secagg import bitmap, messages, signatures
from edgekit.secagg.errors import Refusal, Rule

replaced = msgspec.structs.replace


def assert_refused(attempt: Callable[[], object], rule: Rule) -> None:
    with pytest.raises(Refusal) as refusal:
        attempt()
    assert refusal.value.rule == rule


def test_a_round_with_other_rosters_is_refused() -> None:
    stand = new_stand(5)
    client = stand.client(stand.plants.nodes[0], replaced(stand.config, rosters=bytes(32)))
    assert_refused(client.keys, "binding")


def test_a_device_that_its_rosters_do_not_list_does_not_join() -> None:
    stand, stranger = new_stand(5), plants(1)
    mixed = Plants({**stand.plants.keys, **stranger.keys}, stand.plants.files, stand.plants.trusted)
    client = Stand(mixed, stand.config, policy=SMALL).clients[stranger.nodes[0]]
    assert_refused(client.keys, "identity")


def test_a_roll_must_be_sorted_of_this_configuration_and_within_its_invitation() -> None:
    stand = secagg_attacks.stand_after("keys")
    roll = stand.server.close_keys()
    client = stand.clients[stand.plants.nodes[0]]
    swapped = (roll.keys[1], roll.keys[0], *roll.keys[2:])
    assert_refused(lambda: client.take_roll(replaced(roll, keys=swapped)), "keys")
    doubled = (*roll.keys[:5], roll.keys[4])
    assert_refused(lambda: client.take_roll(replaced(roll, keys=doubled)), "keys")
    assert_refused(lambda: client.take_roll(replaced(roll, config=bytes(32))), "binding")
    assert_refused(lambda: client.take_roll(replaced(roll, degree=6)), "malformed")

    these = plants(6)
    crowded = Stand(these, config(these.membership(), 5, colluders=2))
    entries = tuple(crowded.clients[node].keys() for node in these.nodes)
    six = messages.Roll(config=messages.digest(crowded.config), degree=5, threshold=5, keys=entries)
    assert_refused(lambda: crowded.clients[these.nodes[0]].take_roll(six), "policy")
    for keys in entries[:5]:
        crowded.server.receive_keys(keys)
    assert_refused(lambda: crowded.server.receive_keys(entries[5]), "policy")


def test_every_message_of_another_roll_is_refused_by_a_device() -> None:
    stand = secagg_attacks.stand_after("shares")
    nodes, server = stand.plants.nodes, stand.server
    client = stand.clients[nodes[0]]
    inbox = server.inbox(nodes[0])
    assert_refused(lambda: client.take_inbox(replaced(inbox, roll=bytes(32))), "binding")
    stand.step("held", nodes, {}, {})
    ready = server.close_held()
    assert_refused(lambda: client.take_ready(replaced(ready, roll=bytes(32))), "binding")
    for node in nodes:
        server.receive_masked(
            stand.clients[node].take_ready(ready), stand.clients[node].mask(some_updates(stand.plants)[node])
        )
    survivors = server.close_masked()
    assert_refused(lambda: client.take_survivors(replaced(survivors, roll=bytes(32))), "binding")
    for node in nodes:
        server.receive_vote(stand.clients[node].take_survivors(survivors))
    server.close_votes()
    unmask = server.unmask(nodes[0])
    assert_refused(lambda: client.take_unmask(replaced(unmask, roll=bytes(32))), "binding")
    client.take_unmask(unmask)


def test_a_second_inbox_is_refused_whatever_is_in_it() -> None:
    stand = secagg_attacks.stand_after("held")
    client = stand.clients[stand.plants.nodes[0]]
    inbox = stand.server.inbox(stand.plants.nodes[0])
    damaged = replaced(inbox, sealed=bytes(len(inbox.sealed)))
    assert_refused(lambda: client.take_inbox(damaged), "once")
    assert client.take_inbox(inbox).holds == b"\x1f"


def test_a_second_list_is_refused() -> None:
    stand = secagg_attacks.stand_after("masked")
    cohort = stand.server.cohort
    assert cohort is not None
    fewer = messages.Ready(roll=cohort.digest, ready=bitmap.pack(range(5), 6))
    assert_refused(lambda: stand.clients[stand.plants.nodes[0]].take_ready(fewer), "once")


def test_cloudd_takes_no_vector_whose_list_would_void_the_round() -> None:
    stand = secagg_attacks.stand_after("held")
    nodes = stand.plants.nodes
    ready = stand.server.close_held()
    for node in nodes:
        stand.clients[node].take_ready(ready)
    honest = stand.clients[nodes[0]].take_ready(ready)
    fewer = replaced(honest, masks_with=bitmap.pack(range(4), 5))
    sign = signatures.signer(stand.plants.keys[nodes[0]])
    fewer = replaced(fewer, signature=sign("masked", messages.statement(fewer)))
    words = stand.clients[nodes[0]].mask(some_updates(stand.plants)[nodes[0]])
    assert_refused(lambda: stand.server.receive_masked(fewer, words), "lists")
    assert_refused(lambda: stand.server.receive_masked(replaced(honest, signature=bytes(64)), words), "identity")
    assert_refused(lambda: stand.server.receive_masked(honest, words[:-1]), "malformed")
    stand.server.receive_masked(honest, words.tobytes())


def test_cloudd_takes_no_vote_for_another_set_or_with_another_list() -> None:
    stand = secagg_attacks.stand_after("masked")
    nodes = stand.plants.nodes
    survivors = stand.server.close_masked()
    honest = stand.clients[nodes[0]].take_survivors(survivors)
    sign = signatures.signer(stand.plants.keys[nodes[0]])
    for changes, rule in (
        ({"survivors": bitmap.pack(range(5), 6)}, "survivors"),
        ({"masks_with": bitmap.pack(range(4), 5)}, "lists"),
    ):
        other = replaced(honest, **changes)
        assert_refused(lambda vote=other: stand.server.receive_vote(vote), "identity")
        other = replaced(other, signature=sign("vote", messages.statement(other)))
        assert_refused(lambda vote=other: stand.server.receive_vote(vote), rule)  # type: ignore[arg-type]
    stand.server.receive_vote(honest)


def test_a_device_outside_the_step_has_no_say() -> None:
    stand = new_stand(6)
    nodes = stand.plants.nodes
    for step in STEPS[:3]:
        stand.step(step, nodes, {}, {})
    stand.step("masked", nodes[1:], some_updates(stand.plants), {})
    survivors = stand.server.close_masked()
    cohort = stand.server.cohort
    assert cohort is not None
    vote = messages.Vote(
        node=nodes[0],
        roll=cohort.digest,
        survivors=survivors.survivors,
        masks_with=bitmap.pack(range(5), 5),
        signature=bytes(64),
    )
    sign = signatures.signer(stand.plants.keys[nodes[0]])
    vote = replaced(vote, signature=sign("vote", messages.statement(vote)))
    assert_refused(lambda: stand.server.receive_vote(vote), "survivors")
    for node in nodes[1:]:
        stand.server.receive_vote(stand.clients[node].take_survivors(survivors))
    stand.server.close_votes()
    assert_refused(lambda: stand.server.unmask(nodes[0]), "order")
    reveal = messages.Reveal(node=nodes[0], own=bytes(16), shares=bytes(80))
    assert_refused(lambda: stand.server.receive_reveal(reveal), "order")
    assert_refused(lambda: stand.server.receive_reveal(replaced(reveal, node=bytes(32))), "identity")
