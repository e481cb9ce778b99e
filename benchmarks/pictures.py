"""Real pictures for the benchmarks, split by board into training, calibration and test.

The folder with the data is named by EDGED_REAL_DATA. Nothing of it is ever copied into this repository.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.packages import InputSpec
from edgekit.vision import images, preprocess

SIDE = 64
"""Pictures are classified at 64 x 64 grey pixels."""

MARGIN = 8
"""Training pictures carry so many pixels more on each side, from which the trainer cuts its views."""

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """One picture to inspect: `data` is a PNG or JPEG file as a camera would hand it over."""

    data: bytes
    label: int
    board: str


@dataclass(frozen=True)
class Dataset:
    """`train_x`: uint8 (n, side, side) with side = SIDE + 2 MARGIN, `train_y`: int64 (n,). The parts share no board."""

    name: str
    labels: list[str]
    train_x: Grey
    train_y: NDArray[np.int64]
    calibration: list[Item]
    test: list[Item]
    defect: str | None  # the label that must not escape, if there is one
    rotatable: bool  # may the trainer turn a picture by 90 degrees?


def data_root() -> Path:
    """The folder with the real data. Raises SystemExit with a sentence if it is not there."""
    name = os.environ.get("EDGED_REAL_DATA", "")
    if not name or not Path(name).is_dir():
        raise SystemExit("Set EDGED_REAL_DATA to the folder with the real pictures (it holds solder-tht and pcb-bare).")
    return Path(name)


def load(name: str, root: Path | None = None) -> Dataset:
    """`solder-tht` or `pcb-bare`."""
    loaders = {"solder-tht": _solder_tht, "pcb-bare": _pcb_bare}
    if name not in loaders:
        raise ValueError(f"there is no data set {name!r}; known: {', '.join(loaders)}")
    return loaders[name]((root or data_root()) / name)


def input_spec(side: int = SIDE) -> InputSpec:
    """How the packages of both data sets describe their input."""
    return InputSpec(width=side, height=side, colour="grey", mean=[127.5], scale=[1 / 127.5])


def decode(data: bytes, side: int = SIDE) -> Grey:
    """An encoded picture as the models see it, by the daemon's own code: grey, side x side."""
    return preprocess.fit(images.decode(data, "grey", reduce_to=(side, side)), input_spec(side))


# --- solder-tht: one joint a picture, five joints a board------------------------------------------------------


def _solder_tht(root: Path) -> Dataset:
    """Two classes. Test = the data's own test boards; of its training boards every third calibrates."""
    parts: dict[str, list[tuple[Path, int, str]]] = {"train": [], "calibration": [], "test": []}
    with (root / "labels.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            part = row["split"]
            if part == "train" and int(row["board"]) % 3 == 0:
                part = "calibration"
            parts[part].append((root / row["file"], int(row["label"] != "normal"), row["board"]))
    side = SIDE + 2 * MARGIN
    return Dataset(
        name="solder-tht",
        labels=["normal", "defect"],
        train_x=np.stack([decode(path.read_bytes(), side) for path, _, _ in parts["train"]]),
        train_y=np.array([label for _, label, _ in parts["train"]], np.int64),
        calibration=[Item(path.read_bytes(), label, board) for path, label, board in parts["calibration"]],
        test=[Item(path.read_bytes(), label, board) for path, label, board in parts["test"]],
        defect="defect",
        rotatable=False,
    )


# --- pcb-bare: patches around defects, and patches without any--------------------------------------------------

_JITTER = 10  # pixels by which a patch's centre may lie off the defect's
_CLEAR = 40  # a clean patch's centre is so far from every defect's, in x or in y
_TEST_VIEWS = 4
_CALIBRATION_VIEWS = 7
_TRAIN_VIEWS = 10
_CLEAN = 8  # clean places a board


def _pcb_bare(root: Path) -> Dataset:
    """Six kinds of defect and `clean`. Of each group's 15 boards, in order of name, 8 train, 3 calibrate, 4 test.

    Test and calibration patches come in several jittered views, because a camera never hits the same pixel twice and 60
    boards are few; views of one place resemble each other, so there are fewer independent samples than items.
    """
    coco = json.loads((root / "coco.json").read_text(encoding="utf-8"))
    labels = ["clean"] + [c["name"] for c in coco["categories"]]
    boxes: dict[int, list[tuple[int, int, int]]] = {image["id"]: [] for image in coco["images"]}
    for a in coco["annotations"]:
        x, y, w, h = a["bbox"]
        boxes[a["image_id"]].append((int(x + w // 2), int(y + h // 2), int(a["category_id"])))
    rng = np.random.default_rng(0)
    order: dict[str, int] = {}
    train: list[tuple[Grey, int]] = []
    held: dict[str, list[Item]] = {"calibration": [], "test": []}
    for image in sorted(coco["images"], key=lambda i: i["file_name"]):
        position = order[image["factory"]] = order.get(image["factory"], -1) + 1
        part = ("train", "test", "train", "calibration")[position % 4] if position < 14 else "train"
        board, template = (images.decode((root / image[key]).read_bytes(), "grey") for key in ("file_name", "template"))
        defects = boxes[image["id"]]
        places = [*defects, *_clean_places(rng, defects)]
        if part == "train":
            for x, y, label in places:
                train += [(_cut(rng, board, x, y, SIDE + 2 * MARGIN), label) for _ in range(_TRAIN_VIEWS)]
            for x, y, _ in defects:  # the same places on the faultless template: the hardest clean patches there are
                train += [(_cut(rng, template, x, y, SIDE + 2 * MARGIN), 0) for _ in range(2)]
        else:
            views = _TEST_VIEWS if part == "test" else _CALIBRATION_VIEWS
            for x, y, label in places:
                held[part] += [
                    Item(images.encode_png(_cut(rng, board, x, y, SIDE)), label, image["file_name"])
                    for _ in range(views)
                ]
    return Dataset(
        name="pcb-bare",
        labels=labels,
        train_x=np.stack([picture for picture, _ in train]),
        train_y=np.array([label for _, label in train], np.int64),
        calibration=held["calibration"],
        test=held["test"],
        defect=None,
        rotatable=True,
    )


def _clean_places(rng: np.random.Generator, defects: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    places: list[tuple[int, int, int]] = []
    while len(places) < _CLEAN:
        x, y = (int(v) for v in rng.integers(SIDE // 2, 640 - SIDE // 2, 2))
        if all(abs(x - a) > _CLEAR or abs(y - b) > _CLEAR for a, b, _ in defects):
            places.append((x, y, 0))
    return places


def _cut(rng: np.random.Generator, board: Grey, x: int, y: int, side: int) -> Grey:
    """A side x side patch around a jittered centre, mirrored where it leaves the board."""
    dx, dy = rng.integers(-_JITTER, _JITTER + 1, 2)
    half = side // 2
    cx = int(np.clip(x + dx, SIDE // 2, board.shape[1] - SIDE // 2))
    cy = int(np.clip(y + dy, SIDE // 2, board.shape[0] - SIDE // 2))
    padded = np.pad(board, half, mode="reflect")
    return padded[cy : cy + side, cx : cx + side].copy()
