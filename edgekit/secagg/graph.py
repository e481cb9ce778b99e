"""Who masks with whom: everybody with everybody, or a random graph that nobody chose.

The random graph is that of Erdős and Rényi: each pair is joined independently, by a hash of the roll, which holds a
fresh nonce of every device. (Not a regular graph: with independent edges the tails need no approximation.)
Whoever controls the relay and some devices can try many rolls before showing one, so the parameters bear 2^40 tries.
"""

from __future__ import annotations

import hashlib
import struct

Neighbours = tuple[tuple[int, ...], ...]
"""For each position in the roll its neighbours' positions, ascending."""


def neighbours(seed: bytes, count: int, degree: int) -> Neighbours:
    """The graph on `count` devices: complete if `degree` is count - 1, else random with that mean degree."""
    if degree == count - 1:
        return tuple(tuple(v for v in range(count) if v != u) for u in range(count))
    limit = join_below(count, degree)
    found: list[list[int]] = [[] for _ in range(count)]
    for u in range(count - 1):
        pairs = count - 1 - u
        row = hashlib.shake_256(b"edged/secagg/2/graph\0" + seed + u.to_bytes(4, "big")).digest(4 * pairs)
        joined = [v for v, drawn in enumerate(struct.unpack(f">{pairs}I", row), u + 1) if drawn < limit]
        found[u] += joined
        for v in joined:
            found[v].append(u)
    return tuple(map(tuple, found))


def join_below(count: int, degree: int) -> int:
    """A pair is joined if its 32 random bits are below this number: 2^32 times the probability."""
    return (degree << 32) // (count - 1)
