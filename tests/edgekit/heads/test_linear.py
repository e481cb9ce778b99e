"""The shrinkage LDA head: exact where it must be, fair to rare classes, the same from masked sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.heads import linear
from edgekit.heads.linear import blended, lda, shrinkage
from edgekit.heads.statistics import HeadError, Standardiser, Statistics

LABELS = ("clean", "short", "open")
WIDTH = 12
CENTRES = np.random.default_rng(5).standard_normal((3, WIDTH)) * 2.0


def samples(seed: int, counts: tuple[int, ...], shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(len(counts)), counts)
    return rng.standard_normal((len(classes), WIDTH)) + CENTRES[classes] + shift, classes


def recalls(head: object, seed: int = 99, shift: float = 0.0) -> list[float]:
    x, c = samples(seed, (300, 300, 300), shift)
    answers = head.logits(x).argmax(1)  # type: ignore[attr-defined]
    return [float(np.mean(answers[c == k] == k)) for k in range(3)]


def test_it_separates_what_can_be_separated() -> None:
    assert min(recalls(lda(Statistics.of(*samples(0, (300, 300, 300)), LABELS)))) > 0.95


def test_a_rare_class_is_not_ignored() -> None:
    assert min(recalls(lda(Statistics.of(*samples(0, (2000, 300, 20)), LABELS)))) > 0.85


def test_the_shrinkage_follows_the_smallest_class() -> None:
    assert shrinkage(Statistics.of(*samples(0, (100, 100, 20)), LABELS)) == pytest.approx(3 / 20)
    assert shrinkage(Statistics.of(*samples(0, (100, 1)), LABELS)) == 1.0


def test_without_shrinkage_it_is_the_textbook_discriminant() -> None:
    x, c = samples(0, (200, 200, 200))
    statistics = Statistics.of(x, c, LABELS)
    inverse = np.linalg.inv(statistics.within)
    weight = statistics.means @ inverse
    head = lda(statistics, 0.0)
    assert np.allclose(head.weight, weight, atol=1e-3)
    assert np.allclose(head.bias, -0.5 * np.einsum("cd,cd->c", weight, statistics.means), atol=1e-2)


def test_a_class_without_samples_is_not_in_the_head() -> None:
    assert lda(Statistics.of(*samples(0, (30, 30)), LABELS)).labels == ("clean", "short")


def test_one_class_makes_no_head() -> None:
    with pytest.raises(HeadError, match="two classes"):
        lda(Statistics.of(*samples(0, (30,)), LABELS))


def test_more_features_than_samples_still_make_a_head() -> None:
    head = lda(Statistics.of(*samples(0, (3, 3, 3)), LABELS))
    assert np.isfinite(head.weight).all()


@given(st.integers(0, 1000))
def test_rounding_to_fixed_point_does_not_change_the_answers(seed: int) -> None:
    statistics = Statistics.of(*samples(seed, (60, 60, 20)), LABELS)
    rounded = Statistics.from_vector(np.rint(statistics.vector() * 2**20) / 2**20, LABELS, WIDTH)
    x = samples(seed + 1, (50, 50, 50))[0]
    assert (lda(statistics).logits(x).argmax(1) == lda(rounded).logits(x).argmax(1)).mean() > 0.99


def test_sums_that_nobody_could_have_measured_still_give_finite_numbers() -> None:
    vector = np.random.default_rng(0).standard_normal(3 + 3 * WIDTH + WIDTH * (WIDTH + 1) // 2) * 1e6
    vector[:3] = 5.0
    assert np.isfinite(lda(Statistics.from_vector(vector, LABELS, WIDTH)).weight).all()


def test_the_head_on_raw_features_answers_as_that_on_standardised_ones() -> None:
    x, c = samples(0, (100, 100, 100))
    x = x * np.linspace(0.1, 40.0, WIDTH) + 7.0
    standardise = Standardiser.of(x)
    head = lda(Statistics.of(standardise(x), c, LABELS))
    assert np.allclose(head.logits(standardise(x)), head.on_raw(standardise).logits(x), atol=1e-6)


def test_the_temperature_makes_probabilities_honest_and_keeps_the_answers() -> None:
    head = lda(Statistics.of(*samples(0, (20, 20, 20)), LABELS), 0.0)
    x, c = samples(1, (200, 200, 200))
    x = x * 0.3
    tempered = head.tempered(x, c)
    assert (tempered.logits(x).argmax(1) == head.logits(x).argmax(1)).all()

    def loss(of: object) -> float:
        return -float(np.mean(np.log(of.probabilities(x)[np.arange(len(x)), c] + 1e-300)))  # type: ignore[attr-defined]

    assert loss(tempered) < loss(head)
    confidence = tempered.probabilities(x).max(1).mean()
    accuracy = (tempered.logits(x).argmax(1) == c).mean()
    assert abs(confidence - accuracy) < 0.08


def test_a_new_scene_with_few_labels_uses_both_sides() -> None:
    source = Statistics.of(*samples(0, (500, 500, 500)), LABELS)
    scene = Statistics.of(*samples(1, (8, 8, 8), shift=1.2), LABELS)
    both = np.mean(recalls(blended(source, scene), shift=1.2))
    assert both >= np.mean(recalls(lda(scene), shift=1.2)) - 0.01
    assert both >= np.mean(recalls(lda(source), shift=1.2)) - 0.01


def test_a_class_that_only_the_scene_has_joins() -> None:
    source = Statistics.of(*samples(0, (500, 500)), LABELS[:2])
    x, c = samples(1, (0, 0, 30))
    assert min(recalls(blended(source, Statistics.of(x, c, LABELS)))) > 0.85


@given(st.integers(0, 1000), st.sampled_from([3, 64, 65, 200]))
def test_the_solution_by_its_factor_is_the_one_by_eigenvalues(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    spread = rng.standard_normal((width, width)) * 10.0 ** rng.uniform(-2, 2, width)
    matrix = spread @ spread.T / width + 1e-6 * np.eye(width)
    means = rng.standard_normal((4, width))
    factor = linear._factor(matrix)
    assert factor is not None
    by_factor, by_values = linear._by_factor(factor, means.T).T, linear._by_values(matrix, means)
    assert np.abs(matrix @ by_factor.T - means.T).max() < 1e-4 * np.abs(means).max()
    assert np.abs(by_factor - by_values).max() < 1e-4 * np.abs(by_values).max()


@pytest.mark.parametrize("lowest", [-5.0, -1e-9, 0.0, 1e-9])
def test_what_is_no_covariance_is_solved_by_eigenvalues_that_are_cut(lowest: float) -> None:
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    matrix = (turn * np.r_[lowest, np.linspace(1, 2, WIDTH - 1)]) @ turn.T
    assert linear._factor(matrix) is None
    values = np.linalg.eigvalsh(linear._by_values(matrix, np.eye(WIDTH)))
    assert values.max() == pytest.approx(1e6, rel=1e-3) and values.min() > 0.4


def test_features_that_never_change_do_not_need_the_slow_road() -> None:
    x, c = samples(0, (100, 100, 100))
    x[:, 3] = 7.0
    within = Statistics.of(x, c, LABELS).within
    assert linear._factor(within + 1e-6 * np.eye(WIDTH)) is not None
