"""Rosters, the policy table and audit records: what is signed offline, set locally, and kept."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.secagg_cohort import NOW, config, plants
from edgekit import toml
from edgekit.identity import generate_key, parse_device_id
from edgekit.identity.device_id import format_digest
from edgekit.secagg import audit, roster, signatures
from edgekit.secagg.errors import Refusal
from edgekit.secagg.parameters import GraphParameters
from edgekit.secagg.policy import Policy
from edgekit.secagg.roster import Floor, Roster, open_rosters


def test_members_are_known_by_device_id_and_plant() -> None:
    these = plants(4, owners=2)
    membership = these.membership()
    assert len(membership) == 4
    for node, key in these.keys.items():
        assert node in membership
        assert parse_device_id(format_digest(node)) == roster.member(key.public_key()).device
        membership.check(node, "vote", b"x", signatures.signer(key)("vote", b"x"))
    assert {membership.owner(node) for node in these.nodes} == {"plant 0", "plant 1"}
    assert bytes(32) not in membership


def test_the_digest_names_the_rosters_whatever_their_order() -> None:
    these = plants(4, owners=2)
    first = open_rosters(these.files, these.trusted, now=NOW, floors={})
    second = open_rosters(these.files[::-1], these.trusted, now=NOW, floors={})
    assert first.digest == second.digest != open_rosters(these.files[:1], these.trusted, now=NOW, floors={}).digest


def test_the_local_name_of_the_key_is_the_owner_not_what_the_roster_says() -> None:
    key, device = generate_key(), generate_key()
    body = Roster(plant="somebody else", serial=1, not_after=NOW, members=(roster.member(device.public_key()),))
    membership = open_rosters([roster.sign_roster(body, key)], {"ours": key.public_key()}, now=NOW, floors={})
    assert membership.owner(roster.node_of(device.public_key())) == "ours"


def _signed(
    serial: int = 1, not_after: float = NOW, members: tuple[roster.Member, ...] = ()
) -> tuple[bytes, dict[str, object]]:
    key = generate_key()
    body = Roster(plant="p", serial=serial, not_after=not_after, members=members)
    return roster.sign_roster(body, key), {"p": key.public_key()}


@pytest.mark.parametrize(
    ("serial", "not_after", "floor", "sentence"),
    [
        (1, NOW - 1, None, "expired"),
        (1, NOW, Floor(2, bytes(32)), "serial 1; 2 was seen"),
        (2, NOW, Floor(2, bytes(32)), "two rosters"),
    ],
)
def test_an_expired_older_or_second_roster_is_refused(
    serial: int, not_after: float, floor: Floor | None, sentence: str
) -> None:
    data, trusted = _signed(serial, not_after)
    with pytest.raises(Refusal, match=sentence):
        open_rosters([data], trusted, now=NOW, floors={"p": floor} if floor else {})  # type: ignore[arg-type]


def test_the_floor_rises_with_what_was_accepted() -> None:
    data, trusted = _signed(7)
    found = open_rosters([data], trusted, now=NOW, floors={"p": Floor(3, bytes(32)), "q": Floor(9, bytes(32))})  # type: ignore[arg-type]
    assert found.floors["p"].serial == 7
    assert found.floors["q"] == Floor(9, bytes(32))
    assert open_rosters([data], trusted, now=NOW, floors=found.floors).digest == found.digest  # type: ignore[arg-type]


def test_a_device_twice_or_under_another_id_is_refused() -> None:
    one, other = roster.member(generate_key().public_key()), roster.member(generate_key().public_key())
    for members, sentence in (
        ((one, one), "twice"),
        ((msgspec.structs.replace(one, device=other.device),), "another device's"),
        ((msgspec.structs.replace(one, key=b"\x02" + b"\xff" * 32),), "no point"),
    ):
        data, trusted = _signed(members=members)
        with pytest.raises(Refusal, match=sentence):
            open_rosters([data], trusted, now=NOW, floors={})  # type: ignore[arg-type]


def test_two_rosters_of_one_plant_are_refused() -> None:
    data, trusted = _signed()
    with pytest.raises(Refusal, match="two rosters"):
        open_rosters([data, data], trusted, now=NOW, floors={})  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_roster_are_refused(data: bytes) -> None:
    with pytest.raises(Refusal):
        open_rosters([data], {"p": generate_key().public_key()}, now=NOW, floors={})


def test_an_altered_roster_is_refused() -> None:
    data, trusted = _signed(members=(roster.member(generate_key().public_key()),))
    signed = msgspec.json.decode(data, type=roster.SignedRoster)
    altered = msgspec.structs.replace(signed, body=signed.body.replace(b'"serial":1', b'"serial":2'))
    assert altered != signed
    with pytest.raises(Refusal, match="no plant that this device trusts"):
        open_rosters([msgspec.json.encode(altered)], trusted, now=NOW, floors={})  # type: ignore[arg-type]


def test_the_policy_is_a_strict_table() -> None:
    table = toml.read(b"min_cohort = 8\nmin_owners = 2\nmax_clip = 10.0\n", 1000)
    policy = toml.convert(table, Policy)
    assert policy == Policy(min_cohort=8, min_owners=2, max_clip=10.0)
    for text, sentence in ((b"min_cohort = 2", "at least 3"), (b"min_cohrt = 8", 'did you mean "min_cohort"')):
        with pytest.raises(toml.TomlError, match=sentence):
            toml.convert(toml.read(text, 100), Policy)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clip": 2000.0}, "clip"),
        ({"max_weight": 2}, "weight"),
        ({"parameters": 2**27 + 1}, "parameters"),
        ({"invited": 4}, "invites devices: 4"),
    ],
)
def test_a_configuration_beyond_the_policy_is_refused(changes: dict[str, object], sentence: str) -> None:
    these = plants(1)
    with pytest.raises(Refusal, match=sentence) as refusal:
        Policy().check_config(msgspec.structs.replace(config(these.membership(), 5), **changes))
    assert refusal.value.rule == "policy"


@pytest.mark.parametrize(
    ("count", "colluders", "graph", "sentence"),
    [
        (4, 1, GraphParameters(3, 3), "cohort of 4"),
        (9, 2, GraphParameters(8, 6), "at least 3"),
        (9, 8, GraphParameters(8, 9), "nobody to hide among"),
        (9, 3, GraphParameters(8, 6), "threshold 7, not"),
        (9, 3, GraphParameters(6, 7), "everybody"),
        (200, 20, GraphParameters(40, 12), "privacy bits"),
        (200, 20, GraphParameters(40, 41), "fit no cohort"),
        (200, 20, GraphParameters(199, 50), "fit no cohort"),
    ],
)
def test_a_roll_beyond_the_policy_is_refused(count: int, colluders: int, graph: GraphParameters, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        Policy().check_roll(count, colluders, graph)


def test_a_roll_within_the_policy_is_not() -> None:
    Policy().check_roll(9, 3, GraphParameters(8, 7))
    Policy().check_roll(200, 20, GraphParameters(79, 24))
    Policy().check_roll(200, 20, GraphParameters(199, 111))


def test_the_policy_counts_colluders_of_the_whole_roster() -> None:
    assert [Policy().expected_colluders(n) for n in (5, 128, 129)] == [1, 42, 12]
    assert Policy(colluders=4).expected_colluders(6) == 4


def test_records_are_signed_and_chained() -> None:
    key = generate_key()
    sign, public = signatures.signer(key), signatures.point(key.public_key())
    records: list[audit.Record] = []
    for number in range(3):
        record = audit.Record(
            at=float(number),
            session="00",
            round=number,
            config="",
            model="",
            rosters="",
            outcome="summed",
            previous=audit.record_digest(records[-1]) if records else "",
        )
        records.append(audit.sign_record(record, sign))
    assert audit.verify_records(records, public) is None
    assert audit.verify_records([records[0], records[2]], public) == 1
    forged = msgspec.structs.replace(records[1], outcome="void")
    assert audit.verify_records([records[0], forged, records[2]], public) == 1
    assert audit.verify_records([msgspec.structs.replace(records[0], signature="no hex")], public) == 0
