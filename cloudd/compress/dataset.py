"""A dataset version: labelled pictures, named by their content, split for ever by hash.

Two forms are read from disk:

    DIR/LABEL/*.jpg           one folder a label
    FILE.csv                  with the columns `file` (relative to the CSV) and `label`, and maybe one that groups

A sample store needs no copy on disk: what `compress` wants is a Dataset, and a Dataset is a list of `Picture` and a way
to read one of them.

Which side of the split a picture falls on depends on nothing but its own content, or on its group where it has one
(pictures of one board resemble each other and must not stand on both sides). A picture therefore never changes sides
when the dataset grows, and no picture that calibrated a variant ever judges one.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloudd.compress.errors import DatasetError
from edgekit import toml
from edgekit.vision.sniff import ImageError, sniff

MAX_PICTURES = 200_000
MAX_PICTURE_BYTES = 64 << 20
_MAX_CSV = 64 << 20
_SUFFIXES = frozenset((".jpg", ".jpeg", ".png"))
_CALIBRATION_SHARE = 0.2


@dataclass(frozen=True)
class Picture:
    """One labelled picture. `file` is what `Dataset.read` finds it by, and what people see."""

    file: str
    label: str
    sha256: str
    group: str = ""


@dataclass(frozen=True)
class Dataset:
    """`pictures` have distinct contents. `digest` fixes contents, labels and groups, but not file names."""

    pictures: tuple[Picture, ...]
    fetch: Callable[[Picture], bytes]

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted (content, label, group) of every picture."""
        return digest(self.pictures)

    def read(self, picture: Picture) -> bytes:
        """The encoded picture. Raises DatasetError if it is gone, or no longer the one that was listed."""
        try:
            data = self.fetch(picture)
        except OSError as error:
            raise DatasetError(f"{toml.show(picture.file)} cannot be read: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            raise DatasetError(f"{toml.show(picture.file)} changed while it was used; start again")
        return data


@dataclass(frozen=True)
class Split:
    """The two sides, each in the order of their hashes. `training`: the whole side that calibration is taken from."""

    calibration: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    training: tuple[Picture, ...] = ()


def digest(pictures: Iterable[Picture]) -> str:
    """See Dataset.digest."""
    lines = sorted(f"{one.sha256}\0{one.label}\0{one.group}\n" for one in pictures)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def split(pictures: Sequence[Picture], calibration: int, held_out: int) -> Split:
    """A fifth of the pictures calibrates, the others judge; at most as many as said of each, those of lowest hash."""
    placed = sorted((_place(one), one.sha256, one) for one in pictures)
    own = tuple(one for place, _, one in placed if place < _CALIBRATION_SHARE)
    return Split(
        own[:calibration],
        tuple(one for place, _, one in placed if place >= _CALIBRATION_SHARE)[:held_out],
        own,
    )


def lessons(dataset: Dataset, sides: Split, more: Dataset | None) -> Dataset:
    """What a variant may learn from: the side of the calibration, and of `more` what resembles no picture that judges.

    Left out of `more` is what has the content or the group of a held-out picture. Nobody looks at the labels.
    """
    if more is None:
        return Dataset(sides.training, dataset.fetch)
    judges = {one.sha256 for one in sides.held_out}
    together = {one.group for one in sides.held_out if one.group}
    own = {one.sha256: one for one in sides.training}
    others = {
        one.sha256: one for one in more.pictures if one.sha256 not in judges | own.keys() and one.group not in together
    }
    return Dataset(
        (*own.values(), *others.values()),
        lambda picture: (more if picture.sha256 in others else dataset).fetch(picture),
    )


def _place(picture: Picture) -> float:
    """0..1, uniform over groups."""
    key = f"group\0{picture.group}" if picture.group else f"picture\0{picture.sha256}"
    return int.from_bytes(hashlib.sha256(b"cloudd compress 1\0" + key.encode()).digest()[:6], "big") / (1 << 48)


def read_dataset(source: Path, labels: Sequence[str], group: str = "") -> Dataset:
    """Read the list of pictures at `source`, a directory or a CSV file; see the top of this module.

    `labels`: what the model can say. `group`: the column of the CSV that groups pictures. The same picture twice counts
    once. Raises DatasetError for a label that the model does not know, a file that is no picture, one picture with two
    labels, or more than MAX_PICTURES.
    """
    if source.is_dir():
        if group:
            raise DatasetError(f"{source} is a directory, which has no column {toml.show(group)}; name a CSV file")
        root, rows = source, _folders(source)
    else:
        root, rows = source.parent, _table(source, group)
    known = set(labels)
    found: dict[str, Picture] = {}
    for file, label, together in rows:
        if label not in known:
            raise DatasetError(_unknown(file, label, labels))
        picture = Picture(file, label, _inspect(root / file, file), together)
        other = found.setdefault(picture.sha256, picture)
        if (other.label, other.group) != (label, together):
            raise DatasetError(
                f"{toml.show(file)} and {toml.show(other.file)} are the same picture, but with two labels or groups"
            )
        if len(found) > MAX_PICTURES:
            raise DatasetError(f"{source} has more than {MAX_PICTURES} pictures")
    if not found:
        raise DatasetError(f"{source} has no pictures; they belong into one folder a label, as JPEG or PNG")
    return Dataset(tuple(found.values()), lambda picture: (root / picture.file).read_bytes())


def _folders(root: Path) -> Iterator[tuple[str, str, str]]:
    """(file, label, group) of every picture in a folder of its label. Other files are left alone."""
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
                    yield f"{folder.name}/{path.name}", folder.name, ""


def _table(path: Path, group: str) -> Iterator[tuple[str, str, str]]:
    try:
        if path.stat().st_size > _MAX_CSV:
            raise DatasetError(f"{path} has more than {_MAX_CSV} bytes")
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not UTF-8 text; the data is a directory or a CSV file") from None
    rows = csv.DictReader(text.splitlines(), strict=True)
    try:
        for wanted in ("file", "label", *([group] if group else [])):
            if wanted not in (rows.fieldnames or ()):
                raise DatasetError(f"{path} has no column {toml.show(wanted)} in its first line")
        for row in rows:
            file, label, together = row["file"], row["label"], row[group] if group else ""
            if not file or not label or together is None:
                raise DatasetError(f"line {rows.line_num} of {path} is incomplete")
            if Path(file).is_absolute() or ".." in Path(file).parts:
                raise DatasetError(f"line {rows.line_num} of {path}: {toml.show(file)} lies outside of its folder")
            yield file, label, together
    except csv.Error as error:
        raise DatasetError(f"line {rows.line_num} of {path} is no CSV: {error}") from None


def _inspect(path: Path, name: str) -> str:
    """SHA-256 of a file that begins like a picture."""
    try:
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise DatasetError(f"{toml.show(name)} has more than {MAX_PICTURE_BYTES} bytes")
        data = path.read_bytes()
        sniff(data)
    except OSError as error:
        raise DatasetError(f"{toml.show(name)} cannot be read: {error.strerror}") from None
    except ImageError as error:
        raise DatasetError(f"{toml.show(name)} cannot be used: {error}") from None
    return hashlib.sha256(data).hexdigest()


def _unknown(file: str, label: str, labels: Sequence[str]) -> str:
    near = difflib.get_close_matches(label, labels, 1)
    hint = f"did you mean {toml.show(near[0])}?" if near else f"it knows {', '.join(map(toml.show, labels[:20]))}"
    return f"{toml.show(file)} has the label {toml.show(label)}, which the model does not know; {hint}"
