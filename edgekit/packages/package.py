"""Opening and sealing a package directory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit import atomic, toml
from edgekit.packages import tree
from edgekit.packages.checkpoint import oversized
from edgekit.packages.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST,
    Manifest,
    PackageError,
    check_file_table,
    check_manifest,
    manifest_text,
    parse_manifest,
)

_MAX_LABELS = 1 << 20  # bytes of the labels file
_MAX_LABEL = 200  # characters of one label


@dataclass(frozen=True)
class Package:
    """A package that was opened and passed every check."""

    root: Path
    manifest: Manifest
    digest: str  # SHA-256 of package.toml, which in turn fixes every other byte
    labels: list[str]  # index = model output; empty if the manifest names no labels
    sizes: dict[str, int]  # path -> bytes, package.toml included

    @property
    def ref(self) -> str:
        """name@version"""
        return self.manifest.ref

    def path(self, file: str) -> Path:
        """Where a listed file lies. Raises PackageError for a file that is not listed: it does not exist."""
        if file not in self.manifest.files:
            raise PackageError(f"{toml.show(file)} is not a file of {self.ref}")
        return self.root / file


def open_package(root: Path, verify: bool = True) -> Package:
    """Open the package in `root`.

    Raises PackageError for every deviation: bad manifest, missing or unlisted file, wrong hash, link, special file,
    path that leads out, too many or too large files. `verify=False` skips only the hashing of the files and is meant
    for directories that this daemon installed itself.
    """
    with tree.open_root(root) as directory:
        text, manifest = read_manifest(directory)
        sizes = {MANIFEST_NAME: len(text)}
        total = len(text)
        for path, expected in manifest.files.items():
            with tree.open_file(directory, path) as (descriptor, size):
                if verify:
                    found, size = tree.digest_file(descriptor)
                    check_digest(path, found, expected)
            sizes[path] = size
            total += size
            if total > tree.MAX_TOTAL_SIZE:
                raise PackageError(f"the files have more than {tree.MAX_TOTAL_SIZE} bytes together")
        if found := oversized(manifest, sizes):
            raise PackageError(found)
        labels = _read_labels(directory, manifest)
    return Package(root, manifest, hashlib.sha256(text).hexdigest(), labels, sizes)


def read_draft(root: Path) -> Manifest:
    """What package.toml in `root` says before the package is sealed: everything but the table of files.

    Raises PackageError, also for a package that is sealed already.
    """
    with tree.open_root(root) as directory:
        text = tree.read_file(directory, MANIFEST_NAME, MAX_MANIFEST)
    try:
        manifest = toml.convert(toml.read(text, MAX_MANIFEST), Manifest)
    except toml.TomlError as error:
        raise PackageError(error.at(MANIFEST_NAME)) from None
    if manifest.files:
        raise PackageError(
            f"{MANIFEST_NAME} has a table [files], so {manifest.ref} is sealed already; "
            "to seal changed files, remove that table and give the package a new version"
        )
    return manifest


def seal_package(root: Path, manifest: Manifest) -> Package:
    """Hash every file in `root`, write package.toml (atomically) and return the opened package.

    `manifest.files` is ignored. Raises PackageError if the directory holds anything that a package may not hold.
    """
    with tree.open_root(root) as directory:
        files: dict[str, str] = {}
        for path in tree.list_files(directory):
            if path != MANIFEST_NAME:
                with tree.open_file(directory, path) as (descriptor, _):
                    files[path] = tree.digest_file(descriptor)[0]
    sealed = msgspec.structs.replace(manifest, files=files)
    check_manifest(sealed)
    check_file_table(files)
    text = manifest_text(sealed).encode()
    parse_manifest(text)  # a reference to a file that is not there shows here, before anything is written
    atomic.write_file(root / MANIFEST_NAME, text, 0o644)
    return open_package(root)


def read_manifest(directory: int) -> tuple[bytes, Manifest]:
    """package.toml of an open directory, as bytes and parsed. Raises PackageError, also for an unlisted file."""
    text = tree.read_file(directory, MANIFEST_NAME, MAX_MANIFEST)
    manifest = parse_manifest(text)
    present = set(tree.list_files(directory)) - {MANIFEST_NAME}
    if unlisted := sorted(present - manifest.files.keys()):
        raise PackageError(f"{toml.show(unlisted[0])} is in the directory but not in [files] of {MANIFEST_NAME}")
    return text, manifest


def check_digest(path: str, found: str, expected: str) -> None:
    """Raises PackageError unless a file has the hash that the manifest gives it."""
    if found != expected:
        raise PackageError(
            f"{toml.show(path)} has SHA-256 {found[:12]}..., but {MANIFEST_NAME} says {expected[:12]}...: "
            "the file was changed or damaged"
        )


def _read_labels(directory: int, manifest: Manifest) -> list[str]:
    if not manifest.labels:
        return []
    name = manifest.labels
    try:
        text = tree.read_file(directory, name, _MAX_LABELS).decode("utf-8")
    except UnicodeDecodeError:
        raise PackageError(f"{toml.show(name)} is not UTF-8 text") from None
    labels = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, label in enumerate(labels, 1):
        if not label.strip() or not label.isprintable() or len(label) > _MAX_LABEL:
            raise PackageError(
                f"line {number} of {toml.show(name)} is {toml.show(label)}; "
                f"a label has 1 to {_MAX_LABEL} printable characters"
            )
    known = set(labels)
    for sample in manifest.samples:
        if sample.label not in known:
            raise PackageError(
                f"the sample {toml.show(sample.file)} has the label {toml.show(sample.label)}, "
                f"which {toml.show(name)} does not contain"
            )
    return labels
