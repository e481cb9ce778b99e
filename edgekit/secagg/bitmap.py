"""Sets of small numbers as bytes: bit i of the little-endian integer stands for member i."""

from __future__ import annotations

from collections.abc import Iterable

from edgekit.secagg.errors import Refusal


def size(count: int) -> int:
    """Bytes of a set over 0..count-1."""
    return (count + 7) // 8


def pack(members: Iterable[int], count: int) -> bytes:
    """The set as `size(count)` bytes. Members lie in 0..count-1."""
    value = 0
    for member in members:
        value |= 1 << member
    return value.to_bytes(size(count), "little")


def unpack(data: bytes, count: int) -> list[int]:
    """The members in ascending order. Raises Refusal for another length or a member from `count` on."""
    value = int.from_bytes(data, "little")
    if len(data) != size(count) or value >> count:
        raise Refusal("malformed", f"a set over {count} devices does not fit its {len(data)} bytes")
    return [member for member in range(count) if value >> member & 1]
