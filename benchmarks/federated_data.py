"""Real factories whose pictures differ: joints by pad, solar cells by crystal, bare boards by group.

Nothing of the pictures is ever copied into this repository; EDGED_REAL_DATA names the folder with them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.vision import images

Name = Literal["solder-tht", "solar-el", "pcb-bare"]
NAMES: tuple[Name, ...] = ("solder-tht", "solar-el", "pcb-bare")

PATCH = 48  # pixels, of a place on a bare board
_JITTER = 6  # pixels by which a patch may lie off its place
_CLEAR = 40  # pixels between a faultless place and every defect, across or down
_CLEAN = 8  # faultless places of a board
_VIEWS = {False: 2, True: 1}  # patches of one place, by whether they judge


@dataclass(frozen=True)
class Sample:
    """One labelled picture; `data` is a PNG or JPEG file."""

    data: bytes
    label: int
    factory: str
    board: str  # pictures of one board resemble each other, and never stand on both sides
    judges: bool


@dataclass(frozen=True)
class Factories:
    """All pictures of one product. `defect`: the label whose F1 counts; None: the mean F1 of all labels counts."""

    name: Name
    labels: tuple[str, ...]
    defect: int | None
    samples: tuple[Sample, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the factories, sorted."""
        return tuple(sorted({one.factory for one in self.samples}))

    def of(self, factory: str, *, judges: bool) -> list[Sample]:
        """The pictures of one factory that teach, or those that judge."""
        return [one for one in self.samples if one.factory == factory and one.judges == judges]


def load(name: Name, root: Path) -> Factories:
    """The factories of one product. Raises OSError if the pictures are not there."""
    return {"solder-tht": _solder, "solar-el": _solar, "pcb-bare": _bare}[name](root / name)


def deal(samples: Sequence[Sample], devices: int) -> list[list[Sample]]:
    """The pictures of one factory on its devices: whole boards, in turn. Raises ValueError for fewer boards."""
    boards = sorted({one.board for one in samples})
    if devices < 1 or len(boards) < devices:
        raise ValueError(f"{len(boards)} boards cannot be dealt to {devices} devices")
    place = {board: at % devices for at, board in enumerate(boards)}
    return [[one for one in samples if place[one.board] == at] for at in range(devices)]


def folded(factories: Factories, fold: int, folds: int) -> Factories:
    """The pictures that teach, of which every `folds`-th board judges instead: for choosing settings."""
    teach = [one for one in factories.samples if not one.judges]
    found: list[Sample] = []
    for factory in factories.names:
        for at, part in enumerate(deal([one for one in teach if one.factory == factory], folds)):
            found += [replace(one, judges=at == fold) for one in part]
    return replace(factories, samples=tuple(found))


def _solder(root: Path) -> Factories:
    """A joint a picture. The data's own test boards judge."""
    with (root / "labels.csv").open(newline="", encoding="utf-8") as file:
        samples = [
            Sample(
                (root / row["file"]).read_bytes(),
                int(row["label"] != "normal"),
                row["pad"],
                f"{int(row['board']):04d}",
                row["split"] == "test",
            )
            for row in csv.DictReader(file)
        ]
    return Factories("solder-tht", ("normal", "defect"), 1, tuple(samples))


def _solar(root: Path) -> Factories:
    """A cell a picture. The data's own test cells judge."""
    with (root / "labels.csv").open(newline="", encoding="utf-8") as file:
        samples = [
            Sample(
                (root / row["file"]).read_bytes(),
                int(row["defect"]),
                row["module_type"],
                row["file"],
                row["split"] == "test",
            )
            for row in csv.DictReader(file)
        ]
    return Factories("solar-el", ("intact", "defect"), 1, tuple(samples))


def _bare(root: Path) -> Factories:
    """Patches around defects, and around faultless places. Of each group's 15 boards every fourth judges."""
    coco = json.loads((root / "coco.json").read_text(encoding="utf-8"))
    labels = ("clean", *(one["name"] for one in coco["categories"]))
    number = {one["id"]: labels.index(one["name"]) for one in coco["categories"]}
    defects: dict[int, list[tuple[int, int, int]]] = {one["id"]: [] for one in coco["images"]}
    for one in coco["annotations"]:
        x, y, width, height = one["bbox"]
        defects[one["image_id"]].append((int(x + width // 2), int(y + height // 2), number[one["category_id"]]))
    rng = np.random.default_rng(0)
    seen: dict[str, int] = {}
    samples: list[Sample] = []
    for one in sorted(coco["images"], key=lambda image: image["file_name"]):
        factory, board = one["factory"], one["file_name"]
        seen[factory] = seen.get(factory, -1) + 1
        judges = seen[factory] % 4 == 1
        tested, template = (images.decode((root / one[key]).read_bytes(), "grey") for key in ("file_name", "template"))
        places = [*defects[one["id"]], *_clean(rng, defects[one["id"]])]
        patches = [(tested, *place) for place in places for _ in range(_VIEWS[judges])]
        if not judges:  # the same places on the faultless board: the hardest clean patches there are
            patches += [(template, x, y, 0) for x, y, _ in defects[one["id"]]]
        for picture, x, y, label in patches:
            samples.append(Sample(images.encode_png(_patch(rng, picture, x, y)), label, factory, board, judges))
    return Factories("pcb-bare", labels, None, tuple(samples))


def _clean(rng: np.random.Generator, defects: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    places: list[tuple[int, int, int]] = []
    while len(places) < _CLEAN:
        x, y = (int(value) for value in rng.integers(PATCH // 2, 640 - PATCH // 2, 2))
        if all(abs(x - a) > _CLEAR or abs(y - b) > _CLEAR for a, b, _ in defects):
            places.append((x, y, 0))
    return places


def _patch(rng: np.random.Generator, board: NDArray[np.uint8], x: int, y: int) -> NDArray[np.uint8]:
    left, top = (
        int(np.clip(at + off - PATCH // 2, 0, side - PATCH))
        for at, off, side in zip(
            (x, y), rng.integers(-_JITTER, _JITTER + 1, 2), (board.shape[1], board.shape[0]), strict=True
        )
    )
    return np.ascontiguousarray(board[top : top + PATCH, left : left + PATCH])
