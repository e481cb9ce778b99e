"""Each strategy is its paper's formula, from sums alone, and gives the same bits to everybody."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from federated_support import summed
from numpy.typing import NDArray

from edgekit.federated.averaging import Adaptive, AveragingStrategy, FedAvg, FedAvgM
from edgekit.federated.buffer import Buffer, discount
from edgekit.federated.errors import FederatedError
from edgekit.federated.layout import Layout
from edgekit.federated.nova import FedNova, NovaStrategy, effective_steps
from edgekit.federated.scaffold import Scaffold, ScaffoldStrategy
from edgekit.federated.strategy import LocalResult, State, Weighting

P = 12
LAYOUT = Layout({"w": (3, 4)})
Settings = FedAvg | FedAvgM | Adaptive | Scaffold | FedNova


def deltas(count: int, seed: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return [(0.1 * rng.standard_normal(P)).astype(np.float32) for _ in range(count)]


def result(
    delta: NDArray[np.float32], samples: int = 1, steps: int = 4, rate: float = 0.5, age: int = 0
) -> LocalResult:
    return LocalResult(delta, samples, steps, rate, age)


def two_rounds(settings: FedAvg | FedAvgM | Adaptive) -> tuple[State, list[NDArray[np.float64]]]:
    strategy = AveragingStrategy(LAYOUT, settings)
    state = strategy.start(np.ones(P, np.float32))
    means = []
    for seed in (1, 2):
        these = deltas(5, seed)
        state = strategy.apply(
            state, summed([strategy.contribution(state, result(d)) for d in these], strategy.numbers)
        )
        means.append(np.mean(these, axis=0, dtype=np.float64))
    return state, means


def test_fedavg_adds_the_mean() -> None:
    state, (one, two) = two_rounds(FedAvg(clip=1.0, learning_rate=0.5))
    np.testing.assert_allclose(state.model, 1 + 0.5 * one + 0.5 * two, atol=1e-6)
    assert state.version == 2


def test_fedavg_weighs_devices_by_their_samples() -> None:
    strategy = AveragingStrategy(LAYOUT, FedAvg(clip=1.0, weighting=Weighting(most=8, samples=10)))
    state = strategy.start(np.zeros(P, np.float32))
    these, samples = deltas(3, 1), [10, 40, 500]
    made = [strategy.contribution(state, result(d, n)) for d, n in zip(these, samples, strict=True)]
    assert [one.weight for one in made] == [1, 4, 8]
    wanted = (1 * these[0] + 4 * these[1] + 8 * these[2]) / 13
    np.testing.assert_allclose(strategy.apply(state, summed(made, strategy.numbers)).model, wanted, atol=1e-5)


def test_fedavgm_keeps_momentum() -> None:
    state, (one, two) = two_rounds(FedAvgM(clip=1.0, momentum=0.8))
    np.testing.assert_allclose(state.model, 1 + one + (0.8 * one + two), atol=1e-6)


@pytest.mark.parametrize("kind", ["adagrad", "adam", "yogi"])
def test_the_adaptive_ones_are_algorithm_2_of_reddi_et_al(kind: Any) -> None:
    state, means = two_rounds(
        Adaptive(kind=kind, clip=1.0, learning_rate=0.1, momentum=0.9, decay=0.99, adaptivity=1e-2)
    )
    model, momentum, variance = np.ones(P), np.zeros(P), np.full(P, 1e-4)
    for mean in means:
        momentum = 0.9 * momentum + 0.1 * mean
        square = mean**2
        if kind == "adagrad":
            variance = variance + square
        elif kind == "adam":
            variance = 0.99 * variance + 0.01 * square
        else:
            variance = variance - 0.01 * square * np.sign(variance - square)
        model = model + 0.1 * momentum / (np.sqrt(variance) + 1e-2)
    np.testing.assert_allclose(state.model, model, atol=2e-6)


def test_scaffold_follows_option_ii_and_its_control_is_the_mean_of_all_devices_own() -> None:
    strategy = ScaffoldStrategy(LAYOUT, Scaffold(clip=10.0, devices=6, control_scale=2.0))
    state = strategy.start(np.zeros(P, np.float32))
    own: list[Any] = [None] * 6
    for seed, chosen in ((1, [0, 1, 2]), (2, [2, 3, 4, 5]), (3, [0, 2, 5])):
        before = state.slots["control"].copy()
        made = {}
        for device, delta in zip(chosen, deltas(4, seed), strict=False):
            made[device] = strategy.contribution(state, result(delta), own[device])
            memory = 0 if own[device] is None else own[device]
            np.testing.assert_allclose(made[device].memory, memory - before - delta / (4 * 0.5), atol=1e-6)
        state = strategy.apply(state, summed(list(made.values()), strategy.numbers))
        for device, one in made.items():
            own[device] = one.memory
        everyone = np.mean([np.zeros(P) if one is None else one for one in own], axis=0)
        np.testing.assert_allclose(state.slots["control"], everyone, atol=1e-5)
    term = strategy.term(state, own[2])
    np.testing.assert_allclose(term.gradient(state.model), state.slots["control"] - own[2])


def test_scaffold_remembers_only_what_it_sent_after_clipping() -> None:
    strategy = ScaffoldStrategy(LAYOUT, Scaffold(clip=0.01, devices=3, control_scale=2.0))
    made = strategy.contribution(strategy.start(np.zeros(P, np.float32)), result(deltas(1, 1)[0]), None)
    assert np.linalg.norm(made.vector[P:]) == pytest.approx(0.01, rel=1e-5)
    np.testing.assert_allclose(made.memory, made.vector[P:] / 2, rtol=1e-6)


def test_scaffold_refuses_an_update_to_an_older_model() -> None:
    strategy = ScaffoldStrategy(LAYOUT, Scaffold(clip=1.0, devices=6, control_scale=1.0))
    with pytest.raises(FederatedError, match="older model"):
        strategy.contribution(strategy.start(np.zeros(P, np.float32)), result(deltas(1, 1)[0], age=1), None)


def test_fednova_normalises_by_each_devices_own_steps() -> None:
    strategy = NovaStrategy(LAYOUT, FedNova(clip=1.0, most_steps=16, weighting=Weighting(most=4)))
    state = strategy.start(np.zeros(P, np.float32))
    these, steps, weights = deltas(3, 1), [1, 4, 16], np.array([1, 2, 4]) / 7
    made = [strategy.contribution(state, result(d, n, k)) for d, n, k in zip(these, [1, 2, 4], steps, strict=True)]
    direction = sum(w * d / k for w, d, k in zip(weights, these, steps, strict=True))
    found = strategy.apply(state, summed(made, strategy.numbers)).model
    np.testing.assert_allclose(found, float(weights @ steps) * direction, rtol=1e-3, atol=1e-5)


def test_effective_steps_are_those_of_the_paper() -> None:
    assert effective_steps(7, 0.1, 0.0, 0.0) == 7
    # momentum 0.5 for 3 steps: the gradients count (1 + .5 + .25), (1 + .5), 1
    assert effective_steps(3, 0.1, 0.5, 0.0) == pytest.approx(1.75 + 1.5 + 1)
    # a proximal term shrinks what was done before by 1 - 0.1 * 2 each step
    assert effective_steps(3, 0.1, 0.0, 2.0) == pytest.approx(1 + 0.8 + 0.64)
    with pytest.raises(FederatedError, match="closed form"):
        effective_steps(3, 0.1, 0.5, 2.0)


def test_a_proximal_term_pulls_towards_the_global_model() -> None:
    strategy = AveragingStrategy(LAYOUT, FedAvg(clip=1.0, proximal=0.25))
    term = strategy.term(strategy.start(np.ones(P, np.float32)))
    np.testing.assert_array_equal(term.gradient(np.full(P, 3, np.float32)), np.full(P, 0.5, np.float32))


@pytest.mark.parametrize(
    "settings",
    [
        FedAvg(clip=1.0, proximal=0.1),
        FedAvgM(clip=2.0),
        Adaptive(kind="yogi", clip=1.0),
        Scaffold(clip=1.0, devices=5, control_scale=2.0),
        FedNova(clip=1.0, most_steps=9),
    ],
)
def test_settings_are_written_and_read_as_one_of_all_strategies(settings: Settings) -> None:
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings


def test_all_who_apply_the_same_sums_hold_the_same_bits_in_whatever_order_devices_came() -> None:
    settings = Adaptive(kind="adam", clip=1.0)
    strategy = AveragingStrategy(LAYOUT, settings)
    digests = set()
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3]):
        state = strategy.start(np.zeros(P, np.float32))
        for seed in (1, 2, 3):
            made = [strategy.contribution(state, result(d)) for d in deltas(5, seed)]
            state = strategy.apply(state, summed([made[place] for place in order], strategy.numbers))
        digests.add(state.digest(LAYOUT.digest, settings))
        again = State.from_tensors(state.tensors(), state.version)
        assert again.digest(LAYOUT.digest, settings) in digests
    assert len(digests) == 1


def rounded(value: float) -> float:
    """To the nearest float32: after one operation in float64 that is the correctly rounded one (Figueroa 1995)."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


