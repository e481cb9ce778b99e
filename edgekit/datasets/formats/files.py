"""Pictures on disk: which files are pictures, what they are, and names that stay inside of their directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekit import toml
from edgekit.datasets.dataset import (
    MAX_PICTURE_BYTES,
    MAX_PICTURES,
    Dataset,
    DatasetError,
    LabelledBox,
    Picture,
    check_picture,
)
from edgekit.vision.sniff import ImageError, ImageInfo, sniff

MAX_TEXT = 256 << 20
"""Bytes of one file of labels; COCO's own of 118,000 pictures has 450 MB with its polygons, 120 without."""
SUFFIXES = frozenset((".jpg", ".jpeg", ".png"))

Measure = Callable[[ImageInfo], tuple[LabelledBox, ...]]


@dataclass(frozen=True)
class Row:
    """What a format says about one picture. `boxes` may need the picture's size: then it is a function of it."""

    file: str
    label: str = ""
    boxes: tuple[LabelledBox, ...] | Measure | None = None
    group: str = ""
    part: str = ""


def collect(root: Path, rows: Iterable[Row], source: Path) -> Dataset:
    """Look at every picture; one that comes twice counts once. Raises DatasetError."""
    found: dict[str, Picture] = {}
    for row in rows:
        sha256, info = _inspect(root / row.file, row.file)
        boxes = row.boxes(info) if callable(row.boxes) else row.boxes
        picture = Picture(row.file, sha256, row.label, boxes, row.group, row.part, info.width, info.height)
        check_picture(picture)
        other = found.setdefault(sha256, picture)
        if (other.label, other.boxes, other.group, other.part) != (row.label, boxes, row.group, row.part):
            raise DatasetError(
                f"{toml.show(row.file)} and {toml.show(other.file)} are the same picture, but with other labels, "
                "groups or parts; keep one of them"
            )
        if len(found) > MAX_PICTURES:
            raise DatasetError(f"{source} has more than {MAX_PICTURES} pictures")
    if not found:
        raise DatasetError(f"{source} has no labelled pictures; JPEG and PNG files are read")
    return Dataset(tuple(found.values()), lambda picture: (root / picture.file).read_bytes())


def inside(file: str, where: str) -> str:
    """The relative path, forward slashes. Raises DatasetError if it leaves its directory; `where` says who named it."""
    path = PurePosixPath(file.replace("\\", "/"))
    if not file or path.is_absolute() or ".." in path.parts or "\0" in file or ":" in path.parts[0]:
        raise DatasetError(f"{where}: {toml.show(file)} lies outside of its directory; name files relative to it")
    return str(path)


def read_text(path: Path) -> str:
    """A file of labels. Raises DatasetError if it is too large, gone or no UTF-8 text."""
    try:
        if path.stat().st_size > MAX_TEXT:
            raise DatasetError(f"{path} has more than {MAX_TEXT >> 20} MiB")
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not UTF-8 text") from None


def pictures_in(folder: Path) -> Iterator[Path]:
    """Its pictures by name, hidden files and other kinds left alone."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            yield path


def save_picture(dataset: Dataset, picture: Picture, folder: Path) -> str:
    """Write one picture into `folder`, named by its content; the file's name."""
    data = dataset.read(picture)
    name = picture.sha256[:20] + (".png" if sniff(data).format == "png" else ".jpg")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return name


def _inspect(path: Path, name: str) -> tuple[str, ImageInfo]:
    """SHA-256 and header of a picture."""
    try:
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise DatasetError(f"{toml.show(name)} has more than {MAX_PICTURE_BYTES} bytes")
        data = path.read_bytes()
        return hashlib.sha256(data).hexdigest(), sniff(data)
    except OSError as error:
        raise DatasetError(f"{toml.show(name)} cannot be read: {error.strerror}") from None
    except ImageError as error:
        raise DatasetError(f"{toml.show(name)} cannot be used: {error}") from None
