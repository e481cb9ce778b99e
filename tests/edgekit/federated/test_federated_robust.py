"""Robust aggregates: few bad buckets move nothing, and single updates are never sorted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.federated.errors import FederatedError
from edgekit.federated.robust import Bucket, Robust, combine, split

NODES = [bytes([n]) * 32 for n in range(60)]


def buckets(rows: list[list[float]], size: int = 5) -> list[Bucket]:
    return [
        Bucket(np.array(row, np.float32), frozenset(NODES[size * i : size * (i + 1)])) for i, row in enumerate(rows)
    ]


def test_the_median_and_the_trimmed_mean_are_numpys() -> None:
    rng = np.random.default_rng(1)
    for count in (5, 6):
        rows = rng.standard_normal((count, 9)).astype(np.float32)
        median = combine(buckets(rows.tolist()), Robust(kind="median", buckets=count))
        trimmed = combine(buckets(rows.tolist()), Robust(kind="trimmed-mean", buckets=count, trim=1))
        np.testing.assert_allclose(median.mean, np.median(rows, axis=0), rtol=1e-6)
        np.testing.assert_allclose(trimmed.mean, np.sort(rows, axis=0)[1:-1].mean(axis=0), rtol=1e-5, atol=1e-7)
        assert median.survivors == 5 * count


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5),
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=2),
)
def test_fewer_than_half_of_the_buckets_cannot_move_a_median_out_of_the_others_range(
    good: list[float], bad: list[float]
) -> None:
    rows = [[value] for value in good + bad]
    for settings in (Robust(kind="median", buckets=7), Robust(kind="trimmed-mean", buckets=7, trim=2)):
        found = float(combine(buckets(rows), settings).mean[0])
        assert min(good) - 1e-6 <= found <= max(good) + 1e-6


def test_the_order_of_the_buckets_changes_no_bit() -> None:
    rows = np.random.default_rng(2).standard_normal((7, 200)).astype(np.float32).tolist()
    settings = Robust(kind="trimmed-mean", buckets=7, trim=2)
    one, two = combine(buckets(rows), settings).mean, combine(buckets(rows)[::-1], settings).mean
    np.testing.assert_array_equal(one, two)


def test_single_updates_are_refused() -> None:
    with pytest.raises(FederatedError, match="single updates"):
        combine(buckets([[0.0]] * 5, size=1), Robust(kind="median", buckets=5))


def test_overlapping_buckets_are_refused() -> None:
    these = buckets([[0.0]] * 5)
    these[1] = Bucket(these[1].mean, these[1].devices | {NODES[0]})
    with pytest.raises(FederatedError, match="subtracted"):
        combine(these, Robust(kind="median", buckets=5))


def test_a_void_bucket_is_borne_down_to_what_the_trim_needs() -> None:
    settings = Robust(kind="trimmed-mean", buckets=7, trim=2)
    combine(buckets([[0.0]] * 5), settings)
    with pytest.raises(FederatedError, match="4 sums; 5 to 7"):
        combine(buckets([[0.0]] * 4), settings)


@pytest.mark.parametrize(
    "changes", [{"kind": "trimmed-mean"}, {"kind": "trimmed-mean", "trim": 3}, {"kind": "median", "trim": 1}]
)
def test_settings_that_trim_nothing_or_everything_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(FederatedError):
        Robust(buckets=6, **changes)  # type: ignore[arg-type]


def test_devices_are_dealt_evenly_and_otherwise_with_another_seed() -> None:
    dealt = split(NODES, 7, b"one")
    assert sorted(node for bucket in dealt for node in bucket) == NODES
    assert {len(bucket) for bucket in dealt} == {8, 9}
    assert dealt == split(NODES[::-1], 7, b"one") != split(NODES, 7, b"two")
