"""Dataset versions: lists of labelled pictures that never change. What a version names, no quota and no age removes.

A version lies in rows and, sealed, in a file of its own, from which the rows come back if the index is damaged.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edged.collab.sealing import SealError
from edged.samples.reading import Filter
from edged.samples.records import Label, Sample, VersionInfo
from edgekit.atomic import fsync_dir, sweep, write_file
from edgekit.datasets.dataset import MAX_PICTURES, Dataset, DatasetError, Picture, digest
from edgekit.datasets.summary import summarise
from edgekit.faults import crash_point
from edgekit.services.labels import NAME, NAME_RULE

if TYPE_CHECKING:
    from edged.samples.vault import Vault

Kind = Literal["labels", "boxes"]
"""What the labels of a dataset are: of whole pictures, or boxes in them."""


class VersionError(ValueError):
    """The dataset version cannot be made, or there is none of that name; the message says why."""


class _File(msgspec.Struct, frozen=True):
    info: VersionInfo
    pictures: list[Picture]


class DatasetVersions:
    """All versions of one store. Methods block on the disk; they raise sqlite3.Error or OSError if that fails."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def make(self, name: str, which: Filter, kind: Kind | None = None) -> VersionInfo:
        """Fix the samples of one service that have a label that counts. `kind` is needed where both kinds occur.

        What is unusable or does not open is left out. A picture without a group gets that of the pictures it resembles,
        so that no split parts near-duplicates. Raises VersionError.
        """
        if not NAME.fullmatch(name):
            raise VersionError(f"{name[:64]!r} is no name for a dataset version; {NAME_RULE}")
        if not which.service:
            raise VersionError("a dataset version is made of the samples of one service; name it")
        with self._vault.writing():
            if self.find(name) is not None:
                raise VersionError(
                    f"there is a dataset version {name} already, and it never changes; choose a new name"
                )
            labelled = msgspec.structs.replace(which, labelled=True)
            samples = [one for one in self._vault.index.select(labelled, MAX_PICTURES + 1) if _usable(one)]
            pictures = _pictures(samples, kind)
            if not pictures:
                raise VersionError(f"{which.service} has no samples with such labels yet; see edged samples stats")
            if len(pictures) > MAX_PICTURES:
                raise VersionError(f"more than {MAX_PICTURES} samples; choose fewer with --since or --tag")
            info = VersionInfo(
                name=name,
                service=which.service,
                digest=digest(pictures),
                made_at=self._vault.wall(),
                pictures=len(pictures),
                summary=summarise(pictures),
            )
            _write(self._vault, info, pictures)
            crash_point("versions.written")
            try:
                self._vault.index.add_version(info, pictures)
            except sqlite3.Error:
                _path(self._vault, name).unlink(missing_ok=True)
                raise
            crash_point("versions.indexed")
            return info

    def all(self) -> list[VersionInfo]:
        """The newest first."""
        return self._vault.index.versions()

    def find(self, name: str) -> VersionInfo | None:
        """One version, None if there is none of that name."""
        return next((info for info in self.all() if info.name == name), None)

    def show(self, name: str) -> VersionInfo:
        """One version. Raises VersionError."""
        info = self.find(name)
        if info is None:
            known = ", ".join(one.name for one in self.all()[:20]) or "none yet"
            raise VersionError(f"there is no dataset version {name[:64]!r} (versions: {known})")
        return info

    def pictures(self, name: str) -> list[Picture]:
        """The pictures of a version as they were fixed; `file` is the sample's id. Raises VersionError."""
        good, bad = self.page(name)
        return sorted([*good, *bad], key=_by_content)

    def page(self, name: str, after: int = 0, limit: int = -1) -> tuple[list[Picture], list[Picture]]:
        """Of `limit` (-1: all) pictures those that open and those that do not, in one order. Raises VersionError."""
        self.show(name)
        return self._vault.index.version_pictures(name, after, limit)

    def dataset(self, name: str) -> tuple[Dataset, list[str]]:
        """The pictures of a version to learn from, and the ids of those that do not open and are left out.

        A picture is read when it is asked for; one that turns out to be damaged raises DatasetError then, is reported,
        and is left out the next time. Raises VersionError.
        """
        good, bad = self.page(name)
        return Dataset(tuple(sorted(good, key=_by_content)), self._fetch), [picture.file for picture in bad]

    def delete(self, name: str) -> None:
        """Forget a version; its samples stay, but may be evicted from now on. Raises VersionError."""
        with self._vault.writing():
            self.show(name)
            self._vault.index.delete_version(name)
            crash_point("versions.deleted")
            path = _path(self._vault, name)
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                fsync_dir(path.parent)

    def _fetch(self, picture: Picture) -> bytes:
        try:
            return self._vault.open(picture.file)[1]
        except (SealError, OSError) as error:
            self._vault.closed(picture.file, error)
            raise DatasetError(f"{error}; it is left out if you try again") from None


def settle(vault: Vault) -> None:
    """After a crash or a rebuilt index: a file without rows gets them, rows without a file get one."""
    directory = vault.root / "versions"
    sweep(directory)
    known = {info.name: info for info in vault.index.versions()}
    files = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    for name in sorted(files - known.keys()):
        try:
            content = vault.kek.unseal(_path(vault, name).read_bytes(), vault.device_id, _bound_name(name))
            file = msgspec.json.decode(content, type=_File)
        except (SealError, OSError, msgspec.MsgspecError):
            continue  # it stays where it is; a key that comes back opens it
        vault.index.add_version(file.info, file.pictures)
    for name in sorted(known.keys() - files):
        good, bad = vault.index.version_pictures(name)
        _write(vault, known[name], [*good, *bad])


def _write(vault: Vault, info: VersionInfo, pictures: Sequence[Picture]) -> None:
    path = _path(vault, info.name)
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700)
        fsync_dir(vault.root)
    content = msgspec.json.encode(_File(info, list(pictures)))
    write_file(path, vault.kek.seal(content, vault.device_id, _bound_name(info.name)))


def _usable(sample: Sample) -> bool:
    return sample.state == "kept" and sample.label is not None and not sample.label.label.unusable


def _pictures(samples: Sequence[Sample], kind: Kind | None) -> list[Picture]:
    labels = {one.id: one.label.label for one in samples if one.label is not None}
    boxed = {id for id, label in labels.items() if label.boxes is not None}
    if kind is None and boxed and len(boxed) < len(labels):
        raise VersionError(
            f"{len(boxed)} of the samples have boxes and {len(labels) - len(boxed)} a label of the whole picture; "
            "say which are meant: --kind boxes or --kind labels"
        )
    roots: dict[str, int] = defaultdict(int)
    for one in samples:
        roots[one.near] += 1
    chosen = [one for one in samples if kind is None or (one.id in boxed) == (kind == "boxes")]
    return sorted((_picture(one, labels[one.id], roots) for one in chosen), key=_by_content)


def _by_content(picture: Picture) -> str:
    return picture.sha256


def _picture(sample: Sample, label: Label, roots: dict[str, int]) -> Picture:
    root = sample.near or (sample.id if sample.id in roots else "")
    return Picture(
        file=sample.id,
        sha256=sample.sha256,
        label=label.label,
        boxes=label.boxes,
        group=sample.group or (f"near-{root[:16]}" if root else ""),
        part=sample.part,
        width=sample.width,
        height=sample.height,
    )


def _path(vault: Vault, name: str) -> Path:
    return vault.root / "versions" / name


def _bound_name(name: str) -> str:
    """What a version's file is bound to; no sample has such an id."""
    return f"version {hashlib.sha256(name.encode()).hexdigest()}"
