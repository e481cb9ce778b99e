"""Alarms that say the traffic is no longer what the threshold was calibrated on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import msgspec

WINDOWS = (150, 600)
"""Samples: the short window hears an abrupt change soon, the long one a smaller change later."""
SIGMAS = 4.5
_BATCH = 10
_FEWEST_BATCHES = 10  # of a window's size; a spread between fewer of them is a guess
_SMALLEST_SPREAD = 0.01


class Reference(msgspec.Struct, frozen=True):
    """What the scores looked like when the threshold was calibrated."""

    mean: float
    spread: float  # standard deviation of one score, inflated if neighbouring samples resemble each other
    skew: float  # third standardised moment
    n: int


def reference(scores: Sequence[float]) -> Reference:
    """Summarise the scores of the calibration set, in the order in which the samples came (at least one).

    Samples of one board resemble each other, which makes the mean of a window wander more than independent scores
    would. The spread is therefore the largest of the plain one and those seen between means of 10 neighbours and, where
    there are enough scores for it, of as many as a window has: with regions a window may lie within one frame, and the
    mean wanders as frames differ. A floor keeps a model that is always equally sure from raising alarms over rounding.
    """
    n = len(scores)
    mean = math.fsum(scores) / n
    variance = math.fsum((s - mean) ** 2 for s in scores) / n
    third = math.fsum((s - mean) ** 3 for s in scores) / n
    spreads = [
        _between(scores, size, mean) for size in (_BATCH, *WINDOWS) if size == _BATCH or n >= _FEWEST_BATCHES * size
    ]
    skew = third / variance**1.5 if variance > 1e-12 else 0.0
    return Reference(mean, max(math.sqrt(max(variance, *spreads)), _SMALLEST_SPREAD), skew, n)


def _between(scores: Sequence[float], size: int, mean: float) -> float:
    """Variance of one score as the means of `size` neighbours show it; 0 without a full batch."""
    batches = [math.fsum(scores[i : i + size]) / size for i in range(0, len(scores) - size + 1, size)]
    return size * math.fsum((b - mean) ** 2 for b in batches) / len(batches) if batches else 0.0


class DriftAlarm:
    """Watches the mean score of the last 150 and of the last 600 samples; needs no label and no link.

    The alarm goes off when a mean is 4.5 standard errors away from the reference's (both are uncertain). Scores are
    skewed, a few hard samples among many sure ones: the upper limit is widened by the first Cornish-Fisher term for it.

    A model that has become wrong but stays sure looks the same from here; that is what audits are for.
    """

    def __init__(self, ref: Reference, recent: Sequence[float] = ()) -> None:
        self.ref = ref
        self._recent = deque(recent, maxlen=WINDOWS[-1])
        self._windows = [_Window(size, ref, self._recent) for size in WINDOWS]

    @property
    def recent(self) -> list[float]:
        return list(self._recent)

    def observe(self, score: float) -> bool:
        """Take the score of the next sample; True if the alarm goes off."""
        outside = [window.outside_with(score, self._recent) for window in self._windows]
        self._recent.append(score)
        return any(outside)


class _Window:
    """The running sum of the last `size` scores and its limits."""

    def __init__(self, size: int, ref: Reference, recent: Sequence[float]) -> None:
        error = ref.spread * math.sqrt(1 / size + 1 / ref.n)
        widened = SIGMAS + max(0.0, (SIGMAS**2 - 1) / 6 * ref.skew / math.sqrt(size))
        self._size = size
        self._low = (ref.mean - SIGMAS * error) * size
        self._high = (ref.mean + widened * error) * size
        self._sum = math.fsum(list(recent)[-size:])

    def outside_with(self, score: float, recent: Sequence[float]) -> bool:
        """Move the window on to `score`, the one after `recent`; is the mean outside the limits?"""
        self._sum += score
        if len(recent) >= self._size:
            self._sum -= recent[-self._size]
        return len(recent) + 1 >= self._size and not self._low <= self._sum <= self._high


class AuditAlarm:
    """Page's CUSUM on audits: samples that were answered locally and sent all the same.

    Goes off when more of them differ than the certificate allows. Two sums test two rates against the limit: three
    times the limit, and about one half, which a model that has gone blind reaches within a handful of audits. While the
    limit holds, each sum gives a false alarm on average once in 2,000 audits or more rarely (Page 1954, Lorden 1971).
    Good audits bring a sum down to zero and no further, so they can never loosen anything.
    """

    THRESHOLD = math.log(2000.0)

    def __init__(self, limit: float, levels: Sequence[float] = ()) -> None:
        """`limit`: allowed share of differing answers among the locally answered samples, 0 < limit < 1."""
        rates = (min(3 * limit, (1 + limit) / 2), (1 + limit) / 2)
        self._steps = [(math.log((1 - rate) / (1 - limit)), math.log(rate / limit)) for rate in rates]
        self._levels = tuple(levels) or (0.0,) * len(rates)

    @property
    def levels(self) -> tuple[float, ...]:
        return self._levels

    def observe(self, differs: bool) -> bool:
        """Take one audit; True if the alarm goes off."""
        pairs = zip(self._levels, self._steps, strict=True)
        self._levels = tuple(max(0.0, level + steps[differs]) for level, steps in pairs)
        return max(self._levels) >= self.THRESHOLD
