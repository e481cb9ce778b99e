"""What a cheating cloudd may try against `secagg/2`, each as it would really be done: it relays what it likes, keeps
all that passes, and holds the keys of the devices that collude with it.

Each attack returns what every honest device did: the rules by which it refused. One that answered raises Answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.secagg_cohort import NOW, STEPS, Plants, Stand, config, plants
from edgekit.identity import generate_key
from edgekit.secagg import bitmap, certificate, messages, roster, signatures
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import Inbox, Keys, Ready, Roll, Survivors, Unmask, Vote
from edgekit.secagg.policy import Policy
from edgekit.secagg.roster import Roster

Refused = list[str]
"""The rule of each refusal."""
SIZE = 6  # devices: quorum 5, threshold 5, 2 may collude


class Answered(AssertionError):
    """An honest device gave the cheater what it asked for."""


def refused(*attempts: Callable[[], object]) -> Refused:
    """Run each attempt; all must be refused."""
    rules: Refused = []
    for attempt in attempts:
        try:
            attempt()
        except Refusal as refusal:
            rules.append(refusal.rule)
        else:
            raise Answered(f"attempt {len(rules) + 1} of {len(attempts)} was answered")
    return rules


def updates(these: Plants, length: int = 10) -> dict[bytes, NDArray[np.float32]]:
    """An update for each device."""
    rng = np.random.default_rng(3)
    return {node: rng.standard_normal(length).astype(np.float32) for node in these.nodes}


def stand_after(step: str, size: int = SIZE, policy: Policy | None = None) -> Stand:
    """A cohort of honest devices that has done all steps up to and with this one."""
    these = plants(size)
    stand = Stand(these, config(these.membership(), size), policy=policy)
    for one in STEPS[: STEPS.index(step) + 1]:
        stand.step(one, these.nodes, updates(these), {})
    return stand


def _survivors(stand: Stand, places: Iterable[int]) -> Survivors:
    cohort = stand.server.cohort
    assert cohort is not None
    return Survivors(roll=cohort.digest, survivors=bitmap.pack(places, cohort.count))


def _roll(stand: Stand) -> Roll:
    cohort = stand.server.cohort
    assert cohort is not None
    return cohort.roll


def _votes(stand: Stand, request: Survivors, signers: Sequence[int]) -> dict[int, Vote]:
    """Votes of colluding devices, made with their keys for whatever set cloudd likes."""
    cohort = stand.server.cohort
    assert cohort is not None
    votes = {}
    for place in signers:
        around = cohort.neighbours[place]
        vote = Vote(
            node=cohort.node(place),
            roll=cohort.digest,
            survivors=request.survivors,
            masks_with=bitmap.pack(range(len(around)), len(around)),
            signature=bytes(64),
        )
        sign = signatures.signer(stand.plants.keys[vote.node])
        votes[place] = msgspec.structs.replace(vote, signature=sign("vote", messages.statement(vote)))
    return votes


def both_shares() -> Refused:
    """After the honest unmasking, ask for the other kind of the victim's shares as well."""
    stand = stand_after("reveal")
    cohort, nodes = stand.server.cohort, stand.plants.nodes
    assert cohort is not None
    without = _survivors(stand, range(1, SIZE))  # the victim is place 0, and now "vanished"
    honest = nodes[: SIZE - 2]
    asked = [lambda node=node: stand.clients[node].take_survivors(without) for node in honest]
    old = stand.server.unmask(nodes[1])
    reused = msgspec.structs.replace(old, survivors=without.survivors)
    forged = certificate.request(cohort, without.survivors, _votes(stand, without, range(1, SIZE)), ())
    ways: list[Callable[[], object]] = [*asked]
    for node in honest:
        ways += [lambda node=node, m=m: stand.clients[node].take_unmask(m) for m in (reused, forged)]
    return refused(*ways)


