from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loss_graphs import Training
from numpy.typing import NDArray

from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.losses import Proximal
from edgekit.autodiff.optimisers import AdamW, Clipped, Sgd
from edgekit.autodiff.schedules import Schedule, learning_rate

RATES = (0.1, 0.05, 0.02)


def start() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {
        "kernel": rng.normal(size=(3, 2, 3, 3)).astype(np.float32),
        "matrix": rng.normal(size=(4, 5)).astype(np.float32),
        "bias": rng.normal(size=4).astype(np.float32),
        "scale": rng.normal(size=6).astype(np.float32),
    }


def gradients(step: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(100 + step)
    return {name: rng.normal(size=array.shape).astype(np.float32) for name, array in start().items()}


def trained(optimiser: Any, **fed: NDArray[np.float32]) -> Training:
    training = Training(optimiser, start())
    for step, rate in enumerate(RATES):
        training.step(gradients(step), rate, **fed)
    return training


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_sgd_follows_its_formula(momentum: float, nesterov: bool, decay: Any) -> None:
    got = trained(Sgd(momentum=momentum, nesterov=nesterov, weight_decay=0.1, decay=decay))
    for name, array in start().items():
        weight, velocity = array.astype(np.float64), np.zeros(array.shape)
        for step, rate in enumerate(RATES):
            gradient = gradients(step)[name].astype(np.float64)
            if decay == "all" or array.ndim >= 2:
                gradient = gradient + 0.1 * weight
            velocity = momentum * velocity + gradient
            weight = weight - rate * (gradient + momentum * velocity if nesterov else velocity)
        np.testing.assert_allclose(got.state[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_adamw_follows_its_formula_from_the_first_step_on(decay: Any) -> None:
    got = trained(AdamW(weight_decay=0.05, decay=decay))
    for name, array in start().items():
        weight, first, second = array.astype(np.float64), np.zeros(array.shape), np.zeros(array.shape)
        for step, rate in enumerate(RATES):
            gradient = gradients(step)[name].astype(np.float64)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            shrink = 0.05 * weight if decay == "all" or array.ndim >= 2 else 0.0
            weight = weight - rate * (corrected[0] / (np.sqrt(corrected[1]) + 1e-8) + shrink)
        np.testing.assert_allclose(got.state[name], weight, rtol=1e-4, atol=1e-5)
    assert got.state["optimiser.step"] == 3


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_shortens_all_gradients_together_and_only_long_ones(limit: float) -> None:
    got = Training(Clipped(Sgd(momentum=0.0), limit), start())
    got.step(gradients(0), 1.0)
    norm = np.sqrt(sum(float((array.astype(np.float64) ** 2).sum()) for array in gradients(0).values()))
    np.testing.assert_allclose(got.fetched["gradient_norm"], norm, rtol=1e-5)
    factor = min(1.0, limit / (norm + 1e-6))
    for name, array in start().items():
        np.testing.assert_allclose(got.state[name], array - factor * gradients(0)[name], rtol=1e-4, atol=1e-5)


def test_the_proximal_term_pulls_back_to_where_the_round_began() -> None:
    anchors = {f"{name}.anchor": array + 1 for name, array in start().items()}
    got = Training(Proximal(Sgd(momentum=0.0), 0.5), start())
    got.step(gradients(0), 0.1, **anchors)
    values = sum(array.size for array in start().values())
    np.testing.assert_allclose(got.fetched["proximal"], 0.25 * values, rtol=1e-5)
    for name, array in start().items():
        np.testing.assert_allclose(got.state[name], array - 0.1 * (gradients(0)[name] - 0.5), rtol=1e-5, atol=1e-6)


def test_weights_at_their_anchor_are_trained_as_without_it() -> None:
    anchors = {f"{name}.anchor": array for name, array in start().items()}
    held, free = Training(Proximal(Sgd(), 1.0), start()), Training(Sgd(), start())
    held.step(gradients(0), 0.1, **anchors)
    free.step(gradients(0), 0.1)
    for name in start():
        np.testing.assert_array_equal(held.state[name], free.state[name])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sgd(momentum=1.0),
        lambda: Sgd(weight_decay=-1.0),
        lambda: AdamW(betas=(0.9, 1.0)),
        lambda: AdamW(epsilon=0.0),
        lambda: Clipped(Sgd(), 0.0),
        lambda: Clipped(Sgd(), float("nan")),
        lambda: Proximal(Sgd(), 0.0),
    ],
)
def test_settings_that_cannot_train_are_refused(make: Any) -> None:
    with pytest.raises(AutodiffError):
        make()


schedules = st.builds(
    Schedule,
    peak=st.floats(1e-6, 10),
    shape=st.sampled_from(["constant", "cosine", "linear", "steps"]),
    warm_up=st.integers(0, 50),
    final=st.floats(0, 1),
)


@given(schedules, st.integers(1, 500), st.integers(0, 1000))
def test_a_learning_rate_lies_between_nothing_and_its_peak(schedule: Schedule, steps: int, step: int) -> None:
    assert 0 <= learning_rate(schedule, step, steps) <= schedule.peak * (1 + 1e-9)


@given(schedules, st.integers(60, 500))
def test_a_learning_rate_rises_in_the_warm_up_and_never_after_it(schedule: Schedule, steps: int) -> None:
    rates = [learning_rate(schedule, step, steps) for step in range(steps)]
    rising, falling = rates[: schedule.warm_up + 1], rates[schedule.warm_up :]
    assert all(one < after for one, after in pairwise(rising)) or schedule.shape == "steps"
    assert all(one >= after for one, after in pairwise(falling))
    assert schedule.shape == "steps" or rates[schedule.warm_up] == pytest.approx(schedule.peak)


def test_a_cosine_is_half_way_down_in_the_middle_and_all_the_way_at_the_end() -> None:
    schedule = Schedule(peak=1.0, shape="cosine", final=0.2)
    assert learning_rate(schedule, 50, 101) == pytest.approx(0.6)
    assert learning_rate(schedule, 100, 101) == pytest.approx(0.2)


def test_steps_multiply_at_each_milestone() -> None:
    schedule = Schedule(peak=1.0, shape="steps", factor=0.1, milestones=(0.5, 0.75))
    assert [learning_rate(schedule, step, 100) for step in (49, 50, 75)] == pytest.approx([1.0, 0.1, 0.01])
