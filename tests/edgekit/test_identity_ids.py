"""Device ids and join tokens as people copy, type and mistype them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.identity import (
    IdentityError,
    check_secret,
    device_id,
    generate_key,
    hash_secret,
    new_token,
    parse_device_id,
    parse_token,
    short_id,
)
from edgekit.identity.device_id import format_digest

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
PIN = base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"=").decode()


def test_a_device_id_has_eight_groups_of_seven_and_depends_on_the_key_alone() -> None:
    key = generate_key()
    text = device_id(key.public_key())
    assert [len(group) for group in text.split("-")] == [7] * 8
    assert text == device_id(key.public_key()) != device_id(generate_key().public_key())
    assert parse_device_id(text) == text
    assert short_id(text) == text[:7]
    assert len(text) <= 64, "must fit a certificate's common name"


@given(st.binary(min_size=32, max_size=32), st.data())
def test_what_people_do_to_an_id_is_undone(digest: bytes, data: st.DataObject) -> None:
    text = format_digest(digest)
    typed = text.replace("O", data.draw(st.sampled_from("O0o"))).replace("I", data.draw(st.sampled_from("I1i")))
    typed = typed.replace("B", data.draw(st.sampled_from("B8b"))).replace(
        "-", data.draw(st.sampled_from(["", " ", "-"]))
    )
    if data.draw(st.booleans()):
        typed = typed.lower()
    assert parse_device_id(f"  {typed}\n") == text


@given(st.binary(min_size=32, max_size=32), st.integers(0, 55), st.integers(1, 31))
def test_every_single_wrong_character_is_found(digest: bytes, position: int, shift: int) -> None:
    plain = format_digest(digest).replace("-", "")
    wrong = ALPHABET[(ALPHABET.index(plain[position]) + shift) % 32]
    with pytest.raises(IdentityError, match="typing error in group"):
        parse_device_id(plain[:position] + wrong + plain[position + 1 :])


@given(st.binary(min_size=32, max_size=32), st.integers(0, 54))
def test_swapped_neighbours_are_found(digest: bytes, position: int) -> None:
    plain = format_digest(digest).replace("-", "")
    a, b = plain[position], plain[position + 1]
    if a == b or {a, b} == {"A", "7"} or position % 14 == 13:  # the swap Luhn cannot see; a swap across two parts
        return
    with pytest.raises(IdentityError):
        parse_device_id(plain[:position] + b + a + plain[position + 2 :])


@given(st.text(max_size=300))
def test_any_text_is_an_id_or_a_clear_error(text: str) -> None:
    try:
        assert len(parse_device_id(text)) == 63
    except IdentityError as error:
        assert "device id" in str(error)


@given(st.binary(min_size=41, max_size=41))
def test_a_token_survives_copying(noise: bytes) -> None:
    stream = iter(noise)
    token = new_token(PIN, rng=lambda count: bytes(next(stream) for _ in range(count)))
    text = token.text()
    assert text.startswith("edg1.")
    assert parse_token(text) == token
    assert parse_token(f' "{text[:40]}\r\n  {text[40:]}" ') == token


def test_a_token_does_not_show_its_secret() -> None:
    token = new_token(PIN)
    assert token.secret not in repr(token)
    assert new_token(PIN).secret != token.secret


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "empty"),
        ("hello", "begin with 'edg1.'"),
        (f"edg1.{PIN}.abcdefgh", "3 parts instead of 4"),
        (f"edg1.{PIN}.abcdefgh.{PIN[:-1]}", "cut off"),
        (f"edg1.{PIN[:-1]}.abcdefgh.{PIN}", "cut off"),
        (f"edg1.{PIN}..{PIN}", "cut off"),
        ("edg1." + "x" * 600, "too long"),
    ],
)
def test_a_bad_token_says_what_to_do(text: str, hint: str) -> None:
    with pytest.raises(IdentityError, match="invite") as caught:
        parse_token(text)
    assert hint in str(caught.value)


@given(st.text(max_size=600))
def test_any_text_is_a_token_or_a_clear_error(text: str) -> None:
    try:
        parse_token(text)
    except IdentityError as error:
        assert "token" in str(error)


@given(st.text(max_size=80))
def test_only_the_whole_secret_opens(attempt: str) -> None:
    secret = "s" * 43
    stored = hash_secret(secret)
    assert check_secret(secret, stored)
    assert not check_secret(attempt, stored) or attempt == secret
    assert not check_secret(secret[:-1], stored)
    assert not check_secret(secret, "")
    assert not check_secret("", "")
