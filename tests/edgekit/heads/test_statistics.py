"""Sums that heads are made of: additive, removable, and the same over any partition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.heads.statistics import CLIP, HeadError, Standardiser, Statistics

LABELS = ("clean", "short", "open")


def samples(seed: int, count: int, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, len(LABELS), count)
    return rng.standard_normal((count, width)) + classes[:, None], classes


def same(one: Statistics, other: Statistics) -> bool:
    arrays = ("counts", "sums", "products")
    return one.labels == other.labels and all(
        np.allclose(getattr(one, name), getattr(other, name), atol=1e-9) for name in arrays
    )


@given(st.integers(0, 10_000), st.integers(0, 40), st.integers(0, 40))
def test_the_sum_of_parts_is_the_sum_of_all(seed: int, first: int, second: int) -> None:
    x, c = samples(seed, first + second)
    whole = Statistics.of(x, c, LABELS)
    parts = Statistics.of(x[:first], c[:first], LABELS) + Statistics.of(x[first:], c[first:], LABELS)
    assert same(whole, parts)


@given(st.integers(0, 10_000))
def test_a_site_can_be_taken_out_again(seed: int) -> None:
    ours, theirs = (Statistics.of(*samples(seed + k, 30), LABELS) for k in (0, 1))
    assert same((ours + theirs) - theirs, ours)


def test_more_cannot_be_taken_out_than_is_in() -> None:
    few, many = (Statistics.of(*samples(1, count), LABELS) for count in (6, 60))
    with pytest.raises(HeadError, match="more samples"):
        few - many


@given(st.permutations(LABELS), st.integers(0, 1000))
def test_sites_may_know_other_labels_in_another_order(order: list[str], seed: int) -> None:
    x, c = samples(seed, 30)
    here = Statistics.of(x, c, LABELS)
    mapped = [order.index(LABELS[k]) for k in c]
    there = Statistics.of(x, mapped, [*order, "new"])
    total = here + there
    assert set(total.labels) == {*LABELS, "new"}
    assert np.allclose(total.for_labels([*LABELS, "new"]).sums[:3], 2 * here.sums)


def test_a_class_with_samples_is_not_left_out() -> None:
    with pytest.raises(HeadError, match="short"):
        Statistics.of(np.ones((2, 3)), [0, 1], LABELS).for_labels(["clean"])


@given(st.integers(0, 10_000), st.integers(0, 30))
def test_a_vector_and_back_is_the_same(seed: int, count: int) -> None:
    statistics = Statistics.of(*samples(seed, count), LABELS)
    assert same(Statistics.from_vector(statistics.vector(), LABELS, 5), statistics)


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(HeadError, match="need"):
        Statistics.from_vector(np.zeros(7), LABELS, 5)


def test_the_pooled_covariance_is_that_of_the_residuals() -> None:
    x, c = samples(3, 200)
    statistics = Statistics.of(x, c, LABELS)
    residuals = x - statistics.means[c]
    assert np.allclose(statistics.within, residuals.T @ residuals / len(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_feature_that_is_no_number_is_refused(bad: float) -> None:
    x = np.ones((3, 4))
    x[1, 2] = bad
    with pytest.raises(HeadError, match="not a number"):
        Statistics.of(x, [0, 1, 2], LABELS)


def test_classes_out_of_range_are_refused() -> None:
    with pytest.raises(HeadError, match="from 0 to 2"):
        Statistics.of(np.ones((1, 4)), [3], LABELS)


def test_a_far_out_feature_is_cut() -> None:
    standardise = Standardiser.of(samples(1, 100)[0])
    assert standardise(np.full((1, 5), 1e12)).max() == CLIP


def test_a_feature_that_never_varies_does_no_harm() -> None:
    x = samples(1, 10)[0]
    x[:, 0] = 7.0
    assert np.isfinite(Standardiser.of(x)(x)).all()
