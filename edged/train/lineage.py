"""Where a candidate comes from: the model that learned, the pictures by hash, what was done, and how it was judged."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgekit.learning.records import Rung
from edgekit.learning.trial import Verdict
from edgekit.packages import Package
from edgekit.packages.records import read_record

FOLDER = "learned"
LINEAGE = f"{FOLDER}/lineage.json"


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """The model that learned."""

    model: str  # name@version
    digest: str  # of its package
    file: str
    sha256: str


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One side of the dataset."""

    pictures: int
    labels: dict[str, int]  # pictures of each, or boxes
    digest: str  # as in `edgekit.datasets`


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """The dataset version."""

    name: str
    digest: str
    parts: dict[str, Part]  # learn, choose, judge
    scene: int = 0  # unlabelled pictures that statistics were taken from


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """Gradient steps: how and how many. None of the closed forms has any of this."""

    epochs: int
    batch: int
    peak: float  # learning rate
    balance: str
    seed: int
    trained: int  # weights
    epoch: int  # whose weights these are
    score: float | None  # of that epoch on the part `choose`: minus the cross entropy, or the mean precision of boxes
    ended: str


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The content of LINEAGE."""

    schema: Literal[1] = 1
    base: Base
    service: str
    job: int
    rung: Rung
    data: Data
    classes: list[str]  # that the base does not have
    recipe: Recipe | None
    tools: dict[str, str]
    notes: list[str]
    verdict: Verdict


def read_lineage(package: Package) -> Lineage | None:
    """The record of a package; None if it did not learn on a device. Raises ValueError if it is damaged."""
    return read_record(package, LINEAGE, Lineage, ValueError)
