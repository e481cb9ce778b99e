"""CSV: a row a picture, or a row a box.

Columns `file` and `label`; `left, top, right, bottom` (pixels) make it a table of boxes, in which a picture without any
has one row with an empty label; `split` or `part` says train, val or test; any other column may group the pictures.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekit import toml
from edgekit.datasets.dataset import MAX_BOXES, Dataset, DatasetError, LabelledBox
from edgekit.datasets.formats.files import Row, inside, read_text, save_picture

_SIDES = ("left", "top", "right", "bottom")
NAME = "labels.csv"


def read(path: Path, group: str) -> Iterator[Row]:
    """Read the table. `group`: the column that groups, "" for none (a column `group` is taken by itself)."""
    rows = csv.DictReader(read_text(path).splitlines(), strict=True)
    try:
        columns = rows.fieldnames or ()
        for wanted in ("file", "label", *([group] if group else [])):
            if wanted not in columns:
                raise DatasetError(f"{path} has no column {toml.show(wanted)} in its first line")
        together = group or ("group" if "group" in columns else "")
        part = next((name for name in ("split", "part") if name in columns), "")
        boxed = all(side in columns for side in _SIDES)
        held: Row | None = None
        for row in rows:
            where = f"line {rows.line_num} of {path}"
            if None in row.values() or not row["file"] or not (row["label"] or boxed):
                raise DatasetError(f"{where} is incomplete")
            file = inside(row["file"], where)
            now = Row(
                file,
                "" if boxed else row["label"],
                _boxes(row, where) if boxed else None,
                row[together] if together else "",
                row[part] if part else "",
            )
            if held is not None and boxed and held.file == file:
                held = _joined(held, now, where)
                continue
            if held is not None:
                yield held
            held = now
        if held is not None:
            yield held
    except csv.Error as error:
        raise DatasetError(f"line {rows.line_num} of {path} is no CSV: {error}") from None


def write(dataset: Dataset, target: Path) -> None:
    """Write `labels.csv` and the folder `images`."""
    with (target / NAME).open("w", encoding="utf-8", newline="") as out:
        lines = csv.writer(out)
        lines.writerow(["file", "label", *(_SIDES if dataset.detection else ()), "group", "split"])
        for picture in dataset.pictures:
            file = f"images/{save_picture(dataset, picture, target / 'images')}"
            rest = [picture.group, picture.part]
            if picture.boxes is None:
                lines.writerow([file, picture.label, *rest])
                continue
            for box in picture.boxes:
                lines.writerow([file, box.label, *(f"{side:.3f}" for side in _sides(box)), *rest])
            if not picture.boxes:
                lines.writerow([file, "", "", "", "", "", *rest])


def _sides(box: LabelledBox) -> tuple[float, float, float, float]:
    return box.left, box.top, box.right, box.bottom


def _boxes(row: Mapping[str, str], where: str) -> tuple[LabelledBox, ...]:
    if not row["label"]:
        return ()
    try:
        return (LabelledBox(row["label"], *(float(row[side]) for side in _SIDES)),)
    except ValueError:
        raise DatasetError(f"{where}: left, top, right and bottom are pixels, as numbers") from None


def _joined(held: Row, now: Row, where: str) -> Row:
    assert isinstance(held.boxes, tuple) and isinstance(now.boxes, tuple)
    if (held.group, held.part) != (now.group, now.part):
        raise DatasetError(f"{where}: another group or split than in the line before, but the same picture")
    if len(held.boxes) >= MAX_BOXES:
        raise DatasetError(f"{where}: more than {MAX_BOXES} boxes in one picture")
    return Row(held.file, "", held.boxes + now.boxes, held.group, held.part)
