from __future__ import annotations

from decimal import Decimal, getcontext
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.gates.binomial import allowed_differences, binomial_cdf, clopper_pearson_upper, smallest_n
from edgekit.gates.certified import ACCEPT_NOTHING, Certificate, Missing, calibrate


def exact_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) with 60 digits."""
    getcontext().prec = 60
    good, bad = Decimal(p), 1 - Decimal(p)
    return float(sum((comb(n, i) * good**i * bad ** (n - i) for i in range(k + 1)), Decimal(0)))


@pytest.mark.parametrize(
    ("k", "n", "p"), [(3, 400, 0.02), (14, 1000, 0.02), (0, 230, 0.01), (60, 1000, 0.05), (7, 9, 0.3)]
)
def test_binomial_cdf_agrees_with_sixty_digits(k: int, n: int, p: float) -> None:
    assert binomial_cdf(k, n, p) == pytest.approx(exact_cdf(k, n, p), rel=1e-10)


def test_binomial_cdf_stays_exact_for_a_hundred_thousand_samples() -> None:
    n, p = 100_000, 0.001
    for k in (60, 90, 100):
        assert binomial_cdf(k, n, p) == pytest.approx(exact_cdf(k, n, p), rel=1e-8)
    assert binomial_cdf(50_000, n, 0.5) == pytest.approx(0.5 + comb(n, n // 2) / 2 ** (n + 1), rel=1e-8)


@pytest.mark.parametrize("n", [1, 2, 10, 115, 1000, 100_000])
@pytest.mark.parametrize("delta", [0.001, 0.05, 0.1, 0.5])
def test_clopper_pearson_has_its_closed_forms(n: int, delta: float) -> None:
    assert clopper_pearson_upper(0, n, delta) == pytest.approx(1 - delta ** (1 / n), rel=1e-8)
    assert clopper_pearson_upper(n, n, delta) == 1.0
    if n > 1:
        assert clopper_pearson_upper(n - 1, n, delta) == pytest.approx((1 - delta) ** (1 / n), rel=1e-8)


def test_clopper_pearson_has_published_values() -> None:
    # Upper ends of two-sided 95 % intervals.
    assert clopper_pearson_upper(5, 100, 0.025) == pytest.approx(0.112835, abs=1e-6)
    assert clopper_pearson_upper(10, 100, 0.025) == pytest.approx(0.176223, abs=1e-6)
    assert clopper_pearson_upper(1, 10, 0.025) == pytest.approx(0.445016, abs=1e-6)


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0.001, 0.5))
@settings(max_examples=60, deadline=None)
def test_the_bound_is_where_the_tail_equals_delta(n: int, share: float, delta: float) -> None:
    k = min(n - 1, int(share * n))
    upper = clopper_pearson_upper(k, n, delta)
    assert k / n < upper <= 1
    assert binomial_cdf(k, n, upper) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize(("k", "n", "delta"), [(-1, 10, 0.1), (11, 10, 0.1), (0, 0, 0.1), (1, 2, 0.0), (1, 2, 1.0)])
def test_impossible_arguments_are_refused(k: int, n: int, delta: float) -> None:
    with pytest.raises(ValueError, match="Clopper-Pearson needs"):
        clopper_pearson_upper(k, n, delta)


def test_smallest_n_is_the_known_minimum() -> None:
    assert smallest_n(0.01, 0.1) == 230
    assert smallest_n(0.02, 0.1) == 114
    for alpha in (0.01, 0.02, 0.05):
        n = smallest_n(alpha, 0.1)
        assert clopper_pearson_upper(0, n, 0.1) <= alpha < clopper_pearson_upper(0, n - 1, 0.1)


@given(st.integers(1, 5000), st.floats(0.002, 0.3), st.floats(0.01, 0.4))
@settings(max_examples=60, deadline=None)
def test_allowed_differences_is_the_largest_certified_count(n: int, alpha: float, delta: float) -> None:
    k = allowed_differences(n, alpha, delta)
    if k >= 0:
        assert clopper_pearson_upper(k, n, delta) <= alpha * (1 + 1e-9)
    if k + 1 < n:
        assert clopper_pearson_upper(k + 1, n, delta) >= alpha * (1 - 1e-9)


def test_too_few_samples_say_how_many_are_missing() -> None:
    result = calibrate([0.1] * 100, [False] * 100, alpha=0.01, delta=0.1)
    assert isinstance(result, Missing)
    assert result.count == 130
    assert "130 are missing" in result.text


samples = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=60, max_size=400)


@given(samples, st.floats(0.05, 0.3))
@settings(max_examples=100, deadline=None)
def test_the_certificate_is_right_and_the_loosest_possible(pairs: list[tuple[float, bool]], alpha: float) -> None:
    scores, differs = np.array([s for s, _ in pairs]), np.array([d for _, d in pairs])
    result = calibrate(scores, differs, alpha, 0.1)
    assert isinstance(result, Certificate)
    accepted = scores <= result.threshold
    assert result.accepted == accepted.sum()
    assert result.differing == (accepted & differs).sum()
    assert result.bound <= alpha
    if result.accepted:
        assert result.bound == clopper_pearson_upper(result.differing, result.n, 0.1)
    looser = scores[scores > result.threshold]
    if len(looser):
        more = int(((scores <= looser.min()) & differs).sum())
        assert clopper_pearson_upper(more, len(scores), 0.1) > alpha * (1 - 1e-12)


@given(samples, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_samples_does_not_matter(pairs: list[tuple[float, bool]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert calibrate(*zip(*pairs, strict=True), 0.05, 0.1) == calibrate(*zip(*shuffled, strict=True), 0.05, 0.1)


def test_equal_scores_stand_or_fall_together() -> None:
    scores = [0.0] * 300 + [0.5] * 100
    differs = [False] * 300 + [False] * 60 + [True] * 40
    result = calibrate(scores, differs, alpha=0.02, delta=0.1)
    assert isinstance(result, Certificate)
    assert (result.threshold, result.accepted, result.differing) == (0.0, 300, 0)


def test_nothing_is_accepted_when_the_surest_samples_differ() -> None:
    result = calibrate([0.0] * 500, [True] * 250 + [False] * 250, alpha=0.02, delta=0.1)
    assert isinstance(result, Certificate)
    assert (result.threshold, result.accepted, result.send_share) == (ACCEPT_NOTHING, 0, 1.0)


def test_scores_and_differs_must_be_of_one_length() -> None:
    with pytest.raises(ValueError, match="one length"):
        calibrate([0.1, 0.2], [True], 0.02, 0.1)
