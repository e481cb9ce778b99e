"""Heads as jobs: what the totals make is what all samples in one place make, and a site that leaves leaves no trace."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from federated_support import summed
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.federated.errors import FederatedError
from edgekit.federated.head_jobs import CUT, FEWEST, HeadBase, HeadStrategy, OneRoundHead
from edgekit.federated.plan import Plan
from edgekit.federated.strategy import State
from edgekit.federated.sums import Room
from edgekit.heads.linear import lda
from edgekit.heads.statistics import Standardiser, Statistics

LABELS = ("good", "bridge", "void")
D = 6
ROOM = Room(invited=8)
Site = tuple[NDArray[np.float64], NDArray[np.int64]]


def base(seed: int = 3) -> HeadBase:
    rng = np.random.default_rng(seed)
    return HeadBase(
        scale=2.0 ** rng.integers(-4, 4, D).astype(float),
        weight=rng.standard_normal((2, D)),
        bias=rng.standard_normal(2),
    )


def strategy(labels: tuple[str, ...] = LABELS, **settings: object) -> HeadStrategy:
    return HeadStrategy(msgspec.convert({"strategy": "additive-head", **settings}, OneRoundHead), labels, base(), ROOM)


def sites(count: int = 4, seed: int = 1, classes: int = 3) -> list[Site]:
    rng = np.random.default_rng(seed)
    centres = 4 * rng.standard_normal((classes, D))
    made = []
    for _ in range(count):
        index = rng.integers(0, classes, 70)
        made.append(((centres[index] + rng.standard_normal((70, D))) / base().scale, index))
    return made


def totals(head: HeadStrategy, these: list[Site], state: State | None = None) -> State:
    state = state or head.start()
    made = [head.contribution(state, head.result(*one), None) for one in these]
    return head.apply(state, summed(made, head.numbers))


def joined(these: list[Site]) -> Site:
    return np.concatenate([one[0] for one in these]), np.concatenate([one[1] for one in these])


@pytest.mark.parametrize("balanced", [False, True])
def test_the_layer_of_the_totals_answers_as_a_head_of_all_samples_in_one_place(balanced: bool) -> None:
    head = strategy(balanced=balanced)
    layer = head.layer(totals(head, sites()))
    features, classes = joined(sites())
    standardiser = Standardiser.of(features)
    central = lda(Statistics.of(standardiser(features), classes.tolist(), LABELS)).on_raw(standardiser)
    ours = features @ layer.weight.T + layer.bias
    if not balanced:  # up to the temperature, and a constant of each sample
        theirs = central.logits(features)
        ours_, theirs_ = (one - one.mean(axis=1, keepdims=True) for one in (ours, theirs))
        scale = float((ours_ * theirs_).sum() / (ours_ * ours_).sum())
        np.testing.assert_allclose(ours_ * scale, theirs_, atol=0.02 * np.abs(theirs_).max())
    assert (ours.argmax(axis=1) == classes).mean() > 0.97
    assert layer.notes == ()


def test_a_site_that_took_its_sums_out_leaves_no_bit_in_the_layer() -> None:
    head, everybody = strategy(), sites()
    state = head.start()
    first = [head.contribution(state, head.result(*one), None) for one in everybody]
    state = head.apply(state, summed(first, head.numbers))
    nothing = head.result(np.empty((0, D)), np.empty(0, np.int64))
    later = [
        head.contribution(state, nothing if place == 1 else head.result(*one), first[place].memory)
        for place, one in enumerate(everybody)
    ]
    assert not any(one.vector.any() for place, one in enumerate(later) if place != 1)
    after = head.apply(head.start(state.model), summed(later, head.numbers))
    never = totals(head, [one for place, one in enumerate(everybody) if place != 1])
    np.testing.assert_array_equal(after.model, never.model)
    ours, theirs = head.layer(after), head.layer(never)
    np.testing.assert_array_equal(ours.weight, theirs.weight)
    np.testing.assert_array_equal(ours.bias, theirs.bias)


def test_the_logits_differ_over_the_samples_by_as_much_as_those_of_the_base() -> None:
    head = strategy(LABELS[:2])
    these = sites(classes=2)
    layer = head.layer(totals(head, these))
    features, _ = joined(these)
    now, before = features @ layer.weight.T + layer.bias, features @ base().weight.T + base().bias

    def spread(logits: NDArray[np.float64]) -> float:
        return float(np.square(logits - logits.mean(axis=1, keepdims=True)).mean())

    assert spread(now) == pytest.approx(spread(before), rel=1e-2)


def test_a_class_of_the_base_without_samples_keeps_its_row_and_a_new_one_without_is_an_error() -> None:
    head = strategy()
    features, classes = joined(sites())
    kept = classes != 1
    layer = head.layer(totals(head, [(features[kept], classes[kept])]))
    np.testing.assert_allclose(layer.weight[1], base().weight[1], rtol=1e-5)
    assert '"bridge" had fewer than 2 samples' in layer.notes[0]
    kept = classes != 2
    with pytest.raises(FederatedError, match='fewer than 2 samples of the new class "void"'):
        head.layer(totals(head, [(features[kept], classes[kept])]))


def test_a_class_of_one_sample_changes_nothing_for_the_others() -> None:
    head = strategy()
    features, classes = joined(sites())
    kept = classes != 1
    without = head.layer(totals(head, [(features[kept], classes[kept])]))
    one = np.append(np.flatnonzero(kept), np.flatnonzero(classes == 1)[0])
    layer = head.layer(totals(head, [(features[one], classes[one])]))
    assert FEWEST == 2
    np.testing.assert_allclose(layer.weight, without.weight, rtol=1e-3, atol=1e-3 * np.abs(without.weight).max())


@given(st.lists(st.integers(0, 3), min_size=30, max_size=30))
def test_the_totals_are_the_same_whichever_device_has_which_sample(places: list[int]) -> None:
    head = strategy(fraction_bits=0)  # whole numbers as features: then not even the grid rounds
    rng = np.random.default_rng(0)
    features = rng.integers(-9, 9, (30, D)) / base().scale
    classes = rng.integers(0, 3, 30)
    where = np.array(places)
    dealt = [(features[where == place], classes[where == place]) for place in range(4)]
    np.testing.assert_array_equal(totals(head, dealt).model, totals(head, [(features, classes)]).model)


def test_features_far_out_are_cut_and_sums_without_room_are_refused() -> None:
    head = strategy()
    wild = np.full((1, D), 1e9)
    assert head.scaled(wild).max() == CUT
    with pytest.raises(FederatedError, match="fewer fraction_bits than 6"):
        head.result(np.repeat(wild, 9, axis=0), np.zeros(9, np.int64))
    with pytest.raises(FederatedError, match="not a number"):
        head.result(np.full((1, D), np.nan), np.zeros(1, np.int64))


def test_totals_that_can_be_of_no_samples_are_refused() -> None:
    head = strategy()
    with pytest.raises(FederatedError, match="whole numbers and nothing else"):
        head.start(np.zeros(3, np.int64))
    state = totals(head, sites())
    with pytest.raises(FederatedError, match="fewer samples than none"):
        head.start(-state.model)
    nonsense = head.start().model.copy()
    nonsense[:3] = [640, 640, 640]
    nonsense[-1] = -(10**6)
    assert np.isfinite(head.layer(State(nonsense)).weight).all(), "made-up sums make a useless head, never NaN"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scale": np.full(D, 3.0)}, "no power of two"),
        ({"scale": np.full(D, np.inf)}, "not a number"),
        ({"weight": np.ones((2, D + 1))}, "no last layer"),
        ({"bias": np.ones(3)}, "no last layer"),
        ({"weight": None}, "has no tensor 'weight'"),
    ],
)
def test_a_head_file_that_holds_no_layer_is_refused(change: dict[str, object], match: str) -> None:
    found = {"scale": np.ones(D), "weight": np.ones((2, D)), "bias": np.ones(2), **change}
    with pytest.raises(FederatedError, match=match):
        HeadBase.of({name: array for name, array in found.items() if array is not None})


@pytest.mark.parametrize("more", ['"personal": ["x"]', '"max_age": 2', '"privacy": {"noise_multiplier": 3.0}'])
def test_a_plan_of_a_head_takes_nothing_that_belongs_to_training(more: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="exact sums"):
        msgspec.json.decode(f'{{"strategy": {{"strategy": "additive-head"}}, {more}}}', type=Plan)
