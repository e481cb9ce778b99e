"""What a sample is worth: which are given up first when room is needed, and which a person should look at first.

Pure numbers. Both orders add the rarity of the sample's class, which changes with the store and is added by its index.
"""

from __future__ import annotations

from edged.samples.records import NewSample

RARE = 20
"""Samples of a class below which each of them is precious: so many labels make a new class (algorithms.md, 4.5)."""
NEAR_BITS = 3
"""Bits of 64 in which the hashes of near-duplicates differ at most. On 1,000 pictures of `solder-tht` 3 bits mark 54 as
alike and none across labels; 6 bits mark 276, 3 of them across labels (docs/samples.md)."""

_LABELLED = (0.0, 1.0, 4.0, 8.0)
_OPERATOR = 2.0


def rarity(count: int) -> float:
    """0..1 for a sample whose class has `count` samples, itself among them: 1 up to RARE, then falling as 1 / count."""
    return min(1.0, RARE / max(1, count))


def doubt(facts: NewSample, near: bool) -> float:
    """-1..2: how much a label of it would teach. Edge and cloud differ: 1; and how close the edge's answer was: 0..1.

    A near-duplicate teaches what its twin has taught: -1.
    """
    close = 0.0
    if facts.source in ("asked", "disputed", "doubtful", "operator") and facts.edge is not None:
        close = 1.0 - min(1.0, max(0.0, facts.edge.margin))
    return float(facts.disputed) + close - float(near)


def value(facts: NewSample, near: bool, authority: int) -> float:
    """What is lost if it goes. An operator's work weighs more than all that an unlabelled sample can have."""
    return doubt(facts, near) + _LABELLED[authority] + (_OPERATOR if facts.source == "operator" else 0.0)


def difference(first: int, second: int) -> int:
    """Bits in which two hashes differ."""
    return (first ^ second).bit_count()


def bands(difference_hash: int) -> tuple[int, int, int, int]:
    """Four 16-bit pieces: hashes that differ in at most NEAR_BITS = 3 bits have at least one piece in common."""
    return tuple(difference_hash >> shift & 0xFFFF for shift in (0, 16, 32, 48))  # type: ignore[return-value]
