from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgekit.messages import NOTHING_FOUND, Answer, HardSample, Verdict, briefly, in_full, packed, unpacked
from edgekit.regions.columns import AnswerColumns, columns, rows
from edgekit.regions.header import Cell, Found, MosaicAnswer, MosaicHeader, Region, RegionAnswer, RegionError

VERDICT = Verdict(label=NOTHING_FOUND, score=0.95, margin=0.95, model="large@1")
SAMPLE = HardSample(
    sample_id="s", service="x", answer_model="large", edge=VERDICT, reason="hard", captured_at=1.0, brief=True
)
shares = st.floats(0.0, 1.0)
said = st.lists(st.tuples(st.sampled_from(["clean", "open", "", "Lötstelle"]), shares, shares), min_size=1, max_size=30)


def header(count: int, first: int = 0) -> MosaicHeader:
    """Two cells, with the regions in an order that is not that of their indices."""
    regions = [
        Region(
            index=first + i,
            box=(0.0, 0.0, 8.0, 8.0),
            view=(0, 0, 8, 8),
            label="a",
            score=0.6,
            margin=0.1,
            reason="hard",
        )
        for i in reversed(range(count))
    ]
    places = [((0, 0, 8, 8), regions[:1]), ((8, 0, 16, 8), regions[1:])]
    cells = [Cell(place=place, box=(0, 0, 8, 8), regions=part) for place, part in places if part]
    return MosaicHeader(frame=(100, 80), size=(16, 8), cells=cells)


def answer(parts: list[tuple[str, float, float]], first: int = 0) -> MosaicAnswer:
    regions = [
        RegionAnswer(index=first + i, label=label, score=score, margin=margin)
        for i, (label, score, margin) in enumerate(parts)
    ]
    return MosaicAnswer(task="classification", regions=regions)


@given(said)
def test_every_region_keeps_its_label_and_its_numbers_to_a_tenth_of_a_thousandth(
    parts: list[tuple[str, float, float]],
) -> None:
    asked, given_ = header(len(parts), first=7), answer(parts, first=7)
    made = columns(asked, given_)
    assert made is not None
    back = rows(asked, msgspec.json.decode(msgspec.json.encode(made), type=AnswerColumns))
    assert {one.index: one.label for one in back.regions} == {one.index: one.label for one in given_.regions}
    kept = {one.index: one for one in back.regions}
    for one in given_.regions:
        assert abs(kept[one.index].score - one.score) <= 5.1e-5
        assert abs(kept[one.index].margin - one.margin) <= 5.1e-5


def test_a_region_takes_less_than_half_of_the_bytes() -> None:
    parts = [("clean" if i % 3 else "short", 0.987654 - i / 1000, 0.954321 - i / 1000) for i in range(12)]
    made = columns(header(12), answer(parts))
    assert made is not None
    assert 2 * len(msgspec.json.encode(made)) < len(msgspec.json.encode(answer(parts)))


def test_only_a_classifiers_answer_about_exactly_these_regions_goes_in_columns() -> None:
    found = MosaicAnswer(
        task="detection", found=[Found(cell=0, box=(0.0, 0.0, 8.0, 8.0), label="a", score=1, margin=1)]
    )
    one = answer([("a", 0.5, 0.5)])
    twice = replace(one, regions=one.regions * 2)
    for other in (found, answer([("a", 0.5, 0.5)], first=3), answer([("a", 0.5, 0.5)] * 2), twice):
        assert columns(header(1), other) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": [0]}, "lengths"),
        ({"scores": [1, 2, 3]}, "lengths"),
        ({"margins": []}, "lengths"),
        ({"label": [0, 1]}, "none of its 1"),
        ({"labels": []}, "none of its 0"),
    ],
)
def test_columns_that_do_not_belong_together_are_refused(changes: dict[str, object], words: str) -> None:
    made = AnswerColumns(labels=["a"], label=[0, 0], scores=[1, 2], margins=[3, 4])
    with pytest.raises(RegionError, match=words):
        rows(header(2), replace(made, **changes))


@pytest.mark.parametrize("column", [[["a"], [0], [10_001], [0]], [["a"], [-1], [0], [0]], [["a"], [0], [0], [0.5]]])
def test_numbers_out_of_range_are_no_columns(column: list[object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(column), type=AnswerColumns)


# --- on the wire -----------------------------------------------------------------------------------------------------


def test_an_answer_travels_in_columns_to_whoever_understands_them_and_comes_back_whole() -> None:
    sample = replace(SAMPLE, mosaic=header(2))
    full = Answer(sample_id="s", verdict=VERDICT, compute_ms=1.25, mosaic=answer([("a", 0.5, 0.25), ("b", 1.0, 1.0)]))
    sent = msgspec.json.decode(msgspec.json.encode(briefly(sample, full)), type=Answer)
    assert sent.mosaic is None and sent.columns is not None and sent.webp
    back = in_full(sample, sent)
    assert back.columns is None and back.mosaic is not None and full.mosaic is not None
    assert sorted(back.mosaic.regions, key=lambda one: one.index) == full.mosaic.regions
    plain = briefly(replace(sample, brief=False), full)
    assert (plain.mosaic, plain.columns, plain.webp) == (full.mosaic, None, True)
    assert in_full(sample, plain) == plain


def test_an_answer_to_a_whole_picture_says_nothing_of_mosaics() -> None:
    full = Answer(sample_id="s", verdict=VERDICT, compute_ms=1.25)
    assert briefly(SAMPLE, full) == full == in_full(SAMPLE, full)


def test_a_packed_sample_says_that_it_understands_columns() -> None:
    sample = replace(SAMPLE, brief=False, mosaic=header(2))
    wire, payload = packed(sample, b"picture")
    assert wire.brief and unpacked(wire, payload) == (replace(sample, brief=True), b"picture")


def test_columns_that_nobody_asked_for_are_refused() -> None:
    made = columns(header(1), answer([("a", 0.5, 0.5)]))
    sent = Answer(sample_id="s", verdict=VERDICT, compute_ms=1.0, columns=made)
    for sample, one in (
        (SAMPLE, sent),
        (replace(SAMPLE, mosaic=header(1)), replace(sent, mosaic=answer([("a", 0.5, 0.5)]))),
    ):
        with pytest.raises(RegionError, match="twice"):
            in_full(sample, one)
