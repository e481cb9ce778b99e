from __future__ import annotations

from functools import cache
from math import lgamma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.gates.limits import Limits
from edgekit.gates.paired import FEW, Acceptance, Answers, accept, drop_bound

bound = cache(drop_bound)


def trinomial(n: int, lost: float, gained: float) -> NDArray[np.float64]:
    """P(b items lost, c gained) for every b, c: shape (n + 1, n + 1)."""
    logs = np.array([lgamma(i + 1) for i in range(n + 1)])
    b, c = np.indices((n + 1, n + 1))
    rest = n - b - c
    p = np.array([lost, gained, 1 - lost - gained])
    powers = np.log(np.maximum(p, 1e-300))  # of a probability of 0 nothing but the 0th power is left
    chance = logs[n] - logs[b] - logs[c] - logs[np.maximum(rest, 0)]
    for count, power in zip((b, c, rest), powers, strict=True):
        chance = chance + count * power
    return np.where(rest >= 0, np.exp(np.where(rest >= 0, chance, 0.0)), 0.0)


@pytest.mark.parametrize("delta", [0.05, 0.1])
def test_the_bound_covers_the_true_drop_in_every_case_that_can_happen(delta: float) -> None:
    n = 40  # every count of lost and gained items, weighted with its exact probability
    bounds = np.full((n + 1, n + 1), np.inf)
    for b in range(n + 1):
        for c in range(n + 1 - b):
            bounds[b, c] = drop_bound(b, c, n, delta)
    for lost in (0.0, 0.002, 0.01, 0.03, 0.08, 0.2, 0.3, 0.45):
        for gained in (0.0, 0.002, 0.01, 0.03, 0.08, 0.2, 0.3, 0.45):
            chances = trinomial(n, lost, gained)
            assert chances.sum() == pytest.approx(1.0)
            missed = chances[bounds < lost - gained - 1e-9].sum()
            assert missed <= delta, (lost, gained)


@pytest.mark.parametrize(("n", "lost", "gained"), [(500, 0.012, 0.002), (1000, 0.018, 0.008), (2000, 0.03, 0.02)])
def test_a_model_that_is_just_too_bad_passes_in_at_most_five_percent_of_draws(
    n: int, lost: float, gained: float
) -> None:
    assert lost - gained == pytest.approx(0.01)
    draws = np.random.default_rng(1).multinomial(n, (lost, gained, 1 - lost - gained), 4000)
    # The bound is never below the observed drop, so most draws need no bound.
    passed = np.mean([b - c < 0.01 * n and bound(int(b), int(c), n, 0.05) < 0.01 for b, c, _ in draws])
    assert passed <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)


def test_the_bound_is_tighter_than_two_separate_clopper_pearson_bounds() -> None:
    n, b, c = 1000, 8, 8
    apart = clopper_pearson_upper(b, n, 0.025) - (1 - clopper_pearson_upper(n - c, n, 0.025))
    assert drop_bound(b, c, n, 0.05) < 0.01 < apart
    assert drop_bound(b, c, n, 0.05) == pytest.approx(0.0096, abs=5e-5)


def test_twice_as_many_items_of_the_same_kind_prove_more() -> None:
    bounds = [drop_bound(4 * k, 4 * k, 500 * k, 0.05) for k in (1, 2, 4, 8)]
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] < bounds[0] / 2


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.data())
def test_the_bound_lies_between_the_observed_drop_and_one(n: int, data: st.DataObject) -> None:
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    found = drop_bound(b, c, n, 0.05)
    assert (b - c) / n <= found <= 1.0
    if b < n - c:
        assert drop_bound(b + 1, c, n, 0.05) >= found - 1e-6


@pytest.mark.parametrize(
    "numbers", [(-1, 0, 10, 0.1), (0, 0, 0, 0.1), (6, 5, 10, 0.1), (0, 0, 10, 0.0), (0, 0, 10, 1.0)]
)
def test_impossible_counts_are_refused(numbers: tuple[int, int, int, float]) -> None:
    with pytest.raises(ValueError, match="no drop can be bounded"):
        drop_bound(*numbers)


