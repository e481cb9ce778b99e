"""Compression: smaller and faster variants of a model, made on this host and let in only by the acceptance gate."""

from __future__ import annotations

from cloudd.compress.dataset import Split, read_dataset
from cloudd.compress.errors import CompressError
from cloudd.compress.lineage import Lineage, read_lineage
from cloudd.compress.step import Outcome, Request, compress, next_version
from cloudd.compress.variants import KINDS, QUICK

__all__ = [
    "KINDS",
    "QUICK",
    "CompressError",
    "Lineage",
    "Outcome",
    "Request",
    "Split",
    "compress",
    "next_version",
    "read_dataset",
    "read_lineage",
]
