"""Sample ids: 26 characters of Crockford base32, sorted by time for requests, derived from the picture for files."""

from __future__ import annotations

import hashlib

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def _encode(number: int) -> str:
    """The low 130 bits of `number` as 26 characters, most significant first."""
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def timed_id(now: float, randomness: bytes) -> str:
    """A ULID: 48 bits of milliseconds since the epoch, then 80 random bits.

    `now` is wall-clock seconds; `randomness` is at least 10 bytes. Ids made in different milliseconds sort by time.
    """
    if len(randomness) < 10:
        raise ValueError(f"a sample id needs 10 random bytes, got {len(randomness)}")
    milliseconds = max(0, int(now * 1000)) & ((1 << 48) - 1)
    return _encode(milliseconds << 80 | int.from_bytes(randomness[:10], "big"))


def file_id(service: str, name: str, modified_ns: int, content: bytes) -> str:
    """The id of one file of a watched folder: the same file gets the same id after a crash, another file another one.

    SHA-256 over service, name, modification time and content; the time keeps apart the same picture dropped twice on
    purpose. Unlike `timed_id` these ids do not sort by time.
    """
    digest = hashlib.sha256()
    for part in (service.encode(), name.encode("utf-8", "surrogateescape"), str(modified_ns).encode()):
        digest.update(len(part).to_bytes(4, "big") + part)
    digest.update(content)
    return _encode(int.from_bytes(digest.digest()[:17], "big"))
