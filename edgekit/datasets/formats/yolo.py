"""YOLO's text files: `images/X.jpg` has `labels/X.txt` with a line a box, `class cx cy width height`, as fractions.

The class is an index into `classes.txt` (a label a line) or into `names` of `data.yaml`. Of YAML only that entry is
read, in the three ways that exporters write it. Both folders may have subfolders `train`, `val`, `test`, which are
parts then. A picture without text file, or with an empty one, has no objects. A polygon (more numbers) counts by the
box around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edgekit import toml
from edgekit.datasets.dataset import MAX_BOXES, Dataset, DatasetError, LabelledBox
from edgekit.datasets.formats.files import Measure, Row, pictures_in, read_text, save_picture
from edgekit.vision.sniff import ImageInfo

_PARTS = ("train", "val", "test")


def read(root: Path) -> Iterator[Row]:
    """Every picture of `images` and of its parts."""
    labels = _labels(root)
    for part in ("", *_PARTS):
        folder = root / "images" / part
        if folder.is_dir():
            for path in pictures_in(folder):
                text = root / "labels" / part / f"{path.stem}.txt"
                boxes = _measure(text, labels) if text.exists() else ()
                yield Row(path.relative_to(root).as_posix(), "", boxes, "", part)


def write(dataset: Dataset, target: Path) -> None:
    """Write pictures, text files, `classes.txt` and `data.yaml`."""
    labels = dataset.labels
    index = {label: number for number, label in enumerate(labels)}
    used = set()
    for picture in dataset.pictures:
        part = picture.part if picture.part in _PARTS else ""
        used.add(part)
        name = save_picture(dataset, picture, target / "images" / part)
        lines = []
        for box in picture.boxes or ():
            centre = (box.left + box.right) / 2 / picture.width, (box.top + box.bottom) / 2 / picture.height
            size = (box.right - box.left) / picture.width, (box.bottom - box.top) / picture.height
            lines.append(" ".join([str(index[box.label]), *(f"{value:.7f}" for value in (*centre, *size))]))
        text = target / "labels" / part / f"{name.rpartition('.')[0]}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("".join(line + "\n" for line in lines), "utf-8")
    (target / "classes.txt").write_text("".join(label + "\n" for label in labels), "utf-8")
    # JSON strings are YAML strings.
    names = "".join(f"  {number}: {_quoted(label)}\n" for number, label in enumerate(labels))
    parts = "".join(f"{part}: images/{part}\n" for part in _PARTS if part in used) or "train: images\nval: images\n"
    (target / "data.yaml").write_text(f"path: .\n{parts}names:\n{names}", "utf-8")


def _quoted(label: str) -> str:
    escaped = label.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _labels(root: Path) -> list[str]:
    if (root / "classes.txt").is_file():
        return [line.strip() for line in read_text(root / "classes.txt").splitlines() if line.strip()]
    if (root / "data.yaml").is_file():
        found = _names(read_text(root / "data.yaml"))
        if found:
            return found
    raise DatasetError(f"{root} says no labels: put one a line into classes.txt, or `names` into data.yaml")


def _names(text: str) -> list[str]:
    """`names` of a data.yaml: [a, b], or lines `- a`, or lines `0: a`."""
    lines = iter(text.splitlines())
    for line in lines:
        start = re.fullmatch(r"names:\s*(.*?)\s*", line)
        if start is None:
            continue
        if start[1].startswith("["):
            return [_plain(one) for one in start[1].strip("[]").split(",") if one.strip()]
        found: dict[int, str] = {}
        for below in lines:
            entry = re.fullmatch(r"\s*(?:-|(\d{1,6}):)\s+(.*?)\s*", below)
            if entry is None:
                break
            found[int(entry[1]) if entry[1] else len(found)] = _plain(entry[2])
        if sorted(found) != list(range(len(found))):
            raise DatasetError("`names` of data.yaml leaves numbers out; they go from 0 without a gap")
        return [found[number] for number in sorted(found)]
    return []


def _plain(value: str) -> str:
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        inner = value[1:-1]
        return inner.replace('\\"', '"').replace("\\\\", "\\") if value[0] == '"' else inner.replace("''", "'")
    return value


def _measure(path: Path, labels: list[str]) -> Measure:
    """The boxes of a text file, once the picture's size is known."""

    def boxes(info: ImageInfo) -> tuple[LabelledBox, ...]:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        if len(lines) > MAX_BOXES:
            raise DatasetError(f"{path} has more than {MAX_BOXES} boxes")
        return tuple(_box(line.split(), labels, info, f"line {at} of {path}") for at, line in enumerate(lines, 1))

    return boxes


def _box(words: list[str], labels: list[str], info: ImageInfo, where: str) -> LabelledBox:
    try:
        number, values = int(words[0]), [float(word) for word in words[1:]]
    except (ValueError, IndexError):
        raise DatasetError(f"{where}: {toml.show(' '.join(words)[:80])} is no box: class cx cy width height") from None
    if not 0 <= number < len(labels):
        raise DatasetError(f"{where}: there is no label number {number}; the labels are {', '.join(labels[:20])}")
    if len(values) == 4:
        cx, cy, width, height = values
        left, top, right, bottom = cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
    elif len(values) >= 6 and len(values) % 2 == 0:
        left, top, right, bottom = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    else:
        raise DatasetError(f"{where}: {len(values)} numbers are neither a box nor a polygon")
    return LabelledBox(labels[number], left * info.width, top * info.height, right * info.width, bottom * info.height)
