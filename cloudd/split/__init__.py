"""Splitting: cuts a registered model in two, proves both halves and makes a head and a tail package of them."""

from __future__ import annotations

from cloudd.split.lineage import LINEAGE, CutRecord, Lineage, RefusedCut
from cloudd.split.step import CUTS, LEAST_WORK, MAX_CUTS, Outcome, Request, split

__all__ = [
    "CUTS",
    "LEAST_WORK",
    "LINEAGE",
    "MAX_CUTS",
    "CutRecord",
    "Lineage",
    "Outcome",
    "RefusedCut",
    "Request",
    "split",
]
