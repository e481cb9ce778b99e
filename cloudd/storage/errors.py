"""The one error of this room."""

from __future__ import annotations


class StorageError(Exception):
    """Rows or blobs cannot be reached, read or written; the message says what to do where that is known."""
