"""How a device's training goes on over the rounds of a job: steps and learning rates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.federated.course import rates, steps_of
from edgekit.messages.federation import LocalTraining
from edgekit.training.order import batches, epoch_order

SHAPES = st.sampled_from(("constant", "cosine", "linear"))


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 5))
def test_a_round_of_epochs_has_the_steps_that_the_trainer_makes_of_them(pictures: int, batch: int, epochs: int) -> None:
    size = min(batch, pictures)
    order = epoch_order([0] * pictures, 0, 0)  # type: ignore[arg-type]
    assert steps_of(LocalTraining(epochs=epochs, batch=batch), pictures) == epochs * len(batches(order, size))


def test_a_round_of_steps_has_as_many_whatever_a_device_holds() -> None:
    assert {steps_of(LocalTraining(steps=7, batch=16), pictures) for pictures in (1, 16, 1000)} == {7}


@given(SHAPES, st.integers(0, 12), st.integers(1, 20), st.integers(1, 6))
def test_no_step_of_any_round_has_a_learning_rate_of_zero_or_above_the_highest(
    shape: str, warm_up: int, rounds: int, steps: int
) -> None:
    local = LocalTraining(schedule=shape, warm_up=warm_up, learning_rate=0.5)  # type: ignore[arg-type]
    found = [rate for version in range(rounds) for rate in rates(local, version, rounds, steps)]
    assert len(found) == rounds * steps and all(0 < rate <= 0.5 for rate in found)


@given(SHAPES, st.integers(1, 20), st.integers(1, 6))
def test_rounds_after_each_other_have_the_rates_of_one_training(shape: str, rounds: int, steps: int) -> None:
    local = LocalTraining(schedule=shape, learning_rate=0.5)  # type: ignore[arg-type]
    found = [rate for version in range(rounds) for rate in rates(local, version, rounds, steps)]
    assert found == rates(local, 0, 1, rounds * steps)


def test_the_rate_rises_over_the_warm_up_and_falls_as_the_shape_says() -> None:
    local = LocalTraining(learning_rate=0.1, warm_up=2)
    assert [rates(local, version, 6, 1)[0] for version in range(6)] == pytest.approx(
        [0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1, 0.1]
    )
    cosine = LocalTraining(learning_rate=0.1, schedule="cosine")
    found = [rates(cosine, version, 6, 1)[0] for version in range(6)]
    assert found[0] == 0.1 and found == sorted(found, reverse=True) and found[3] == pytest.approx(0.05)
