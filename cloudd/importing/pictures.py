"""The pictures that a model is compared, judged and proved on: with labels, with boxes, or with nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloudd.importing.errors import ImportRefused
from edgekit import toml
from edgekit.datasets.dataset import MAX_PICTURE_BYTES, Dataset, DatasetError, Picture
from edgekit.datasets.formats import read_dataset, recognise
from edgekit.datasets.formats.files import pictures_in
from edgekit.vision.sniff import ImageError, sniff

MOST = 2000
"""Pictures that are looked at; of more, those of lowest hash."""

Said = Literal["labels", "boxes", ""]


@dataclass(frozen=True)
class Album:
    """Pictures in the order of their hashes, and what is said of them."""

    pictures: tuple[Picture, ...]
    dataset: Dataset
    said: Said

    def read(self, picture: Picture) -> bytes:
        """See Dataset.read."""
        return self.dataset.read(picture)


def read_album(source: Path, group: str = "") -> Album:
    """Labelled pictures in any format of `edgekit.datasets.formats`, or a folder of pictures without labels.

    Raises DatasetError for a picture or a label that cannot be used, ImportRefused for a folder without pictures.
    """
    plain = source.is_dir() and recognise(source) == "folder" and any(pictures_in(source))
    dataset = _plain(source) if plain else read_dataset(source, group)
    said: Said = "" if plain else "boxes" if dataset.detection else "labels"
    chosen = sorted(dataset.pictures, key=lambda one: one.sha256)[:MOST]
    return Album(tuple(chosen), dataset, said)


def check_labels(album: Album, labels: Sequence[str], detection: bool) -> None:
    """Raises ImportRefused for labels of the wrong sort, DatasetError for one that the model does not have."""
    if detection and album.said == "labels":
        raise ImportRefused(
            "the pictures have labels, but a detector needs boxes (CSV, COCO, VOC or YOLO), or one folder of pictures "
            "without labels"
        )
    if not detection and album.said == "boxes":
        raise ImportRefused(
            "the pictures have boxes, and this is a classifier; say --detection head=NAME for a detector"
        )
    if album.said:
        album.dataset.check_labels(labels)


def _plain(source: Path) -> Dataset:
    found: dict[str, Picture] = {}
    for path in pictures_in(source):
        try:
            if path.stat().st_size > MAX_PICTURE_BYTES:
                raise DatasetError(f"{toml.show(path.name)} has more than {MAX_PICTURE_BYTES} bytes")
            data = path.read_bytes()
            info = sniff(data)
        except OSError as error:
            raise DatasetError(f"{toml.show(path.name)} cannot be read: {error.strerror}") from None
        except ImageError as error:
            raise DatasetError(f"{toml.show(path.name)} cannot be used: {error}") from None
        sha256 = hashlib.sha256(data).hexdigest()
        found.setdefault(sha256, Picture(path.name, sha256, width=info.width, height=info.height))
    return Dataset(tuple(found.values()), lambda picture: (source / picture.file).read_bytes())
