"""Bare boards with and without a withheld kind of defect, for benchmarks.box_learning, and a detector of the rest.

Every board comes with its faultless template, so a defect can be taken out again: its place is filled with the
template's pixels. That is how a board looked before that kind of defect occurred. Of each group's 15 boards, in order
of name, 4 judge, 2 choose and the others teach.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from benchmarks.pictures import Grey
from cloudd.train import Job, Training, Wishes, begin, choose, divide
from cloudd.train.figures import best_report
from cloudd.train.job import PLAN_FOLDER
from cloudd.train.training import truth_of
from edged.train.views import inside, spread, views
from edgekit import packages
from edgekit.architectures import detection_spec
from edgekit.datasets.dataset import Dataset, LabelledBox, Picture
from edgekit.packages import Manifest, Package, Variant
from edgekit.services import Pipeline, Tiles
from edgekit.training import MODEL_FILE, WEIGHTS_FILE, replace_weights
from edgekit.vision import images
from edgekit.vision.detection.detector import Detector

TILE, OVERLAP, INPUT = 192, 42, 96
"""Pixels of a board that one tile shows, that neighbours share, and of the model's input: a tile at half its size."""
PIPELINE = Pipeline(tiles=Tiles(width=TILE, height=TILE, overlap=OVERLAP))
_JUDGES, _CHOOSES = (1, 5, 9, 13), (3, 11)  # positions of a group's boards; the others teach
_MARGIN = 4  # pixels around a defect that are filled, too
_EMPTY = 2  # tiles without a box that teach, of each board
_WIDTH = 0.5  # of the network: 18 M multiply-adds a tile

Part = Literal["train", "val", "test"]


@dataclass(frozen=True, eq=False)
class Board:
    """One board and its template, black and white, with all its defects."""

    name: str
    part: Part
    image: Grey
    template: Grey
    boxes: tuple[LabelledBox, ...]

    def count(self, label: str) -> int:
        """Defects of this kind."""
        return sum(one.label == label for one in self.boxes)

    def without(self, label: str, keep: int = 0) -> Board:
        """As it was without the defects of one kind but the first `keep`."""
        mine = [at for at, one in enumerate(self.boxes) if one.label == label]
        gone = set(mine[keep:])
        others = np.zeros(self.image.shape, bool)
        for at, one in enumerate(self.boxes):
            if at not in gone:
                others[int(one.top) : int(one.bottom), int(one.left) : int(one.right)] = True
        image = self.image.copy()
        for at in gone:
            one = self.boxes[at]
            rows = slice(max(0, int(one.top) - _MARGIN), int(one.bottom) + _MARGIN)
            columns = slice(max(0, int(one.left) - _MARGIN), int(one.right) + _MARGIN)
            image[rows, columns] = np.where(others[rows, columns], image[rows, columns], self.template[rows, columns])
        kept = tuple(one for at, one in enumerate(self.boxes) if at not in gone)
        return Board(self.name, self.part, image, self.template, kept)

    @property
    def data(self) -> bytes:
        """As PNG."""
        return images.encode_png(self.image)


def load(root: Path) -> list[Board]:
    """All boards below `root`, in order of name. OSError where they are not there."""
    folder = root / "pcb-bare"
    coco = json.loads((folder / "coco.json").read_text(encoding="utf-8"))
    labels = {one["id"]: one["name"] for one in coco["categories"]}
    boxes: dict[int, list[LabelledBox]] = {one["id"]: [] for one in coco["images"]}
    for one in coco["annotations"]:
        left, top, width, height = one["bbox"]
        boxes[one["image_id"]].append(LabelledBox(labels[one["category_id"]], left, top, left + width, top + height))
    order: dict[str, int] = {}
    found = []
    for one in sorted(coco["images"], key=lambda image: image["file_name"]):
        position = order[one["factory"]] = order.get(one["factory"], -1) + 1
        part: Part = "test" if position in _JUDGES else "val" if position in _CHOOSES else "train"
        image, template = (_plain((folder / one[key]).read_bytes()) for key in ("file_name", "template"))
        found.append(Board(Path(one["file_name"]).stem, part, image, template, tuple(boxes[one["id"]])))
    return found


