"""The tiles of a service that cuts pictures into them: a label for each tile that teaches, one for each that judges.

With the aggregate "worst" a picture's labels are boxes, and a tile has the worst label of those that it shows; one that
shows no box is clean, and one that shows too little of a box says nothing. With "mean" every tile is one more look at
the same thing, and has the label of its picture. Pictures judge as a whole, by the one answer of all their tiles, which
is what the line gets to see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from edged.samples.store import SampleStore
from edged.train.lessons import (
    LessonError,
    Lessons,
    Part,
    classes_of,
    fitting,
    labelled_at,
    read_version,
    sides_of,
)
from edged.train.views import VISIBLE, View, spread, views
from edgekit.datasets.dataset import Dataset, Picture, labels_of
from edgekit.services import Service, Tiles
from edgekit.vision.detection.boxes import areas, intersections

SAME_TILES = 4
"""Tiles without a box that one picture teaches, or tiles with the label of their picture."""


def load_tile_lessons(
    store: SampleStore,
    name: str,
    service: Service,
    known: Sequence[str],
    new_class: int | None = None,
    *,
    tiles_judge: bool = False,
) -> Lessons:
    """The tiles of the dataset version `name` that a classifier with the labels `known` can learn from.

    With "mean" a label that is not `known` becomes a class from `new_class` pictures on; with "worst" none does, since
    the service's order of labels could not name it. Raises LessonError where there is nothing to learn from,
    sqlite3.Error. `tiles_judge`: those that judge are tiles, too, chosen as those that teach.
    """
    tiles = service.pipeline.tiles if service.pipeline is not None else None
    if service.task != "classification" or tiles is None:
        raise LessonError(f"{service.name} does not classify tiles")
    dataset, notes = read_version(store, name, service)
    boxed = tiles.aggregate == "worst"
    if any((one.boxes is not None) != boxed for one in dataset.pictures):
        wanted, there = ("boxes", "whole pictures") if boxed else ("whole pictures", "boxes")
        raise LessonError(
            f"the dataset version {name} has labels of {there}; tiles with the aggregate {tiles.aggregate} learn from "
            f"labels of {wanted}"
        )
    counts = Counter(label for one in dataset.pictures for label in labels_of(one))
    classes, more = classes_of(counts, known, None if boxed else new_class)
    notes += more
    index = {label: at for at, label in enumerate(classes)}
    pictures, more = fitting(dataset.pictures, classes, service)
    notes += more
    if not pictures:
        raise LessonError(f"the dataset version {name} has no picture with a label that {service.name} could learn")
    sides = sides_of(pictures)
    order = _worst_first(service, tiles, classes) if boxed else []

    def whole(side: str) -> bool:
        return side == "judge" and not tiles_judge

    def part(side: str) -> Part:
        rows: list[tuple[Picture, int, View]] = []
        for one in pictures:
            if sides[one.file] != side:
                continue
            if whole(side):
                rows.append((one, index[_label_of(one, order)], View(0, (0, 0, one.width, one.height), (1.0, 1.0))))
            else:
                cut = views(0, (one.width, one.height), service.pipeline)
                rows += [(one, index[label], view) for label, view in _taught(one, cut, order)]
        chosen = tuple(one for one, _, _ in rows)
        times = {file: labelled_at(store, one) for file, one in {one.file: one for one in chosen}.items()}
        return Part(
            chosen,
            np.array([label for _, label, _ in rows], np.int64),
            np.array([times[one.file] for one in chosen], np.float64),
            () if whole(side) else tuple(view for _, _, view in rows),
        )

    dataset = Dataset(tuple(pictures), dataset.fetch)
    return Lessons.divided(dataset, classes, len(known), part, notes, service.pipeline)


def _worst_first(service: Service, tiles: Tiles, classes: Sequence[str]) -> list[str]:
    """All labels as serving ranks them; the last one is that of a clean tile."""
    order = [label for label in tiles.worst if label in classes]
    order += [label for label in classes if label not in order]
    clean = service.regions.clean if service.regions is not None and service.regions.clean in order else order[-1]
    return [*(label for label in order if label != clean), clean]


def _label_of(picture: Picture, order: Sequence[str]) -> str:
    """Of the whole picture. `order` is empty where that is what was labelled."""
    if not order:
        return picture.label
    return min((box.label for box in picture.boxes or ()), key=order.index, default=order[-1])


def _taught(picture: Picture, of_one: Sequence[View], order: Sequence[str]) -> list[tuple[str, View]]:
    """The tiles of a picture that teach, with their labels."""
    if not order:
        return [(picture.label, view) for view in spread(of_one, SAME_TILES, picture)]
    boxes = np.array([(one.left, one.top, one.right, one.bottom) for one in picture.boxes or ()], np.float64)
    boxes = boxes.reshape(-1, 4)
    tiles = np.array([view.box for view in of_one], np.float64)
    shared = intersections(tiles, boxes)
    # It is to be seen if enough of it lies in the tile, or enough of the tile in it.
    shown = (shared >= VISIBLE * areas(boxes)) | (shared >= VISIBLE * areas(tiles)[:, np.newaxis])
    clean: list[View] = []
    found = []
    for row, view in enumerate(of_one):
        labels = [box.label for box, there in zip(picture.boxes or (), shown[row], strict=True) if there]
        if labels:
            found.append((min(labels, key=order.index), view))
        elif not shared[row].any():
            clean.append(view)
    return [*found, *((order[-1], view) for view in spread(clean, SAME_TILES, picture))]
