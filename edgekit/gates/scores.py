"""Hardness scores from the edge model's probabilities.

The softmax margin (best minus second best) was the best cheap score we measured; entropy, energy and the largest logit
were worse at picking the samples where the cloud's answer differs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def margins(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Best minus second best probability over the last axis: shape (..., classes) -> (...), values 0..1.

    A model with one class has no runner-up: its margin is the probability itself.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape[-1] == 1:
        return p[..., 0]
    top = np.partition(p, p.shape[-1] - 2, axis=-1)
    return np.asarray(top[..., -1] - top[..., -2], dtype=np.float64)


def hardness(margin: float) -> float:
    """Hardness score of a sample, 0 (sure) .. 1 (hopeless): 1 - margin. A NaN or a margin out of range is hopeless."""
    return 1.0 - margin if math.isfinite(margin) and 0.0 <= margin <= 1.0 else 1.0
