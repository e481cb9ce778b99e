"""Pascal VOC: one XML file a picture. Its first pixel is number 1, and `xmax`, `ymax` are inside of the box."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from edgekit import toml
from edgekit.datasets.dataset import MAX_BOXES, Dataset, DatasetError, LabelledBox
from edgekit.datasets.formats.files import Row, inside, read_text, save_picture

_MAX_XML = 4 << 20


def read(root: Path) -> Iterator[Row]:
    """Every annotation, with its picture from `JPEGImages` or beside it."""
    parts = _parts(root)
    for path in sorted((root / "Annotations").glob("*.xml")):
        if path.stat().st_size > _MAX_XML:
            raise DatasetError(f"{path} has more than {_MAX_XML >> 20} MiB")
        text = read_text(path)
        # Entities can make a few bytes large or read other files; no annotation needs them.
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise DatasetError(f"{path} defines entities, which annotations do not need; remove its DOCTYPE")
        try:
            top = ElementTree.fromstring(text)  # noqa: S314 - it has no entities
        except (ElementTree.ParseError, ValueError) as error:
            raise DatasetError(f"{path} is no XML: {error}") from None
        file = inside(top.findtext("filename", "").strip(), str(path))
        folder = next((one for one in ("JPEGImages", "images", "Annotations") if (root / one / file).exists()), "")
        if not folder:
            raise DatasetError(f"{path} names the picture {toml.show(file)}, which is not in JPEGImages")
        objects = top.findall("object")
        if len(objects) > MAX_BOXES:
            raise DatasetError(f"{path} has more than {MAX_BOXES} boxes")
        yield Row(f"{folder}/{file}", "", tuple(_box(one, path) for one in objects), "", parts.get(path.stem, ""))


def write(dataset: Dataset, target: Path) -> None:
    """Write `Annotations`, `JPEGImages` and, where pictures have parts, `ImageSets/Main`."""
    (target / "Annotations").mkdir()
    parts: dict[str, list[str]] = {}
    for picture in dataset.pictures:
        name = save_picture(dataset, picture, target / "JPEGImages")
        top = ElementTree.Element("annotation")
        _text(top, "folder", "JPEGImages")
        _text(top, "filename", name)
        size = ElementTree.SubElement(top, "size")
        for key, value in (("width", picture.width), ("height", picture.height), ("depth", 3)):
            _text(size, key, str(value))
        for box in picture.boxes or ():
            one = ElementTree.SubElement(top, "object")
            _text(one, "name", box.label)
            _text(one, "difficult", "0")
            sides = ElementTree.SubElement(one, "bndbox")
            numbers = {"xmin": box.left + 1, "ymin": box.top + 1, "xmax": box.right, "ymax": box.bottom}
            for key, number in numbers.items():
                _text(sides, key, f"{number:g}")
        ElementTree.indent(top)
        stem = name.rpartition(".")[0]
        (target / "Annotations" / f"{stem}.xml").write_bytes(ElementTree.tostring(top, "utf-8"))
        if picture.part:
            parts.setdefault(picture.part, []).append(stem)
    for part, stems in parts.items():
        lists = target / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{part}.txt").write_text("\n".join(stems) + "\n", "utf-8")


def _parts(root: Path) -> dict[str, str]:
    """Which part each picture belongs to, by the name of its file without suffix."""
    found: dict[str, str] = {}
    for part in ("train", "val", "test"):
        path = root / "ImageSets" / "Main" / f"{part}.txt"
        if path.is_file():
            found |= {line.split()[0]: part for line in read_text(path).splitlines() if line.strip()}
    return found


def _box(one: ElementTree.Element, path: Path) -> LabelledBox:
    sides = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        try:
            sides.append(float(one.findtext(f"bndbox/{key}", "").strip()))
        except ValueError:
            raise DatasetError(f"{path}: an object has no number as bndbox/{key}") from None
    return LabelledBox(one.findtext("name", "").strip(), sides[0] - 1, sides[1] - 1, sides[2], sides[3])


def _text(parent: ElementTree.Element, key: str, value: str) -> None:
    ElementTree.SubElement(parent, key).text = value
