"""What the link remembers over a restart: small, written rarely, and worth nothing to a thief."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgekit.atomic import write_file

_MAX_BYTES = 16_384


class Known(msgspec.Struct, frozen=True):
    """Hints for the next start. The pinned authority is not here but in the identity directory, beside the key."""

    url: str = ""  # where cloudd was last met
    manual: str = ""  # what a person gave as its address
    name: str = ""  # what people call this device


def load(path: Path) -> Known:
    """What was saved; an absent or damaged file is an empty one, because everything in it can be found again."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=Known)
    except (OSError, msgspec.DecodeError):
        return Known()


def save(path: Path, known: Known) -> None:
    """Write it atomically. Raises OSError."""
    write_file(path, msgspec.json.encode(known))
