"""The errors of this room."""

from __future__ import annotations

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FederationError(ValueError):
    """A job cannot be started or go on; the message says what is wrong and what to do."""


class DiskError(FederationError):
    """The disk has no room: the same may be done later."""


def no_room(error: OSError) -> bool:
    """Whether a disk is full, or what one may write on it."""
    return error.errno in _FULL


def storage_text(error: Exception) -> str:
    """What storage says, without a path."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
