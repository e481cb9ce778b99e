"""What a worker answers is believed only if it fits what was asked."""

from __future__ import annotations

import pytest

from cloudd.answers.looks import WHOLE, Look, check_fit, whole_frame
from edgekit.messages import ModelAnswer, Verdict
from edgekit.regions.header import (
    MAX_REGIONS,
    Cell,
    Found,
    MosaicAnswer,
    MosaicHeader,
    Region,
    RegionAnswer,
    RegionError,
    check_answer,
)
from tests.support.models import picture

VERDICT = Verdict(label="bright", score=0.9, margin=0.8, model="big@1")
PICTURE = picture(0.5, side=32)


def asked(count: int) -> MosaicHeader:
    """`count` regions in one cell."""
    regions = [
        Region(index=i, box=(0.0, 0.0, 9.0, 9.0), view=(0, 0, 9, 9), label="a", score=0.6, margin=0.1, reason="hard")
        for i in range(count)
    ]
    return MosaicHeader(
        frame=(100, 80), size=(16, 16), cells=[Cell(place=(0, 0, 9, 9), box=(0, 0, 9, 9), regions=regions)]
    )


def classified(*indices: int) -> MosaicAnswer:
    said = [RegionAnswer(index=i, label="b", score=0.9, margin=0.8) for i in indices]
    return MosaicAnswer(task="classification", regions=said)


def detected(*box: float, cell: int = 0) -> MosaicAnswer:
    left, top, right, bottom = box
    return MosaicAnswer(
        task="detection",
        found=[Found(cell=cell, box=(left, top, right, bottom), label="b", score=0.9, margin=0.8)],
    )


def answer(mosaic: MosaicAnswer | None = None, *differing: int) -> ModelAnswer:
    return ModelAnswer(ticket=1, verdict=VERDICT, mosaic=mosaic, differing=list(differing))


GOOD = [
    (answer(), WHOLE),
    (answer(detected(0, 0, 32, 32)), WHOLE),
    (answer(MosaicAnswer(task="detection")), WHOLE),
    (answer(classified(0, 1), 1), Look(mosaic=asked(2))),
    (answer(detected(1, 1, 9, 9), 0, 1), Look(mosaic=asked(2))),
    (ModelAnswer(ticket=1, error="broken", fault="model"), Look(mosaic=asked(2))),
]
BAD = [
    (answer(detected(0, 0, 33, 32)), WHOLE),
    (answer(detected(0, 0, 9, 9, cell=1)), WHOLE),
    (answer(classified()), WHOLE),
    (answer(None, 0), WHOLE),
    (answer(), Look(mosaic=asked(2))),
    (answer(classified(0)), Look(mosaic=asked(2))),
    (answer(classified(0, 0)), Look(mosaic=asked(2))),
    (answer(classified(0, 1), 2), Look(mosaic=asked(2))),
    (answer(detected(0, 0, 10, 9)), Look(mosaic=asked(2))),
    (answer(detected(0, 0, float("nan"), 9)), Look(mosaic=asked(2))),
]


@pytest.mark.parametrize(("said", "look"), GOOD)
def test_an_answer_that_fits_is_believed(said: ModelAnswer, look: Look) -> None:
    check_fit(said, look, PICTURE)


@pytest.mark.parametrize(("said", "look"), BAD)
def test_an_answer_to_something_else_is_not(said: ModelAnswer, look: Look) -> None:
    with pytest.raises(RegionError):
        check_fit(said, look, PICTURE)


def test_a_mosaic_may_take_as_long_as_one_picture_for_each_sixteen_regions() -> None:
    assert WHOLE.pictures == 1
    assert [Look(mosaic=asked(count)).pictures for count in (1, 16, 17, MAX_REGIONS)] == [1, 1, 2, 16]


def test_boxes_of_a_whole_picture_are_checked_like_those_of_one_cell() -> None:
    check_answer(whole_frame((32, 32)), detected(0, 0, 32, 32))
    with pytest.raises(RegionError, match="outside"):
        check_answer(whole_frame((32, 32)), detected(0, 0, 32.5, 32))
