"""One folder a label."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgekit import toml
from edgekit.datasets.dataset import Dataset, DatasetError
from edgekit.datasets.formats.files import Row, pictures_in, save_picture


def read(root: Path) -> Iterator[Row]:
    """Every picture in a folder of its label. Other files are left alone."""
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            for path in pictures_in(folder):
                yield Row(f"{folder.name}/{path.name}", folder.name)


def write(dataset: Dataset, target: Path) -> None:
    """Write. Raises DatasetError for a label that cannot be a folder's name."""
    for label in dataset.labels:
        if "/" in label or "\\" in label or label.startswith(".") or len(label.encode()) > 255:
            raise DatasetError(f"the label {toml.show(label)} cannot be the name of a folder; use csv or coco")
    for picture in dataset.pictures:
        save_picture(dataset, picture, target / picture.label)
