"""Whole bare boards in tiles, for benchmarks.collab: frames with their true labels, and what the models train on.

Of each group's 15 boards, in order of name, 7 train, 3 calibrate and 5 test. No board is in two parts, and a
board goes with its faultless template, which is a good board of its own. Pictures are made black and white first,
because the data's defective boards and templates were saved at different qualities, which a model could learn instead
of defects; then every one is a grey JPEG of the quality that mosaics have.

A defect belongs to the tile whose centre is nearest: that tile's true label is the defect. Tiles that show a piece of a
defect of their neighbour's have no true label and count nowhere. All others are clean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import pictures, train_pair
from benchmarks.pictures import MARGIN, SIDE, Grey
from edgekit.regions.mosaic import QUALITY
from edgekit.services import Pipeline, Tiles
from edgekit.vision import images
from edgekit.vision.pipeline import regions

NAME = "pcb-boards"
OVERLAP = 16
CLEAN = 0
"""Index of the label of a tile without a defect."""
IGNORED = -1
"""True label of a tile that shows a piece of its neighbour's defect."""
WORST = ["short", "open", "mousebite", "pin-hole", "spur", "copper"]
PIPELINE = Pipeline(tiles=Tiles(width=SIDE, height=SIDE, overlap=OVERLAP, worst=WORST))

CALIBRATION_VIEWS = 2
"""A calibration board comes several times, shifted: a camera never hits the same pixel twice, and there are few."""
_TEST, _CALIBRATION = (1, 4, 7, 10, 13), (2, 8, 11)  # positions of a group's boards; the others train
_SHIFT = 12  # pixels that a view may be shifted by
_TRAIN_VIEWS = 12  # of a defect
_TEMPLATE_VIEWS = 4  # of the same place on the template: the hardest clean patches there are
_CLEAN_VIEWS = 130  # of other places, on each board and on each template
_INSIDE, _OUTSIDE = 28, 34  # pixels from a patch's centre up to which a defect is in it, and from which on it is not

train_pair.FULL[NAME] = (
    {"net": "residual", "width": 8, "seconds": 90, "epochs": 1000, "smoothing": 0.0},
    {"net": "residual", "width": 16, "seconds": 300, "epochs": 1000, "rate": 0.003, "smoothing": 0.02},
)
train_pair.QUICK[NAME] = (
    {**train_pair.FULL[NAME][0], "seconds": 2, "wall": 3},
    {**train_pair.FULL[NAME][1], "seconds": 4, "wall": 6, "width": 8},
)

Point = tuple[int, int]
Placed = tuple[float, float, int]
"""A defect: x and y of its centre in pixels, index of its label."""


@dataclass(frozen=True)
class Frame:
    """One picture of a whole board. `truth` (tiles,): a label's index or IGNORED, in the order of the tiles."""

    name: str
    data: bytes  # JPEG
    truth: NDArray[np.int64]
    holders: list[list[int]]  # for each defect the tiles that hold its centre

    @property
    def good(self) -> bool:
        return not self.holders


@dataclass(frozen=True)
class Boards:
    """`models` is what the pair is trained on; its other parts are empty."""

    labels: list[str]
    models: pictures.Dataset
    calibration: list[Frame]
    test: list[Frame]


def load(root: Path | None = None) -> Boards:
    """Read everything. Raises SystemExit without real data (see `pictures.data_root`)."""
    folder = (root or pictures.data_root()) / "pcb-bare"
    coco = json.loads((folder / "coco.json").read_text(encoding="utf-8"))
    labels = ["clean"] + [c["name"] for c in coco["categories"]]
    boxes: dict[int, list[tuple[float, float, float, float, int]]] = {image["id"]: [] for image in coco["images"]}
    for a in coco["annotations"]:
        x, y, w, h = a["bbox"]
        boxes[a["image_id"]].append((x, y, x + w, y + h, int(a["category_id"])))
    rng = np.random.default_rng(0)
    order: dict[str, int] = {}
    patches: list[tuple[Grey, int]] = []
    held: dict[str, list[Frame]] = {"calibration": [], "test": []}
    for image in sorted(coco["images"], key=lambda i: i["file_name"]):
        position = order[image["factory"]] = order.get(image["factory"], -1) + 1
        part = "test" if position in _TEST else "calibration" if position in _CALIBRATION else "train"
        board, template = (_plain((folder / image[key]).read_bytes()) for key in ("file_name", "template"))
        found = boxes[image["id"]]
        if part == "train":
            patches += _patches(rng, board, template, [_centre(box) for box in found])
            continue
        for picture, file, there in ((board, "file_name", found), (template, "template", [])):
            for view in range(CALIBRATION_VIEWS if part == "calibration" else 1):
                dx, dy = (int(v) for v in rng.integers(-_SHIFT, _SHIFT + 1, 2)) if view else (0, 0)
                moved = [(a + dx, b + dy, c + dx, d + dy, label) for a, b, c, d, label in there]
                held[part].append(frame(f"{Path(image[file]).stem}/{view}", _shifted(picture, dx, dy), moved))
    models = pictures.Dataset(
        name=NAME,
        labels=labels,
        train_x=np.stack([picture for picture, _ in patches]),
        train_y=np.array([label for _, label in patches], np.int64),
        calibration=[],
        test=[],
        defect=None,
        rotatable=True,
    )
    return Boards(labels, models, held["calibration"], held["test"])


