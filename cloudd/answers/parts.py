"""The parts of an answered picture, for people and for programs that train models: regions, and COCO annotations."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from edgekit.regions.answers import compare
from edgekit.regions.header import NOTHING, Cell, FloatBox, MosaicAnswer, MosaicHeader, Size


class Opinion(msgspec.Struct, frozen=True, kw_only=True):
    """What the edge or the cloud says about a part."""

    box: FloatBox  # left, top, right, bottom in pixels of the full frame; right and bottom lie outside
    label: str  # NOTHING: there is nothing
    score: float  # probability of the label, 0..1
    margin: float


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A region about which the edge asked; or, without `index`, something that the cloud found beside those."""

    index: int | None
    reason: str  # why it was asked: hard, audit, calibrating, safe-mode, silent
    edge: Opinion | None
    cloud: Opinion
    differs: bool


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """A box with the cloud's label, in pixels of the picture that is kept: the mosaic, or the whole picture."""

    box: FloatBox
    label: str
    score: float


def parts(header: MosaicHeader | None, answer: MosaicAnswer | None, differing: Collection[int]) -> list[Part]:
    """The regions of a mosaic with both answers, then what was found beside them.

    Without `header` (a whole picture, or one that is not kept any more) only what a detector found. Both are as they
    were stored, so checked already.
    """
    if answer is None:
        return []
    if header is not None:
        outcomes, found = compare(header, answer)
    else:
        outcomes, found = [], [one for one in answer.found if one.label != NOTHING]
    asked = [
        Part(
            index=one.region.index,
            reason=one.region.reason,
            edge=Opinion(box=one.region.box, label=one.region.label, score=one.region.score, margin=one.region.margin),
            cloud=Opinion(box=one.box, label=one.label, score=one.score, margin=one.margin),
            differs=one.region.index in differing,
        )
        for one in outcomes
    ]
    beside = [Opinion(box=one.box, label=one.label, score=one.score, margin=one.margin) for one in found]
    return asked + [Part(index=None, reason="", edge=None, cloud=one, differs=False) for one in beside]


def labelled(header: MosaicHeader | None, answer: MosaicAnswer) -> list[Labelled]:
    """What the cloud says, on the kept picture. A classifier's label is about the view that it looked at."""
    if header is None:
        return [Labelled(box=one.box, label=one.label, score=one.score) for one in answer.found if one.label != NOTHING]
    if answer.task == "classification":
        said = {one.index: one for one in answer.regions}
        views = ((cell, region.view, said[region.index]) for cell in header.cells for region in cell.regions)
        return [Labelled(box=_placed(cell, view), label=one.label, score=one.score) for cell, view, one in views]
    return [
        Labelled(box=_placed(header.cells[one.cell], one.box), label=one.label, score=one.score)
        for one in answer.found
        if one.label != NOTHING
    ]


class Coco:
    """Collects pictures with boxes into one document in the format of COCO's object detection annotations."""

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._images)

    def add(self, number: int, file: str, size: Size, boxes: Collection[Labelled]) -> None:
        """Add a picture, also one without a box: it shows what is no defect. `number` is its id."""
        self._images.append({"id": number, "file_name": file, "width": size[0], "height": size[1]})
        for one in boxes:
            left, top, right, bottom = one.box
            across, down = round(right - left, 2), round(bottom - top, 2)
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": number,
                    "category_id": self._categories.setdefault(one.label, len(self._categories) + 1),
                    "bbox": [round(left, 2), round(top, 2), across, down],
                    "area": round(across * down, 2),
                    "iscrowd": 0,
                    "score": one.score,
                }
            )

    def document(self) -> dict[str, Any]:
        """For json.dump."""
        return {
            "images": self._images,
            "annotations": self._annotations,
            "categories": [{"id": number, "name": label} for label, number in self._categories.items()],
        }


def _placed(cell: Cell, box: FloatBox) -> FloatBox:
    """A box of the frame, in pixels of the mosaic."""
    (x, y, *_), (left, top, *_) = cell.place, cell.box
    across, down = cell.scale
    return (
        x + (box[0] - left) * across,
        y + (box[1] - top) * down,
        x + (box[2] - left) * across,
        y + (box[3] - top) * down,
    )
