"""Rows and blobs: everything cloudd keeps, behind two small interfaces whose engines are chosen by URL."""

from __future__ import annotations

from cloudd.storage.blobs import Blobs
from cloudd.storage.errors import StorageError
from cloudd.storage.rows import Rows

__all__ = ["Blobs", "Rows", "StorageError"]
