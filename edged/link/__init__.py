"""The link to cloudd: find it, prove it, join it, stay in touch with it, fetch models from it."""

from __future__ import annotations

from edged.link.errors import LinkError, Refused, SyncError, Unreachable, WrongAuthority

__all__ = ["LinkError", "Refused", "SyncError", "Unreachable", "WrongAuthority"]