def split_survivor_sets() -> Refused:
    """Show each half of the cohort another survivor set, have the colluders sign both, ask with what comes together."""
    stand = stand_after("masked")
    cohort, nodes = stand.server.cohort, stand.plants.nodes
    assert cohort is not None
    sets = (_survivors(stand, range(1, SIZE)), _survivors(stand, [0, 2, 3, 4, 5]))
    honest = {sets[0].survivors: [1, 2], sets[1].survivors: [0, 3]}
    ways: list[Callable[[], object]] = []
    for request in sets:
        votes = _votes(stand, request, [4, 5])
        for place in honest[request.survivors]:
            votes[place] = stand.clients[nodes[place]].take_survivors(request)
        asked = certificate.request(cohort, request.survivors, votes, ())
        ways += [lambda node=nodes[place], m=asked: stand.clients[node].take_unmask(m) for place in range(4)]
    ways.append(lambda: stand.clients[nodes[2]].take_survivors(sets[1]))
    return refused(*ways)


def cut_graph() -> Refused:
    """Propose a graph with so few neighbours that dropping some cuts it."""
    small, large = stand_after("keys"), stand_after("keys", 24, Policy(complete_to=8))
    few = msgspec.structs.replace(small.server.close_keys(), degree=2, threshold=2)
    ring = msgspec.structs.replace(large.server.close_keys(), degree=6, threshold=4)
    return refused(
        *(lambda c=c: c.take_roll(few) for c in small.clients.values()),
        *(lambda c=c: c.take_roll(ring) for c in large.clients.values()),
    )


def swapped_keys() -> Refused:
    """Give the victim keys of which cloudd knows the secrets, in its neighbours' names: unsigned, or self-signed."""
    stand = stand_after("keys")
    roll, victim = stand.server.close_keys(), stand.plants.nodes[0]
    own = signatures.signer(generate_key())
    ways: list[Callable[[], object]] = []
    for sign in (None, own):
        keys = list(roll.keys)
        for place in range(1, SIZE):
            keys[place] = msgspec.structs.replace(
                keys[place], channel=bytes([place]) * 32, mask=bytes([99 - place]) * 32
            )
            if sign is not None:
                statement = messages.statement(keys[place])
                keys[place] = msgspec.structs.replace(keys[place], signature=sign("keys", statement))
        ways.append(lambda keys=tuple(keys): stand.clients[victim].take_roll(msgspec.structs.replace(roll, keys=keys)))
    return refused(*ways)


def own_keys() -> Refused:
    """Leave the victim out of the roll, alter its entry, show a clone's, or let a colluder take its key."""
    stand = stand_after("keys")
    roll, nodes = stand.server.close_keys(), stand.plants.nodes
    altered = (msgspec.structs.replace(roll.keys[0], commitment=bytes(32)), *roll.keys[1:])

    def signed(place: int, **changes: bytes) -> Keys:
        keys = msgspec.structs.replace(roll.keys[place], **changes)
        sign = signatures.signer(stand.plants.keys[nodes[place]])
        return msgspec.structs.replace(keys, signature=sign("keys", messages.statement(keys)))

    copy, clone = signed(5, mask=roll.keys[0].mask), signed(0, commitment=bytes(32))
    rolls = (
        msgspec.structs.replace(roll, keys=roll.keys[1:], degree=SIZE - 2, threshold=4),
        msgspec.structs.replace(roll, keys=altered),
        msgspec.structs.replace(roll, keys=(*roll.keys[:5], copy)),
        msgspec.structs.replace(roll, keys=(clone, *roll.keys[1:])),
    )
    return refused(*(lambda m=m: stand.clients[nodes[0]].take_roll(m) for m in rolls))


