"""The registry: which model versions exist and which blobs they are made of."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError

from cloudd.storage import Blobs, Rows, StorageError
from cloudd.storage.schema import audit, model_files, models
from edgekit import packages
from edgekit.faults import crash_point
from edgekit.messages import FileEntry, ModelEntry
from edgekit.packages import MANIFEST_NAME, Package, PackageError, tree

_CHUNK = 1 << 20
_TAIL = "tail"
"""The task of what no device is given."""


class RegistryError(ValueError):
    """The registry cannot do what was asked; the message says why."""


class ModelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One registered model version, for lists."""

    name: str
    version: str
    digest: str  # SHA-256 of package.toml
    task: str
    description: str
    added_at: float
    files: int
    bytes: int


class Registry:
    """Adds, finds and materialises models.

    `cache` is a directory of package directories for processes that load models by path; it can be lost at any time.
    """

    def __init__(self, rows: Rows, blobs: Blobs, cache: Path, wall: Callable[[], float] = time.time) -> None:
        self._rows, self._blobs, self._cache, self._wall = rows, blobs, cache, wall
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._verified: dict[str, str] = {}  # ref -> digest of the directory in the cache, checked by this process

    async def add(self, directory: Path) -> ModelEntry:
        """Register the package in `directory`; adding the same package again only makes its files whole again.

        Raises PackageError if it fails a check, RegistryError if another package has its name and version or if it is
        the head of a split model whose tail is not here, or StorageError.
        """
        package = await asyncio.to_thread(packages.open_package, directory)
        name, version = package.manifest.name, package.manifest.version
        await self._check_tail(package)
        async with self._locks[package.ref]:
            present = await self.entry(name, version)
            if present is not None:
                _same_digest(present, package.digest)
            async with AsyncExitStack() as held:
                entry = await self._store_files(package, held)
                crash_point("model.blobs")
                if present is None:
                    await self._store_rows(package, entry)
        return entry

    async def entry(self, name: str, version: str | None = None) -> ModelEntry | None:
        """One version, or the newest one (1.10 is newer than 1.9); None if there is none."""
        files = model_files.c
        query = (
            select(models.c.version, models.c.digest, files.path, files.sha256, files.size)
            .join(model_files, (files.name == models.c.name) & (files.version == models.c.version))
            .where(models.c.name == name)
            .order_by(files.path)
        )
        if version is not None:
            query = query.where(models.c.version == version)
        async with self._rows.reading(single=True) as connection:
            rows = (await connection.execute(query)).all()
        if not rows:
            return None
        newest = max((row.version for row in rows), key=packages.version_key)
        found = [row for row in rows if row.version == newest]
        entries = [FileEntry(path=row.path, sha256=row.sha256, size=row.size) for row in found]
        return ModelEntry(name=name, version=newest, digest=found[0].digest, files=entries)

    async def resolve(self, ref: str) -> ModelEntry | None:
        """The entry that "name" or "name@version" means. Raises PackageError if `ref` is not a model reference."""
        name, version = packages.split_ref(ref)
        return await self.entry(name, version)

    async def all(self) -> list[ModelSummary]:
        """Every registered version, by name, newest version first."""
        query = (
            select(models, func.count().label("files"), func.sum(model_files.c.size).label("bytes"))
            .join(model_files)
            .group_by(models.c.name, models.c.version)
        )
        async with self._rows.reading(single=True) as connection:
            found = [ModelSummary(**row) for row in (await connection.execute(query)).mappings()]
        found.sort(key=lambda model: packages.version_key(model.version), reverse=True)
        found.sort(key=lambda model: model.name)
        return found

    async def offered(self, name: str, version: str | None = None) -> ModelEntry | None:
        """As `entry`, for a device: raises RegistryError for the tail of a split model, which stays here."""
        found = await self.entry(name, version)
        if found is None:
            return None
        query = select(models.c.task).where(models.c.name == found.name, models.c.version == found.version)
        async with self._rows.reading(single=True) as connection:
            task = await connection.scalar(query)
        if task == _TAIL:
            raise RegistryError(f"{found.name}@{found.version} is the tail of a split model, which stays at cloudd")
        return found

    async def offered_size(self, sha256: str) -> int | None:
        """Bytes of a file of any model that devices may have; None if none of those has a file with this hash."""
        query = (
            select(model_files.c.size)
            .join(models)
            .where(model_files.c.sha256 == sha256, models.c.task != _TAIL)
            .limit(1)
        )
        async with self._rows.reading(single=True) as connection:
            size: int | None = await connection.scalar(query)
        return size

    async def materialise(self, entry: ModelEntry) -> Path:
        """The package of `entry` as a verified directory in the cache, for a process that loads models by path.

        Raises StorageError if a blob is missing or damaged, OSError if the disk is full.
        """
        ref = f"{entry.name}@{entry.version}"
        target = self._cache / ref
        async with self._locks[ref]:
            if self._verified.get(ref) == entry.digest and target.is_dir():
                return target
            if not await asyncio.to_thread(_is_package, target, entry.digest):
                await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
                await self._fetch(entry)
            self._verified[ref] = entry.digest
        return target

    async def _check_tail(self, package: Package) -> None:
        """A head without its tail would send devices' features to nobody."""
        head = package.manifest.head
        if head is None:
            return
        entry = await self.resolve(head.tail)
        if entry is None:
            raise RegistryError(f"the tail of {package.ref}, {head.tail}, is not registered; add that first")
        data = bytearray()
        try:
            async for chunk in self._blobs.stream(entry.digest, 0, _size(entry, MANIFEST_NAME)):
                data += chunk
        except KeyError as error:
            raise StorageError(f"a file of {head.tail} is missing in the blob store: {error}") from None
        tail = packages.parse_manifest(bytes(data)).tail
        cuts = {cut.name for cut in head.cuts if not cut.whole}
        if tail is None or tail.digest != head.digest or not cuts <= {cut.name for cut in tail.cuts}:
            raise RegistryError(
                f"{head.tail} is not the tail of {package.ref}: it has other cuts, or is of another model"
            )

    async def _store_files(self, package: Package, held: AsyncExitStack) -> ModelEntry:
        """Put every file as a blob and hold it until the rows name it."""
        hashes = {**package.manifest.files, MANIFEST_NAME: package.digest}
        entries = []
        for path, sha256 in sorted(hashes.items()):
            await held.enter_async_context(self._blobs.holding(sha256))
            try:
                _, size = await self._blobs.put_stream(_read(package.root, path), expected=sha256)
            except ValueError as error:
                raise PackageError(f'"{path}" changed while it was read: {error}') from None
            entries.append(FileEntry(path=path, sha256=sha256, size=size))
        manifest = package.manifest
        return ModelEntry(name=manifest.name, version=manifest.version, digest=package.digest, files=entries)

    async def _store_rows(self, package: Package, entry: ModelEntry) -> None:
        manifest, now = package.manifest, self._wall()
        try:
            async with self._rows.writing() as connection:
                await connection.execute(
                    insert(models).values(
                        name=entry.name,
                        version=entry.version,
                        digest=entry.digest,
                        task=manifest.task,
                        description=manifest.description,
                        added_at=now,
                    )
                )
                files = [
                    {"name": entry.name, "version": entry.version, "path": f.path, "sha256": f.sha256, "size": f.size}
                    for f in entry.files
                ]
                await connection.execute(insert(model_files), files)
                note = {"at": now, "action": "model added", "subject": package.ref, "detail": entry.digest}
                await connection.execute(insert(audit).values(note))
        except IntegrityError:  # another cloudd on the same database was faster
            present = await self.entry(entry.name, entry.version)
            if present is None:
                raise
            _same_digest(present, entry.digest)

    async def _fetch(self, entry: ModelEntry) -> None:
        staged = self._cache / f".incoming-{secrets.token_hex(8)}"
        try:
            await asyncio.to_thread(staged.mkdir, parents=True)
            for file in entry.files:
                path = staged / file.path  # a path that was checked when the package was added
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as out:
                    async for chunk in self._blobs.stream(file.sha256, 0, file.size):
                        await asyncio.to_thread(out.write, chunk)
            await asyncio.to_thread(packages.adopt, staged, self._cache)
        except KeyError as error:
            raise StorageError(
                f"a file of {entry.name}@{entry.version} is missing in the blob store: {error}"
            ) from None
        except PackageError as error:
            raise StorageError(f"{entry.name}@{entry.version} is damaged in the blob store: {error}") from None
        finally:
            await asyncio.to_thread(shutil.rmtree, staged, ignore_errors=True)


async def _read(root: Path, path: str) -> AsyncIterator[bytes]:
    """One file of a package in chunks, opened again without following a link."""
    with tree.open_root(root) as directory, tree.open_file(directory, path) as (descriptor, _):
        while chunk := await asyncio.to_thread(os.read, descriptor, _CHUNK):
            yield chunk


def _is_package(directory: Path, digest: str) -> bool:
    try:
        return packages.open_package(directory).digest == digest
    except PackageError:
        return False


def _size(entry: ModelEntry, path: str) -> int:
    return next(file.size for file in entry.files if file.path == path)


def _same_digest(present: ModelEntry, digest: str) -> None:
    if present.digest != digest:
        raise RegistryError(
            f"another package is already registered as {present.name}@{present.version}; "
            "give the changed model a new version"
        )
