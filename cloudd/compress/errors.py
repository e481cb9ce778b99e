"""What compression refuses to do."""

from __future__ import annotations


class CompressError(ValueError):
    """The model cannot be compressed, or one variant of it cannot be made; the message says why."""
