from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from train_bench import DEFINITION, DEVICE, NEW, OLD, SERVICE, broken_png, fill, open_writing, pattern, png

from edged.samples.reading import Filter
from edged.samples.records import Label, LabelRecord, NewSample
from edged.train.lessons import LessonError, Lessons, Part, is_judging, load_lessons, open_samples, region_of_interest
from edgekit.datasets.dataset import LabelledBox
from edgekit.packages import Package
from edgekit.services import Service, parse_service
from edgekit.vision.classification import Classifier
from edgekit.vision.images import encode_jpeg
from edgekit.vision.pipeline import Pipelined

PLAIN = parse_service(DEFINITION, "test")


def service(more: str = "") -> Service:
    return parse_service(DEFINITION + more, "test")


def ids(part: Part) -> set[str]:
    return {one.file for one in part.pictures}


def load(state: Path, name: str = "lessons", which: Service = PLAIN, new_class: int | None = 20) -> Lessons:
    store = open_samples(state, DEVICE)
    try:
        return load_lessons(store, name, which, OLD, new_class)
    finally:
        store.close()


def test_every_picture_has_one_side_and_keeps_it_when_others_come(tmp_path: Path) -> None:
    store = open_writing(tmp_path)
    fill(store, dict.fromkeys(OLD, 12))
    store.versions.make("first", Filter(service=SERVICE), "labels")
    fill(store, dict.fromkeys(OLD, 12), first=100)
    store.versions.make("second", Filter(service=SERVICE), "labels")
    store.close()
    first, second = load(tmp_path, "first"), load(tmp_path, "second")
    assert first.classes == OLD and first.new == ()
    for name in ("learn", "choose", "judge"):
        assert ids(getattr(first, name)) < ids(getattr(second, name)) or not ids(getattr(first, name))
    assert sum(len(ids(part)) for part in (second.learn, second.choose, second.judge)) == 24 * len(OLD)
    assert not ids(second.learn) & ids(second.judge)
    assert 0.15 < len(second.judge.pictures) / 96 < 0.45
    assert all(is_judging(one) == (one.file in ids(second.judge)) for one in second.dataset.pictures)


def test_a_board_stands_on_one_side_and_a_given_part_is_followed(tmp_path: Path) -> None:
    store = open_writing(tmp_path)
    for number in range(40):
        part = "test" if number == 3 else "train" if number > 30 else ""
        new = NewSample(service=SERVICE, source="import", captured_at=1.7e9, group=f"board {number % 4}", part=part)
        record = LabelRecord(label=Label(label="plain"), kind="import", author="a.csv", at=5.0)
        store.add(new, png("plain", number), record)
    store.versions.make("lessons", Filter(service=SERVICE), "labels")
    store.close()
    lessons = load(tmp_path)
    boards = [{one.group for one in part.pictures} for part in (lessons.learn, lessons.choose, lessons.judge)]
    assert "board 3" in boards[2] and {"board 0", "board 1", "board 2"} == boards[0]
    assert lessons.judge.counts(lessons.classes) == {"plain": 10}
    assert set(lessons.judge.labelled_at) == {5.0}


def test_new_labels_become_classes_once_there_are_enough(state: Path) -> None:
    lessons = load(state)
    assert lessons.classes == (*OLD, NEW) and lessons.new == (NEW,) and lessons.notes == ()
    without = load(state, new_class=21)
    assert without.classes == OLD and without.notes == (
        '20 pictures with the label "spot" were left out: a new class needs 21',
    )
    assert load(state, new_class=None).notes == (
        '20 pictures with the label "spot" were left out: the model does not have it',
    )
    assert load(state).digest != without.digest


def test_a_flood_of_labels_makes_neither_a_flood_of_classes_nor_of_notes(tmp_path: Path) -> None:
    store = open_writing(tmp_path)
    fill(store, {"plain": 4})
    for number in range(210):
        label = f"label {number % 70:02}"
        new = NewSample(
            service=SERVICE, source="import", captured_at=1.7e9, part=("train", "test", "val")[number // 70]
        )
        record = LabelRecord(label=Label(label=label), kind="import", author="a.csv", at=5.0)
        store.add(new, png("bar", number), record)
    store.versions.make("lessons", Filter(service=SERVICE), "labels")
    store.close()
    lessons = load(tmp_path, new_class=3)
    assert len(lessons.new) == 64 and len(lessons.notes) == 6
    assert lessons.notes[0] == '3 pictures with the label "label 64" were left out: a job adds at most 64 classes'
    none = load(tmp_path, new_class=None)
    assert none.new == () and len(none.notes) == 11 and none.notes[-1] == "so were those of 60 rarer labels"


def test_a_new_class_of_one_board_cannot_both_teach_and_judge(tmp_path: Path) -> None:
    store = open_writing(tmp_path)
    fill(store, dict.fromkeys(OLD, 6))
    for number in range(20):
        new = NewSample(service=SERVICE, source="asked", captured_at=1.7e9, group="board 1")
        record = LabelRecord(label=Label(label=NEW), kind="operator", author="anna", at=5.0)
        store.add(new, png(NEW, number), record)
    store.versions.make("lessons", Filter(service=SERVICE), "labels")
    store.close()
    with pytest.raises(LessonError, match='all 20 labels of the new class "spot" fell to one side'):
        load(tmp_path)


def test_a_label_is_as_old_as_it_was_first_said(tmp_path: Path) -> None:
    store = open_writing(tmp_path)
    fill(store, {"plain": 1}, at=10.0)
    (sample,) = store.select(Filter(service=SERVICE), 5)
    for label, at in (("plain", 30.0), ("bar", 20.0), ("plain", 40.0)):
        store.label(sample.id, LabelRecord(label=Label(label=label), kind="operator", author="bob", at=at))
    store.versions.make("lessons", Filter(service=SERVICE), "labels")
    store.close()
    lessons = load(tmp_path)
    assert [*lessons.learn.labelled_at, *lessons.choose.labelled_at, *lessons.judge.labelled_at] == [10.0]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ('[pipeline.tiles]\nwidth = 16\nheight = 16\naggregate = "mean"\n', "cuts pictures into tiles"),
        ('task = "detection"\n', "its model learns from boxes"),
        ('task = "anomaly"\n', "for classification and detection so far"),
    ],
)
def test_what_no_service_can_learn_yet_is_refused(more: str, says: str, state: Path) -> None:
    which = parse_service(more + DEFINITION if "task" in more else DEFINITION + more, "test")
    with pytest.raises(LessonError, match=says):
        load(state, which=which)


