"""The few cuts that are kept leave little to wish for, whatever the link."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloudd.split.choice import choose
from edgekit.splitting.cuts import Cut, candidates

PICTURE = 150_528
MOBILENET = [(7, 0.137, 1_204_224), (10, 0.171, 75_264), (21, 0.31, 25_088), (38, 0.409, 12_544), (99, 0.996, 1_280)]
"""Cuts of a MobileNetV2: nodes in the head, its share of the work, bytes."""


def cuts(*rows: tuple[int, float, int]) -> list[Cut]:
    return [Cut(index=index, tensors=(), work=work, bytes=4 * size, wire_bytes=size) for index, work, size in rows]


def names(chosen: list[Cut]) -> list[int]:
    return [cut.index for cut in chosen]


def test_a_model_without_a_cut_has_nothing_to_choose() -> None:
    assert choose([], 4, False, PICTURE) == []


def test_all_that_are_worth_it_are_kept_from_the_earliest_to_the_latest() -> None:
    assert names(choose(cuts(*MOBILENET), 7, False, PICTURE)) == [10, 21, 38, 99]


def test_a_map_larger_than_the_picture_is_worth_nothing_on_any_link() -> None:
    assert 7 not in names(choose(cuts(*MOBILENET), 4, False, PICTURE))


def test_fewer_cuts_keep_both_slow_and_fast_links() -> None:
    kept = names(choose(cuts(*MOBILENET), 2, False, PICTURE))
    assert len(kept) == 2 and kept[0] in (10, 21) and kept[1] in (38, 99)


def test_a_device_that_has_the_whole_model_needs_no_cut_that_leaves_nothing_over() -> None:
    assert 99 not in names(choose(cuts(*MOBILENET), 7, True, PICTURE))


@given(
    rows=st.lists(st.tuples(st.floats(0.01, 1.0), st.integers(1, 10**6)), min_size=1, max_size=12),
    count=st.integers(1, 7),
    whole=st.booleans(),
)
def test_what_is_chosen_is_on_the_front_in_order_and_not_more_than_asked(
    rows: list[tuple[float, int]], count: int, whole: bool
) -> None:
    ordered = sorted(rows)
    all_cuts = cuts(*((index + 1, work, size) for index, (work, size) in enumerate(ordered)))
    chosen = choose(all_cuts, count, whole, PICTURE)
    front = names(candidates(all_cuts))
    assert 1 <= len(chosen) <= count
    assert set(names(chosen)) <= set(front)
    assert names(chosen) == sorted(names(chosen))


@given(st.lists(st.tuples(st.floats(0.1, 1.0), st.integers(100, 10**6)), min_size=5, max_size=12, unique=True))
def test_four_cuts_are_at_least_as_good_as_the_best_single_one(rows: list[tuple[float, int]]) -> None:
    all_cuts = cuts(*((index + 1, work, size) for index, (work, size) in enumerate(sorted(rows))))

    def behind(kept: list[Cut]) -> float:
        def cost(some: list[Cut], link: float) -> float:
            return min(cut.work + (1 - cut.work) / 8 + cut.wire_bytes / PICTURE * link for cut in some)

        return max(cost(kept, link) / cost(all_cuts, link) for link in np.logspace(-2, 1.5, 36))

    four, one = (behind(choose(all_cuts, count, False, PICTURE)) for count in (4, 1))
    assert four <= one + 1e-9
