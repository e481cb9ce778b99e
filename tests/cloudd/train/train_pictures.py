"""Pictures that a small network learns in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE = 40


def disc(hole: bool, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A grey disc on noise, with a hole in it or not."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    away = np.hypot(rows - rng.uniform(17, 23), columns - rng.uniform(17, 23))
    image = rng.integers(0, 60, (SIDE, SIDE), np.uint8)
    image[away < 12] += 150
    if hole:
        image[away < 6] //= 4
    return image


Draw = Callable[..., Path]
"""The fixture `draw`."""