def frame(name: str, picture: Grey, boxes: list[tuple[float, float, float, float, int]]) -> Frame:
    """A frame of `picture` with defects in `boxes` (left, top, right, bottom, label)."""
    height, width = picture.shape
    tiles = np.array(regions(PIPELINE, width, height), float)
    centres = (tiles[:, :2] + tiles[:, 2:]) / 2
    truth = np.full(len(tiles), CLEAN, np.int64)
    nearest = np.full(len(tiles), np.inf)
    holders = []
    inside = [_within(box, width, height) for box in boxes]
    for left, top, right, bottom, _ in inside:
        touched = (tiles[:, 0] < right) & (left < tiles[:, 2]) & (tiles[:, 1] < bottom) & (top < tiles[:, 3])
        truth[touched] = IGNORED
    for box in inside:
        x, y, label = _centre(box)
        away = np.abs(centres - (x, y)).max(axis=1)
        home = int(away.argmin())
        if away[home] < nearest[home]:
            truth[home], nearest[home] = label, away[home]
        here = (tiles[:, 0] <= x) & (x < tiles[:, 2]) & (tiles[:, 1] <= y) & (y < tiles[:, 3])
        holders.append([int(i) for i in np.flatnonzero(here)])
    return Frame(name, images.encode_jpeg(picture, QUALITY), truth, holders)


def patch_label(centre: Point, defects: list[Placed]) -> int | None:
    """The label of a training patch around `centre`: that of the nearest defect in it; None if one is half in it."""
    label, nearest = CLEAN, np.inf
    for x, y, kind in defects:
        away = max(abs(x - centre[0]), abs(y - centre[1]))
        if _INSIDE < away < _OUTSIDE:
            return None
        if away <= _INSIDE and away < nearest:
            label, nearest = kind, away
    return label


# --- inside ----------------------------------------------------------------------------------------------------------


def _plain(data: bytes) -> Grey:
    """Black and white, without what JPEG left around the edges."""
    return np.where(images.decode(data, "grey") < 128, 0, 255).astype(np.uint8)


def _centre(box: tuple[float, float, float, float, int]) -> Placed:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[4]


def _within(
    box: tuple[float, float, float, float, int], width: int, height: int
) -> tuple[float, float, float, float, int]:
    """The box clipped to the picture; a shift moves a defect by a few pixels at most, never out of it."""
    left, top, right, bottom, label = box
    return max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom), label


def _shifted(picture: Grey, dx: int, dy: int) -> Grey:
    """The picture moved right by `dx` and down by `dy`, mirrored where nothing is known."""
    height, width = picture.shape
    padded = np.pad(picture, _SHIFT, mode="reflect")
    return padded[_SHIFT - dy : _SHIFT - dy + height, _SHIFT - dx : _SHIFT - dx + width].copy()


def _patches(rng: np.random.Generator, board: Grey, template: Grey, defects: list[Placed]) -> list[tuple[Grey, int]]:
    """Training patches of SIDE + 2 MARGIN pixels with their labels."""
    found: list[tuple[Grey, int]] = []
    for x, y, _ in defects:
        for view in range(_TRAIN_VIEWS):
            dx, dy = (int(v) for v in rng.integers(-_INSIDE, _INSIDE + 1, 2))
            centre = _clipped(board, int(x) + dx, int(y) + dy)
            label = patch_label(centre, defects)
            if label is not None:
                found.append((_cut(board, centre), label))
            if view < _TEMPLATE_VIEWS:
                found.append((_cut(template, centre), CLEAN))
    for picture, there in ((board, defects), (template, [])):
        taken = 0
        for _ in range(50 * _CLEAN_VIEWS):
            x, y = (int(v) for v in rng.integers(SIDE // 2, board.shape[0] - SIDE // 2 + 1, 2))
            if patch_label((x, y), there) != CLEAN:
                continue
            patch = _cut(picture, (x, y))
            if patch.min() == patch.max() and rng.random() > 0.1:  # what is blank teaches little
                continue
            found.append((patch, CLEAN))
            taken += 1
            if taken == _CLEAN_VIEWS:
                break
    return found


def _clipped(picture: Grey, x: int, y: int) -> Point:
    """The nearest centre whose tile lies inside the picture."""
    height, width = picture.shape
    return int(np.clip(x, SIDE // 2, width - SIDE // 2)), int(np.clip(y, SIDE // 2, height - SIDE // 2))


def _cut(picture: Grey, centre: Point) -> Grey:
    """The tile around `centre` with MARGIN pixels more on each side, mirrored where that leaves the picture."""
    x, y = centre
    side = SIDE + 2 * MARGIN
    padded = np.pad(picture, MARGIN, mode="reflect")
    return padded[y - SIDE // 2 : y - SIDE // 2 + side, x - SIDE // 2 : x - SIDE // 2 + side].copy()
