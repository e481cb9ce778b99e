"""The chain of audit records: append-only, whole after any power cut, and every change in it is found."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.federation import chain
from edged.federation.chain import Chain, ChainError
from edgekit.identity import generate_key
from edgekit.secagg import audit, signatures
from edgekit.secagg.audit import Record

KEY = generate_key()
SIGN = signatures.signer(KEY)
OWN = signatures.point(KEY.public_key())


def record(number: int, previous: str) -> Record:
    blank = Record(
        at=float(number), session="00" * 16, round=number, config="c", model="m", rosters="r", outcome="summed",
        previous=previous,
    )  # fmt: skip
    return audit.sign_record(blank, SIGN)


def write(path: Path, count: int) -> list[Record]:
    made = Chain(path)
    for number in range(count):
        made.append(record(number, made.head))
    made.close()
    return list(chain.read(path))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("chain") / "audit.jsonl"
    write(path, 3)
    return path.read_bytes()


def test_a_chain_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 2)
    again = Chain(path)
    assert again.newest is not None and again.newest.round == 1
    again.append(record(2, again.head))
    with pytest.raises(ChainError, match="follow"):
        again.append(record(3, "elsewhere"))
    again.close()
    assert chain.first_wrong(path, OWN) is None
    assert path.stat().st_mode & 0o777 == 0o600


@given(share=st.floats(0, 1))
def test_wherever_the_power_fails_the_whole_records_stay(
    three: bytes, tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    path = tmp_path_factory.mktemp("cut") / "audit.jsonl"
    cut = round(share * len(three))
    path.write_bytes(three[:cut])
    opened = Chain(path)
    whole = three[:cut].count(b"\n")
    assert (opened.newest.round + 1 if opened.newest else 0) == whole
    opened.append(record(whole, opened.head))
    opened.close()
    assert len(list(chain.read(path))) == whole + 1
    assert chain.first_wrong(path, OWN) is None


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(
    three: bytes, tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "audit.jsonl"
    changed = bytearray(three)
    changed[place % len(three)] ^= 1 << bit
    path.write_bytes(changed)
    try:
        found = chain.first_wrong(path, OWN)
    except ChainError:
        return
    whole = [msgspec.json.encode(one) for one in chain.read(path)]
    kept = [line for line in three.splitlines() if line in whole]
    assert found is not None or len(whole) < 3 or len(kept) == 3, "nothing but spelling of the same record may pass"


def test_a_signature_spelled_in_capitals_is_found(three: bytes, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    lines = three.splitlines(keepends=True)
    head, mark, signature = lines[2].rpartition(b'"signature":')
    path.write_bytes(b"".join(lines[:2]) + head + mark + signature.upper())
    assert chain.first_wrong(path, OWN) == 3


def test_a_record_that_is_taken_out_of_the_middle_is_missed(three: bytes, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    lines = three.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    assert chain.first_wrong(path, OWN) == 2
    path.write_bytes(lines[1] + lines[2])
    assert chain.first_wrong(path, OWN) == 1
