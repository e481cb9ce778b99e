"""Skellam noise: whole numbers, exact to 2^-63 a draw, from a key stream that nobody can predict.

Sk(v), the difference of two Poisson variables of the mean v/2, has P(k) = e^-v I_k(v). A sum of independent Sk(v_i) is
Sk(sum v_i), which is why devices can each add a part (Agarwal et al. 2021, arXiv 2110.04995). Its probabilities come
from Miller's downward recurrence of the modified Bessel functions (Abramowitz and Stegun 9.12; DLMF 10.74(iv)), and a
draw is the inverse of their tail: 63 bits choose the magnitude, one the sign. numpy's generators are fast, but who sees
some of their numbers can work out the others.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgekit.federated.errors import FederatedError
from edgekit.secagg import masks
from edgekit.secagg.masks import Mask
from edgekit.secagg.messages import Prg

MAX_DEVIATION = 8192.0
"""Standard deviations beyond make tables that no cache holds; a finer grid would gain nothing."""
TRUNCATION = 2.0**-62
"""Bound on the distance of a draw's distribution from Skellam's."""
_TAIL = 66 * math.log(2)
_BLOCK = 1 << 16


def reach(variance: float) -> int:
    """No draw exceeds it in magnitude: the smallest k whose Chernoff bound on P(|X| >= k) is below 2^-65.

    ln E e^(tX) = v (cosh t - 1), least at sinh t = k / v.
    """
    high = 16
    while _chernoff(high, variance) > -_TAIL:
        high *= 2
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _chernoff(middle, variance) <= -_TAIL else (middle, high)
    return high


def probabilities(variance: int) -> NDArray[np.float64]:
    """P(X = k) for k = 0..reach. Raises FederatedError for a variance that is not 1..MAX_DEVIATION^2."""
    if not 1 <= variance <= MAX_DEVIATION**2:
        raise FederatedError(f"noise of the variance {variance}; 1 to {MAX_DEVIATION**2:.0f} can be drawn")
    last = reach(variance)
    first = last + 60 + last // 8
    found = [0.0] * (first + 2)
    found[first] = 1e-280
    for k in range(first, 0, -1):
        found[k - 1] = found[k + 1] + 2 * k / variance * found[k]
    values = np.array(found)
    values /= values[0] + 2 * values[:0:-1].sum()
    return values[: last + 1]


def skellam(count: int, variance: int, key: bytes, prg: Prg = "aes-256-ctr") -> NDArray[np.int64]:
    """`count` independent draws of Sk(variance), all determined by `key` (32 fresh random bytes, for this alone)."""
    thresholds = _thresholds(variance)
    drawn = np.zeros(count, np.dtype("<u8"))
    masks.apply(drawn, [Mask(key, add=True)], prg)
    found = np.empty(count, np.int64)
    for start in range(0, count, _BLOCK):
        block = drawn[start : start + _BLOCK]
        magnitude = len(thresholds) - np.searchsorted(thresholds, block >> np.uint64(1), side="right")
        found[start : start + _BLOCK] = np.where(block & np.uint64(1), -magnitude, magnitude)
    return found


@lru_cache(maxsize=4)
def _thresholds(variance: int) -> NDArray[np.uint64]:
    """2^63 P(|X| >= k) for k = reach..1, ascending: |X| is the number of those above a draw."""
    tails = np.cumsum(2 * probabilities(variance)[:0:-1])
    return np.rint(tails * 2.0**63).astype(np.uint64)


def _chernoff(k: int, variance: float) -> float:
    return math.log(2) + math.hypot(variance, k) - variance - k * math.asinh(k / variance)