def test_boxes_an_unknown_version_and_another_service_are_refused(tmp_path: Path) -> None:
    store = open_writing(tmp_path)
    boxes = Label(boxes=(LabelledBox("spot", 1, 1, 9, 9),))
    record = LabelRecord(label=boxes, kind="operator", author="anna", at=1.0)
    store.add(NewSample(service=SERVICE, source="asked", captured_at=1.7e9), png("plain", 1), record)
    store.versions.make("boxes", Filter(service=SERVICE), "boxes")
    store.close()
    with pytest.raises(LessonError, match="has boxes"):
        load(tmp_path, "boxes")
    with pytest.raises(LessonError, match="no dataset version 'lessons'"):
        load(tmp_path)
    other = parse_service('name = "paste"\nmodel = "patterns"\n', "test")
    with pytest.raises(LessonError, match="of the service solder, not of paste"):
        load(tmp_path, "boxes", other)


def test_pictures_that_cannot_be_decoded_are_left_out_and_counted(tmp_path: Path, base: Package) -> None:
    store = open_writing(tmp_path)
    fill(store, {"plain": 12, "bar": 12})
    for number in range(30, 36):
        new = NewSample(service=SERVICE, source="import", captured_at=1.7e9, part="train" if number < 35 else "test")
        record = LabelRecord(label=Label(label="bar"), kind="import", author="a.csv", at=1.0)
        store.add(new, broken_png("bar", number), record)
    store.versions.make("lessons", Filter(service=SERVICE), "labels")
    store.close()
    reader = open_samples(tmp_path, DEVICE)
    lessons = load_lessons(reader, "lessons", PLAIN, OLD)
    looked: list[tuple[int, int]] = []
    good = lessons.readable(base.manifest.input, lambda done, total: looked.append((done, total)))
    reader.close()
    assert good.notes == ("5 pictures cannot be decoded and were left out",)
    assert len(good.dataset.pictures) == 25 and good.digest != lessons.digest
    assert len(good.learn.pictures) == len(good.learn.labels) == len(lessons.learn.pictures) - 5
    assert good.judge is lessons.judge, "the judgement leaves out what no model can look at"
    assert looked[-1][0] == looked[-1][1] == len(lessons.learn.pictures) + len(lessons.choose.pictures)


def test_opening_for_reading_removes_nothing_and_reads_beside_a_writer(tmp_path: Path) -> None:
    writer = open_writing(tmp_path)
    fill(writer, {"plain": 3}, labelled=False)
    reader = open_samples(tmp_path, DEVICE)
    fill(writer, {"plain": 1}, first=50, labelled=False)
    assert len(reader.select(Filter(service=SERVICE), 10)) == 4
    reader.close()
    assert len(writer.select(Filter(service=SERVICE), 10)) == 4
    writer.close()


@pytest.mark.parametrize("roi", ["[0.1, 0.2, 0.83, 0.97]", "[0.0, 0.0, 1.0, 1.0]"])
@pytest.mark.parametrize("jpeg", [True, False])
def test_behind_a_region_of_interest_training_sees_what_serving_sees(roi: str, jpeg: bool, base: Package) -> None:
    pipeline = service(f"[pipeline]\nroi = {roi}\n").pipeline
    assert pipeline is not None
    large = np.kron(pattern("check", 1), np.ones((9, 9), np.uint8)).astype(np.uint8)
    data = encode_jpeg(large) if jpeg else png("check", 1)
    with closing(Classifier.load(base)) as model:
        served = Pipelined(model, pipeline).classify(data)
        taught = model.classify(region_of_interest(data, base.manifest.input, pipeline))
    np.testing.assert_array_equal(served.probabilities, taught.probabilities)
