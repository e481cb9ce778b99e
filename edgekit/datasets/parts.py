"""Which pictures teach and which judge: split by group and by hash, so that no picture ever changes sides.

Which part a picture falls into depends on nothing but its group, or on its own content where it has none: pictures of
one board resemble each other, and judged by the twin of what it learned from a model looks better than it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from edgekit.datasets.dataset import DatasetError, Picture

SHARES: Mapping[str, float] = {"train": 0.7, "val": 0.1, "test": 0.2}


def place(picture: Picture, salt: str) -> float:
    """0..1, uniform over groups, the same for ever. `salt` makes splits for different purposes independent."""
    key = f"group\0{picture.group}" if picture.group else f"picture\0{picture.sha256}"
    return int.from_bytes(hashlib.sha256(f"{salt}\0{key}".encode()).digest()[:6], "big") / (1 << 48)


def split(
    pictures: Sequence[Picture], shares: Mapping[str, float] = SHARES, salt: str = "dataset 1"
) -> dict[str, tuple[Picture, ...]]:
    """The pictures of each part of `shares`, in the order of their hashes.

    Where every picture says which part it belongs to, and these are parts of `shares`, that is followed. Raises
    DatasetError if a group would stand on both sides then, or if the shares are not a whole.
    """
    if not shares or any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1.0) > 1e-9:
        raise DatasetError(f"shares of {', '.join(map(str, shares.values()))} do not add up to 1")
    given = all(one.part in shares for one in pictures)
    if given:
        _check_groups(pictures)
    found: dict[str, list[Picture]] = {name: [] for name in shares}
    for one in sorted(pictures, key=lambda picture: picture.sha256):
        found[one.part if given else _part(place(one, salt), shares)].append(one)
    return {name: tuple(part) for name, part in found.items()}


def _part(at: float, shares: Mapping[str, float]) -> str:
    end = 0.0
    for part, share in shares.items():
        end += share
        if at < end:
            return part
    return list(shares)[-1]  # the shares' sum is a rounding below 1


def _check_groups(pictures: Sequence[Picture]) -> None:
    sides: dict[str, str] = {}
    for one in pictures:
        if one.group and sides.setdefault(one.group, one.part) != one.part:
            raise DatasetError(
                f"the group {one.group[:64]!r} stands in {sides[one.group]} and in {one.part}; pictures of one group "
                "resemble each other, so put all of them into one part"
            )