def sybils() -> Refused:
    """Fill the cohort with devices of cloudd's own: strangers to the roster, or on a roster that cloudd signed."""
    stand, foreign = stand_after("keys"), plants(SIZE)
    roll, victim = stand.server.close_keys(), stand.plants.nodes[0]
    entries = [stand.clients[victim].keys()]
    for node in foreign.nodes:
        keys = msgspec.structs.replace(roll.keys[1], node=node, channel=node, mask=bytes(reversed(node)))
        sign = signatures.signer(foreign.keys[node])
        entries.append(msgspec.structs.replace(keys, signature=sign("keys", messages.statement(keys))))
    entries = sorted(entries, key=lambda keys: keys.node)[:SIZE]
    padded = msgspec.structs.replace(roll, keys=tuple(entries))
    listed = tuple(roster.member(key.public_key()) for key in foreign.keys.values())
    body = Roster(plant="plant 0", serial=2, not_after=NOW + 1, members=listed)
    signed = roster.sign_roster(body, generate_key())
    return refused(
        lambda: stand.clients[victim].take_roll(padded),
        lambda: roster.open_rosters([signed], stand.plants.trusted, now=NOW, floors={}),
    )


def lowered_threshold() -> Refused:
    """Assume that nobody colludes, so that the quorum falls; or ask for fewer shares."""
    these = plants(SIZE)
    naive = Stand(these, config(these.membership(), SIZE, colluders=0), policy=Policy())
    entries = tuple(naive.clients[node].keys() for node in these.nodes)
    naive_roll = Roll(config=messages.digest(naive.config), degree=SIZE - 1, threshold=4, keys=entries)
    stand = stand_after("keys")
    low = msgspec.structs.replace(stand.server.close_keys(), threshold=2)
    return refused(
        *(lambda c=c: c.take_roll(naive_roll) for c in naive.clients.values()),
        *(lambda c=c: c.take_roll(low) for c in stand.clients.values()),
    )


def inconsistent_models() -> Refused:
    """Give the victim another model (one that would print its data into the update), or its neighbours."""
    stand = stand_after("keys")
    victim, other = stand.plants.nodes[0], bytes(32)
    trap = stand.client(victim, msgspec.structs.replace(stand.config, model=other))
    lied_to = Stand(stand.plants, msgspec.structs.replace(stand.config, model=other))
    theirs = [lied_to.client(node, model=other).keys() for node in stand.plants.nodes[1:]]
    mixed = msgspec.structs.replace(stand.server.close_keys(), keys=(stand.clients[victim].keys(), *theirs))
    return refused(trap.keys, lambda: stand.clients[victim].take_roll(mixed))


def replay() -> Refused:
    """Show a device's keys of an earlier round again; start a round a second time; go back to an older roster."""
    stand = stand_after("reveal")
    nodes = stand.plants.nodes
    second = Stand(stand.plants, config(stand.plants.membership(), SIZE, round=2), ledgers=stand.ledgers)
    old = (*(second.clients[node].keys() for node in nodes[:1]), *_roll(stand).keys[1:])
    replayed = Roll(config=messages.digest(second.config), degree=SIZE - 1, threshold=5, keys=old)
    floors = {"plant 0": roster.Floor(2, bytes(32))}
    return refused(
        lambda: second.clients[nodes[0]].take_roll(replayed),
        *(stand.client(node).keys for node in nodes),
        lambda: roster.open_rosters(stand.plants.files, stand.plants.trusted, now=NOW, floors=floors),
    )


def retrained_vector() -> Refused:
    """Have the victim mask twice: in the round, after a restart that forgot, and in a new round on the same model."""
    stand = stand_after("held")
    these, victim = stand.plants, stand.plants.nodes[0]
    client, update = stand.clients[victim], updates(these)[victim]
    client.take_ready(stand.server.close_held())
    before = client.state()
    client.mask(update)
    reborn = stand.client(victim)
    reborn.restore(before)
    again = Stand(these, config(these.membership(), SIZE, round=2), ledgers=stand.ledgers)
    for one in STEPS[:3]:
        again.step(one, these.nodes, {}, {})
    again.clients[victim].take_ready(again.server.close_held())
    return refused(
        lambda: client.mask(update * 2), lambda: reborn.mask(update * 2), lambda: again.clients[victim].mask(update)
    )


