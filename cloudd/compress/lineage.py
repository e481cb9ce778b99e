"""Where the variants of a package come from: hashes of all that went in, and the verdict on each of them."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudd.compress.dataset import Split
from cloudd.compress.errors import CompressError
from cloudd.compress.maker import Recipe
from cloudd.derived import Source
from edgekit.datasets.dataset import Dataset, digest
from edgekit.gates.paired import Acceptance
from edgekit.packages import Package
from edgekit.packages.manifest import Precision
from edgekit.packages.records import read_record

FOLDER = "compressed"
"""Of a package: everything that compression made lies in it, and is replaced when the package is compressed again."""
LINEAGE = f"{FOLDER}/lineage.json"


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """The dataset version and its two sides; every digest as in `Dataset.digest`."""

    digest: str
    pictures: int
    calibration: int
    calibration_digest: str
    held_out: int
    held_out_digest: str
    training: int = 0  # pictures that kinds which are taught learnt from; 0 where none was tried
    training_digest: str = ""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """One variant that was tried. One that was refused is no file of the package, but stays on record."""

    kind: str
    precision: Precision
    sha256: str  # "" if it could not be made
    bytes: int
    recipe: Recipe | None
    accepted: bool
    reason: str  # "" or "refused: ..."
    gate: Acceptance | None  # None if it could not be made, loaded or proved

    @property
    def file(self) -> str:
        """Where it lies in the package, if it was accepted."""
        return f"{FOLDER}/{self.kind}.onnx"


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The content of LINEAGE."""

    schema: Literal[1] = 1
    source: Source
    data: Data
    tools: dict[str, str]  # what made and judged the variants, with versions
    variants: list[Made]


def data_record(dataset: Dataset, split: Split, lessons: Dataset | None) -> Data:
    """The record of a dataset, how it was split, and what was learnt from."""
    return Data(
        digest=dataset.digest,
        pictures=len(dataset.pictures),
        calibration=len(split.calibration),
        calibration_digest=digest(split.calibration),
        held_out=len(split.held_out),
        held_out_digest=digest(split.held_out),
        training=len(lessons.pictures) if lessons else 0,
        training_digest=lessons.digest if lessons else "",
    )


def read_lineage(package: Package) -> Lineage | None:
    """The record of a package; None if it has none. Raises CompressError if it is damaged."""
    return read_record(package, LINEAGE, Lineage, CompressError)
