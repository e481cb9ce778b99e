"""A service that cuts pictures into tiles: what each tile teaches, and a whole job."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from train_bench import DEVICE, OLD, SERVICE, SIDE, open_writing, order, pattern

from edged.samples.reading import Filter
from edged.samples.records import Label, LabelRecord, NewSample
from edged.train.job import run
from edged.train.lessons import LessonError, Lessons, load_lessons, open_samples
from edged.train.lineage import read_lineage
from edged.train.pace import Pace
from edged.train.tile_lessons import SAME_TILES, load_tile_lessons
from edgekit.datasets.dataset import LabelledBox
from edgekit.learning.budget import Reading
from edgekit.messages.learning import TrainDone, TrainOrder, TrainStopped
from edgekit.packages import InputSpec, Package, open_package
from edgekit.services import parse_service
from edgekit.vision.classification import Classifier
from edgekit.vision.images import encode_png
from edgekit.vision.pipeline import Pipelined

ROWS, COLUMNS = 2, 3
WORST = ("check", "bar", "stripe", "plain")
DEFINITION = (
    f'name = "{SERVICE}"\nmodel = "patterns"\n'
    f"[pipeline.tiles]\nwidth = {SIDE}\nheight = {SIDE}\nworst = {list(WORST)!r}\n"
)
MEAN = DEFINITION.replace(f"worst = {list(WORST)!r}", 'aggregate = "mean"')


def labels_of(number: int) -> list[str]:
    """Of the tiles of one board, row by row: plain but for one or two."""
    labels = ["plain"] * (ROWS * COLUMNS)
    turn = number % 4
    if turn:
        labels[number % len(labels)] = ("stripe", "bar", "check")[turn - 1]
    if number % 5 == 0:
        labels[(number + 2) % len(labels)] = "stripe"
    return labels


def board(number: int, contrast: float = 1.0) -> tuple[NDArray[np.uint8], tuple[LabelledBox, ...]]:
    """Tiles of patterns side by side, and a box for each that is not plain."""
    labels = labels_of(number)
    tiles = [pattern(label, 100 * number + at, contrast) for at, label in enumerate(labels)]
    rows = [np.concatenate(tiles[row * COLUMNS : (row + 1) * COLUMNS], axis=1) for row in range(ROWS)]
    boxes = []
    for at, label in enumerate(labels):
        if label != "plain":
            left, top = at % COLUMNS * SIDE + 2.0, at // COLUMNS * SIDE + 2.0
            boxes.append(LabelledBox(label, left, top, left + SIDE - 4, top + SIDE - 4))
    return np.concatenate(rows), tuple(boxes)


def fill(state: Path, numbers: range, contrast: float = 1.0, boxes: bool = True) -> None:
    store = open_writing(state)
    for number in numbers:
        image, found = board(number, contrast)
        label = Label(boxes=found) if boxes else Label(label=min(labels_of(number), key=WORST.index))
        record = LabelRecord(label=label, kind="operator", author="anna", at=1000.0)
        new = NewSample(service=SERVICE, source="asked", captured_at=1.7e9 + number)
        store.add(new, encode_png(image), record)
    store.versions.make("lessons", Filter(service=SERVICE), "boxes" if boxes else "labels")
    store.close()


def load(state: Path, definition: str = DEFINITION, new_class: int | None = None) -> Lessons:
    store = open_samples(state, DEVICE)
    try:
        return load_tile_lessons(store, "lessons", parse_service(definition, "a test"), OLD, new_class)
    finally:
        store.close()


def work(job: TrainOrder) -> TrainDone | TrainStopped:
    Path(job.scratch).mkdir(parents=True, exist_ok=True)
    pace = Pace(job.budget, Reading, time.monotonic, time.sleep, lambda progress: None)
    return run(job, pace, time.monotonic, Reading)


def test_each_tile_teaches_the_worst_label_that_it_shows(tmp_path: Path, base: Package) -> None:
    fill(tmp_path, range(40))
    lessons = load(tmp_path)
    spec: InputSpec = base.manifest.input
    for part in (lessons.learn, lessons.choose):
        assert len(part.views) == len(part.pictures) == len(part.labels)
        pictures = lessons.pictures(part, spec)
        for row, (picture, view) in enumerate(zip(part.pictures, part.views, strict=True)):
            image = pictures.fitted(row).image
            label = OLD[part.labels[row]]
            at = view.box[1] // SIDE * COLUMNS + view.box[0] // SIDE
            assert any(np.array_equal(image, pattern(label, 100 * number + at)) for number in range(40)), picture.file
    assert set(lessons.classes) == set(OLD)
    plain = [one.file for one, label in zip(lessons.learn.pictures, lessons.learn.labels, strict=True) if not label]
    assert max(plain.count(file) for file in plain) <= SAME_TILES


def test_pictures_judge_as_a_whole(tmp_path: Path) -> None:
    fill(tmp_path, range(60))
    lessons = load(tmp_path)
    judge = lessons.judge
    assert not judge.views and len({one.file for one in judge.pictures}) == len(judge.pictures) > 5
    for picture, label in zip(judge.pictures, judge.labels, strict=True):
        boxes = [box.label for box in picture.boxes or ()]
        assert OLD[label] == min(boxes, key=WORST.index, default="plain")


def test_a_tile_that_shows_too_little_of_a_box_says_nothing(tmp_path: Path) -> None:
    store = open_writing(tmp_path)
    # Of this box 28 columns lie in the first tile and 4 in the second.
    box = LabelledBox("bar", 4.0, 4.0, SIDE + 4.0, 28.0)
    record = LabelRecord(label=Label(boxes=(box,)), kind="operator", author="anna", at=1.0)
    store.add(
        NewSample(service=SERVICE, source="asked", captured_at=1.0, part="train"), encode_png(board(4)[0]), record
    )
    store.versions.make("lessons", Filter(service=SERVICE), "boxes")
    store.close()
    part = load(tmp_path).learn
    said = {view.box[:2]: OLD[label] for view, label in zip(part.views, part.labels, strict=True)}
    assert said[0, 0] == "bar" and (SIDE, 0) not in said
    assert {label for place, label in said.items() if place != (0, 0)} == {"plain"}


def test_with_the_mean_a_tile_has_the_label_of_its_picture(tmp_path: Path) -> None:
    fill(tmp_path, range(30), boxes=False)
    lessons = load(tmp_path, MEAN)
    part = lessons.learn
    assert set(Counter(one.file for one in part.pictures).values()) == {SAME_TILES}
    assert all(OLD[label] == one.label for one, label in zip(part.pictures, part.labels, strict=True))
    with pytest.raises(LessonError, match="aggregate worst learn from labels of boxes"):
        load(tmp_path)


def test_other_lessons_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, range(10))
    store = open_samples(tmp_path, DEVICE)
    with pytest.raises(LessonError, match="learns from those"):
        load_lessons(store, "lessons", parse_service(DEFINITION, "a test"), OLD)
    plain = parse_service(f'name = "{SERVICE}"\nmodel = "patterns"\n', "a test")
    with pytest.raises(LessonError, match="does not classify tiles"):
        load_tile_lessons(store, "lessons", plain, OLD)
    store.close()


def right(package: Package, numbers: range, contrast: float) -> float:
    """Share of boards whose one answer is that of their worst tile."""
    model = Classifier.load(package)
    pipeline = parse_service(DEFINITION, "a test").pipeline
    assert pipeline is not None
    whole = Pipelined(model, pipeline)
    answers = [whole.classify(encode_png(board(number, contrast)[0])).label for number in numbers]
    model.close()
    truth = [min(labels_of(number), key=WORST.index) for number in numbers]
    return float(np.mean([said == true for said, true in zip(answers, truth, strict=True)]))


@pytest.mark.parametrize("rung", ["head", "last-blocks"])
def test_tiles_make_a_candidate_that_is_right_about_more_pictures(rung: str, base: Package, tmp_path: Path) -> None:
    fill(tmp_path / "state", range(90), contrast=0.3)
    before = right(base, range(900, 940), 0.3)
    job = order(tmp_path / "state", base, tmp_path / "job", rung, definition=DEFINITION)
    found = work(job)
    assert isinstance(found, TrainDone), found
    package = open_package(Path(found.directory))
    after = right(package, range(900, 940), 0.3)
    assert after > before + 0.2, (before, after)
    lineage = read_lineage(package)
    assert lineage is not None and sum(part.pictures for part in lineage.data.parts.values()) == 90
    (fact,) = [one for one in found.verdict.facts if one.name == "accuracy"]
    assert "pictures lost" in fact.text


def test_statistics_of_the_scene_are_those_of_tiles(base: Package, tmp_path: Path) -> None:
    fill(tmp_path / "state", range(70), contrast=0.5)
    found = work(order(tmp_path / "state", base, tmp_path / "job", "batchnorm", definition=DEFINITION))
    assert isinstance(found, TrainDone), found
    lineage = read_lineage(open_package(Path(found.directory)))
    assert lineage is not None and lineage.data.scene == 256, "a board has six tiles"
