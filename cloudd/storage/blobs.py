"""Blobs: bytes named by their SHA-256, over an object store chosen by URL; a local directory unless somebody wants S3.

A blob is durable when `put` returns, so that a row may name it. Putting the same bytes twice is one blob.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from cloudd.storage.errors import StorageError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_INCOMING = "incoming"
_CHUNK = 1 << 20


class Blobs:
    """An open blob store. Use `open`, not the constructor. Every method raises StorageError when the store fails."""

    def __init__(self, store: ObjectStore, directory: Path | None) -> None:
        self._store = store
        self._directory = directory  # of a local store, which must be synced by hand
        self._synced: set[Path] = set()  # its folders whose own names are durable
        self._held: Counter[str] = Counter()
        self._removing: dict[str, asyncio.Event] = {}

    @classmethod
    async def open(cls, url: str) -> Blobs:
        """Open a directory (path or file:// URL, created for its owner only), s3://, gs://, az:// or memory:///."""
        parts = urlsplit(url)
        if "://" not in url or parts.scheme == "file":
            directory = Path(unquote(parts.path)) if "://" in url else Path(url)
            try:
                await asyncio.to_thread(_prepare, directory)
            except OSError as error:
                raise StorageError(f"the blob directory {directory} cannot be used: {error.strerror}") from None
            return cls(LocalStore(directory), directory)
        try:
            return cls(from_url(url), None)
        except (BaseError, ValueError) as error:
            reason = str(error).partition("\n")[0]  # behind it is a dump of the library's own state
            raise StorageError(
                f"the blob store {parts.scheme}://{parts.hostname or ''} cannot be used: {reason}"
            ) from None

    async def put(self, data: bytes | memoryview, sha256: str = "") -> str:
        """Store bytes; returns their SHA-256 in hex, which a caller that knows it gives."""
        return await self._put(sha256 or hashlib.sha256(data).hexdigest(), data)

    @contextlib.asynccontextmanager
    async def putting(self, data: bytes) -> AsyncIterator[str]:
        """Store bytes and hold them (see `holding`) until the block ends; gives their SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        async with self.holding(sha256):
            yield await self._put(sha256, data)

    async def put_stream(self, chunks: AsyncIterable[bytes], expected: str | None = None) -> tuple[str, int]:
        """Store a stream without holding it in memory; returns (SHA-256, bytes).

        Raises ValueError, and keeps nothing, if the bytes do not have the SHA-256 `expected`.
        """
        digest, size = hashlib.sha256(), 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        with _explained("stored"):
            async with self._incoming() as incoming:
                await obstore.put_async(self._store, incoming, counted())
                sha256 = digest.hexdigest()
                if expected is not None and sha256 != expected:
                    raise ValueError(f"the bytes have SHA-256 {sha256}, not {expected}")
                await self._name(incoming, sha256)
        return sha256, size

    async def get(self, sha256: str) -> bytes:
        """All bytes of a blob. Raises KeyError if there is none."""
        with _explained("read", sha256):
            result = await obstore.get_async(self._store, _place(sha256))
            return bytes(await result.bytes_async())

    async def stream(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes [start, end) in chunks. Raises KeyError before the first chunk if there is no such blob."""
        with _explained("read", sha256):
            if end is None:
                end = await self._size(sha256)
            if start >= end:
                return
            if self._directory is not None:  # the store's own stream takes four times the CPU time
                async for chunk in _read(self._directory / _place(sha256), start, end):
                    yield chunk
                return
            result = await obstore.get_async(self._store, _place(sha256), options={"range": (start, end)})
            async for chunk in result.stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)

    async def size(self, sha256: str) -> int:
        """Bytes of a blob. Raises KeyError if there is none."""
        with _explained("read", sha256):
            return await self._size(sha256)

    async def exists(self, sha256: str) -> bool:
        """Whether the blob is there."""
        with _explained("read"):
            return await self._has(sha256)

    @contextlib.asynccontextmanager
    async def holding(self, sha256: str) -> AsyncIterator[None]:
        """Keep a blob from being removed while no row names it yet: put the blob and commit its row inside."""
        while sha256 in self._removing:
            await self._removing[sha256].wait()
        self._held[sha256] += 1
        try:
            yield
        finally:
            self._held[sha256] -= 1
            if not self._held[sha256]:
                del self._held[sha256]

    async def remove(self, sha256: str, used: Callable[[str], Awaitable[bool]]) -> bool:
        """Remove a blob unless it is held or `used` says that a row names it; whether it is gone."""
        if sha256 in self._held or sha256 in self._removing:
            return False
        self._removing[sha256] = asyncio.Event()
        try:
            if await used(sha256):
                return False
            with _explained("removed"), contextlib.suppress(FileNotFoundError):
                await obstore.delete_async(self._store, _place(sha256))
            return True
        finally:
            self._removing.pop(sha256).set()

    async def list(self) -> AsyncIterator[str]:
        """The SHA-256 of every blob, in no order."""
        with _explained("listed"):
            async for batch in obstore.list(self._store):
                for entry in batch:
                    name = entry["path"].rpartition("/")[2]
                    if _SHA256.fullmatch(name) and entry["path"] == _place(name):
                        yield name

    async def sweep(self) -> None:
        """Remove uploads that never ended. Call it before the first `put`."""
        with _explained("listed"):
            if self._directory is not None:
                await asyncio.to_thread(_remove_staged, self._directory)
            async for batch in obstore.list(self._store, prefix=_INCOMING):
                await obstore.delete_async(self._store, [entry["path"] for entry in batch])

    async def _put(self, sha256: str, data: bytes | memoryview) -> str:
        with _explained("stored"):
            if await self._has(sha256):
                await self._settle(sha256)
            elif self._directory is None:
                await obstore.put_async(self._store, _place(sha256), data, use_multipart=False)
            else:
                async with self._incoming() as incoming:
                    await obstore.put_async(self._store, incoming, data, use_multipart=False)
                    await self._name(incoming, sha256)
        return sha256

    @contextlib.asynccontextmanager
    async def _incoming(self) -> AsyncIterator[str]:
        """Where bytes come without a name; they go if they get none."""
        incoming = f"{_INCOMING}/{secrets.token_hex(16)}"
        try:
            yield incoming
        except BaseException:
            with contextlib.suppress(BaseError, FileNotFoundError):
                await obstore.delete_async(self._store, incoming)
            raise

    async def _name(self, incoming: str, sha256: str) -> None:
        """What has come gets its name: the bytes are durable before it, so that a name always stands for them."""
        if self._directory is not None:
            await asyncio.to_thread(_fsync, self._directory / incoming)
        await obstore.rename_async(self._store, incoming, _place(sha256), overwrite=True)
        await self._settle(sha256)

    async def _has(self, sha256: str) -> bool:
        try:
            await self._size(sha256)
        except FileNotFoundError:
            return False
        return True

    async def _size(self, sha256: str) -> int:
        return (await obstore.head_async(self._store, _place(sha256)))["size"]

    async def _settle(self, sha256: str) -> None:
        """Object stores acknowledge what is durable; a file system does so only when asked."""
        if self._directory is None:
            return
        path = self._directory / _place(sha256)
        if path.parent in self._synced:
            await asyncio.to_thread(_fsync, path, path.parent)
        else:
            await asyncio.to_thread(_fsync, path, path.parent, self._directory)
            self._synced.add(path.parent)


