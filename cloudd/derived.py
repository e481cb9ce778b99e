"""What the steps share that make packages out of a package: the model they start from, its record, their progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

import msgspec

from edgekit.packages import Package, Variant, records
from edgekit.runtimes.onnx_reader import read_references

Progress = Callable[[str, int, int], None]
"""Hears what is done, how much of it is, and of how much (0: nobody knows)."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The float model that others were made from."""

    model: str  # name@version
    digest: str  # of its package
    file: str
    sha256: str


def source_of(package: Package, variant: Variant) -> Source:
    """The record of where something was made from."""
    return Source(
        model=package.ref, digest=package.digest, file=variant.file, sha256=package.manifest.files[variant.file]
    )


def float_variant(variants: Iterable[Variant]) -> Variant | None:
    """The first fp32 one for onnxruntime on any chip."""
    wanted = ("onnxruntime", "fp32", None)
    return next((one for one in variants if (one.runtime, one.precision, one.target) == wanted), None)


def files_of(package: Package, variant: Variant) -> list[str]:
    """The package's paths of an ONNX variant and of the files that it reads weights from. Raises ModelError."""
    place = PurePosixPath(variant.file).parent
    external = read_references(package.path(variant.file)).external
    return sorted({variant.file, *(str(place / name) for name in external)})


def tools() -> dict[str, str]:
    """Programs that shape what cloudd makes; see `edgekit.packages.records`."""
    return records.tools("cloudd")
