"""Models: added as verified packages, kept as blobs and rows, handed to devices by hash."""

from __future__ import annotations

from cloudd.registry.models import ModelSummary, Registry, RegistryError

__all__ = ["ModelSummary", "Registry", "RegistryError"]
