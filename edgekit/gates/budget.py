"""A threshold that sends about a given share of the traffic, without labels."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence


def budget_threshold(scores: Sequence[float], share: float) -> float:
    """The score above which at most `share` of the given scores lie (at least one score, in any order)."""
    return _threshold(sorted(scores), share)


def _threshold(ordered: Sequence[float], share: float) -> float:
    """Sends ordered[i+1:], that is at most floor(share * n) scores; equal scores stay together on the accepted side."""
    send = math.floor(share * len(ordered) + 1e-9)
    return ordered[len(ordered) - 1 - send] if send < len(ordered) else -1.0


class RecentScores:
    """The last `size` scores, kept both in order of arrival and sorted, so that a quantile costs nothing."""

    def __init__(self, size: int, scores: Iterable[float] = ()) -> None:
        self._size = size
        self._arrived: deque[float] = deque()
        self._ordered: list[float] = []
        for score in scores:
            self.add(score)

    def __len__(self) -> int:
        return len(self._arrived)

    @property
    def arrived(self) -> list[float]:
        return list(self._arrived)

    def add(self, score: float) -> None:
        if len(self._arrived) == self._size:
            oldest = self._arrived.popleft()
            del self._ordered[bisect_left(self._ordered, oldest)]
        self._arrived.append(score)
        insort(self._ordered, score)

    def threshold(self, share: float) -> float:
        """As `budget_threshold`, of the scores held (at least one)."""
        return _threshold(self._ordered, share)