@pytest.mark.parametrize("kind", ["adagrad", "adam", "yogi"])
def test_every_bit_follows_from_ieee_754_alone(kind: Any) -> None:
    """The same formula value by value, each operation rounded by hand: no processor may differ."""
    settings = Adaptive(kind=kind, clip=1.0)
    strategy = AveragingStrategy(LAYOUT, settings)
    state = strategy.start(deltas(1, 9)[0])
    r, rate, keep, decay = rounded, rounded(settings.learning_rate), rounded(settings.momentum), rounded(settings.decay)
    for seed in (1, 2, 3):
        total = summed([strategy.contribution(state, result(d)) for d in deltas(5, seed)], strategy.numbers)
        after = strategy.apply(state, total)
        for i in range(P):
            x, m, v = (float(one[i]) for one in (state.model, state.slots["momentum"], state.slots["variance"]))
            mean = r(r(float(int(total.codes[i]))) * r(total.step / total.weight))
            square = r(mean * mean)
            m = r(r(keep * m) + r(r(1 - keep) * mean))
            rest = r(r(1 - decay) * square)
            if kind == "adagrad":
                v = r(v + square)
            elif kind == "adam":
                v = r(r(decay * v) + rest)
            else:
                v = r(v - r(rest * math.copysign(1, v - square)))
            x = r(x + r(r(rate * m) / r(r(math.sqrt(v)) + r(settings.adaptivity))))
            assert (float(after.model[i]), float(after.slots["variance"][i])) == (x, v)
        state = after


