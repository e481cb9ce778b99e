"""A threshold whose risk is certified, found without labels.

Risk means: the share of all traffic that is answered locally *and* whose answer differs from the cloud's. For a
threshold t it is R(t) = P(score <= t and differs), which never falls when t rises. With D(t) the number of such
samples among n unbiased calibration samples, D(t) is binomial(n, R(t)). The fixed-sequence test goes from the surest
sample to the hardest and stops before the Clopper-Pearson upper bound of R first exceeds alpha. Because R is
monotone, a threshold that is too loose can only be chosen if D at the first too-loose threshold was luckily small,
which has probability <= delta: no union bound over thresholds is paid (Learn then Test, Angelopoulos et al. 2021,
with fixed-sequence testing).

All probabilities are computed here, so that a device needs no scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

ACCEPT_NOTHING = -1.0
"""Threshold below every score: no sample is answered locally."""


class Certificate(msgspec.Struct, frozen=True):
    """Result of a calibration: accept a sample locally when its score <= threshold."""

    threshold: float  # a hardness score, or ACCEPT_NOTHING
    n: int  # calibration samples
    accepted: int  # of them at or under the threshold
    differing: int  # of the accepted ones: the cloud answered differently
    bound: float  # upper bound of the risk at this threshold, <= alpha, holds with probability 1 - delta
    delta: float

    @property
    def send_share(self) -> float:
        """Share of the calibration samples that this threshold would have sent."""
        return 1.0 - self.accepted / self.n


class Missing(msgspec.Struct, frozen=True):
    """Too few samples for any certificate."""

    count: int
    text: str


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


def calibrate(
    scores: Sequence[float] | NDArray[np.floating],
    differs: Sequence[bool] | NDArray[np.bool_],
    alpha: float,
    delta: float,
) -> Certificate | Missing:
    """The loosest threshold whose risk is <= alpha with probability >= 1 - delta.

    `scores` and `differs`, both of shape (n,), must come from an unbiased sample of the traffic. Samples with equal
    scores stand or fall together. The certificate's threshold is ACCEPT_NOTHING if even the surest samples differ too
    often.
    """
    s = np.asarray(scores, dtype=np.float64)
    d = np.asarray(differs, dtype=bool)
    if s.ndim != 1 or s.shape != d.shape:
        raise ValueError(f"scores and differs must be two lists of one length, not of shapes {s.shape} and {d.shape}")
    n = len(s)
    needed = smallest_n(alpha, delta)
    if n < needed:
        text = (
            f"{n} answers cannot certify a risk of {alpha:.2%} at {1 - delta:.0%} confidence, "
            f"{needed} are needed: {needed - n} are missing"
        )
        return Missing(needed - n, text)
    order = np.argsort(s, kind="stable")
    s, differing = s[order], np.cumsum(d[order])
    group_end = np.append(s[1:] != s[:-1], True)  # the last sample of each run of equal scores
    candidates = np.flatnonzero(group_end & (differing <= allowed_differences(n, alpha, delta)))
    if not len(candidates):
        return Certificate(ACCEPT_NOTHING, n, 0, 0, 0.0, delta)
    last = int(candidates[-1])
    k = int(differing[last])
    return Certificate(float(s[last]), n, last + 1, k, clopper_pearson_upper(k, n, delta), delta)