def is_sha256(text: str) -> bool:
    """Whether `text` can name a blob."""
    return _SHA256.fullmatch(text) is not None


def _place(sha256: str) -> str:
    """256 folders keep every folder small. Refuses anything that is no hash, so that no name leads elsewhere."""
    if not is_sha256(sha256):
        raise ValueError("a blob is named by 64 lower-case hex digits")
    return f"{sha256[:2]}/{sha256}"


@contextlib.contextmanager
def _explained(done: str, sha256: str = "") -> Iterator[None]:
    """Turn what the store raises into StorageError, or KeyError for a missing blob."""
    try:
        yield
    except FileNotFoundError:
        raise KeyError(sha256) from None
    except (BaseError, OSError) as error:
        raise StorageError(f"a blob could not be {done}: {error}") from None


async def _read(path: Path, start: int, end: int) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb", buffering=0) as file:
        file.seek(start)
        while start < end and (chunk := await asyncio.to_thread(file.read, min(_CHUNK, end - start))):
            start += len(chunk)
            yield chunk


def _prepare(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _remove_staged(directory: Path) -> None:
    """A local store writes NAME#1 and renames it. A kill in between leaves that file, which the store never lists."""
    for path in directory.glob("*/*#*"):
        path.unlink(missing_ok=True)


def _fsync(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
