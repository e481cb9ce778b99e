"""Alarms that say the traffic is no longer what the threshold was calibrated on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import msgspec

WINDOW = 150
SIGMAS = 4.5
_BATCH = 10
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
    would. The spread is therefore the larger of the plain one and the one seen between means of 10 neighbours. A
    floor keeps a model that is always equally sure from raising alarms over rounding.
    """
    n = len(scores)
    mean = math.fsum(scores) / n
    variance = math.fsum((s - mean) ** 2 for s in scores) / n
    third = math.fsum((s - mean) ** 3 for s in scores) / n
    batches = [math.fsum(scores[i : i + _BATCH]) / _BATCH for i in range(0, n - _BATCH + 1, _BATCH)]
    between = _BATCH * math.fsum((b - mean) ** 2 for b in batches) / len(batches) if batches else 0.0
    skew = third / variance**1.5 if variance > 1e-12 else 0.0
    return Reference(mean, max(math.sqrt(max(variance, between)), _SMALLEST_SPREAD), skew, n)


class DriftAlarm:
    """Watches the mean score of the last 150 samples; needs no label and no link.

    The alarm goes off when it is 4.5 standard errors away from the reference's mean (both means are uncertain).
    Scores are skewed: a few hard samples among many sure ones. The upper limit is widened by the first Cornish-Fisher
    term for it.
    """

    def __init__(self, ref: Reference, recent: Sequence[float] = ()) -> None:
        error = ref.spread * math.sqrt(1 / WINDOW + 1 / ref.n)
        widened = SIGMAS + max(0.0, (SIGMAS**2 - 1) / 6 * ref.skew / math.sqrt(WINDOW))
        self.ref = ref
        self.low = ref.mean - SIGMAS * error
        self.high = ref.mean + widened * error
        self._recent = deque(recent, maxlen=WINDOW)
        self._sum = math.fsum(self._recent)

    @property
    def recent(self) -> list[float]:
        return list(self._recent)

    def observe(self, score: float) -> bool:
        """Take the score of the next sample; True if the alarm goes off."""
        if len(self._recent) == WINDOW:
            self._sum -= self._recent[0]
        self._recent.append(score)
        self._sum += score
        return len(self._recent) == WINDOW and not self.low <= self._sum / WINDOW <= self.high


class AuditAlarm:
    """Page's CUSUM on audits: samples that were answered locally and sent all the same.

    Goes off when far more of them differ than the certificate allows. It tests a rate of three times the limit
    against the limit; while the limit holds, a false alarm comes on average once in 1,000 audits or more rarely (Page
    1954, Lorden 1971). Good audits bring the sum down to zero and no further, so they can never loosen anything.
    """

    THRESHOLD = math.log(1000.0)

    def __init__(self, limit: float, level: float = 0.0) -> None:
        """`limit`: allowed share of differing answers among the locally answered samples, 0 < limit < 1."""
        bad = min(3 * limit, (1 + limit) / 2)
        self._hit = math.log(bad / limit)
        self._miss = math.log((1 - bad) / (1 - limit))
        self.level = level

    def observe(self, differs: bool) -> bool:
        """Take one audit; True if the alarm goes off."""
        self.level = max(0.0, self.level + (self._hit if differs else self._miss))
        return self.level >= self.THRESHOLD
