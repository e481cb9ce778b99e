"""Models that a device fetches."""

from __future__ import annotations

from edgekit.messages.base import Message


class FileEntry(Message, frozen=True, kw_only=True):
    path: str
    sha256: str
    size: int


class ModelEntry(Message, frozen=True, kw_only=True):
    """Reply of `GET /v1/models/NAME` (newest) or `GET /v1/models/NAME/VERSION`: what to fetch from /v1/blobs/SHA256."""

    name: str
    version: str
    digest: str  # SHA-256 of package.toml
    files: list[FileEntry]  # package.toml included
