from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.regions.cutouts import ALIGN, EXACT, Context, cut_outs, mapped, region, view
from edgekit.regions.header import RegionError
from edgekit.regions.select import Candidate


def test_a_view_has_a_share_of_the_box_around_it_and_so_many_pixels_at_least() -> None:
    assert view((100.0, 100.0, 180.0, 120.0), Context(0.25, 8), 640, 480) == (80, 92, 200, 128)
    assert view((1.0, 1.0, 5.5, 5.5), Context(0.25, 8), 640, 480) == (0, 0, 14, 14)
    assert view((600.2, 470.0, 640.0, 480.0), Context(0.0, 0), 640, 480) == (600, 470, 640, 480)
    assert view((0, 0, 64, 64), EXACT, 640, 480) == (0, 0, 64, 64)


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 5), (5, 0, 4, 9), (640, 0, 650, 9), (-9, 0, 0, 9), (0, math.nan, 5, 5), (0, 0, math.inf, 5)]
)
def test_a_box_without_area_in_the_frame_has_no_view(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(RegionError, match="box"):
        view(box, Context(), 640, 480)


def test_a_region_is_ready_to_be_sent() -> None:
    one = region(7, Candidate((10.0, 10.0, 20.0, 20.0), "open", 0.1234567891, 0.5), "hard", EXACT, 640, 480)
    assert (one.index, one.view, one.score, one.reason) == (7, (10, 10, 20, 20), 0.123457, "hard")


def test_two_views_that_share_most_pixels_are_cut_out_once() -> None:
    near, far = (0, 0, 64, 64), (400, 400, 464, 464)
    (both, alone) = cut_outs([near, far, (8, 8, 72, 72)])
    assert (both.box, both.members) == ((0, 0, 72, 72), (0, 2))
    assert (alone.box, alone.members) == (far, (1,))


def test_a_corner_in_common_is_no_reason_to_send_what_lies_between() -> None:
    assert len(cut_outs([(0, 0, 64, 64), (56, 56, 120, 120)])) == 2


def test_nothing_grows_beyond_the_longest_but_what_is_longer_is_not_sent_twice() -> None:
    assert len(cut_outs([(0, 0, 300, 40), (100, 0, 400, 40)], longest=320)) == 2
    assert len(cut_outs([(0, 0, 600, 600), (0, 0, 600, 600), (50, 50, 90, 90)], longest=320)) == 1


views = st.tuples(*[st.integers(0, 300)] * 2, *[st.integers(1, 120)] * 2).map(
    lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])
)


@given(st.lists(views, max_size=24))
@settings(max_examples=60)
def test_every_view_is_whole_in_one_cut_out_and_fewer_pixels_are_sent(boxes: list[tuple[int, int, int, int]]) -> None:
    cuts = cut_outs(boxes)
    assert sorted(i for cut in cuts for i in cut.members) == list(range(len(boxes)))
    for cut in cuts:
        inside = [boxes[i] for i in cut.members]
        assert cut.box == (*np.min(inside, axis=0)[:2], *np.max(inside, axis=0)[2:])

    def sent(box: tuple[int, int, int, int]) -> int:
        return math.ceil((box[2] - box[0]) / ALIGN) * math.ceil((box[3] - box[1]) / ALIGN)

    assert sum(sent(cut.box) for cut in cuts) <= sum(sent(box) for box in boxes)
    assert cut_outs(boxes) == cuts


@given(
    st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 4), min_size=1, max_size=5),
    st.tuples(*[st.integers(0, 4000)] * 2, *[st.integers(1, 2000)] * 2),
    st.floats(0.05, 1),
)
def test_mapping_there_and_back_changes_nothing(
    boxes: list[tuple[float, ...]], place: tuple[int, int, int, int], scale: float
) -> None:
    left, top, across, down = place
    source = (left, top, left + across, top + down)
    target = (3, 5, 3 + math.ceil(across * scale), 5 + math.ceil(down * scale))
    assert mapped(mapped(boxes, source, target), target, source) == pytest.approx(np.array(boxes), abs=1e-6)
    assert mapped([source], source, target) == pytest.approx(np.array([target]), abs=1e-9)
