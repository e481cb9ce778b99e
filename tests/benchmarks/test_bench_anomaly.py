"""The anomaly benchmark's own arithmetic; its figures are for a quiet machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.anomaly import Effort, Product, auroc, measured, products, verdict
from benchmarks.anomaly_features import STRIDE, Network, Statistics

EFFORT = Effort(folds=2, bank=50, epochs=1, side=64, board_side=64)


def picture(seed: int, spot: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = np.full((64, 64, 3), 120, np.uint8)
    found[20:44, 16:48] = (40, 160, 60)
    found = np.clip(found + rng.normal(0, 3, found.shape), 0, 255).astype(np.uint8)
    if spot:
        found[24:40, 24:40] = 255
    return found


def test_auroc_is_the_chance_that_an_anomalous_part_scores_above_a_good_one() -> None:
    assert auroc([1.0, 2.0], [3.0, 4.0]) == 1.0
    assert auroc([1.0, 2.0], [1.0, 2.0]) == 0.5
    assert auroc([1.0, 3.0], [2.0]) == 0.5
    assert auroc([5.0], [1.0]) == 0.0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_auroc_is_turned_round_with_its_sides(good: list[int], anomalous: list[int]) -> None:
    assert auroc(good, anomalous) == pytest.approx(1 - auroc(anomalous, good))


@pytest.mark.parametrize("twins", [True, False])
def test_a_spot_is_found_by_every_method(twins: bool) -> None:
    product = Product("toy", [picture(i) for i in range(9)], [picture(50 + i, spot=True) for i in range(9)], twins)
    for extractor in (Network("random", {}, 64), Statistics()):
        rows = measured(product, extractor, EFFORT)
        assert [row["model"] for row in rows] == ["gaussian", "nearest"]
        assert all(row["auroc"] == 1.0 and row["good"] == 9 and row["fit_s"] > 0 for row in rows)


def test_maps_have_one_place_for_every_eight_pixels_and_no_nan() -> None:
    for extractor, depth in ((Network("random", {}, 64), 192), (Statistics(), 18)):
        for seen in (picture(0), np.zeros((64, 64, 3), np.uint8)):
            maps = extractor(seen)
            assert maps.shape == (64 // STRIDE, 64 // STRIDE, depth) and np.isfinite(maps).all()


def test_trained_weights_change_the_maps() -> None:
    plain = Network("random", {}, 64)
    other = Network("trained", {"stage4.norm.bias": np.full(96, 0.5, np.float32)}, 64)
    assert np.abs(plain(picture(0)) - other(picture(0))).max() > 0.1


def row(product: str, features: str, model: str, value: float, fits: bool) -> dict[str, Any]:
    return {"product": product, "features": features, "model": model, "auroc": value, "fits": fits}


def test_the_figure_is_that_of_the_method_that_fits_and_not_of_the_best() -> None:
    rows = [
        row("a", "trained", "gaussian", 0.8, True),
        row("b", "trained", "nearest", 0.6, True),
        row("b", "trained", "gaussian", 0.9, False),
        row("a", "random", "gaussian", 1.0, False),
    ]
    found = verdict(rows)
    assert found["auroc_mean"] == pytest.approx(0.7) and found["auroc_min"] == 0.6
    assert found["auroc"] == {"a": 0.8, "b": 0.6}
    assert found["methods"] == pytest.approx(
        {"trained, gaussian": 0.85, "trained, nearest": 0.6, "random, gaussian": 1.0}
    )


def test_the_model_follows_how_the_parts_lie() -> None:
    for twins, model in ((False, "gaussian"), (True, "nearest")):
        product = Product("toy", [picture(i) for i in range(4)], [picture(9, spot=True)] * 4, twins)
        rows = measured(product, Network("trained", {}, 64), EFFORT)
        assert [row["model"] for row in rows if row["fits"]] == [model]
        assert not any(row["fits"] for row in measured(product, Statistics(), EFFORT))


def test_the_products_are_those_of_the_data(real_data: Path) -> None:
    found = next(iter(products(real_data, EFFORT, "circuitboard")))
    assert (len(found.good), len(found.anomalous), found.twins) == (20, 20, False)
    boards = next(iter(products(real_data, EFFORT, "pcb-bare")))
    assert len(boards.good) == len(boards.anomalous) == 60 and boards.twins