def cohort_of_two() -> Refused:
    """Invite a victim and two friends; list few devices of many; name two survivors; name those of too few plants."""
    few = plants(3)
    small = Stand(few, config(few.membership(), 3))
    listed = stand_after("keys")
    roll = listed.server.close_keys()
    short = msgspec.structs.replace(roll, keys=roll.keys[:3], degree=2, threshold=3)
    two = stand_after("masked")
    these = plants(SIZE, owners=SIZE)
    plant_away = Stand(these, config(these.membership(), SIZE), policy=Policy(min_owners=SIZE))
    for step in STEPS[:4]:
        plant_away.step(step, these.nodes, updates(these), {})
    pair, five = _survivors(two, [0, 1]), _survivors(plant_away, range(5))
    return refused(
        *(c.keys for c in small.clients.values()),
        *(lambda n=n: listed.clients[n].take_roll(short) for n in listed.plants.nodes[:3]),
        *(lambda n=n: two.clients[n].take_survivors(pair) for n in two.plants.nodes[:2]),
        *(lambda n=n: plant_away.clients[n].take_survivors(five) for n in these.nodes[:5]),
    )


def withheld_shares() -> Refused:
    """Have the victim mask with few (shares kept from it, others called unready), and name those as survivors."""
    stand = stand_after("shares")
    server, nodes = stand.server, stand.plants.nodes
    cohort, victim = server.cohort, nodes[0]
    assert cohort is not None
    full = server.inbox(victim)
    # place 0 derives the shares of all but place 1, whose sealed ones are all that its inbox holds
    few = Inbox(roll=full.roll, senders=bitmap.pack([0], 5), sealed=full.sealed)
    rules = refused(lambda: stand.clients[victim].take_inbox(few))
    kept = Inbox(roll=full.roll, senders=bitmap.pack(range(4), 5), sealed=full.sealed[: 4 * messages.SEALED])
    stand.clients[victim].take_inbox(kept)  # shares of places 1 to 4, not of 5
    for node in nodes[1:]:
        stand.clients[node].take_inbox(server.inbox(node))
    lonely = Ready(roll=cohort.digest, ready=bitmap.pack([0, 4, 5], SIZE))
    without_four = Ready(roll=cohort.digest, ready=bitmap.pack([0, 1, 2, 3, 5], SIZE))
    rules += refused(lambda: stand.clients[victim].take_ready(lonely))
    all_ready = Ready(roll=cohort.digest, ready=bitmap.pack(range(SIZE), SIZE))
    for node in nodes:
        stand.clients[node].take_ready(without_four if node == nodes[1] else all_ready)
        stand.clients[node].mask(updates(stand.plants)[node])
    everybody = _survivors(stand, range(SIZE))
    votes = {place: stand.clients[nodes[place]].take_survivors(everybody) for place in range(2, SIZE)}
    colluder = _votes(stand, everybody, [1])  # as if place 1 worked for cloudd
    lied = msgspec.structs.replace(colluder[1], node=victim)  # claims all, with another device's signature
    with_lie = certificate.request(cohort, everybody.survivors, {**votes, **colluder, 0: lied}, ())
    silent = certificate.request(cohort, everybody.survivors, {**votes, **colluder}, ())
    ways: list[Callable[[], object]] = [lambda n=n: stand.clients[n].take_survivors(everybody) for n in nodes[:2]]
    for node in nodes[2:]:
        ways += [lambda node=node, m=m: stand.clients[node].take_unmask(m) for m in (with_lie, silent)]
    honest = stand.clients[victim].take_ready(all_ready)
    shown = certificate.request(cohort, everybody.survivors, {**votes, **colluder}, (honest,))
    ways += [lambda node=node: stand.clients[node].take_unmask(shown) for node in nodes[2:]]
    stretched = msgspec.structs.replace(honest, masks_with=bitmap.pack(range(5), 5))
    faked = certificate.request(cohort, everybody.survivors, {**votes, **colluder}, (stretched,))
    ways += [lambda node=node: stand.clients[node].take_unmask(faked) for node in nodes[2:]]
    return rules + refused(*ways)


