"""Whether a package was made of a base by a federated head: then its features are the base's, and it may join again."""

from __future__ import annotations

from pathlib import Path

import msgspec

LINEAGE = "federated/lineage.json"
"""As `cloudd.federation.lineage.LINEAGE`; a test compares."""
_MAX_BYTES = 1 << 20


class _Source(msgspec.Struct, frozen=True):
    model: str
    digest: str


class _Lineage(msgspec.Struct, frozen=True):
    source: _Source


def descends(package: Path, model: str, digest: str = "") -> bool:
    """Whether the package in a folder says that it was made of `model` (name@version).

    `digest`: that of the base must be this one, if it is given. Installed packages have been checked against their
    manifest, so the record is the one that was packed.
    """
    path = package / LINEAGE
    try:
        if path.stat().st_size > _MAX_BYTES:
            return False
        source = msgspec.json.decode(path.read_bytes(), type=_Lineage).source
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return source.model == model and digest in ("", source.digest)
