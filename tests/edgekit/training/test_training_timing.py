"""How long a step takes is told by the clock, and telling it leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
from softmax_engine import Clock, SoftmaxEngine, examples

from edgekit.training.timing import step_seconds


def test_a_step_takes_what_the_clock_says_and_the_engine_is_as_it_was() -> None:
    clock = Clock()
    engine = SoftmaxEngine(clock, step_seconds=0.25)
    before = engine.state()
    assert step_seconds(engine, examples(1), 50, clock) == pytest.approx(0.25), "more than there are: they come again"
    for name, array in engine.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_clock_that_stands_still_gives_no_time_that_one_could_not_divide_by() -> None:
    assert step_seconds(SoftmaxEngine(), examples(1), 4, Clock()) > 0
