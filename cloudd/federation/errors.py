"""The one error of this room."""

from __future__ import annotations


class FederationError(ValueError):
    """A job cannot be started or go on; the message says what is wrong and what to do."""
