from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgekit.regions.header import (
    MAX_FOUND,
    MAX_REGIONS,
    Cell,
    Found,
    MosaicAnswer,
    MosaicHeader,
    Region,
    RegionAnswer,
    RegionError,
    check_answer,
    check_header,
)


def region(index: int = 0, **changed: Any) -> Region:
    whole = {"box": (12.0, 12.0, 28.0, 28.0), "view": (10, 10, 30, 30), "label": "open", "score": 0.6, "margin": 0.2}
    return Region(**{"index": index, "reason": "hard", **whole, **changed})


CELL = Cell(place=(0, 0, 20, 20), box=(10, 10, 30, 30), regions=[region()])
OTHER = Cell(
    place=(24, 0, 44, 10),
    box=(50, 50, 90, 70),
    regions=[region(3, box=(55.0, 55.0, 60.0, 60.0), view=(50, 50, 90, 70))],
)
HEADER = MosaicHeader(frame=(100, 80), size=(48, 24), cells=[CELL, OTHER])


def test_a_good_header_passes_and_survives_the_wire() -> None:
    check_header(HEADER)
    sent = msgspec.json.encode(HEADER)
    assert msgspec.json.decode(sent, type=MosaicHeader) == HEADER
    assert OTHER.scale == (0.5, 0.5)


BAD_HEADERS = {
    "outside of the mosaic": replace(HEADER, cells=[replace(CELL, place=(30, 0, 50, 20))]),
    "outside of the frame": replace(HEADER, cells=[replace(CELL, box=(-1, 10, 30, 30))]),
    "left < right": replace(HEADER, cells=[replace(CELL, place=(20, 0, 20, 20))]),
    "larger in the mosaic": replace(HEADER, cells=[replace(CELL, place=(0, 0, 21, 20))]),
    "overlap in the mosaic": replace(HEADER, cells=[CELL, replace(OTHER, place=(19, 0, 39, 10))]),
    "outside of its cell": replace(HEADER, cells=[replace(CELL, regions=[region(view=(9, 10, 30, 30))])]),
    "two regions have one index": replace(HEADER, cells=[replace(CELL, regions=[region(), region()])]),
    "finite numbers": replace(HEADER, cells=[replace(CELL, regions=[region(box=(12.0, math.nan, 28.0, 28.0))])]),
    "an index from 0": replace(HEADER, cells=[replace(CELL, regions=[region(-1)])]),
    "score nan": replace(HEADER, cells=[replace(CELL, regions=[region(score=math.nan)])]),
    "margin 1.5": replace(HEADER, cells=[replace(CELL, regions=[region(margin=1.5)])]),
    "label of 300": replace(HEADER, cells=[replace(CELL, regions=[region(label="x" * 300)])]),
    "hold 0 regions": replace(HEADER, cells=[]),
    "hold 1 regions": replace(HEADER, cells=[CELL, replace(OTHER, regions=[])]),
    "hold 257 regions": replace(HEADER, cells=[replace(CELL, regions=[region(i) for i in range(MAX_REGIONS + 1)])]),
    "the frame has 0x80": replace(HEADER, frame=(0, 80)),
    "the frame has 100000x100000": replace(HEADER, frame=(100_000, 100_000)),
    "the mosaic has 5000x24": replace(HEADER, size=(5000, 24)),
}


@pytest.mark.parametrize("said", BAD_HEADERS)
def test_a_hostile_header_is_refused_by_what_is_wrong(said: str) -> None:
    with pytest.raises(RegionError, match=said):
        check_header(BAD_HEADERS[said])


