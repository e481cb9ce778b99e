"""The parts of answered pictures as people and training programs read them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloudd.answers.parts import Coco, Labelled, labelled, parts
from edgekit.regions.cutouts import EXACT, region
from edgekit.regions.header import Found, MosaicAnswer, MosaicHeader, RegionAnswer
from edgekit.regions.mosaic import compose, to_cell
from edgekit.regions.select import Candidate

FRAME: NDArray[np.uint8] = np.zeros((300, 400), np.uint8)
FIRST, SECOND = (10.0, 10.0, 50.0, 40.0), (200.0, 100.0, 300.0, 180.0)


def mosaic(longest: int = 512) -> MosaicHeader:
    """Two cells with a region each, of a frame of 400x300; the second one scaled if it is longer than `longest`."""
    asked = [region(i, Candidate(box, "a", 0.6, 0.2), "hard", EXACT, 400, 300) for i, box in enumerate((FIRST, SECOND))]
    return compose(FRAME, asked, longest=longest).header


def found(*boxes: tuple[int, tuple[float, float, float, float], str]) -> MosaicAnswer:
    return MosaicAnswer(
        task="detection",
        found=[Found(cell=cell, box=box, label=label, score=0.9, margin=0.8) for cell, box, label in boxes],
    )


def test_regions_come_with_both_answers_and_then_what_was_found_beside_them() -> None:
    beside = (205.0, 105.0, 215.0, 115.0)
    answer = found((0, (11.0, 9.5, 50.0, 41.0), "b"), (1, beside, "c"), (1, (210.0, 110.0, 220.0, 120.0), ""))
    first, second, third = parts(mosaic(), answer, [0, 1])
    assert (first.index, first.reason, first.differs) == (0, "hard", True)
    assert first.edge is not None and (first.edge.box, first.edge.label) == (FIRST, "a")
    assert (first.cloud.box, first.cloud.label) == ((11.0, 9.5, 50.0, 41.0), "b")
    assert (second.index, second.cloud.label, second.differs) == (1, "", True), "the cloud finds nothing like it"
    assert (third.index, third.edge, third.cloud.box, third.cloud.label) == (None, None, beside, "c")


def test_without_a_mosaic_there_is_what_a_detector_found_and_nothing_for_a_classifier() -> None:
    whole = found((0, FIRST, "b"), (0, SECOND, ""))
    assert [(one.index, one.cloud.box) for one in parts(None, whole, [])] == [(None, FIRST)]
    assert labelled(None, whole) == [Labelled(box=FIRST, label="b", score=0.9)]
    assert parts(None, None, []) == []
    gone = MosaicAnswer(task="classification", regions=[RegionAnswer(index=0, label="b", score=0.9, margin=0.8)])
    assert parts(None, gone, [0]) == []


@given(st.floats(0, 90), st.floats(0, 70), st.floats(1, 10), st.sampled_from([512, 64, 25]))
def test_a_box_lies_where_the_mosaic_shows_it(x: float, y: float, side: float, longest: int) -> None:
    header = mosaic(longest)
    box = (200 + x, 100 + y, 200 + x + side, 100 + y + side)
    (one,) = labelled(header, found((1, box, "b")))
    left, top = header.cells[1].place[:2]
    assert np.asarray(one.box) == pytest.approx(to_cell(header.cells[1], [box])[0] + [left, top, left, top])
    assert one.box[0] >= 0 and one.box[2] <= header.size[0] and one.box[3] <= header.size[1]


def test_a_classifiers_label_is_about_the_view_that_it_looked_at() -> None:
    header = mosaic()
    said = [RegionAnswer(index=i, label=label, score=0.9, margin=0.8) for i, label in ((1, "clean"), (0, "b"))]
    one, other = labelled(header, MosaicAnswer(task="classification", regions=said))
    assert (one.box, one.label) == (tuple(map(float, header.cells[0].place)), "b")
    assert (other.box, other.label) == (tuple(map(float, header.cells[1].place)), "clean")


def test_coco_lists_pictures_boxes_and_each_label_once() -> None:
    coco = Coco()
    coco.add(7, "7.jpg", (64, 48), [Labelled(box=(1.0, 2.0, 11.004, 22.0), label="b", score=0.9)])
    coco.add(8, "8.png", (32, 32), [])
    coco.add(9, "9.jpg", (64, 48), [Labelled(box=(0.0, 0.0, 5.0, 5.0), label=label, score=0.5) for label in "ab"])
    made = coco.document()
    assert [(one["id"], one["file_name"], one["width"]) for one in made["images"]] == [
        (7, "7.jpg", 64), (8, "8.png", 32), (9, "9.jpg", 64),
    ]  # fmt: skip
    assert made["categories"] == [{"id": 1, "name": "b"}, {"id": 2, "name": "a"}]
    assert [(one["id"], one["image_id"], one["category_id"]) for one in made["annotations"]] == [
        (1, 7, 1), (2, 9, 2), (3, 9, 1),
    ]  # fmt: skip
    assert made["annotations"][0]["bbox"] == [1.0, 2.0, 10.0, 20.0] and made["annotations"][0]["area"] == 200.0
    assert len(coco) == 3
