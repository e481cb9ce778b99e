"""Shamir's secret sharing (CACM 1979) of 16-byte seeds over a prime field.

What is shared are seeds from which the real secrets are derived: 128 bits, as strong as X25519, and half the bytes that
the secrets would need. Python's integers do not take the same time for every value, so a process on the same machine
might learn something from it; nobody across a network can. What is shared lives for one round.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence

PRIME = (1 << 128) - 159
"""The largest prime below 2^128, so that a share has the size of a seed."""
SHARE = 16
"""Bytes of a seed and of a share, big endian, below the prime."""
_DRAW = 32  # bytes of randomness an element


def seed(random: Callable[[int], bytes]) -> bytes:
    """A random element of the field: 16 bytes. `random(count)` returns that many random bytes."""
    return element(random(_DRAW))


def element(drawn: bytes) -> bytes:
    """The element of the field, 16 bytes, that 32 uniform bytes give: uniform but for 2^-128."""
    return (int.from_bytes(drawn, "big") % PRIME).to_bytes(SHARE, "big")


def split(
    secrets: Sequence[bytes], given: Mapping[int, Sequence[bytes]], points: Sequence[int]
) -> list[tuple[bytes, ...]]:
    """The shares at `points` of polynomials of degree len(given), each through its secret at 0 and its given shares.

    `given`: point -> a share of each secret, in their order; so is what is returned, one tuple for each of the
    `points`. All points are distinct, in 1..2^16. Any len(given) + 1 shares, given ones or returned ones, give a secret
    back; fewer say nothing about it if the given ones are random. (Lagrange's formula.)
    """
    nodes = [0, *given]
    scales = [pow(math.prod(x - other for other in nodes if other != x), -1, PRIME) for x in nodes]
    rows = [
        [scale * int.from_bytes(value, "big") % PRIME for scale, value in zip(scales, values, strict=True)]
        for values in zip(secrets, *given.values(), strict=True)
    ]
    shares = []
    for x in points:
        product = math.prod(x - node for node in nodes)
        others = [product // (x - node) for node in nodes]
        shares.append(tuple((sum(map(operator.mul, row, others)) % PRIME).to_bytes(SHARE, "big") for row in rows))
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
