"""Fetching a model from cloudd: whole files by SHA-256, resumed after any interruption, checked before they count.

    models/.download-<digest>/partial/<sha256>   what has come so far of one file
    models/.download-<digest>/package/...        files that are complete and have the right hash

The download directory is named by the digest of the package, so that another version never continues it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp

from edged.link.backoff import Backoff
from edged.link.download import check_room, download, size_of
from edged.link.errors import LinkError, Refused, SyncError, Unreachable
from edged.link.http import call
from edgekit import packages
from edgekit.faults import crash_point
from edgekit.messages import ModelEntry
from edgekit.packages.manifest import MANIFEST_NAME, MAX_FILES, MAX_MANIFEST, check_path

MAX_ENTRY: Final = 4 * 1024 * 1024
"""Bytes of a ModelEntry: 10,000 files with long names."""
MAX_MODEL: Final = 8 * 1024**3
"""Bytes of a package. The largest edge models today take a tenth of it."""
_ABANDONED_S: Final = 7 * 86_400.0
_PREFIX: Final = ".download-"
_SHA256 = re.compile(r"[0-9a-f]{64}")


async def fetch_model(
    session: aiohttp.ClientSession,
    url: str,
    ref: str,
    models: Path,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    backoff: Backoff | None = None,
    patience_s: float = 30.0,
) -> packages.Package:
    """Install the model `ref` (name or name@version) from the cloudd at `url` into `models`.

    Returns at once if that very package is installed already. `progress` is called with bytes done and bytes in all.
    `patience_s`: see `download`.
    Raises SyncError with a sentence; what came so far stays on disk and the next call continues there, except that
    wrong content is removed, and everything when the disk is full.
    """
    try:
        name, version = packages.split_ref(ref)
        path = f"/v1/models/{name}" + (f"/{version}" if version else "")
        entry = await call(session, url, path, ModelEntry, max_bytes=MAX_ENTRY)
        check_entry(entry, name, version)
    except (packages.PackageError, Unreachable, Refused) as error:
        raise SyncError(f"the model {ref} cannot be fetched: {error}") from error
    full = f"{entry.name}@{entry.version}"
    work = models / f"{_PREFIX}{entry.digest[:32]}"
    present = await asyncio.to_thread(_installed, models / full, entry.digest)
    if present is not None:
        await asyncio.to_thread(shutil.rmtree, work, True)
        return present
    task = _Download(session, url, work, entry, progress, backoff or Backoff(1.0, 15.0, floor_s=0.2), patience_s)
    try:
        await asyncio.to_thread(_prepare, models, work)
        await task.run()
        package = await asyncio.to_thread(packages.adopt, work / "package", models)
    except packages.PackageError as error:
        await asyncio.to_thread(shutil.rmtree, work, True)
        raise SyncError(f"the model {full} from cloudd is not usable: {error}") from error
    except Unreachable as error:
        raise SyncError(f"the model {full} cannot be fetched now: {error}") from error
    except LinkError as error:
        raise SyncError(f"the model {full} cannot be fetched: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            # Give the space back: local work needs it more than this download.
            await asyncio.to_thread(shutil.rmtree, work, True)
        raise SyncError(f"the model {full} cannot be stored: {error.strerror or error}") from error
    await asyncio.to_thread(shutil.rmtree, work, True)
    return package


def check_entry(entry: ModelEntry, name: str, version: str | None) -> None:
    """That an entry is what was asked for and can be fetched safely. Raises PackageError."""
    packages.check_name(entry.name)
    packages.check_version(entry.version)
    if entry.name != name or (version is not None and entry.version != version):
        raise packages.PackageError(f"cloudd answered with {entry.name}@{entry.version}")
    if not 0 < len(entry.files) <= MAX_FILES:
        raise packages.PackageError(f"it lists {len(entry.files)} files; 1 to {MAX_FILES} are allowed")
    manifest_found = False
    for file in entry.files:
        if file.path == MANIFEST_NAME:
            manifest_found = file.sha256 == entry.digest and file.size <= MAX_MANIFEST
        else:
            check_path(file.path)
        if not _SHA256.fullmatch(file.sha256) or file.size < 0:
            raise packages.PackageError(f"the entry of {file.path!r} has no valid hash and size")
    if len({file.path for file in entry.files}) != len(entry.files):
        raise packages.PackageError("it lists a file twice")
    if not manifest_found:
        raise packages.PackageError(f"it lists no {MANIFEST_NAME} with the announced digest")
    total = sum(file.size for file in entry.files)
    if total > MAX_MODEL:
        raise packages.PackageError(f"it takes {total} bytes; {MAX_MODEL} are allowed")


class _Download:
    """One package on its way to disk."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        work: Path,
        entry: ModelEntry,
        progress: Callable[[int, int], None],
        backoff: Backoff,
        patience_s: float,
    ) -> None:
        self._session, self._url, self._entry = session, url, entry
        self._package, self._partial = work / "package", work / "partial"
        self._progress, self._backoff, self._patience_s = progress, backoff, patience_s
        self._total = sum(file.size for file in entry.files)
        self._before = 0  # bytes of the files that are complete

    async def run(self) -> None:
        """Raises as `download` does."""
        missing = [file for file in self._entry.files if not _has(self._package / file.path, file.size)]
        self._before = self._total - sum(file.size for file in missing)
        left = self._total - self._before - sum(map(size_of, self._partial.iterdir()))
        await asyncio.to_thread(check_room, self._partial, left)
        for file in missing:
            await download(
                self._session,
                self._url,
                f"/v1/blobs/{file.sha256}",
                file,
                self._package / file.path,
                partial=self._partial / file.sha256,
                patience_s=self._patience_s,
                backoff=self._backoff,
                came=self._came,
            )
            self._before += file.size
            self._progress(self._before, self._total)

    def _came(self, have: int) -> None:
        self._progress(self._before + have, self._total)
        crash_point("model.chunk")


def _has(path: Path, size: int) -> bool:
    """Whether a file is there. It gets its name only when its hash is right, so the size tells."""
    return path.is_file() and size_of(path) == size


def _installed(directory: Path, digest: str) -> packages.Package | None:
    try:
        package = packages.open_package(directory)
    except (OSError, packages.PackageError):
        return None
    return package if package.digest == digest else None


def _prepare(models: Path, work: Path) -> None:
    """Make the directories, and remove downloads that nobody continued for a week."""
    models.mkdir(parents=True, exist_ok=True)
    for entry in models.iterdir():
        if entry.name.startswith(_PREFIX) and entry != work and time.time() - entry.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(entry, ignore_errors=True)
    (work / "partial").mkdir(parents=True, exist_ok=True)
    (work / "package").mkdir(exist_ok=True)
    os.utime(work)
