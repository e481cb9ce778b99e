"""Where an imported model comes from: the file by hash, what was changed, how it was compared, judged and examined.

It holds no time and no place: the same file, pictures and tools give the same record.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudd.frozen.anomaly import AnomalyFigures
from cloudd.importing.errors import ImportRefused
from cloudd.importing.kinds import Kind
from cloudd.importing.learnable import Learning
from cloudd.train.figures import Figures, Share
from edgekit.packages import Package
from edgekit.packages.records import read_record

FOLDER = "imported"
LINEAGE = f"{FOLDER}/lineage.json"


class Foreign(msgspec.Struct, frozen=True, kw_only=True):
    """The file that was imported."""

    file: str  # its name
    kind: Kind
    sha256: str  # of the file; of a directory, over its files' names and hashes
    bytes: int


class Sameness(msgspec.Struct, frozen=True, kw_only=True):
    """How it was shown that the package answers as the file does."""

    how: Literal["bytes", "outputs"]  # the file itself is in the package, or its outputs were compared
    pictures: int = 0  # that were compared
    noise: int = 0  # tensors of noise that were compared as well
    largest: float = 0.0  # largest difference, as a share of the largest value of the output


class Likeness(msgspec.Struct, frozen=True, kw_only=True):
    """How well an embedding model tells identities apart; ranges as in `cloudd.train.figures`."""

    identities: int
    pictures: int
    nearest: Share  # pictures that are nearer to another one of their own identity than to all others
    threshold: float
    missed: Share  # pictures that are less like any other of their identity than the threshold wants
    taken: Share  # pictures that are more like another identity than it allows


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The un-folded form of the same network, which was imported beside it."""

    source: Foreign
    road: str  # how it became what lies in the package
    changes: list[str]  # to its graph, but for the names of its input and outputs
    normalisations: int  # BatchNormalization nodes
    largest: float  # largest difference from the model itself, as a share of the largest value of the output


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The content of LINEAGE."""

    schema: Literal[1] = 1
    source: Foreign
    road: str  # how it became what lies in the package
    changes: list[str]  # to the graph
    tools: dict[str, str]  # with versions
    input: dict[str, str]  # key of [input] -> read, said or assumed
    sameness: Sameness
    pictures: str  # digest of the pictures, "" without any
    pinned: Literal["labels", "answers", ""]  # what the proof samples say: the pictures' labels, or what it answered
    figures: Figures | None  # of a classifier or detector; None for pictures without labels
    learning: Learning
    checkpoint: Checkpoint | None = None
    likeness: Likeness | None = None  # of an embedding model that labelled pictures judged
    parts: AnomalyFigures | None = None  # of an anomaly model


def read_lineage(package: Package) -> Lineage | None:
    """The record of a package; None if it has none. Raises ImportRefused if it is damaged."""
    return read_record(package, LINEAGE, Lineage, ImportRefused)
