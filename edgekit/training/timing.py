"""How long a step takes here, so that what fits into a time can be planned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.training.examples import Examples
from edgekit.training.trainer import Engine

_TIMED = 3
"""Steps, after one that warms up."""


def step_seconds(engine: Engine, examples: Examples, batch: int, clock: Callable[[], float]) -> float:
    """The median of a few steps on `batch` examples by `clock`, with the making of the batch. The engine is then as it
    was. Raises TrainingError, OSError for a picture that cannot be used.
    """
    before = engine.state()
    times = []
    for number in range(1 + _TIMED):
        places = (np.arange(batch) + number * batch) % len(examples.groups)
        started = clock()
        engine.step(examples.feeds(places, 0, number * batch), 0.0)
        times.append(clock() - started)
    engine.restore(before)
    return max(1e-9, sorted(times[1:])[_TIMED // 2])
