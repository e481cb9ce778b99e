"""Which pictures with boxes teach and judge, and what of them a detector sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from boxes_bench import DEFINITION, NEW, OLD, SPEC, board, fill, kinds_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from train_bench import DEVICE, SERVICE, broken_png, open_writing

from edged.samples.reading import Filter
from edged.samples.records import Label, LabelRecord, NewSample
from edged.train.box_lessons import EMPTY_VIEWS, BoxLessons, load_box_lessons
from edged.train.lessons import LessonError, open_samples
from edged.train.views import View, Views, cut_for_classifiers, cut_for_detectors, inside, views
from edgekit.architectures import input_spec
from edgekit.datasets.dataset import LabelledBox
from edgekit.services import parse_service
from edgekit.training import TrainingError
from edgekit.vision.images import decode, encode_jpeg, encode_png
from edgekit.vision.preprocess import fit

TILES = "[pipeline.tiles]\nwidth = 64\nheight = 64\noverlap = 16\nworst = ['hole']\n"


def load(state: Path, more: str = "", known: tuple[str, ...] = OLD, new_class: int | None = None) -> BoxLessons:
    store = open_samples(state, DEVICE)
    try:
        return load_box_lessons(store, "lessons", parse_service(DEFINITION + more, "a test"), known, new_class)
    finally:
        store.close()


def put(state: Path, image: NDArray[np.uint8], *labels: LabelledBox) -> None:
    store = open_writing(state)
    record = LabelRecord(label=Label(boxes=labels), kind="operator", author="anna", at=5.0)
    store.add(NewSample(service=SERVICE, source="asked", captured_at=1.7e9), encode_png(image), record)
    store.versions.make("lessons", Filter(service=SERVICE), "boxes")
    store.close()


def test_every_picture_has_one_side_and_its_boxes(tmp_path: Path) -> None:
    store = open_writing(tmp_path)
    fill(store, range(60), OLD, at=7.0)
    store.versions.make("lessons", Filter(service=SERVICE), "boxes")
    store.close()
    lessons = load(tmp_path)
    parts = (lessons.learn, lessons.choose, lessons.judge)
    assert sum(len(part.pictures) for part in parts) == 60 and all(part.pictures for part in parts)
    boxes = sum(len(kinds_of(number, OLD)) for number in range(60))
    assert sum(part.boxes for part in parts) == boxes == sum(sum(part.counts(OLD).values()) for part in parts)
    assert (lessons.judge.labelled_at == 7.0).all() and lessons.new == () and lessons.notes == ()


def test_a_picture_with_a_box_that_cannot_be_learned_is_left_out_as_a_whole(tmp_path: Path) -> None:
    store = open_writing(tmp_path)
    fill(store, range(40), [*OLD, NEW])
    store.versions.make("lessons", Filter(service=SERVICE), "boxes")
    store.close()
    lessons = load(tmp_path, new_class=20)
    kept = sum(len(part.pictures) for part in (lessons.learn, lessons.choose, lessons.judge))
    spots = sum(NEW in kinds_of(number, [*OLD, NEW]) for number in range(40))
    assert kept == 40 - spots and lessons.classes == OLD
    assert lessons.notes == (f'{spots} pictures with the label "spot" were left out: a new class needs 20',)
    assert load(tmp_path, new_class=5).new == (NEW,)


def test_boards_that_cannot_be_decoded_are_left_out_and_counted(tmp_path: Path) -> None:
    store = open_writing(tmp_path)
    fill(store, range(30), OLD, part="train")
    record = LabelRecord(label=Label(boxes=()), kind="operator", author="anna", at=5.0)
    new = NewSample(service=SERVICE, source="asked", captured_at=1.0, part="train")
    store.add(new, broken_png("plain", 3), record)
    store.versions.make("lessons", Filter(service=SERVICE), "boxes")
    store.close()
    store = open_samples(tmp_path, DEVICE)
    lessons = load_box_lessons(store, "lessons", parse_service(DEFINITION, "a test"), OLD)
    tried: list[int] = []
    found = lessons.readable(input_spec(SPEC), lambda done, total: tried.append(total))
    store.close()
    assert len(lessons.learn.pictures) == 31 and tried == [31] * 31
    assert len(found.learn.pictures) == len(found.learn.truths) == len(found.learn.labelled_at) == 30
    assert found.notes == ("1 pictures cannot be decoded and were left out",)


def test_boxes_outside_of_the_region_of_interest_are_nobodys(tmp_path: Path) -> None:
    image, (box,) = board(1, ["hole"], width=128)
    there = LabelledBox("bar", 100.0, 10.0, 114.0, 16.0)
    put(tmp_path, image, box, there)
    lessons = load(tmp_path, '[pipeline]\nroi = [0, 0, 64, 64]\nroi_unit = "pixel"\n')
    truths = [truth for part in (lessons.learn, lessons.choose, lessons.judge) for truth in part.truths]
    seen = box.left + box.right < 128
    assert [len(one) for one in truths] == [1 if seen else 0]


def test_a_picture_that_does_not_fit_the_pipeline_is_left_out_with_a_note(tmp_path: Path) -> None:
    put(tmp_path / "a", board(1, ["hole"])[0], *board(1, ["hole"])[1])
    with pytest.raises(LessonError, match="has no box"):
        load(tmp_path / "a", '[pipeline]\nroi = [0, 0, 640, 64]\nroi_unit = "pixel"\n')


def test_tiles_with_a_box_teach_and_few_of_the_others(tmp_path: Path) -> None:
    image, boxes = board(3, ["hole"], width=400, height=64)
    put(tmp_path, image, *boxes)
    lessons = load(tmp_path, TILES)
    part = next(one for one in (lessons.learn, lessons.choose, lessons.judge) if one.pictures)
    examples = lessons.examples(part, input_spec(SPEC), 4)
    with_box = [truth for truth in examples.truths if len(truth)]
    assert 1 <= len(with_box) <= 2, "tiles share 16 pixels, and a hole has 10"
    assert len(examples.truths) - len(with_box) == EMPTY_VIEWS
    for at, truth in enumerate(examples.truths):
        sides = examples.boxes(at)
        assert len(sides) == len(truth) and (sides >= 0).all() and (sides <= 64).all()
        if len(sides):
            pixels = examples.plain(np.array([at]))["image"][0, 0]
            left, top, right, bottom = (round(float(side)) for side in sides[0])
            assert pixels[top + 2 : bottom - 2, left + 2 : right - 2].mean() < pixels.mean() - 0.3, "there is the hole"


@pytest.mark.parametrize("jpeg", [False, True])
def test_a_view_has_the_pixels_that_serving_cuts_out(jpeg: bool) -> None:
    """A JPEG of such a size is decoded at half of it, where tiles are cut in its own pixels."""
    image, _ = board(5, ["hole"], width=512, height=256)
    data = encode_jpeg(image, 95) if jpeg else encode_png(image)
    service = parse_service(DEFINITION + TILES.replace("64", "128"), "a test")
    spec = input_spec(SPEC)
    found = views(0, (512, 256), service.pipeline)
    pictures = Views(lambda place: data, found, spec, cut_for_detectors)
    whole = decode(data, "grey", reduce_to=(256, 128) if jpeg else None)
    factor = 2 if jpeg else 1
    assert whole.shape == (256 // factor, 512 // factor)
    for at, view in enumerate(found):
        left, top, right, bottom = (side // factor for side in view.box)
        fitted = pictures.fitted(at)
        part = whole[top:bottom, left:right]
        assert np.array_equal(fitted.image, fit(part, spec))
        sides = fitted.placement.to_picture(np.array([[0.0, 0.0, 64.0, 64.0]]))
        assert np.allclose(sides[0], view.box, atol=1e-3)


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda one: (one[0] * 8, one[1] * 8))


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from([1, 2, 4, 8]), st.data())
def test_both_ways_to_cut_stay_inside_of_the_decoded_picture(
    size: tuple[int, int], factor: int, data: st.DataObject
) -> None:
    left, top = (data.draw(st.integers(0, side - 1)) for side in size)
    right, bottom = data.draw(st.integers(left + 1, size[0])), data.draw(st.integers(top + 1, size[1]))
    decoded = (size[0] // factor, size[1] // factor)
    box = (left, top, right, bottom)
    for cut in (cut_for_detectors, cut_for_classifiers):
        a, b, c, d = cut(box, size, decoded)
        assert 0 <= a < c <= decoded[0] and 0 <= b < d <= decoded[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 100)] * 2, *[st.floats(1, 60)] * 2), max_size=8))
def test_what_is_taught_of_a_box_lies_in_its_view(raw: list[tuple[float, float, float, float]]) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in raw]).reshape(-1, 4)
    shown, rows = inside(boxes, (10, 20, 74, 84))
    assert len(shown) == len(rows)
    for one, row in zip(shown, rows, strict=True):
        assert 10 <= one[0] < one[2] <= 74 and 20 <= one[1] < one[3] <= 84
        area = (one[2] - one[0]) * (one[3] - one[1])
        whole = (boxes[row, 2] - boxes[row, 0]) * (boxes[row, 3] - boxes[row, 1])
        assert area >= 0.4 * whole - 1e-6


def test_another_picture_than_the_one_that_was_noted_is_no_view() -> None:
    data = encode_png(board(1, [])[0])
    pictures = Views(lambda place: data, [View(0, (0, 0, 128, 64), (1.0, 1.0))], input_spec(SPEC), cut_for_detectors)
    with pytest.raises(TrainingError, match="others than were noted"):
        pictures.fitted(0)