# --- the gate --------------------------------------------------------------------------------------------------------

CLASSES = ("normal", "bridge", "pinhole")
SHARES = (0.7, 0.25, 0.05)


class Bench:
    """A model with some errors, whose hardness shows them, and copies of it with other errors."""

    def __init__(self, n: int, accuracy: float = 0.95) -> None:
        self.generator = np.random.default_rng(3)
        self.truth = np.repeat(np.arange(3), [round(n * share) for share in SHARES[:2]] + [n - round(n * 0.95)])
        wrong = self.generator.random(len(self.truth)) > accuracy
        self.old = Answers(np.where(wrong, (self.truth + 1) % 3, self.truth), self.hardness(wrong))

    def hardness(self, wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.where(wrong, self.generator.uniform(0.4, 1, len(wrong)), self.generator.beta(0.3, 3, len(wrong)))

    def copy(self, lose: NDArray[np.int64]) -> Answers:
        """The old model that has also become wrong about these items, and says that it is unsure of them."""
        labels, hardness = self.old.labels.copy(), self.old.hardness.copy()
        labels[lose], hardness[lose] = (self.truth[lose] + 1) % 3, 0.9
        return Answers(labels, hardness)

    def right(self, of: int | None = None) -> NDArray[np.int64]:
        """Items that the old model has right, of one class or of all."""
        return np.flatnonzero((self.old.labels == self.truth) & ((self.truth == of) | (of is None)))

    def accept(self, new: Answers, p95_ms: tuple[float, float] | None = None) -> Acceptance:
        return accept(self.truth, self.old, new, CLASSES, p95_ms=p95_ms)


def failed(found: Acceptance) -> list[str]:
    return [one.name for one in found.criteria if not one.passed]


def test_a_faithful_copy_is_accepted_with_its_numbers() -> None:
    bench = Bench(1000)
    found = bench.accept(bench.copy(bench.right()[:2]), p95_ms=(10.0, 4.0))
    assert found.accepted and found.reason == "" and not failed(found)
    assert (found.items, found.lost, found.gained) == (1000, 2, 0)
    assert found.drop == pytest.approx(0.002)
    assert found.drop < found.drop_bound < 0.01
    assert found.old_accuracy - found.new_accuracy == pytest.approx(0.002)
    assert [one.name for one in found.criteria] == ["answers", "items", "accuracy", "classes", "deferral", "latency"]


def test_a_drop_that_is_not_excluded_refuses_with_the_counts_and_the_limit() -> None:
    bench = Bench(1000)
    found = bench.accept(bench.copy(bench.right(0)[:12]))
    assert failed(found) == ["accuracy"]
    assert found.reason.startswith("refused: the accuracy may fall by 2.")
    assert "12 of 1000 pictures lost, 0 gained" in found.reason and "1.00 points are allowed" in found.reason


def test_too_few_items_refuse_even_a_perfect_copy() -> None:
    bench = Bench(400)
    found = bench.accept(bench.old)
    assert "items" in failed(found) and "400 held-out pictures, 500 are needed" in found.reason


def test_a_bound_that_only_lacks_items_says_so() -> None:
    bench = Bench(500)
    right = bench.right(0)
    new = bench.copy(right[:3])
    wrong = np.flatnonzero(bench.old.labels != bench.truth)[:3]
    new.labels[wrong] = bench.truth[wrong]
    found = bench.accept(new)
    assert (found.lost, found.gained) == (3, 3) and failed(found) == ["accuracy"]
    assert "more held-out pictures may show" in found.reason


def test_one_lost_item_of_a_rare_class_decides_nothing() -> None:
    bench = Bench(600)  # 30 pinholes: one of them is 3.3 points
    found = bench.accept(bench.copy(bench.right(2)[:1]))
    assert "classes" not in failed(found)
    assert found.few == {"pinhole": 30} and found.few["pinhole"] < FEW


def test_a_rare_class_that_is_ruined_refuses_although_the_whole_hardly_shows_it() -> None:
    bench = Bench(5000)
    found = bench.accept(bench.copy(bench.right(2)[:25]))
    assert failed(found) == ["classes"]
    assert '"pinhole" is at least' in found.reason and "2.00 points are allowed" in found.reason


def test_the_luck_of_small_classes_refuses_in_at_most_one_of_twenty_harmless_copies() -> None:
    generator = np.random.default_rng(5)
    refused = 0
    for _ in range(400):  # ten classes of 40, each item lost or gained with 1 %
        counts = generator.multinomial(40, (0.01, 0.01, 0.98), 10)
        refused += any(b - c >= 2 and -bound(int(c), int(b), 40, 0.1) > 0.02 for b, c, _ in counts)
    assert refused <= 20


def test_a_model_whose_sureness_says_nothing_any_more_refuses() -> None:
    bench = Bench(1000)
    shuffled = np.random.default_rng(9).permutation(bench.old.hardness)
    found = bench.accept(Answers(bench.old.labels, shuffled))
    assert failed(found) == ["deferral"] and "more would go to the cloud" in found.reason


def test_the_deferral_curve_can_be_compared_against_the_clouds_answers() -> None:
    bench = Bench(1000)
    new = Answers(bench.old.labels.copy(), bench.old.hardness.copy())
    sure = np.flatnonzero(bench.old.labels != bench.truth)[:40]
    new.hardness[sure] = 0.0  # sure of what the cloud says too, though it is not the truth
    assert "deferral" in failed(bench.accept(new))
    assert accept(bench.truth, bench.old, new, CLASSES, cloud=bench.old.labels).accepted


@pytest.mark.parametrize("broken", ["label", "nan", "infinity"])
def test_one_unusable_answer_refuses_and_is_the_only_reason(broken: str) -> None:
    bench = Bench(1000)
    labels, hardness = bench.old.labels.copy(), bench.old.hardness.copy()
    if broken == "label":
        labels[:300], hardness[:300] = -1, 1.0
    else:
        hardness[7] = float(broken if broken == "nan" else "inf")
    found = bench.accept(Answers(labels, hardness))
    missing = 300 if broken == "label" else 1
    assert found.reason == f"refused: it gives no usable answer for {missing} of 1000 pictures"


@pytest.mark.parametrize(("new_ms", "accepted"), [(9.5, False), (9.0, True), (11.0, False), (3.0, True)])
def test_a_model_that_is_hardly_faster_refuses_where_times_are_given(new_ms: float, accepted: bool) -> None:
    bench = Bench(1000)
    found = bench.accept(bench.old, p95_ms=(10.0, new_ms))
    assert found.accepted is accepted
    assert accepted or f"it takes {new_ms:.3g} ms instead of 10 ms" in found.reason


@pytest.mark.parametrize("times", [(float("nan"), 1.0), (1.0, float("inf")), (0.0, 1.0)])
def test_times_that_are_no_times_are_an_error(times: tuple[float, float]) -> None:
    bench = Bench(600)
    with pytest.raises(ValueError, match="run times"):
        bench.accept(bench.old, p95_ms=times)


def test_lists_that_do_not_fit_are_an_error() -> None:
    bench = Bench(600)
    with pytest.raises(ValueError, match="one length"):
        bench.accept(Answers(bench.old.labels[1:], bench.old.hardness[1:]))
    with pytest.raises(ValueError, match="truth"):
        accept(bench.truth, bench.old, bench.old, CLASSES[:2])


@pytest.mark.parametrize("change", [{"confidence": 1.0}, {"items": 0}, {"drop": -0.1}, {"faster": float("nan")}])
def test_limits_that_mean_nothing_are_an_error(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Limits(**change)  # type: ignore[arg-type]


def test_a_far_better_model_is_accepted() -> None:
    bench = Bench(1000, accuracy=0.3)
    found = bench.accept(Answers(bench.truth, np.zeros(len(bench.truth))))
    assert found.accepted and found.drop_bound < 0