def invented_shares() -> Refused:
    """Say that a device that never saw the roll has sent shares, so that others mask with it; name it a survivor."""
    stand, absent = stand_after("keys"), SIZE - 1
    server, nodes = stand.server, stand.plants.nodes
    stand.step("shares", nodes[:absent], {}, {})
    cohort = server.cohort
    assert cohort is not None
    everybody = Ready(roll=cohort.digest, ready=bitmap.pack(range(SIZE), SIZE))
    for place in range(absent):
        inbox = server.inbox(nodes[place])
        senders = cohort.over_neighbours(place, range(SIZE))
        sealed = inbox.sealed if cohort.sealed_index(absent, place) is None else inbox.sealed + bytes(messages.SEALED)
        stand.clients[nodes[place]].take_inbox(msgspec.structs.replace(inbox, senders=senders, sealed=sealed))
        stand.clients[nodes[place]].take_ready(everybody)
        stand.clients[nodes[place]].mask(updates(stand.plants)[nodes[place]])
    request = _survivors(stand, range(SIZE))
    votes = {place: stand.clients[nodes[place]].take_survivors(request) for place in range(4)}
    votes |= _votes(stand, request, [4])  # the only one that derives no shares of the absent device works for cloudd
    silent = certificate.request(cohort, request.survivors, votes, ())
    lied = msgspec.structs.replace(votes[4], node=nodes[absent])
    with_lie = certificate.request(cohort, request.survivors, {**votes, absent: lied}, ())
    return refused(
        lambda: stand.clients[nodes[4]].take_survivors(request),
        *(lambda n=n, m=m: stand.clients[n].take_unmask(m) for n in nodes[:4] for m in (silent, with_lie)),
    )


def weak_certificate() -> Refused:
    """Ask with too few votes, with a vote of a device that is no survivor, and with one vote counted twice."""
    stand = stand_after("masked")
    cohort, nodes = stand.server.cohort, stand.plants.nodes
    assert cohort is not None
    request = _survivors(stand, range(1, SIZE))
    votes = {place: stand.clients[nodes[place]].take_survivors(request) for place in range(1, 5)}
    short = certificate.request(cohort, request.survivors, votes, ())
    outsider = certificate.request(cohort, request.survivors, {**votes, **_votes(stand, request, [0])}, ())
    twice = msgspec.structs.replace(votes[4], node=nodes[5])
    doubled = certificate.request(cohort, request.survivors, {**votes, 5: twice}, ())
    requests: Sequence[Unmask] = (short, outsider, doubled)
    return refused(
        *(lambda n=n, m=m: stand.clients[n].take_unmask(m) for n in nodes[1:] for m in requests),
        lambda: stand.clients[nodes[0]].take_unmask(short),
    )


ATTACKS: dict[str, Callable[[], Refused]] = {
    "both shares": both_shares,
    "split survivor sets": split_survivor_sets,
    "cut graph": cut_graph,
    "swapped keys": swapped_keys,
    "own keys": own_keys,
    "sybils": sybils,
    "lowered threshold": lowered_threshold,
    "inconsistent models": inconsistent_models,
    "replay": replay,
    "re-trained vector": retrained_vector,
    "cohort of two": cohort_of_two,
    "withheld shares": withheld_shares,
    "invented shares": invented_shares,
    "weak certificate": weak_certificate,
}


def run(name: str) -> dict[str, Any]:
    """One row of the table: the attack, `refused` or what was given away, and the rules that stopped it."""
    try:
        rules = ATTACKS[name]()
    except Answered as answer:
        return {"attack": name, "outcome": f"ANSWERED: {answer}", "rules": ""}
    return {"attack": name, "outcome": "refused", "rules": ", ".join(dict.fromkeys(rules)), "attempts": len(rules)}
