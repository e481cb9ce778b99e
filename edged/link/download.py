"""One file of cloudd, by its size and SHA-256: continued where it broke off, whole and right before it has its name."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp

from edged.link.backoff import Backoff
from edged.link.errors import Unreachable, WrongContent
from edged.link.http import bounded, problem, sorted_errors
from edgekit.atomic import fsync_dir, fsync_file
from edgekit.messages import FileEntry

FREE_RESERVE: Final = 64 << 20
"""Bytes of the disk that downloads leave alone: samples and the database need them more."""
STALL_S: Final = 60.0
"""Longest silence of a connection."""
SLOWEST: Final = 1024
"""Bytes a second: what comes slower for the whole of a file (GPRS brings four times as many) is given up."""
_CHUNK: Final = 1 << 18
_BUFFER: Final = 1 << 20
"""Bytes that wait to be read: with the 64 KiB of aiohttp a fast connection is stopped again and again."""
_MAX_PROBLEM: Final = 64 << 10


async def download(
    session: aiohttp.ClientSession,
    url: str,
    path: str,
    entry: FileEntry,
    target: Path,
    *,
    patience_s: float,
    partial: Path | None = None,
    backoff: Backoff | None = None,
    came: Callable[[int], None] = lambda _have: None,
    durable: bool = True,
) -> None:
    """Bring `entry` from `url` + `path`, which serves ranges and whose ETag is the SHA-256, to `target`.

    What comes is kept in `partial` (beside the target where none is given), and the next call goes on behind it. A
    connection that breaks is made again until nothing has come for `patience_s`; 0: until one try brings nothing.
    `came` is told how many bytes are on the disk. `durable` False: `target` may be gone after a power cut.

    Raises Unreachable, also for a whole that takes longer than SLOWEST allows; what came stays. WrongContent for other
    bytes than the entry's, which are removed; if a part of them lay here before, only after they came anew. Refused,
    WrongAuthority. OSError where the disk fails; of a full one the part is removed, since others need that room.
    """
    partial = partial or target.with_name(f".{target.name}.part")
    backoff = backoff or Backoff(0.2, 10.0, floor_s=0.05)
    started = news = time.monotonic()
    end = started + patience_s + STALL_S + entry.size / SLOWEST
    anew = False
    await asyncio.to_thread(_make_folders, partial.parent, target.parent)
    while True:
        before = size_of(partial)
        try:
            await _go_on(session, url, path, entry, partial, came, end - time.monotonic())
            break
        except WrongContent:
            partial.unlink(missing_ok=True)
            if anew or not before:
                raise
            anew = True  # what lay here may have been at fault
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                partial.unlink(missing_ok=True)
            raise
        except Unreachable:
            now = time.monotonic()
            if size_of(partial) > before:
                news = now
                backoff.reset()
            elif now >= news + patience_s:
                raise
            if now >= end:
                raise Unreachable(
                    f"{entry.path} comes too slowly from {url}: {size_of(partial)} of {entry.size} bytes "
                    f"in {now - started:.0f} s"
                ) from None
            await asyncio.sleep(backoff.next_s())
    await asyncio.to_thread(_finish, partial, target, durable)


def check_room(folder: Path, need: int) -> None:
    """Raises OSError (ENOSPC) if `need` more bytes in `folder` would leave less than FREE_RESERVE of the disk."""
    free = max(0, shutil.disk_usage(folder).free - FREE_RESERVE)
    if need > free:
        raise OSError(errno.ENOSPC, f"{need} bytes more are needed, but only {free} can be used; make room on the disk")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    try:
        return path.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


class _DiskFault(Exception):
    """Carries an OSError of the disk past `sorted_errors`, for which every OSError is one of the network."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Sink:
    """What has come of a file: its bytes on the disk and their hash. More than `limit` of them are none."""

    def __init__(self, path: Path, limit: int) -> None:
        """Blocks while it reads what is there. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        # Unbuffered: a full disk shows in write, not later in close.
        self._file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        self._hasher, self.have = hashlib.sha256(), 0
        if os.fstat(self._file.fileno()).st_size > limit:
            self._file.truncate(0)
        while chunk := self._file.read(1 << 20):
            self._hasher.update(chunk)
            self.have += len(chunk)

    @property
    def sha256(self) -> str:
        """Of all that is there."""
        return self._hasher.hexdigest()

    def restart(self) -> None:
        """Nothing is there. Raises _DiskFault."""
        try:
            self._file.truncate(0)
        except OSError as error:
            raise _DiskFault(error) from error
        self._hasher, self.have = hashlib.sha256(), 0

    def append(self, chunk: bytes) -> None:
        """Raises _DiskFault."""
        left = memoryview(chunk)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _DiskFault(error) from error
        self._hasher.update(chunk)
        self.have += len(chunk)

    def close(self) -> None:
        """Every byte has been given to the system."""
        self._file.close()


async def _go_on(
    session: aiohttp.ClientSession,
    url: str,
    path: str,
    entry: FileEntry,
    partial: Path,
    came: Callable[[int], None],
    seconds: float,
) -> None:
    """One try; on return all of the file is in `partial`. Raises as `download` does."""
    sink = await asyncio.to_thread(_Sink, partial, entry.size)
    try:
        if sink.have < entry.size:
            await _receive(session, url, path, entry, sink, came, seconds)
    except _DiskFault as fault:
        raise fault.error from None
    finally:
        sink.close()
    if sink.sha256 != entry.sha256:
        raise WrongContent(f"{entry.path} does not have the announced SHA-256; it was removed")


async def _receive(
    session: aiohttp.ClientSession,
    url: str,
    path: str,
    entry: FileEntry,
    sink: _Sink,
    came: Callable[[int], None],
    seconds: float,
) -> None:
    headers = {"Range": f"bytes={sink.have}-", "If-Range": f'"{entry.sha256}"'} if sink.have else {}
    timeout = aiohttp.ClientTimeout(total=max(1.0, seconds), connect=10.0, sock_connect=10.0, sock_read=STALL_S)
    with sorted_errors(url):
        async with session.get(url + path, headers=headers, timeout=timeout, read_bufsize=_BUFFER) as response:
            if response.status == 200:
                sink.restart()
            elif response.status not in (206, 416):
                raise problem(url, response.status, await bounded(response, _MAX_PROBLEM))
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {sink.have}-"):
                raise WrongContent(f"cloudd sent another part of {entry.path} than was asked for")
            async for chunk in response.content.iter_chunked(_CHUNK):
                if sink.have + len(chunk) > entry.size:
                    raise WrongContent(f"{entry.path} is longer than the announced {entry.size} bytes")
                sink.append(chunk)
                came(sink.have)
    if sink.have < entry.size:
        raise Unreachable(f"the connection ended {entry.size - sink.have} bytes before the end of {entry.path}")


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _finish(partial: Path, target: Path, durable: bool) -> None:
    """Give the file its name; `durable`: its content first."""
    if durable:
        fsync_file(partial)
    partial.replace(target)
    if durable:
        fsync_dir(target.parent)
