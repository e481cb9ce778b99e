"""What learning from frozen features leaves: the sealed package, and its record by hash.

The record holds no time and no place: the same pictures, wishes and tools give the same record.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import msgspec

from cloudd.derived import tools
from cloudd.train.errors import TrainError
from edgekit import packages
from edgekit.datasets.dataset import Picture, digest
from edgekit.packages import Manifest, Package, ProofSample, records
from edgekit.vision.sniff import sniff

FOLDER = "frozen"
RECORD = f"{FOLDER}/lineage.json"
MODEL_FILE = "model.onnx"
SAMPLE_BYTES = 4 << 20
"""A larger picture does not become a proof sample."""
_MAX_BYTES = 4 << 20


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The content of RECORD."""

    schema: Literal[1] = 1
    task: Literal["anomaly", "embedding"]
    data: str  # digest of the pictures that were learned from, as in `Dataset.digest`
    pictures: int
    recipe: dict[str, Any]  # what was wished for and what was chosen
    figures: dict[str, Any]
    tools: dict[str, str]


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    model: str  # name@version
    package: str  # its directory, "" if the model was refused
    reason: str  # why it was refused
    bytes: int  # of the model
    samples: int
    record: Record


def record_of(
    task: Literal["anomaly", "embedding"], pictures: Sequence[Picture], recipe: dict[str, Any], figures: msgspec.Struct
) -> Record:
    """The record of what was learned from `pictures`."""
    return Record(
        task=task,
        data=digest(pictures),
        pictures=len(pictures),
        recipe=recipe,
        figures=msgspec.to_builtins(figures),
        tools=tools(),
    )


def made(
    out: Path,
    record: Record,
    reason: str,
    draft: Manifest,
    write: Callable[[Path], None],
    samples: Callable[[Path, Package], list[ProofSample]],
    load: Callable[[Package], Any],
) -> Made:
    """Seal a package into `out` unless there is a `reason` not to.

    `write` puts the files of the draft into a folder, `samples` chooses proof samples with the model as it lies there
    and puts their pictures beside it, `load` opens the model, whose `prove` is asked at last. Raises PackageError
    (another package of this name and version is there), ModelError, OSError.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".frozen-", dir=out) as name:
        root = Path(name) / "package"
        root.mkdir()
        write(root)
        size = (root / MODEL_FILE).stat().st_size
        chosen: list[ProofSample] = []
        sealed = ""
        if not reason:
            unsealed = packages.seal_package(root, draft)
            (root / packages.MANIFEST_NAME).unlink()
            chosen = samples(root, unsealed)
            (root / FOLDER).mkdir()
            (root / RECORD).write_bytes(records.record_bytes(record))
            package = packages.seal_package(root, msgspec.structs.replace(draft, samples=chosen))
            with closing(load(package)) as proved:
                proved.prove()
            sealed = str(packages.adopt(root, out).root)
        shutil.rmtree(root, ignore_errors=True)
    return Made(model=draft.ref, package=sealed, reason=reason, bytes=size, samples=len(chosen), record=record)


def keep_sample(root: Path, number: int, data: bytes) -> str:
    """Put a picture into the package; its path there."""
    file = f"samples/{number}.{'png' if sniff(data).format == 'png' else 'jpg'}"
    (root / "samples").mkdir(exist_ok=True)
    (root / file).write_bytes(data)
    return file


def read_record(package: Package) -> Record | None:
    """The record of a package; None if it has none. Raises TrainError if it is damaged."""
    return records.read_record(package, RECORD, Record, TrainError, _MAX_BYTES)
