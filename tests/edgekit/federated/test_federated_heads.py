"""One-round heads and metrics: federated is central, and a site that leaves leaves no bit behind."""

from __future__ import annotations

import numpy as np
import pytest
from federated_support import summed
from numpy.typing import NDArray

from edgekit.federated import evaluation
from edgekit.federated.errors import FederatedError
from edgekit.federated.evaluation import Evaluation
from edgekit.federated.heads import AdditiveHead, AdditiveHeadStrategy
from edgekit.federated.strategy import State
from edgekit.federated.sums import Mean, Room
from edgekit.heads.linear import lda
from edgekit.heads.statistics import Statistics

LABELS = ("good", "bridge", "void")
D = 8
ROOM = Room(invited=8)
Site = tuple[NDArray[np.float64], NDArray[np.int64]]


def sites(count: int = 5, seed: int = 1) -> list[Site]:
    """Each has two of three classes at most, the third class is rare."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.standard_normal((3, D))
    made = []
    for place in range(count):
        index = rng.choice(3, 80, p=[(0.9, 0.1, 0.0), (0.2, 0.75, 0.05)][place % 2])
        made.append((centres[index] + rng.standard_normal((80, D)), index))
    return made


def joined(these: list[Site]) -> Site:
    return np.concatenate([one[0] for one in these]), np.concatenate([one[1] for one in these])


def total_of(strategy: AdditiveHeadStrategy, these: list[Site], state: State | None = None) -> State:
    state = state or strategy.start()
    made = [strategy.contribution(state, strategy.codes(*one), None) for one in these]
    return strategy.apply(state, summed(made, strategy.numbers))


def test_the_federated_head_is_the_central_one_within_the_grid() -> None:
    strategy = AdditiveHeadStrategy(AdditiveHead(labels=LABELS, features=D, room=ROOM))
    head = strategy.head(total_of(strategy, sites()))
    features, classes = joined(sites())
    central = lda(Statistics.of(features, classes.tolist(), LABELS))
    np.testing.assert_allclose(head.weight, central.weight, atol=2e-4)
    agree = head.logits(features).argmax(axis=1) == central.logits(features).argmax(axis=1)
    assert agree.all()


def test_a_site_that_leaves_leaves_the_bits_of_those_who_stay() -> None:
    strategy = AdditiveHeadStrategy(AdditiveHead(labels=LABELS, features=D, room=ROOM))
    everybody = sites()
    state = strategy.start()
    first = [strategy.contribution(state, strategy.codes(*one), None) for one in everybody]
    state = strategy.apply(state, summed(first, strategy.numbers))
    nothing = strategy.codes(np.empty((0, D)), np.empty(0, np.int64))
    second = [
        strategy.contribution(state, nothing if place == 2 else strategy.codes(*one), first[place].memory)
        for place, one in enumerate(everybody)
    ]
    assert not second[0].vector.any(), "who has nothing new hides among the others with zeros"
    after = strategy.apply(state, summed(second, strategy.numbers))
    stayed = total_of(strategy, everybody[:2] + everybody[3:])
    np.testing.assert_array_equal(after.model, stayed.model)


def test_new_samples_are_added_as_a_difference() -> None:
    strategy = AdditiveHeadStrategy(AdditiveHead(labels=LABELS, features=D, room=ROOM))
    (features, classes), *others = sites()
    state, memory = strategy.start(), None
    for count in (30, 80):
        made = strategy.contribution(state, strategy.codes(features[:count], classes[:count]), memory)
        state, memory = strategy.apply(state, summed([made], strategy.numbers)), made.memory
    np.testing.assert_array_equal(state.model, total_of(strategy, [(features, classes)]).model)
    assert others


def test_a_balanced_head_pools_the_classes_own_covariances_with_equal_weights() -> None:
    strategy = AdditiveHeadStrategy(AdditiveHead(labels=LABELS, features=D, room=ROOM, balanced=True))
    statistics = strategy.statistics(total_of(strategy, sites()))
    features, classes = joined(sites())
    each = [np.cov(features[classes == c].T, bias=True) for c in range(3)]
    np.testing.assert_allclose(statistics.within, np.mean(each, axis=0), atol=5e-3)
    assert len(set(statistics.counts)) == 1
    assert strategy.head(total_of(strategy, sites())).labels == LABELS


def test_too_many_samples_for_the_grid_are_refused_and_not_cut() -> None:
    strategy = AdditiveHeadStrategy(AdditiveHead(labels=LABELS, features=D, room=ROOM, fraction_bits=20))
    with pytest.raises(FederatedError, match="fewer fraction_bits"):
        strategy.contribution(strategy.start(), strategy.codes(*sites()[0]), None)


def test_nonsense_in_the_total_is_told_as_such() -> None:
    strategy = AdditiveHeadStrategy(AdditiveHead(labels=LABELS, features=D, room=ROOM))
    state = State(strategy.start().model - 5000)
    with pytest.raises(FederatedError, match="whole number from 0"):
        strategy.head(state)
    with pytest.raises(FederatedError, match="as they are"):
        strategy.apply(strategy.start(), Mean(np.zeros(strategy.parameters, np.float32), 3))


def test_metrics_of_all_devices_are_those_of_all_samples_together() -> None:
    settings = Evaluation(labels=LABELS, room=ROOM)
    rng = np.random.default_rng(4)
    tables = [rng.integers(0, 5000, (3, 3)) for _ in range(6)]
    losses = [0.25, 0.5, 1.0, 2.0, 0.125, 3.0]
    made = [evaluation.contribution(settings, t, loss) for t, loss in zip(tables, losses, strict=True)]
    found = evaluation.figures(settings, summed(made, evaluation.numbers(settings)))
    everything = sum(tables)
    np.testing.assert_array_equal(found.confusion, everything)
    samples = [int(t.sum()) for t in tables]
    assert found.samples == sum(samples)
    assert found.loss == pytest.approx(np.average(losses, weights=samples), abs=1e-6)
    assert found.accuracy == pytest.approx(np.trace(everything) / everything.sum())
    assert found.recall[1] == pytest.approx(everything[1, 1] / everything[1].sum())
    assert found.precision[2] == pytest.approx(everything[2, 2] / everything[:, 2].sum())
    assert found.f1[0] == pytest.approx(2 / (1 / found.recall[0] + 1 / found.precision[0]))


def test_a_class_without_samples_has_no_recall() -> None:
    settings = Evaluation(labels=("a", "b"), room=ROOM)
    made = [evaluation.contribution(settings, np.array([[5, 0], [0, 0]]), 0.1)]
    found = evaluation.figures(settings, summed(made, evaluation.numbers(settings)))
    assert np.isnan(found.recall[1])
    assert np.isnan(found.f1[1])
    assert found.accuracy == 1.0


@pytest.mark.parametrize(
    ("table", "loss"),
    [(np.array([[1, -1], [0, 0]]), 0.1), (np.zeros((3, 2), int), 0.1), (np.ones((2, 2), int), np.nan)],
)
def test_what_is_no_evaluation_is_refused(table: NDArray[np.int64], loss: float) -> None:
    with pytest.raises(FederatedError):
        evaluation.contribution(Evaluation(labels=("a", "b"), room=ROOM), table, loss)


def test_a_sum_with_negative_counts_is_refused() -> None:
    settings = Evaluation(labels=("a", "b"), room=ROOM)
    made = evaluation.contribution(settings, np.ones((2, 2), int), 0.1)
    with pytest.raises(FederatedError, match="nonsense"):
        wrong = type(made)(-made.vector, 1)
        evaluation.figures(settings, summed([wrong], evaluation.numbers(settings)))
