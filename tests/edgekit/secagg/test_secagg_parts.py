"""Shares, derived keys, masks, sets and graphs, against their definitions and published values."""

from __future__ import annotations

import hashlib
import itertools
import random
import secrets
from collections import Counter

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.identity import generate_key
from edgekit.secagg import agreement, bitmap, graph, masks, shamir, signatures
from edgekit.secagg.errors import Refusal
from edgekit.secagg.masks import Mask

KEY = bytes(range(32))


def probably_prime(n: int) -> bool:
    """Miller and Rabin, 40 bases."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in random.Random(1).sample(range(2, 10**6), 40):
        x = pow(base, odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def test_the_field_is_the_largest_that_shares_of_16_bytes_allow() -> None:
    assert probably_prime(shamir.PRIME)
    assert not any(probably_prime(n) for n in range(shamir.PRIME + 2, 2**128, 2))


def dealt(secret: bytes, threshold: int, points: list[int]) -> dict[int, bytes]:
    """Shares at all points: the first threshold - 1 are given, at random."""
    given = {x: (shamir.seed(secrets.token_bytes),) for x in points[: threshold - 1]}
    rest = points[threshold - 1 :]
    shares = given | dict(zip(rest, shamir.split([secret], given, rest), strict=True))
    return {x: share for x, (share,) in shares.items()}


@given(st.integers(0, shamir.PRIME - 1), st.integers(2, 12), st.integers(0, 5), st.randoms())
@settings(max_examples=60, deadline=None)
def test_any_threshold_of_the_shares_gives_the_seed_back_whichever_were_given(
    number: int, threshold: int, spare: int, chance: random.Random
) -> None:
    secret = number.to_bytes(16, "big")
    points = chance.sample(range(1, 1026), threshold + spare)
    shares = dealt(secret, threshold, points)
    some = chance.sample(points, threshold)
    assert shamir.combine(shamir.weights(some), [shares[x] for x in some]) == secret


def test_fewer_shares_than_the_threshold_are_alike_for_every_secret_whoever_chose_some_of_the_given_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All cases of a small field: points 1 and 2 are given, 3 and 4 not, and three shares give the secret back."""
    monkeypatch.setattr(shamir, "PRIME", 7)

    def number(share: bytes) -> int:
        return int.from_bytes(share, "big")

    def seen(secret: int, first: range, holders: tuple[int, int]) -> Counter[tuple[int, int]]:
        found: Counter[tuple[int, int]] = Counter()
        for a, b in itertools.product(first, range(7)):
            given = {1: [a.to_bytes(16, "big")], 2: [b.to_bytes(16, "big")]}
            third, fourth = shamir.split([secret.to_bytes(16, "big")], given, [3, 4])
            shares = {**given, 3: third, 4: fourth}
            found[number(shares[holders[0]][0]), number(shares[holders[1]][0])] += 1
        return found

    for holders in itertools.combinations((1, 2, 3, 4), 2):
        everything = Counter(itertools.product(range(7), range(7)))
        assert all(seen(secret, range(7), holders) == everything for secret in range(7))
    for chosen, other in itertools.product(range(7), (2, 3, 4)):  # the holder of 1 works for the adversary
        uniform = Counter((chosen, value) for value in range(7))
        assert all(seen(secret, range(chosen, chosen + 1), (1, other)) == uniform for secret in range(7))


def test_one_share_less_than_the_threshold_fits_every_secret() -> None:
    points = [1, 2, 3, 4]
    shares = list(dealt(KEY[:16], 4, points).values())
    for other in (bytes(16), b"\x7f" * 16):
        # the polynomial through (0, other) and three of the shares exists: its fourth share completes it to `other`
        value = int.from_bytes(other, "big")
        weights = shamir.weights(points)
        known = sum(w * int.from_bytes(s, "big") for w, s in zip(weights[:3], shares[:3], strict=True))
        fourth = (value - known) * pow(weights[3], -1, shamir.PRIME) % shamir.PRIME
        assert shamir.combine(weights, [*shares[:3], fourth.to_bytes(shamir.SHARE, "big")]) == other


def test_a_wrong_share_gives_another_seed() -> None:
    shares = list(dealt(KEY[:16], 3, [1, 2, 3]).values())
    assert shamir.combine(shamir.weights([1, 2, 3]), shares) == KEY[:16]
    assert shamir.combine(shamir.weights([1, 2, 3]), [shares[0], shares[1], b"\xff" * 16]) != KEY[:16]


def test_seeds_lie_in_the_field_and_give_keys_that_depend_on_the_salt() -> None:
    assert shamir.seed(lambda count: b"\xff" * count) < shamir.PRIME.to_bytes(16, "big")
    assert len(shamir.seed(secrets.token_bytes)) == 16
    one, other = (agreement.KeyPair.from_seed(KEY[:16], salt).public for salt in (b"a", b"b"))
    assert one != other
    assert agreement.commit(KEY[:16], b"a") != agreement.commit(KEY[:16], b"b")


def test_derived_keys_are_those_of_rfc_5869() -> None:
    salt, info = bytes.fromhex("000102030405060708090a0b0c"), bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"  # test case 1, first 32 bytes
    assert agreement.derive(b"\x0b" * 22, salt, info).hex() == expected
    library = HKDF(algorithm=hashes.SHA256(), length=32, salt=KEY, info=b"pair").derive(b"secret")
    assert agreement.derive(b"secret", KEY, b"pair") == library


