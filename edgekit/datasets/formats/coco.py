"""COCO's JSON (https://cocodataset.org/#format-data): boxes as left, top, width, height in pixels.

A picture without annotations is one without objects. Crowds (`iscrowd`) are left out, as COCO's own evaluation does not
count them as objects. A picture that is to be classified has one annotation without `bbox`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgekit import toml
from edgekit.datasets.dataset import MAX_BOXES, MAX_PICTURES, Dataset, DatasetError, LabelledBox
from edgekit.datasets.formats.files import Row, inside, read_text, save_picture

NAME = "coco.json"


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float] | None = None
    iscrowd: int = 0


class _File(msgspec.Struct):
    images: list[dict[str, Any]]
    annotations: list[_Annotation]
    categories: list[_Category]


def read(path: Path, group: str) -> Iterator[Row]:
    """Read the file. `group`: the key of a picture that groups, "" for none (a key `group` is taken by itself)."""
    try:
        content = msgspec.json.decode(read_text(path), type=_File)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DatasetError(f"{path} is no COCO file: {error}") from None
    if len(content.images) > MAX_PICTURES:
        raise DatasetError(f"{path} has more than {MAX_PICTURES} pictures")
    names = {one.id: one.name for one in content.categories}
    found: dict[int, list[_Annotation]] = defaultdict(list)
    for one in content.annotations:
        if one.category_id not in names:
            raise DatasetError(
                f"{path}: an annotation has the category {one.category_id}, which is not in `categories`"
            )
        if not one.iscrowd:
            found[one.image_id].append(one)
    labelled = any(one.bbox is None for one in content.annotations)
    if labelled and any(one.bbox is not None for one in content.annotations):
        raise DatasetError(f"{path} has annotations with and without `bbox`; boxes or labels, not both")
    for image in content.images:
        yield _row(path, image, found, names, labelled, group)


def write(dataset: Dataset, target: Path) -> None:
    """Write `coco.json` and the folder `images`."""
    ids = {label: number for number, label in enumerate(dataset.labels, 1)}
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, picture in enumerate(dataset.pictures, 1):
        file = f"images/{save_picture(dataset, picture, target / 'images')}"
        image: dict[str, object] = {"id": number, "file_name": file, "width": picture.width, "height": picture.height}
        image |= {key: value for key, value in (("group", picture.group), ("split", picture.part)) if value}
        images.append(image)
        base = {"image_id": number, "iscrowd": 0}
        if picture.boxes is None:
            annotations.append({"id": len(annotations) + 1, "category_id": ids[picture.label], **base})
        for box in picture.boxes or ():
            sides = [box.left, box.top, box.right - box.left, box.bottom - box.top]
            annotations.append(
                {"id": len(annotations) + 1, "category_id": ids[box.label], "bbox": sides, "area": sides[2] * sides[3]}
                | base
            )
    categories = [{"id": number, "name": label} for label, number in ids.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (target / NAME).write_bytes(msgspec.json.encode(content))


def _row(
    path: Path,
    image: dict[str, Any],
    found: dict[int, list[_Annotation]],
    names: dict[int, str],
    labelled: bool,
    group: str,
) -> Row:
    number, file = image.get("id"), image.get("file_name")
    if not isinstance(number, int) or not isinstance(file, str):
        raise DatasetError(f"{path}: a picture has no `id` or no `file_name`")
    if group and group not in image:
        raise DatasetError(f"{path}: the picture {toml.show(file)} has no key {toml.show(group)}")
    file = inside(file, str(path))
    if not (path.parent / file).exists() and (path.parent / "images" / file).exists():
        file = f"images/{file}"
    together, part = str(image.get(group or "group", "")), str(image.get("split", ""))
    mine = found[number]
    if labelled:
        if len(mine) != 1:
            raise DatasetError(f"{path}: the picture {toml.show(file)} has {len(mine)} labels; one belongs there")
        return Row(file, names[mine[0].category_id], None, together, part)
    if len(mine) > MAX_BOXES:
        raise DatasetError(f"{path}: {toml.show(file)} has more than {MAX_BOXES} boxes")
    boxes = []
    for one in mine:
        assert one.bbox is not None
        left, top, width, height = one.bbox
        boxes.append(LabelledBox(names[one.category_id], left, top, left + width, top + height))
    return Row(file, "", tuple(boxes), together, part)