def arriving(boards: Sequence[Board], label: str, count: int, seed: int) -> Iterator[tuple[Board, bool]]:
    """The boards, of those that teach with `count` defects of the withheld kind in all, and whether it shows any.

    `seed` draws which boards have them; what is over on the last of them is taken out. Those that choose and judge
    show theirs.
    """
    left = count
    for at in np.random.default_rng(seed).permutation(len(boards)).tolist():
        board = boards[at]
        if board.part != "train":
            yield board, board.count(label) > 0
            continue
        taken = min(left, board.count(label))
        left -= taken
        yield board.without(label, keep=taken), taken > 0


def trained(boards: Sequence[Board], label: str, epochs: int, out: Path) -> Package:
    """A detector of everything but `label`, trained as `cloudd train` does, on tiles that never showed it.

    It reports from the score with the best F1 on the tiles that choose. `cloudd train` would judge it as well, and
    refuse what is hardly trained; here its figures are the rows' `before`.
    """
    dataset = tiles([board.without(label) for board in boards])
    size = (INPUT, INPUT)
    wishes = Wishes(architecture="centre_point", size=size, colour="grey", epochs=epochs, symmetry="any")
    parts = divide(dataset)
    recipe = choose(dataset, parts.train, wishes)
    recipe = msgspec.structs.replace(recipe, network=msgspec.structs.replace(recipe.network, width=_WIDTH))
    job = Job(name="bare-boards", version="1", source="", group="", merge={}, digest=dataset.digest, recipe=recipe)
    with Training(job, dataset, begin(job, out / "work"), threads=1, clock=time.monotonic) as training:
        for _ in training.run():
            pass
        return sealed(training, out / "package")


def sealed(training: Training, root: Path) -> Package:
    """The package of a training that has ended, in the new folder `root`."""
    recipe, parts = training.job.recipe, training.parts
    root.mkdir(parents=True)
    for file in (MODEL_FILE, WEIGHTS_FILE):
        shutil.copyfile(training.folder / PLAN_FOLDER / file, root / file)
    replace_weights(root / WEIGHTS_FILE, training.weights())
    (root / "labels.txt").write_text("".join(f"{name}\n" for name in recipe.labels), encoding="utf-8")
    manifest = Manifest(
        name=training.job.name,
        version=training.job.version,
        task="detection",
        labels="labels.txt",
        input=training.input,
        detection=detection_spec(),
        variants=[Variant(file=MODEL_FILE)],
    )
    draft = packages.seal_package(root, manifest)
    with closing(Detector.load(draft)) as model:
        found = [model.detect(training.dataset.read(one)).detections for one in parts.val]
    report = best_report(found, [truth_of(one, recipe.labels) for one in parts.val])
    (root / packages.MANIFEST_NAME).unlink()
    spec = msgspec.structs.replace(detection_spec(), report=report)
    return packages.seal_package(root, msgspec.structs.replace(manifest, detection=spec))


def tiles(boards: Collection[Board]) -> Dataset:
    """The tiles of the boards as pictures: every one that shows a box, and _EMPTY others of each board."""
    contents: dict[str, bytes] = {}
    pictures: dict[str, Picture] = {}
    for board in boards:
        height, width = board.image.shape
        sides = np.array([(one.left, one.top, one.right, one.bottom) for one in board.boxes], np.float64).reshape(-1, 4)
        digest = hashlib.sha256(board.name.encode()).hexdigest()
        every = views(0, (width, height), PIPELINE)
        shown = {view: inside(sides, view.box) for view in every}
        empty = [view for view in every if not len(shown[view][1])]
        drawn = set(spread(empty, _EMPTY, Picture(board.name, digest)))
        for view in every:
            cut, rows = shown[view]
            if not len(rows) and view not in drawn:
                continue
            left, top, right, bottom = view.box
            data = images.encode_png(np.ascontiguousarray(board.image[top:bottom, left:right]))
            boxes = tuple(
                LabelledBox(board.boxes[row].label, *(float(side) for side in box - np.array([left, top] * 2)))
                for row, box in zip(rows.tolist(), cut, strict=True)
            )
            name = f"{board.name}/{left}-{top}"
            sha256 = hashlib.sha256(data).hexdigest()
            contents[name] = data
            size = right - left, bottom - top
            one = Picture(name, sha256, "", boxes, board.name, board.part, *size)
            pictures.setdefault(sha256, one)
    return Dataset(tuple(pictures.values()), lambda picture: contents[picture.file])


def _plain(data: bytes) -> Grey:
    """Black and white, without what JPEG left around the edges: templates were saved at another quality."""
    return np.where(images.decode(data, "grey") < 128, 0, 255).astype(np.uint8)
