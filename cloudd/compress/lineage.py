"""Where the variants of a package come from: hashes of all that went in, and the verdict on each of them.

The record is a file of the package, so its hash is in the manifest and it travels with the model. It holds no time and
no place: the same model, pictures and tools give the same record, and so the same package.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import msgspec

from cloudd.compress.dataset import Dataset, Split, digest
from cloudd.compress.errors import CompressError
from cloudd.compress.maker import Recipe
from edgekit import VERSION
from edgekit.gates.paired import Acceptance
from edgekit.packages import Package
from edgekit.packages.manifest import Precision

FOLDER = "compressed"
"""Of a package: everything that compression made lies in it, and is replaced when the package is compressed again."""
LINEAGE = f"{FOLDER}/lineage.json"
_MAX_BYTES = 16 << 20


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The float model that variants were made from."""

    model: str  # name@version
    digest: str  # of its package
    file: str
    sha256: str


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """The dataset version and its two sides; every digest as in `Dataset.digest`."""

    digest: str
    pictures: int
    calibration: int
    calibration_digest: str
    held_out: int
    held_out_digest: str


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


def data_record(dataset: Dataset, split: Split) -> Data:
    """The record of a dataset and how it was split."""
    return Data(
        digest=dataset.digest,
        pictures=len(dataset.pictures),
        calibration=len(split.calibration),
        calibration_digest=digest(split.calibration),
        held_out=len(split.held_out),
        held_out_digest=digest(split.held_out),
    )


def tools() -> dict[str, str]:
    """Programs that shape a variant, and the kind of processor that it was judged on."""
    found = {"cloudd": VERSION, "machine": platform.machine()}
    for name in ("onnx", "onnxruntime", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a vendor's build under another name
            found[name] = "unknown"
    return found


def read_lineage(package: Package) -> Lineage | None:
    """The record of a package; None if it has none. Raises CompressError if it is damaged."""
    if LINEAGE not in package.manifest.files:
        return None
    if package.sizes[LINEAGE] > _MAX_BYTES:
        raise CompressError(f"{LINEAGE} of {package.ref} has {package.sizes[LINEAGE]} bytes; {_MAX_BYTES} are allowed")
    try:
        return msgspec.json.decode(package.path(LINEAGE).read_bytes(), type=Lineage, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CompressError(f"{LINEAGE} of {package.ref} cannot be read: {error}") from None


def write_lineage(lineage: Lineage) -> bytes:
    """Equal records give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(lineage), indent=1) + b"\n"
