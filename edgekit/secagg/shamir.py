"""Shamir's secret sharing (CACM 1979) of 16-byte seeds over a prime field.

What is shared are seeds from which the real secrets are derived: 128 bits, as strong as X25519, and half the bytes that
the secrets would need. Python's integers do not take the same time for every value, so a process on the same machine
might learn something from it; nobody across a network can. What is shared lives for one round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

PRIME = (1 << 128) - 159
"""The largest prime below 2^128, so that a share has the size of a seed."""
SHARE = 16
"""Bytes of a seed and of a share, big endian, below the prime."""
_DRAW = 32  # bytes of randomness an element: reduced modulo the prime its bias is below 2^-127


def seed(random: Callable[[int], bytes]) -> bytes:
    """A random element of the field: 16 bytes. `random(count)` returns that many random bytes."""
    return (int.from_bytes(random(_DRAW), "big") % PRIME).to_bytes(SHARE, "big")


def split(secret: bytes, threshold: int, points: Sequence[int], random: Callable[[int], bytes]) -> list[bytes]:
    """One share for each of the `points` (distinct, in 1..PRIME-1); any `threshold` of them give the secret back."""
    drawn = random(_DRAW * (threshold - 1))
    polynomial = [int.from_bytes(drawn[i : i + _DRAW], "big") % PRIME for i in range(0, len(drawn), _DRAW)]
    polynomial.append(int.from_bytes(secret, "big"))  # the highest power first, for Horner's rule
    shares = []
    for x in points:
        value = 0
        for coefficient in polynomial:
            value = (value * x + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE, "big"))
    return shares


def weights(points: Sequence[int]) -> list[int]:
    """Lagrange's weights at 0 for distinct points: the same for every secret that the same holders share."""
    product = 1
    for x in points:
        product = product * x % PRIME
    found = []
    for x in points:
        below = x
        for other in points:
            if other != x:
                below = below * (other - x) % PRIME
        found.append(product * pow(below, -1, PRIME) % PRIME)
    return found


def combine(lagrange: Sequence[int], shares: Sequence[bytes]) -> bytes:
    """The secret from the weights of its holders and their shares in the same order."""
    total = sum(w * int.from_bytes(share, "big") for w, share in zip(lagrange, shares, strict=True))
    return (total % PRIME).to_bytes(SHARE, "big")
