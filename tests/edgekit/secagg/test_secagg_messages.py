"""The wire: versioned, bounded, the same bytes for the same message."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks import secagg_attacks
from edgekit.secagg import messages
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import MAX_MESSAGE, Held, Survivors, from_cloud, from_device


def test_a_message_survives_the_wire_and_carries_the_version() -> None:
    held = Held(node=bytes(32), holds=b"\x07")
    data = messages.encode(held)
    assert from_device(data) == held
    assert b"secagg/2.held" in data
    assert messages.encode(from_device(data)) == data


@given(st.binary(max_size=300))
@example(b"\x91" * 5000)
def test_hostile_bytes_are_refused_by_both_sides(data: bytes) -> None:
    for read in (from_device, from_cloud):
        with pytest.raises(Refusal) as refusal:
            read(data)
        assert refusal.value.rule == "malformed"


@given(st.data())
def test_a_damaged_message_is_refused_or_another_message(data: st.DataObject) -> None:
    whole = messages.encode(Survivors(roll=bytes(range(32)), survivors=b"\x1f"))
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]
    try:
        assert isinstance(from_cloud(damaged), messages.Wire)
    except Refusal as refusal:
        assert refusal.rule == "malformed"


def test_another_version_an_excess_field_and_the_wrong_direction_are_refused() -> None:
    data = messages.encode(Survivors(roll=bytes(32), survivors=b"\x1f"))
    for wrong in (
        data.replace(b"secagg/2", b"secagg/1"),
        msgspec.msgpack.encode(["secagg/2.survivors", bytes(32), b"\x1f", 1]),
        msgspec.msgpack.encode(["secagg/2.survivors", bytes(31), b"\x1f"]),
        bytes(MAX_MESSAGE + 1),
    ):
        with pytest.raises(Refusal):
            from_cloud(wrong)
    with pytest.raises(Refusal):
        from_device(data)


def test_a_configuration_that_was_kept_with_a_sum_of_the_first_version_is_still_read() -> None:
    these = secagg_attacks.plants(1)
    config = secagg_attacks.config(these.membership(), 5)
    kept = messages.encode(config).replace(b"secagg/2", b"secagg/1")
    found = from_cloud(kept)
    assert isinstance(found, messages.RoundConfig)
    assert msgspec.structs.asdict(found) == msgspec.structs.asdict(config)
    assert messages.encode(found) == kept


def test_a_configuration_with_numbers_that_are_none_is_refused() -> None:
    these = secagg_attacks.plants(1)
    good = messages.encode(secagg_attacks.config(these.membership(), 5))
    fields = msgspec.msgpack.decode(good)
    for index, value in ((7, float("nan")), (7, 0.0), (6, float("inf")), (3, 2), (5, 0), (9, 8)):
        wrong = list(fields)
        wrong[index] = value
        with pytest.raises(Refusal):
            from_cloud(msgspec.msgpack.encode(wrong))


def test_a_roll_of_the_largest_cohort_fits_a_message() -> None:
    keys = secagg_attacks.stand_after("keys").server.close_keys()
    entries = tuple(keys.keys[0] for _ in range(messages.MAX_COHORT))
    data = messages.encode(msgspec.structs.replace(keys, keys=entries))
    assert len(data) <= 300_000
    assert isinstance(from_cloud(data), messages.Roll)
