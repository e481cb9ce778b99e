"""A threshold whose risk is certified, found without labels.

Risk means: the share of all traffic that is answered locally *and* whose answer differs from the cloud's. For a
threshold t it is R(t) = P(score <= t and differs), which never falls when t rises. With D(t) the number of such
samples among n unbiased calibration samples, D(t) is binomial(n, R(t)). The fixed-sequence test goes from the surest
sample to the hardest and stops before the Clopper-Pearson upper bound of R first exceeds alpha. Because R is
monotone, a threshold that is too loose can only be chosen if D at the first too-loose threshold was luckily small,
which has probability <= delta: no union bound over thresholds is paid (Learn then Test, Angelopoulos et al. 2021,
with fixed-sequence testing).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.gates.binomial import allowed_differences, clopper_pearson_upper, smallest_n

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
