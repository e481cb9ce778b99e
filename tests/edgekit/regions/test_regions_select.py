from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.regions.header import MAX_REGIONS, NOTHING
from edgekit.regions.select import Candidate, from_detections, from_tiles, select
from edgekit.vision.detection.boxes import Detections, margins_of

NAMES = ["helmet", "vest"]


def detections(rows: list[tuple[float, float, float, float, float, int]], report: float = 0.5) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    scores = table[:, 4]
    return Detections(table[:, :4], scores, table[:, 5].astype(np.int32), margins_of(scores, 0 * scores, report))


def test_boxes_under_the_threshold_are_candidates_of_nothing() -> None:
    found = detections([(0, 0, 10, 10, 0.9, 0), (20, 0, 30, 10, 0.4, 1), (40, 0, 50, 10, 0.04, 0)])
    sure, doubtful = from_detections(found, NAMES, 0.5, 100, 100)
    assert (sure.label, sure.box) == ("helmet", (0.0, 0.0, 10.0, 10.0))
    assert sure.score == pytest.approx(0.9) and sure.margin == pytest.approx(0.8)
    assert doubtful.label == NOTHING
    assert doubtful.score == pytest.approx(0.6) and doubtful.margin == pytest.approx(0.2)


def test_a_missed_object_just_under_the_threshold_is_the_first_to_be_asked_about() -> None:
    found = detections([(0, 0, 10, 10, 0.95, 0), (20, 0, 30, 10, 0.48, 1), (40, 0, 50, 10, 0.06, 0)])
    assert select(from_detections(found, NAMES, 0.5, 100, 100), most=1).asked == [1]


def test_boxes_are_clipped_and_what_is_no_box_is_no_candidate() -> None:
    rows = [(-5, -5, 200, 50, 0.9, 0), (120, 0, 130, 10, 0.9, 0), (5, 5, 5, 9, 0.9, 0), (np.nan, 0, 10, 10, 0.9, 0)]
    (only,) = from_detections(detections(rows), NAMES, 0.5, 100, 100)
    assert only.box == (0.0, 0.0, 100.0, 50.0)
    assert not from_detections(detections([(0, 0, 9, 9, np.nan, 0)]), NAMES, 0.5, 100, 100)


def test_an_impossible_floor_is_refused() -> None:
    for floor, report in ((0.6, 0.5), (0.1, 1.0), (-0.1, 0.5), (0.0, 0.0)):
        with pytest.raises(ValueError, match="floor"):
            from_detections(detections([]), NAMES, report, 100, 100, floor)


def test_every_tile_is_a_candidate() -> None:
    tiles = [SimpleNamespace(label="clean", score=0.2, margin=0.01, region=(0, 0, 8, 8))]
    assert from_tiles(tiles) == [Candidate((0, 0, 8, 8), "clean", 0.2, 0.01)]
    with pytest.raises(ValueError, match="region"):
        from_tiles([SimpleNamespace(label="clean", score=0.2, margin=0.01, region=None)])


margins = st.one_of(st.floats(0, 1), st.just(float("nan")))


@given(st.lists(st.tuples(margins, st.integers(0, 9), st.integers(0, 9)), max_size=40), st.integers(1, 45))
def test_the_hardest_are_asked_about_and_every_other_one_is_named(
    rows: list[tuple[float, int, int]], most: int
) -> None:
    candidates = [Candidate((x, y, x + 1, y + 1), "a", 0.5, margin) for margin, x, y in rows]
    selection = select(candidates, most)
    assert sorted(selection.asked + selection.rest) == list(range(len(rows)))
    assert len(selection.asked) == min(most, len(rows))
    places = [(candidates[i].box[1], candidates[i].box[0]) for i in selection.asked]
    assert places == sorted(places)
    hardness = [1.0 if margin != margin else 1 - margin for margin, *_ in rows]
    if selection.rest:
        assert min(hardness[i] for i in selection.asked) >= max(hardness[i] for i in selection.rest)


def test_more_than_a_header_can_hold_cannot_be_asked_for() -> None:
    for most in (0, MAX_REGIONS + 1):
        with pytest.raises(ValueError, match="regions"):
            select([], most)