def test_both_sides_agree_on_one_secret_and_a_key_of_low_order_is_refused() -> None:
    one, other = agreement.KeyPair.new(secrets.token_bytes), agreement.KeyPair.new(secrets.token_bytes)
    assert one.agree(other.public) == other.agree(one.public)
    with pytest.raises(ValueError, match="shared key"):
        one.agree(bytes(32))


def test_a_sealed_share_opens_only_unaltered_and_in_its_place() -> None:
    sealed = agreement.seal(KEY, b"two shares", b"from u to v")
    assert agreement.unseal(KEY, sealed, b"from u to v") == b"two shares"
    assert agreement.unseal(KEY, sealed, b"from v to u") is None
    assert agreement.unseal(KEY, bytes([sealed[0] ^ 1]) + sealed[1:], b"from u to v") is None
    assert agreement.unseal(KEY, b"", b"from u to v") is None


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("size", [1, 65536, 131072, 300_001])
def test_a_mask_is_the_key_stream_as_little_endian_words(bits: int, size: int) -> None:
    words = np.zeros(size, masks.dtype(bits))
    masks.apply(words, [Mask(KEY, add=True)], "aes-256-ctr")
    stream = Cipher(algorithms.AES256(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(words.nbytes))
    assert words.tobytes() == stream
    masks.apply(words, [Mask(KEY, add=True)], "chacha20")
    chacha = Cipher(algorithms.ChaCha20(KEY, bytes(16)), None).encryptor().update(bytes(words.nbytes))
    both = np.frombuffer(stream, words.dtype) + np.frombuffer(chacha, words.dtype)
    np.testing.assert_array_equal(words, both)


def test_many_masks_come_off_again() -> None:
    words = np.arange(1000, dtype=masks.dtype(32))
    applied = [Mask(hashlib.sha256(bytes([i % 256, i // 256])).digest(), add=i % 2 == 0) for i in range(600)]
    masks.apply(words, applied, "aes-256-ctr")
    assert not np.array_equal(words, np.arange(1000))
    masks.apply(words, [Mask(mask.key, not mask.add) for mask in reversed(applied)], "aes-256-ctr")
    np.testing.assert_array_equal(words, np.arange(1000))


@given(st.integers(1, 200), st.data())
def test_a_set_survives_its_bytes(count: int, data: st.DataObject) -> None:
    members = sorted(data.draw(st.sets(st.integers(0, count - 1))))
    packed = bitmap.pack(members, count)
    assert len(packed) == bitmap.size(count)
    assert bitmap.unpack(packed, count) == members


@pytest.mark.parametrize(("data", "count"), [(b"", 1), (b"\0\0", 8), (b"\x10", 4), (b"\xff\xff", 15)])
def test_a_set_with_strangers_or_of_another_size_is_refused(data: bytes, count: int) -> None:
    with pytest.raises(Refusal, match="does not fit"):
        bitmap.unpack(data, count)


def test_in_the_complete_graph_everybody_is_everybodys_neighbour() -> None:
    assert graph.neighbours(KEY, 4, 3) == ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2))


def test_the_random_graph_is_mutual_has_the_degree_on_average_and_follows_from_its_seed() -> None:
    found = graph.neighbours(KEY, 600, 100)
    assert all(u in found[v] for u in range(600) for v in found[u])
    assert all(u not in found[u] and list(found[u]) == sorted(set(found[u])) for u in range(600))
    # 179,700 pairs with probability 100/599: the mean degree has a standard deviation of 0.53
    assert sum(map(len, found)) / 600 == pytest.approx(100, abs=2.5)
    assert found == graph.neighbours(KEY, 600, 100) != graph.neighbours(bytes(32), 600, 100)


def test_a_signature_speaks_of_one_kind_of_statement() -> None:
    key = generate_key()
    signature = signatures.signer(key)("vote", b"statement")
    public = signatures.from_point(signatures.point(key.public_key()))
    assert len(signature) == signatures.SIGNATURE
    assert signatures.holds(public, "vote", b"statement", signature)
    assert not signatures.holds(public, "held", b"statement", signature)
    assert not signatures.holds(public, "vote", b"another", signature)
    assert not signatures.holds(generate_key().public_key(), "vote", b"statement", signature)
    for broken in (b"", bytes(64), b"\xff" * 64, signature[:63], signature + b"\0"):
        assert not signatures.holds(public, "vote", b"statement", broken)


@pytest.mark.parametrize(("kind", "version"), [("roster", 1), ("audit", 1), ("keys", 2), ("masked", 2), ("vote", 2)])
def test_what_is_kept_for_years_is_signed_as_in_the_first_version_and_a_round_as_in_this(
    kind: str, version: int
) -> None:
    key = generate_key()
    der = key.sign(f"edged/secagg/{version}/{kind}\0".encode() + b"statement", ec.ECDSA(hashes.SHA256()))
    r, s = decode_dss_signature(der)
    assert signatures.holds(key.public_key(), kind, b"statement", r.to_bytes(32, "big") + s.to_bytes(32, "big"))


@pytest.mark.parametrize("data", [b"", b"\x02" * 32, b"\x05" + bytes(32), b"\x02" + b"\xff" * 32])
def test_what_is_no_point_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        signatures.from_point(data)
