"""The directory of installed packages: one sub-directory `name@version` each, whole or not there at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from edgekit import atomic
from edgekit.faults import crash_point
from edgekit.packages import tree
from edgekit.packages.manifest import (
    MANIFEST_NAME,
    PackageError,
    split_ref,
    version_key,
)
from edgekit.packages.package import Package, check_digest, open_package, read_manifest

_INCOMING = ".incoming-"


def install(source: Path, models: Path) -> Package:
    """Copy the package in `source` to models/name@version and return it from there.

    The copy is verified and on disk before it gets its name; a power cut leaves at most a hidden directory that
    `sweep` removes. Installing the same package again changes nothing. Raises PackageError for a package that fails a
    check, or if another package already has this name and version; OSError if the disk is full.
    """
    models.mkdir(parents=True, exist_ok=True)
    staged = models / f"{_INCOMING}{secrets.token_hex(8)}"
    try:
        _copy(source, staged)
        crash_point("package.copied")
        return adopt(staged, models)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def adopt(staged: Path, models: Path) -> Package:
    """Verify a package directory on the same file system as `models` and rename it to models/name@version.

    For a downloader that filled `staged` itself. Raises as `install` does; `staged` is then left as it was.
    """
    package = open_package(staged)
    target = models / package.ref
    if target.exists():
        present = _open_or_none(target)
        if present is not None and present.digest != package.digest:
            raise PackageError(
                f"another package is already installed as {package.ref}; give the changed model a new version"
            )
        if present is not None:
            return present
        # The installed files no longer match their hashes (a worn flash chip): the fresh copy replaces them.
        target.rename(models / f"{_INCOMING}{secrets.token_hex(8)}")
    atomic.sync_tree(staged)
    try:
        staged.rename(target)
    except OSError:
        # Somebody else installed the same version in this moment. Anything but an equal package is the real error.
        present = _open_or_none(target)
        if present is None or present.digest != package.digest:
            raise
        return present
    crash_point("package.renamed")
    atomic.fsync_dir(models)
    return Package(target, package.manifest, package.digest, package.labels, package.sizes)


def sweep(models: Path) -> int:
    """Remove what interrupted installs left behind; returns how many. Call it at start, before any install."""
    left = [entry for entry in _entries(models) if entry.name.startswith(_INCOMING)]
    for entry in left:
        shutil.rmtree(entry, ignore_errors=True)
    return len(left)


def installed(models: Path) -> dict[str, Path]:
    """Every installed package as name@version -> directory, by name, newest version first. Opens none of them."""
    found: list[tuple[str, str, Path]] = []
    for entry in _entries(models):
        try:
            name, version = split_ref(entry.name)
        except PackageError:
            continue
        if version is not None and entry.is_dir():
            found.append((name, version, entry))
    found.sort(key=lambda item: version_key(item[1]), reverse=True)
    found.sort(key=lambda item: item[0])
    return {f"{name}@{version}": path for name, version, path in found}


def find(ref: str, refs: Iterable[str]) -> str | None:
    """The name@version among `refs` that `ref` means: itself, or the newest version of a bare name; else None.

    Raises PackageError if `ref` is not a model reference.
    """
    name, version = split_ref(ref)
    if version is not None:
        return ref if ref in refs else None
    versions = [v for n, v in map(split_ref, refs) if n == name and v is not None]
    return f"{name}@{max(versions, key=version_key)}" if versions else None


def _copy(source: Path, staged: Path) -> None:
    """Copy a package while hashing it, so that a bad one is refused after one pass over its files."""
    with tree.open_root(source) as directory:
        text, manifest = read_manifest(directory)
        staged.mkdir(mode=0o755)
        for path, expected in manifest.files.items():
            with tree.open_file(directory, path) as (descriptor, _):
                target = staged / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as out:
                    found, _ = tree.digest_file(descriptor, out.write)
                check_digest(path, found, expected)
        (staged / MANIFEST_NAME).write_bytes(text)


def _open_or_none(root: Path) -> Package | None:
    try:
        return open_package(root)
    except PackageError:
        return None


def _entries(models: Path) -> list[Path]:
    return list(models.iterdir()) if models.is_dir() else []
