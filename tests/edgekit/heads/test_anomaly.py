"""Anomalies by maps: a strange place is found, good parts pass at the promised rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.heads.anomaly import AnomalyModel, GaussianMap, NearestMap, limit, part_scores
from edgekit.heads.statistics import HeadError

PATTERN = np.random.default_rng(1).standard_normal((8, 10, 6))


def good(seed: int, count: int) -> np.ndarray:
    return PATTERN + 0.2 * np.random.default_rng(seed).standard_normal((count, *PATTERN.shape))


def models() -> list[AnomalyModel]:
    return [GaussianMap.of(good(0, 40)), NearestMap.of(good(0, 40), 800, np.random.default_rng(0))]


@pytest.mark.parametrize("model", models(), ids=["gaussian", "nearest"])
def test_a_strange_place_stands_out(model: AnomalyModel) -> None:
    parts = good(1, 20)
    parts[10:, 4, 7] += 3.0
    scores = model.scores(parts)
    whole = part_scores(scores)
    assert whole[10:].min() > whole[:10].max()
    assert all(np.unravel_index(part.argmax(), part.shape) == (4, 7) for part in scores[10:])


@given(st.integers(0, 1000))
def test_good_parts_pass_at_the_promised_rate(seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(199)
    level = limit(values, 0.05)
    assert (values > level).sum() == 9


def test_too_few_good_parts_give_no_limit() -> None:
    with pytest.raises(HeadError, match="19 can"):
        limit(np.ones(18), 0.05)
    assert limit(np.arange(19.0), 0.05) == 18.0


def test_the_coreset_covers_what_is_rare() -> None:
    maps = np.zeros((1, 20, 50, 3), np.float32)
    maps[0, 3, 3] = (9.0, 0.0, 0.0)
    maps[0, 5, 8] = (0.0, 9.0, 0.0)
    bank = NearestMap.of(maps, 3, np.random.default_rng(0))
    assert bank.scores(maps).max() < 1e-3


def test_a_bank_is_never_larger_than_asked() -> None:
    assert len(NearestMap.of(good(0, 3), 50, np.random.default_rng(0)).bank) == 50
    assert len(NearestMap.of(good(0, 1), 5000, np.random.default_rng(0)).bank) == 80


@pytest.mark.parametrize(
    "maps", [np.ones((2, 3, 4)), np.ones((0, 2, 2, 2)), np.full((2, 2, 2, 2), np.nan), np.ones((2, 65, 64, 1))]
)
def test_maps_that_cannot_be_are_refused(maps: np.ndarray) -> None:
    with pytest.raises(HeadError):
        GaussianMap.of(maps)


def test_maps_of_another_shape_than_learned_are_refused() -> None:
    for model in models():
        with pytest.raises(HeadError):
            model.scores(np.ones((1, 8, 10, 5)))