def test_the_digest_changes_with_model_slots_version_layout_and_settings() -> None:
    settings = FedAvgM(clip=1.0)
    state = AveragingStrategy(LAYOUT, settings).start(np.zeros(P, np.float32))
    other = np.ones(P, np.float32)
    digests = {
        state.digest(LAYOUT.digest, settings),
        State(other, state.slots, 0).digest(LAYOUT.digest, settings),
        State(state.model, {"momentum": other}, 0).digest(LAYOUT.digest, settings),
        State(state.model, state.slots, 1).digest(LAYOUT.digest, settings),
        state.digest(Layout({"v": (3, 4)}).digest, settings),
        state.digest(LAYOUT.digest, FedAvgM(clip=2.0)),
    }
    assert len(digests) == 6


def test_a_state_of_another_strategy_or_model_is_refused() -> None:
    plain = AveragingStrategy(LAYOUT, FedAvg(clip=1.0))
    momentum = AveragingStrategy(LAYOUT, FedAvgM(clip=1.0))
    state = plain.start(np.zeros(P, np.float32))
    made = summed([plain.contribution(state, result(d)) for d in deltas(3, 1)], plain.numbers)
    with pytest.raises(FederatedError, match="slots"):
        momentum.apply(state, made)
    with pytest.raises(FederatedError, match=r"\(12,\)"):
        plain.start(np.zeros(P + 1, np.float32))
    with pytest.raises(FederatedError, match=r"\(12,\)"):
        plain.contribution(state, result(np.zeros(1, np.float32)))


def test_stale_updates_are_discounted_and_the_buffer_is_a_cohort() -> None:
    strategy = AveragingStrategy(LAYOUT, FedAvg(clip=1.0))
    state = strategy.start(np.zeros(P, np.float32))
    delta = deltas(1, 1)[0]
    np.testing.assert_allclose(strategy.contribution(state, result(delta, age=3)).vector, delta / 2)
    assert discount(0) == 1.0
    nodes = [bytes([n]) * 32 for n in range(6)]
    buffer = Buffer(size=3, max_age=2)
    for node, version in zip(nodes[:4], [4, 1, 5, 5], strict=True):
        buffer = buffer.offer(node, version)
    assert buffer.take(2)[0] == ()
    cohort, old, rest = buffer.offer(nodes[4], 5).take(5)
    assert cohort == (nodes[0], nodes[2], nodes[3])
    assert old == (nodes[1],)
    assert [one.node for one in rest.offers] == [nodes[4]]
    assert rest.withdraw(nodes[4]).offers == ()
    assert buffer.offer(nodes[0], 5).offers[0].version == 5
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(buffer), type=Buffer) == buffer
