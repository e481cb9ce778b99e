"""What is stored of an enrolled picture, and what is said about a gallery."""

from __future__ import annotations

import msgspec

MAX_NAME = 128
"""Characters of a name, as in `edgekit.heads.gallery`."""
MAX_PICTURES = 32
"""Of one identity, the newest ones, as in `edgekit.heads.gallery`."""
MAX_STRANGERS = 5000
"""Pictures of strangers, the newest ones."""
MAX_ROWS = 50_000
"""Of one service: 100 MB of embeddings of 512 values."""
UNKNOWN = "unknown"
RESERVED = ("known", UNKNOWN)
"""What rules and answers call everybody and nobody, as in `edgekit.vision.embedding`."""


class GalleryError(ValueError):
    """What cannot be enrolled or removed; the text says why, and what to do."""


class Taken(GalleryError):
    """The picture shows somebody who is enrolled under another name."""


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """One row, before it is sealed."""

    identity: str  # "": a stranger, who tells how alike those are that nobody enrolled
    model: str  # name@version and digest of the package: embeddings of another one mean nothing to it
    embedding: bytes  # float32, little-endian, of unit length
    at: float  # wall clock, seconds
    by: str = ""  # who enrolled it


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a list."""

    name: str
    pictures: int
    at: float  # of the newest one
    by: str = ""
    models: list[str] = []  # name@version that its pictures were enrolled with


class GalleryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /gallery/SERVICE`."""

    service: str
    identities: list[Identity]
    strangers: int = 0  # pictures
    unreadable: int = 0  # rows that do not open: damaged, or sealed with another key
    sentence: str = ""  # where the gallery stands in the running service


class EnrolReply(msgspec.Struct, frozen=True, kw_only=True):
    """Reply to an enrolled picture."""

    identity: str  # "": a stranger
    pictures: int  # of the identity, or of strangers, by now
    new: bool = True  # False: this very picture was enrolled already


class RemoveReply(msgspec.Struct, frozen=True, kw_only=True):
    """Reply to a removal."""

    pictures: int


def counted(number: int, one: str, many: str = "") -> str:
    """1 picture, 2 pictures."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def check_name(name: str) -> str:
    """The name, if somebody can have it. Raises GalleryError."""
    if not name or name != name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise GalleryError(f"the name of an identity has 1 to {MAX_NAME} printable characters, no space at its ends")
    if name in RESERVED:
        raise GalleryError(f'nobody can be called "{name}": rules use this word for all who are {name}')
    return name
