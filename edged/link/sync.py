"""Fetching a model from cloudd: whole files by SHA-256, resumed after any interruption, checked before they count.

    models/.download-<digest>/partial/<sha256>   what has come so far of one file
    models/.download-<digest>/package/...        files that are complete and have the right hash

The download directory is named by the digest of the package, so that another version never continues it.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Final

import aiohttp

from edged.link.backoff import Backoff
from edged.link.errors import Refused, SyncError, Unreachable
from edged.link.http import bounded, call, problem, sorted_errors
from edgekit import packages
from edgekit.faults import crash_point
from edgekit.messages import FileEntry, ModelEntry
from edgekit.packages.manifest import MANIFEST_NAME, MAX_FILES, MAX_MANIFEST, check_path

MAX_ENTRY: Final = 4 * 1024 * 1024
"""Bytes of a ModelEntry: 10,000 files with long names."""
MAX_MODEL: Final = 8 * 1024**3
"""Bytes of a package. The largest edge models today take a tenth of it."""
FREE_RESERVE: Final = 64 * 1024**2
"""Bytes of disk that a download leaves alone: hard samples and the database need them more."""
_CHUNK: Final = 128 * 1024
_STALL_S: Final = 30.0
_TRIES: Final = 5
_ABANDONED_S: Final = 7 * 86_400.0
_PREFIX: Final = ".download-"
_SHA256 = re.compile(r"[0-9a-f]{64}")


async def fetch_model(
    session: aiohttp.ClientSession,
    url: str,
    ref: str,
    models: Path,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    max_bytes: int = MAX_MODEL,
    backoff: Backoff | None = None,
) -> packages.Package:
    """Install the model `ref` (name or name@version) from the cloudd at `url` into `models`.

    Returns at once if that very package is installed already. `progress` is called with bytes done and bytes in all.
    Raises SyncError with a sentence; what came so far stays on disk and the next call continues there, except that
    wrong content is removed, and everything when the disk is full.
    """
    try:
        name, version = packages.split_ref(ref)
        path = f"/v1/models/{name}" + (f"/{version}" if version else "")
        entry = await call(session, url, path, ModelEntry, max_bytes=MAX_ENTRY)
        check_entry(entry, name, version, max_bytes)
    except (packages.PackageError, Unreachable, Refused) as error:
        raise SyncError(f"the model {ref} cannot be fetched: {error}") from error
    full = f"{entry.name}@{entry.version}"
    work = models / f"{_PREFIX}{entry.digest[:32]}"
    present = await asyncio.to_thread(_installed, models / full, entry.digest)
    if present is not None:
        await asyncio.to_thread(shutil.rmtree, work, True)
        return present
    download = _Download(session, url, full, work, entry, progress, backoff or Backoff(1.0, 15.0, floor_s=0.2))
    try:
        await asyncio.to_thread(_prepare, models, work)
        await download.run()
        package = await asyncio.to_thread(packages.adopt, work / "package", models)
    except packages.PackageError as error:
        await asyncio.to_thread(shutil.rmtree, work, True)
        raise SyncError(f"the model {full} from cloudd is not usable: {error}") from error
    except (OSError, _StorageError) as error:
        cause = error.__cause__ if isinstance(error, _StorageError) else error
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            # Give the space back: local work needs it more than this download.
            await asyncio.to_thread(shutil.rmtree, work, True)
        raise SyncError(f"the model {full} cannot be stored: {cause}") from error
    await asyncio.to_thread(shutil.rmtree, work, True)
    return package


def check_entry(entry: ModelEntry, name: str, version: str | None, max_bytes: int = MAX_MODEL) -> None:
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
    if total > max_bytes:
        raise packages.PackageError(f"it takes {total} bytes; {max_bytes} are allowed")


class _StorageError(Exception):
    """The disk, not the network, failed; its cause is the OSError."""


class _Download:
    """One package on its way to disk."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        ref: str,
        work: Path,
        entry: ModelEntry,
        progress: Callable[[int, int], None],
        backoff: Backoff,
    ) -> None:
        self._session, self._url, self._ref, self._entry = session, url, ref, entry
        self._package, self._partial = work / "package", work / "partial"
        self._progress, self._backoff = progress, backoff
        self._total = sum(file.size for file in entry.files)
        self._before = 0  # bytes of the files that are complete

    async def run(self) -> None:
        """Raises SyncError, OSError."""
        left = self._total - sum(size for size in map(_size, self._partial.iterdir()))
        missing = [file for file in self._entry.files if _size(self._package / file.path) != file.size]
        left -= self._total - sum(file.size for file in missing)
        free = shutil.disk_usage(self._partial).free
        if left + FREE_RESERVE > free:
            raise SyncError(
                f"the model {self._ref} needs {left} bytes more, but only {max(0, free - FREE_RESERVE)} can be used; "
                "remove unused models or make room on the disk"
            )
        self._before = self._total - sum(file.size for file in missing)
        for file in missing:
            await self._fetch(file)
            self._before += file.size
            self._progress(self._before, self._total)

    async def _fetch(self, file: FileEntry) -> None:
        """One file, with as many tries as make progress and a few more."""
        partial = self._partial / file.sha256
        failures = 0
        while True:
            before = _size(partial)
            try:
                digest = await self._continue(file, partial)
                break
            except Unreachable as error:
                failures = 0 if _size(partial) > before >= 0 else failures + 1
                if failures >= _TRIES:
                    raise SyncError(f"the model {self._ref} cannot be fetched now: {error}") from error
                await asyncio.sleep(self._backoff.next_s())
        self._backoff.reset()
        if digest != file.sha256:
            partial.unlink()
            raise SyncError(f"{file.path} of {self._ref} does not have the announced SHA-256; it was removed")
        await asyncio.to_thread(_complete, partial, self._package / file.path)

    async def _continue(self, file: FileEntry, partial: Path) -> str:
        """Fetch what is missing; returns the hash of the whole. Raises Unreachable, SyncError, OSError."""
        hasher = hashlib.sha256()
        start = await asyncio.to_thread(_rehash, partial, hasher, file.size)
        if start == file.size:
            await asyncio.to_thread(partial.touch)
            return hasher.hexdigest()
        headers = {"Range": f"bytes={start}-", "If-Range": f'"{file.sha256}"'} if start else {}
        timeout = aiohttp.ClientTimeout(total=None, connect=10.0, sock_connect=10.0, sock_read=_STALL_S)
        with sorted_errors(self._url):
            async with self._session.get(
                f"{self._url}/v1/blobs/{file.sha256}", headers=headers, timeout=timeout
            ) as response:
                if response.status == 206:
                    if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                        raise SyncError(f"cloudd sent another part of {file.path} than was asked for")
                elif response.status == 200:
                    hasher, start = hashlib.sha256(), 0
                else:
                    reason = problem(self._url, response.status, await bounded(response, 4096))
                    if isinstance(reason, Unreachable):
                        raise reason
                    raise SyncError(f"{file.path} of {self._ref} cannot be fetched: {reason}")
                await self._store(response, file, partial, start, hasher)
        return hasher.hexdigest()

    async def _store(
        self, response: aiohttp.ClientResponse, file: FileEntry, partial: Path, start: int, hasher: hashlib._Hash
    ) -> None:
        done = start
        with _open(partial, start) as sink:
            async for chunk in response.content.iter_chunked(_CHUNK):
                if done + len(chunk) > file.size:
                    await asyncio.to_thread(partial.unlink)
                    raise SyncError(f"{file.path} of {self._ref} is longer than the announced {file.size} bytes")
                _append(sink, chunk)
                hasher.update(chunk)
                done += len(chunk)
                self._progress(self._before + done, self._total)
                crash_point("model.chunk")
        if done < file.size:
            raise Unreachable(f"the connection ended {file.size - done} bytes before the end of {file.path}")


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


def _size(path: Path) -> int:
    """Bytes of a file, -1 if there is none."""
    try:
        return path.stat(follow_symlinks=False).st_size
    except OSError:
        return -1


def _open(partial: Path, start: int) -> FileIO:
    """The partial file, to be continued at byte `start`."""
    try:
        if _size(partial) > start:
            os.truncate(partial, start)
        return partial.open("ab", buffering=0)  # a full disk shows in write, not later in close
    except OSError as error:
        raise _StorageError from error


def _append(sink: FileIO, chunk: bytes) -> None:
    try:
        left = memoryview(chunk)
        while left:
            left = left[sink.write(left) :]
    except OSError as error:
        raise _StorageError from error


def _rehash(partial: Path, hasher: hashlib._Hash, limit: int) -> int:
    """Feed what is on disk into the hash; returns its length. A file that is too long is started anew."""
    size = _size(partial)
    if size > limit:
        partial.unlink()
    if not 0 < size <= limit:
        return 0
    with partial.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return size


def _complete(partial: Path, target: Path) -> None:
    """Make the content durable before it gets its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
