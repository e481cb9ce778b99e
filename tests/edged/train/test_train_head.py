from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.train.head import Labelled, cross_validated, new_head
from edgekit.graphs.errors import NetworkError
from edgekit.graphs.logits import LastLayer

FEATURES = 6


def old_layer(classes: int, scale: float = 1.0) -> LastLayer:
    """A layer whose class k likes feature k."""
    weight = np.zeros((classes, FEATURES))
    weight[:, :classes] = np.eye(classes) * 4 * scale
    return LastLayer(None, None, "x", weight, np.zeros(classes))  # type: ignore[arg-type]


def clusters(counts: list[int], seed: int = 0) -> Labelled:
    """Class k has feature k at 2 and noise."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(len(counts)), counts)
    rows = rng.normal(0, 0.4, (len(classes), FEATURES))
    rows[np.arange(len(classes)), classes] += 2
    return Labelled(rows, classes.astype(np.int64))


def answers(head: object, rows: np.ndarray) -> np.ndarray:
    return (rows @ head.weight.T + head.bias).argmax(axis=1)  # type: ignore[attr-defined]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), few=st.integers(5, 20))
def test_old_and_new_classes_are_found(seed: int, few: int) -> None:
    head = new_head(
        old_layer(3), ["a", "b", "c", "new"], clusters([40, 40, 40, few], seed), clusters([9] * 4, seed + 1)
    )
    fresh = clusters([50] * 4, seed + 2)
    assert (answers(head, fresh.features) == fresh.classes).mean() > 0.95 and head.notes == ()


def test_its_probabilities_are_as_sure_as_they_are_right() -> None:
    """Overlapping classes: the mean of the best probability is the share of right answers."""
    learn, choose, fresh = (clusters([200] * 3, seed) for seed in (1, 2, 3))
    for one in (learn, choose, fresh):
        one.features[:] += np.random.default_rng(len(one.features)).normal(0, 1.5, one.features.shape)
    head = new_head(old_layer(3), ["a", "b", "c"], learn, choose)
    logits = fresh.features @ head.weight.T + head.bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    right = (logits.argmax(axis=1) == fresh.classes).mean()
    assert 0.5 < right < 0.95 and abs(shares.max(axis=1).mean() - right) < 0.05


def test_few_pictures_without_a_mistake_do_not_make_a_head_that_is_sure_of_everything() -> None:
    learn, choose = clusters([20] * 3), clusters([8] * 3, 1)
    head = new_head(old_layer(3), ["a", "b", "c"], learn, choose)
    logits = choose.features @ head.weight.T + head.bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    best = (shares / shares.sum(axis=1, keepdims=True)).max(axis=1)
    assert (logits.argmax(axis=1) == choose.classes).all() and best.mean() < 0.995 and best.min() < 0.98


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_a_class_without_labels_is_still_found_whatever_the_scale_of_the_old_layer(scale: float) -> None:
    learn = clusters([40, 0, 40, 20])
    head = new_head(old_layer(3, scale), ["a", "b", "c", "new"], learn, clusters([0, 0, 0, 0]))
    fresh = clusters([50] * 4, 9)
    said = answers(head, fresh.features)
    assert (said[fresh.classes == 1] == 1).mean() > 0.6 and (said == fresh.classes).mean() > 0.85
    assert '"b"' in head.notes[0] and "kept what the model had learned" in head.notes[0]


@pytest.mark.parametrize(
    ("counts", "says"),
    [([40, 40, 40, 1], 'new class "new" has 1 pictures'), ([0, 0, 0, 30], "two classes")],
)
def test_too_few_labels_are_refused(counts: list[int], says: str) -> None:
    with pytest.raises(NetworkError, match=says):
        new_head(old_layer(3), ["a", "b", "c", "new"], clusters(counts), clusters([5] * 4))


def test_a_cross_validation_finds_what_heads_without_the_fold_find() -> None:
    these, folds = clusters([40, 40, 40]), np.tile(np.arange(5), 24)
    assert cross_validated(these, folds, 3) > 0.95
    blurred = Labelled(these.features + np.random.default_rng(3).normal(0, 1.5, these.features.shape), these.classes)
    assert 0.4 < cross_validated(blurred, folds, 3) < 0.9


def test_a_class_of_one_fold_is_not_found_in_a_cross_validation() -> None:
    """All its pictures are of one board: what one of them teaches says nothing about boards that nobody has seen."""
    these = clusters([40, 40, 40])
    folds = np.where(these.classes == 2, 0, np.arange(120) % 5)
    assert cross_validated(these, folds, 3) == pytest.approx(2 / 3, abs=0.03)
    assert cross_validated(these, np.zeros(120, np.int64), 3) == 0.0


def test_features_that_say_nothing_make_a_cross_validation_worse() -> None:
    these = clusters([15, 15, 15])
    noise = np.random.default_rng(4).normal(size=(45, 200))
    wide = Labelled(np.concatenate([noise, these.features + noise[:, :FEATURES] * 0.8], axis=1), these.classes)
    folds = np.arange(45) % 5
    assert cross_validated(wide, folds, 3) < cross_validated(wide.last(FEATURES), folds, 3) - 0.05
