"""Where a trained model comes from: the dataset and its parts by hash, the recipe, and how it was judged.

It holds no time and no place: the same pictures, recipe and tools give the same record.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudd.train.errors import TrainError
from cloudd.train.figures import Figures
from cloudd.train.parts import Parts, counts
from cloudd.train.recipe import Recipe
from edgekit.datasets.dataset import digest
from edgekit.packages import Package
from edgekit.packages.records import read_record

FOLDER = "trained"
LINEAGE = f"{FOLDER}/lineage.json"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the dataset."""

    pictures: int
    labels: dict[str, int]  # pictures or boxes of each
    digest: str


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """The dataset version; every digest as in `Dataset.digest`, after labels were merged."""

    digest: str
    merged: dict[str, str]  # old label -> new label
    parts: dict[str, Part]  # train, val, test


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The content of LINEAGE."""

    schema: Literal[1] = 1
    data: Data
    recipe: Recipe
    tools: dict[str, str]  # what trained and judged, with versions
    epoch: int  # whose weights these are
    score: float | None  # of that epoch on val: minus the cross entropy, or the average precision at IoU 0.5
    ended: str  # why
    report: float | None  # score from which a box is reported; None for a classifier
    figures: Figures


def data_record(digest_of_all: str, merge: dict[str, str], parts: Parts) -> Data:
    """The record of a dataset and how it was divided."""
    return Data(
        digest=digest_of_all,
        merged=merge,
        parts={
            name: Part(pictures=len(pictures), labels=dict(sorted(counts(pictures).items())), digest=digest(pictures))
            for name, pictures in parts.items()
        },
    )


def read_lineage(package: Package) -> Lineage | None:
    """The record of a package; None if it has none. Raises TrainError if it is damaged."""
    return read_record(package, LINEAGE, Lineage, TrainError)