@pytest.mark.parametrize(
    "text",
    [
        b'{"frame":[100,80],"size":[48,24],"cells":[]}',
        b'{"frame":[100,80],"size":[48,24],"cells":[[[0,0,20,20],[10,10,30,30],[]]]}',
        b'{"frame":[100,80],"size":[48,24],"cells":[[[0,0,20,20],[10,10,30,30],[[0,[1,2,3,4],[1,2,3,4],"a",2.0,0.1,"hard"]]]]}',
        b'{"frame":[100,80],"size":[48,24],"cells":[[[0,0,20,20],[10,10,30,30],[[0,[1,2,3,NaN],[1,2,3,4],"a",0.2,0.1,"hard"]]]]}',
        b'{"frame":[100,80],"size":[48,24],"cells":[[[0,0,20,20],[10,10,30,30],[[0,[1,2,3,1e999],[1,2,3,4],"a",0.2,0.1,"hard"]]]]}',
        b'{"frame":[100,80],"size":[48,24],"cells":[[[0,0,2.5,20],[10,10,30,30],[[0,[1,2,3,4],[1,2,3,4],"a",0.2,0.1,"hard"]]]]}',
        b'{"frame":[100,80],"size":[48,24],"cells":[[[0,0,20,20],[10,10,30,30],[[0,[1,2,3,4],[1,2,3,4],"a",0.2,0.1,"because"]]]]}',
    ],
)
def test_a_malformed_header_does_not_decode(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError if b"NaN" not in text and b"e999" not in text else msgspec.DecodeError):
        msgspec.json.decode(text, type=MosaicHeader)


@given(
    st.lists(st.tuples(*[st.integers(-(2**70), 2**70)] * 4), max_size=3),
    st.tuples(*[st.integers(-5, 200)] * 2),
    st.tuples(*[st.floats()] * 4),
)
def test_whatever_the_numbers_the_check_ends_with_a_sentence(
    places: list[Any], size: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    cells = [replace(CELL, place=place, regions=[region(i, box=box)]) for i, place in enumerate(places)]
    header = replace(HEADER, size=size, cells=cells)
    try:
        check_header(header)
    except RegionError:
        return
    for cell in header.cells:
        assert 0 <= cell.place[0] < cell.place[2] <= size[0] and 0 <= cell.place[1] < cell.place[3] <= size[1]
        assert all(map(math.isfinite, cell.regions[0].box))


def found(**changed: Any) -> Found:
    return Found(
        **{"cell": 1, "box": (52.0, 52.0, 60.0, 60.0), "label": "open", "score": 0.9, "margin": 0.8, **changed}
    )


CLASSIFIED = MosaicAnswer(
    task="classification", regions=[RegionAnswer(index=i, label="short", score=0.9, margin=0.8) for i in (3, 0)]
)
DETECTED = MosaicAnswer(task="detection", found=[found()])


def test_answers_that_fit_pass() -> None:
    check_answer(HEADER, CLASSIFIED)
    check_answer(HEADER, DETECTED)
    check_answer(HEADER, MosaicAnswer(task="detection"))
    assert msgspec.json.decode(msgspec.json.encode(DETECTED), type=MosaicAnswer) == DETECTED


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (replace(CLASSIFIED, regions=CLASSIFIED.regions[:1]), "asked were"),
        (replace(CLASSIFIED, regions=[*CLASSIFIED.regions, CLASSIFIED.regions[0]]), "asked were"),
        (replace(CLASSIFIED, regions=[replace(r, score=math.inf) for r in CLASSIFIED.regions]), "score inf"),
        (replace(DETECTED, found=[found(cell=2)]), "there are 2"),
        (replace(DETECTED, found=[found(cell=-1)]), "there are 2"),
        (replace(DETECTED, found=[found(box=(40.0, 52.0, 60.0, 60.0))]), "outside of its cell"),
        (replace(DETECTED, found=[found(box=(52.0, math.inf, 60.0, 60.0))]), "finite"),
        (replace(DETECTED, found=[found()] * (MAX_FOUND + 1)), "boxes"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(answer: MosaicAnswer, said: str) -> None:
    with pytest.raises(RegionError, match=said):
        check_answer(HEADER, answer)
