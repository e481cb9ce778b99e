"""What compression refuses to do."""

from __future__ import annotations


class CompressError(ValueError):
    """The model cannot be compressed, or one variant of it cannot be made; the message says why."""


class DatasetError(CompressError):
    """The labelled pictures cannot be used; the message names the file or label that is wrong."""
