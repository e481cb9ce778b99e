"""The one error of this room."""

from __future__ import annotations


class IdentityError(ValueError):
    """A key, certificate, request, device id or token is not what it should be; the text says why, for a person."""
