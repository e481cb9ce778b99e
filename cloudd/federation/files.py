"""The files of a job: read when it is started, brought back from the blob store when it is taken up again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from cloudd.federation.errors import FederationError
from cloudd.storage import Blobs, StorageError
from edgekit.federated.head_jobs import FEATURES_FILE, HEAD_FILE, TOTALS_FILE
from edgekit.messages import FileEntry
from edgekit.messages.federation import FederatedJob

PLAN_FOLDER = "plan"
# As edgekit.training.plan has them, without importing OpenCV into the daemon; a test compares.
STEP_FOLDER = "step"
PLAN_FILES = ("forward.onnx", "model.onnx", "weights.safetensors")
_HEAD = (FEATURES_FILE, HEAD_FILE, "model.onnx", "weights.safetensors")
_CHUNK = 1 << 20


def plan_files(directory: Path) -> list[FileEntry]:
    """The files of a train step, or of a head of one round, with their hashes. Raises FederationError."""
    if (directory / HEAD_FILE).is_file():
        wanted = [directory / name for name in _HEAD]
        wanted += [path for path in [directory / TOTALS_FILE] if path.exists()]
        step: list[Path] = []
    else:
        wanted = [directory / name for name in PLAN_FILES]
        step = sorted(path for path in (directory / STEP_FOLDER).glob("*") if path.is_file())
    if not all(path.is_file() for path in wanted) or not (step or (directory / HEAD_FILE).is_file()):
        raise FederationError(f"{directory} holds no train step and no head; `cloudd fl start` makes them")
    found = []
    for path in [*wanted, *step]:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
        relative = str(path.relative_to(directory))
        found.append(FileEntry(path=relative, sha256=digest.hexdigest(), size=path.stat().st_size))
    return found


async def stream(path: Path) -> AsyncIterator[bytes]:
    """A file in chunks."""
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


async def one(data: bytes) -> AsyncIterator[bytes]:
    """Bytes as a stream."""
    yield data


async def materialise(job: FederatedJob, blobs: Blobs, folder: Path) -> None:
    """The train step on the disk, out of the blob store where a file is missing. Raises StorageError, OSError."""
    for entry in job.files:
        path = folder / entry.path
        if path.exists() and path.stat().st_size == entry.size:
            continue
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                async for chunk in blobs.stream(entry.sha256):
                    await asyncio.to_thread(file.write, chunk)
        except KeyError:
            raise StorageError(f"the file {entry.path} of a federated job is missing in the blob store") from None
        part.replace(path)
