"""Reads and writes labelled pictures as others keep them: folders, CSV, COCO, Pascal VOC, YOLO.

    DIR/LABEL/*.jpg                    folder  one folder a label
    FILE.csv                           csv     columns `file` (relative to it), `label`; maybe a group, a part, a box
    FILE.json                          coco    bounding boxes; pictures relative to the file, or in `images` beside it
    DIR/Annotations, DIR/JPEGImages    voc     one XML file a picture
    DIR/images, DIR/labels             yolo    one text file a picture, labels in classes.txt or data.yaml

What is read may come from anywhere: every file is bounded, none may lie outside of its directory, and what cannot be is
refused with the file, the line and what to do. Only JPEG and PNG are pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from edgekit.datasets.dataset import Dataset, DatasetError
from edgekit.datasets.formats import coco, folder, table, voc, yolo
from edgekit.datasets.formats.files import Row, collect

Format = Literal["folder", "csv", "coco", "voc", "yolo"]
FORMATS: tuple[Format, ...] = ("folder", "csv", "coco", "voc", "yolo")


def recognise(source: Path) -> Format:
    """The format of what lies at `source`. Raises DatasetError if it is none of ours, saying what would be."""
    if source.is_dir():
        if (source / "Annotations").is_dir():
            return "voc"
        if (source / "labels").is_dir() and (source / "images").is_dir():
            return "yolo"
        return "folder"
    if source.suffix.lower() == ".json":
        return "coco"
    if source.is_file():
        return "csv"
    raise DatasetError(
        f"{source} does not exist; the data is a directory with one folder a label, a CSV file, or COCO, VOC or YOLO"
    )


def read_dataset(source: Path, group: str = "", form: Format | None = None) -> Dataset:
    """Read the labelled pictures at `source`; see the top of this module.

    `group`: the column of a CSV file, or the key of a COCO picture, that groups pictures. The same picture twice counts
    once. Raises DatasetError for whatever cannot be used.
    """
    form = form or recognise(source)
    if group and form not in ("csv", "coco"):
        raise DatasetError(
            f"{source} has no column {group[:64]!r} to group pictures by; a CSV or COCO file can have one"
        )
    root = source if source.is_dir() else source.parent
    readers: Mapping[Format, Callable[[], Iterable[Row]]] = {
        "folder": lambda: folder.read(source),
        "csv": lambda: table.read(source, group),
        "coco": lambda: coco.read(source, group),
        "voc": lambda: voc.read(source),
        "yolo": lambda: yolo.read(source),
    }
    return collect(root, readers[form](), source)


def write_dataset(dataset: Dataset, target: Path, form: Format) -> None:
    """Write pictures and labels into the new directory `target`.

    Pictures are named by their content. Raises DatasetError if the format cannot hold these labels, or the directory
    is there already and not empty; OSError if it cannot be written.
    """
    if form == "folder" and dataset.detection:
        raise DatasetError("a folder a label cannot hold boxes; use coco, voc, yolo or csv")
    if form in ("voc", "yolo") and not dataset.detection:
        raise DatasetError(f"{form} holds boxes, and these pictures have none; use folder, csv or coco")
    if target.exists() and any(target.iterdir()):
        raise DatasetError(f"{target} is not empty; name a new directory")
    target.mkdir(parents=True, exist_ok=True)
    writers = {"folder": folder.write, "csv": table.write, "coco": coco.write, "voc": voc.write, "yolo": yolo.write}
    writers[form](dataset, target)
