"""The newest values of one measured quantity, bounded in number and in age."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

Freshness = Literal["unknown", "stale", "measured"]
"""unknown: too few values to say anything. stale: the newest is old. measured: as it should be."""

SIZE = 128
"""Values kept. A quantile of so many has a standard error of a thirtieth where the values spread by a quarter."""
LEAST = 3
"""Values below which nothing is known."""
_FEW = 32  # sparse traffic is judged by so many of its newest values, however old (within memory)


class Recent(Generic[T]):
    """At most `size` values with their times. `now` is monotonic seconds and does not run backwards."""

    def __init__(self, horizon_s: float = 300.0, memory_s: float = 3600.0, size: int = SIZE) -> None:
        """Values older than `horizon_s` are stale; older than `memory_s`, they are as if they had never been."""
        self._horizon_s = horizon_s
        self._memory_s = memory_s
        self._values: deque[tuple[float, T]] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: T, now: float) -> None:
        """Take one value; the oldest gives way."""
        self._values.append((now, value))

    def begin_with(self, others: Recent[T]) -> None:
        """The quantity has changed: what was measured before says nothing about it any more, only `others` do."""
        self._values.clear()
        self._values.extend(others._values)

    def freshness(self, now: float) -> Freshness:
        """What the values are worth at `now`."""
        known = sum(now - at <= self._memory_s for at, _ in self._values)
        if known < LEAST:
            return "unknown"
        return "measured" if self.age(now) <= self._horizon_s else "stale"

    def age(self, now: float) -> float:
        """Seconds since the newest value; infinite without one."""
        return max(0.0, now - self._values[-1][0]) if self._values else float("inf")

    def values(self, now: float) -> list[T]:
        """The values that count at `now`: those within the horizon, but the newest 32 of the memory at least."""
        fresh = [value for at, value in self._values if now - at <= self._horizon_s]
        if len(fresh) >= _FEW:
            return fresh
        return [value for at, value in self._values if now - at <= self._memory_s][-_FEW:]


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest of the values (at least one) that `share` of them do not exceed."""
    return weighted_quantile(((value, 1.0) for value in values), share)


def weighted_quantile(pairs: Iterable[tuple[float, float]], share: float) -> float:
    """As `quantile`, of (value, weight) pairs: the smallest value up to which `share` of all weight lies."""
    ordered = sorted(pairs)
    wanted = share * sum(weight for _, weight in ordered) * (1 - 1e-12)
    for value, weight in ordered:
        wanted -= weight
        if wanted <= 0:
            return value
    raise ValueError("a quantile of no values was asked for")
