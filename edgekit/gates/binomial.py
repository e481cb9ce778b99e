"""Exact bounds of a share after so many hits in so many trials.

All probabilities are computed here, so that a device needs no scipy, and a process without numpy may ask as well.
"""

from __future__ import annotations

import math


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ binomial(n, p). Relative error below 1e-9 for n <= 100,000 (of the smaller tail)."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 0.0
    if k > n * p:  # sum the shorter, smaller tail
        return 1.0 - _lower_tail(n - k - 1, n, 1.0 - p, p)
    return _lower_tail(k, n, p, 1.0 - p)


def _lower_tail(k: int, n: int, p: float, q: float) -> float:
    """Sum of the binomial terms k, k-1, ... 0: only the largest term needs logarithms, the others follow by ratios."""
    log_term = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log(q)
    )
    total = ratio = 1.0
    for i in range(k, 0, -1):
        ratio *= i * q / ((n - i + 1) * p)
        total += ratio
        if ratio < 1e-18 * total:
            break
    return min(1.0, math.exp(log_term) * total)


def clopper_pearson_upper(k: int, n: int, delta: float) -> float:
    """Upper confidence bound of a proportion after k hits in n trials: holds with probability >= 1 - delta.

    The p at which P(binomial(n, p) <= k) = delta, by bisection to the last float. Raises ValueError for impossible
    arguments.
    """
    if not (0 <= k <= n and n > 0 and 0.0 < delta < 1.0):
        raise ValueError(f"Clopper-Pearson needs 0 <= k <= n, n > 0 and 0 < delta < 1, not k={k}, n={n}, delta={delta}")
    if k == n:
        return 1.0
    low, high = k / n, 1.0
    while low < (middle := (low + high) / 2) < high:
        if binomial_cdf(k, n, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def smallest_n(alpha: float, delta: float) -> int:
    """Fewest calibration samples with which alpha can be certified at all (all of them agreeing): (1-alpha)^n <= delta.

    ln(1/delta)/alpha to first order: 230 for 1 %, 115 for 2 % at delta = 0.1.
    """
    if not (0.0 < alpha < 1.0 and 0.0 < delta < 1.0):
        raise ValueError(f"alpha and delta must lie between 0 and 1, not alpha={alpha}, delta={delta}")
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def allowed_differences(n: int, alpha: float, delta: float) -> int:
    """Largest k whose Clopper-Pearson bound is <= alpha after n trials; -1 if there is none."""
    if binomial_cdf(0, n, alpha) > delta:
        return -1
    low, high = 0, n
    while high - low > 1:  # binomial_cdf rises with k
        middle = (low + high) // 2
        if binomial_cdf(middle, n, alpha) <= delta:
            low = middle
        else:
            high = middle
    return low
