"""The judgement: a good candidate passes, a worse one does not, and wrong labels are found by those of before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.gates.paired import Answers
from edgekit.heads.linear import LinearHead, lda
from edgekit.heads.statistics import Statistics
from edgekit.learning.judging import DEFERRAL_ITEMS, Cost, HeldOut, judge
from edgekit.learning.limits import JudgingLimits

CLASSES = ("good", "bridge", "void", "hole")
OLD = 3
WIDTH = 12
MEANS = 1.9 * np.random.default_rng(3).standard_normal((len(CLASSES), WIDTH))


def drawn(rng: np.random.Generator, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    truth = np.repeat(np.arange(len(counts)), counts)
    return MEANS[truth] + rng.standard_normal((len(truth), WIDTH)), truth


def statistics(features: np.ndarray, labels: np.ndarray) -> Statistics:
    return Statistics.of(features, labels, CLASSES)


def answers(head: LinearHead, features: np.ndarray) -> Answers:
    shares = np.sort(head.probabilities(features), axis=1)
    index = np.array([CLASSES.index(label) for label in head.labels])
    return Answers(index[head.logits(features).argmax(axis=1)], 1.0 - (shares[:, -1] - shares[:, -2]))


def flipped(rng: np.random.Generator, labels: np.ndarray, share: float) -> np.ndarray:
    """`share` of the bridges are said to be good and of the good ones bridges."""
    wrong = (labels < 2) & (rng.random(len(labels)) < share)
    return np.where(wrong, 1 - labels, labels)


def held_out(features: np.ndarray, truth: np.ndarray, earlier: np.ndarray) -> HeldOut:
    return HeldOut("d" * 64, truth, CLASSES, OLD, earlier)


def learned(seed: int, share: float, new: int = 20) -> tuple[HeldOut, Answers, Answers]:
    """Judge a head that learned a batch of 3 x 400 labels and a new class, with wrong labels in batch and held-out."""
    rng = np.random.default_rng(seed)
    first = statistics(*drawn(rng, (60, 60, 60)))
    x, y = drawn(rng, (400, 400, 400, new))
    candidate = lda(first + statistics(x, flipped(rng, y, share)))
    before_x, before_y = drawn(rng, (120, 120, 120))
    batch_x, batch_y = drawn(rng, (200, 200, 200, 20))
    features = np.concatenate([before_x, batch_x])
    truth = np.concatenate([before_y, flipped(rng, batch_y, share)])
    held = held_out(features, truth, np.arange(len(truth)) < len(before_y))
    return held, answers(lda(first), features), answers(candidate, features)


def test_a_new_class_from_twenty_labels_passes() -> None:
    held, present, candidate = learned(0, 0.0)
    verdict = judge(held, present, candidate)
    assert verdict.accepted and verdict.reason == "" and verdict.dataset == "d" * 64
    assert {fact.name for fact in verdict.facts} >= {"accuracy", "classes", "deferral", "earlier", "new-class"}
    assert all(fact.passed and fact.text for fact in verdict.facts)


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_of_flipped_labels_is_caught_by_those_of_before(seed: int) -> None:
    held, present, candidate = learned(seed, 0.9)
    right = candidate.labels[held.truth < OLD] == held.truth[held.truth < OLD]
    still = present.labels[held.truth < OLD] == held.truth[held.truth < OLD]
    assert right.mean() > still.mean()  # on the poisoned held-out items alone the candidate would look better
    verdict = judge(held, present, candidate)
    assert not verdict.accepted
    assert "labelled before this batch" in verdict.reason and "labels of the batch may be wrong" in verdict.reason


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_no_share_of_flipped_labels_gets_a_harmful_model_through(seed: int, share: float) -> None:
    held, present, candidate = learned(seed, share)
    if judge(held, present, candidate).accepted:
        before = held.earlier
        lost = (present.labels[before] == held.truth[before]).sum() - (
            candidate.labels[before] == held.truth[before]
        ).sum()
        assert lost < max(2, 0.01 * before.sum() + 1e-9)


def perfect(truth: np.ndarray) -> Answers:
    return Answers(truth.copy(), np.zeros(len(truth)))


def simple(new: int = 20) -> tuple[HeldOut, Answers, Answers]:
    truth = np.repeat(np.arange(4), [300, 300, 300, new])
    held = held_out(truth, truth, np.arange(len(truth)) % 3 == 0)
    present = perfect(np.where(truth == 3, 0, truth))
    return held, present, perfect(truth)


def test_a_candidate_that_loses_two_points_of_the_old_classes_is_refused() -> None:
    held, present, candidate = simple()
    candidate.labels[:18] = 1
    verdict = judge(held, present, candidate)
    assert not verdict.accepted and "the accuracy may fall by" in verdict.reason


@pytest.mark.parametrize(("found", "of", "accepted"), [(16, 20, True), (15, 20, False), (4, 5, False), (5, 5, True)])
def test_a_new_class_must_be_found_often_enough_to_be_sure(found: int, of: int, accepted: bool) -> None:
    held, present, candidate = simple(of)
    candidate.labels[900 + found :] = 0
    verdict = judge(held, present, candidate)
    assert verdict.accepted is accepted
    assert accepted or f'the new class "hole" is found in {found} of {of}' in verdict.reason


def test_a_new_class_without_held_out_items_is_refused() -> None:
    assert 'the new class "hole" is found in 0 of 0' in judge(*simple(0)).reason


def test_too_few_items_tell_nothing() -> None:
    held, present, candidate = simple()
    few = slice(600, None)
    part = HeldOut("d", held.truth[few], CLASSES, OLD, held.earlier[few])
    answered = [Answers(one.labels[few], one.hardness[few]) for one in (present, candidate)]
    reason = judge(part, *answered).reason
    assert "compared on 300 held-out pictures, 500 are needed" in reason
    none = HeldOut("d", held.truth[:0], CLASSES, OLD, held.earlier[:0])
    nothing = Answers(held.truth[:0], np.zeros(0))
    assert "no held-out item" in judge(none, nothing, nothing).reason


def test_a_handful_of_earlier_items_is_not_enough_to_find_wrong_labels() -> None:
    held, present, candidate = simple()
    few = replace(held, earlier=np.arange(len(held.truth)) < 99)
    assert "99 held-out items were labelled before this batch, 100 are needed" in judge(few, present, candidate).reason


def test_after_a_change_of_scene_earlier_items_are_left_out() -> None:
    held, present, candidate = simple()
    verdict = judge(replace(held, earlier=np.zeros(len(held.truth), bool)), present, candidate)
    assert verdict.accepted and not [fact for fact in verdict.facts if fact.name.startswith("earlier")]


def test_answers_that_cannot_be_used_are_the_reason_alone() -> None:
    held, present, candidate = simple()
    candidate.labels[5] = -1
    candidate.hardness[7] = np.nan
    assert judge(held, present, candidate).reason == "refused: it gives no usable answer for 2 of 920 items"


@pytest.mark.parametrize(
    ("cost", "word"),
    [
        (Cost((10.0, 10.9), (1000, 1090)), ""),
        (Cost((10.0, 11.5), (1000, 1000)), "latency is 11.5 ms"),
        (Cost((10.0, 10.0), (1000, 1200)), "size is 1,200 bytes"),
    ],
)
def test_a_slower_or_larger_model_is_refused(cost: Cost, word: str) -> None:
    verdict = judge(*simple(), None, cost)
    assert verdict.accepted is (word == "") and word in verdict.reason


def test_lists_that_do_not_fit_are_an_error() -> None:
    held, present, candidate = simple()
    with pytest.raises(ValueError, match="one length"):
        judge(held, present, Answers(candidate.labels[1:], candidate.hardness[1:]))
    with pytest.raises(ValueError, match="cannot be old"):
        judge(replace(held, old=5), present, candidate)
    with pytest.raises(ValueError, match="truth must lie"):
        judge(replace(held, truth=held.truth + 9), present, candidate)
    with pytest.raises(ValueError, match="positive"):
        judge(held, present, candidate, None, Cost((0.0, 1.0), (1, 1)))
    with pytest.raises(ValueError, match="floor"):
        JudgingLimits(new_recall=0.4)


@pytest.mark.parametrize("each", [200, 400])
def test_what_would_be_sent_decides_only_from_a_thousand_items_on(each: int) -> None:
    """The candidate is as right as the present model and knows nothing of when it is."""
    rng = np.random.default_rng(5)
    truth = np.repeat(np.arange(OLD), each)
    wrong = rng.random(len(truth)) < 0.08
    labels = np.where(wrong, (truth + 1) % OLD, truth)
    present = Answers(labels, 0.5 * rng.random(len(truth)) + 0.5 * wrong)
    candidate = Answers(labels, rng.permutation(present.hardness))
    held = HeldOut("d" * 64, truth, CLASSES[:OLD], OLD, np.zeros(len(truth), bool))
    verdict = judge(held, present, candidate)
    fact = next(one for one in verdict.facts if one.name == "deferral")
    assert fact.value > fact.limit
    assert verdict.accepted == fact.passed == (3 * each < DEFERRAL_ITEMS), verdict.reason
    assert ("it decides from 1,000 on" in fact.text) == fact.passed
