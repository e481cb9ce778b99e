"""What an import refuses."""

from __future__ import annotations


class ImportRefused(ValueError):
    """A file, a wish or an answer of the user's program that no package can be made of; the text says what to do."""
