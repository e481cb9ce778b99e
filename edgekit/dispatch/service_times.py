"""How long the runs of one service take at one place, and what the next one is predicted to take.

The mean follows the last ten runs or so (a throttled CPU is noticed at once), the variation the last fifty. While runs
vary little the prediction is `factor` times the mean. Beyond `steady_cv` no multiple of a mean says much, and it is the
95th percentile of the last 128 runs (research, `algorithms.md` section 5: needed from a coefficient of 0.3 on).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

_MEAN_WEIGHT = 0.1
_VARIANCE_WEIGHT = 0.02
_RECENT = 128
_ENOUGH = 20  # runs before there is a 95th percentile


class ServiceTimes:
    """See the module's docstring. Times are seconds."""

    __slots__ = ("_recent", "_sorted", "_variance", "mean")

    def __init__(self, guess: float) -> None:
        """`guess` stands for the mean until something was measured; raises ValueError if it is not positive."""
        if not 0.0 < guess < math.inf:
            raise ValueError(f"the guess of a run's time must be a number of seconds over 0, not {guess}")
        self.mean = guess
        self._variance = 0.0
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def cv(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        return math.sqrt(self._variance) / self.mean

    def add(self, seconds: float) -> None:
        """Count one run. What cannot be a time (not finite, not positive) is not counted."""
        if not 0.0 < seconds < math.inf:
            return
        share = 1 / (len(self._recent) + 1)  # the first ones count as much as each other
        off = seconds - self.mean
        self.mean += max(_MEAN_WEIGHT, share) * off
        if self._recent:
            self._variance += max(_VARIANCE_WEIGHT, share) * (off * off - self._variance)
        insort(self._sorted, seconds)
        self._recent.append(seconds)
        if len(self._recent) > _RECENT:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def predicted(self, factor: float, steady_cv: float) -> float:
        """Seconds that the next run should not exceed."""
        if len(self._sorted) >= _ENOUGH and self._variance > (steady_cv * self.mean) ** 2:
            return max(self.mean, self._sorted[math.ceil(0.95 * len(self._sorted)) - 1])
        return factor * self.mean
