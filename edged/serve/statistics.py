"""Counters and latencies of one service, cheap enough to keep for every request. Pure: the clock is passed in."""

from __future__ import annotations

import bisect
import math
from collections import Counter, deque

from edgekit.messages import LATENCY_BOUNDS_MS, Decision, ServiceReport

SHARE_WINDOW = 1000
"""The offload share is that of the last 1,000 samples."""
MAX_LABELS = 1000
"""Labels counted by name; a package cannot make a report grow beyond that."""

_SLOT_S = 10.0
_SLOTS = 6  # percentiles cover the last 50 to 60 seconds
_RATIO = 2 ** (1 / 8)
_FLOOR_MS = 0.01
_BUCKETS = 192  # 0.01 ms * 2^(192/8) = 168 s; what is slower counts as that


def _bucket(milliseconds: float) -> int:
    if milliseconds <= _FLOOR_MS:
        return 0
    return min(_BUCKETS - 1, int(math.log(milliseconds / _FLOOR_MS, _RATIO)))


class LatencyWindow:
    """Percentiles over a sliding window, from histograms of 10 s each with buckets 9 % apart."""

    def __init__(self) -> None:
        self._slots: deque[tuple[int, list[int]]] = deque(maxlen=_SLOTS)

    def add(self, milliseconds: float, now: float) -> None:
        """Count one latency at `now` (monotonic seconds)."""
        epoch = int(now // _SLOT_S)
        if not self._slots or self._slots[-1][0] != epoch:
            self._slots.append((epoch, [0] * _BUCKETS))
        self._slots[-1][1][_bucket(milliseconds)] += 1

    def percentiles(self, shares: tuple[float, ...], now: float) -> list[float | None]:
        """For each share (0.99) the latency in milliseconds that it stays under, None if nothing was measured."""
        oldest = int(now // _SLOT_S) - _SLOTS + 1
        total = [
            sum(column) for column in zip(*(counts for epoch, counts in self._slots if epoch >= oldest), strict=True)
        ]
        count = sum(total)
        if count == 0:
            return [None] * len(shares)
        found: list[float | None] = []
        for share in shares:
            rank, seen = max(1, math.ceil(share * count)), 0
            for bucket, number in enumerate(total):
                seen += number
                if seen >= rank:
                    found.append(_FLOOR_MS * _RATIO ** (bucket + 0.5))
                    break
        return found


class ServiceStatistics:
    """What one service did since the worker started, and lately."""

    def __init__(self, labels: list[str]) -> None:
        self._known = frozenset(labels[:MAX_LABELS])
        self._labels: Counter[str] = Counter()
        self._decided: Counter[str] = Counter()
        self._offloaded: deque[bool] = deque(maxlen=SHARE_WINDOW)
        self._offloaded_count = 0
        self._compared = 0
        self._agreed = 0
        self._window = LatencyWindow()
        self._inference = LatencyWindow()
        self._histogram = [0] * (len(LATENCY_BOUNDS_MS) + 1)
        self._latency_sum_ms = 0.0
        self._last_at: float | None = None
        self.refused = 0
        self.shed = 0
        self.errors = 0

    def decided(self, decision: Decision, total_ms: float, now: float, wall: float) -> None:
        """Count one decision; `total_ms` is what its client waited, `now` monotonic, `wall` the clock on the wall."""
        self._decided[decision.decided] += 1
        if decision.label in self._known:
            self._labels[decision.label] += 1
        offloaded = decision.sent is not None
        if len(self._offloaded) == SHARE_WINDOW:
            self._offloaded_count -= self._offloaded[0]
        self._offloaded.append(offloaded)
        self._offloaded_count += offloaded
        if decision.cloud is not None:
            self.compared(decision.cloud.label == decision.edge.label)
        self._window.add(total_ms, now)
        if "infer" in decision.timings_ms:
            self._inference.add(decision.timings_ms["infer"], now)
        self._histogram[bisect.bisect_left(LATENCY_BOUNDS_MS, total_ms)] += 1
        self._latency_sum_ms += total_ms
        self._last_at = wall

    def compared(self, agrees: bool) -> None:
        """Count one cloud answer against the edge's own."""
        self._compared += 1
        self._agreed += agrees

    def report(self, name: str, model: str, gate: str, waiting: int, now: float) -> ServiceReport:
        """The service's report; `now` is the monotonic clock that `decided` was given."""
        p50, p99 = self._window.percentiles((0.5, 0.99), now)
        (infer_p95,) = self._inference.percentiles((0.95,), now)
        return ServiceReport(
            name=name,
            model=model,
            state="ready",
            inspected=self._decided.total(),
            edge=self._decided["edge"],
            cloud=self._decided["cloud"],
            degraded=self._decided["edge-degraded"],
            offload_share=self._offloaded_count / len(self._offloaded) if self._offloaded else 0.0,
            agreement=self._agreed / self._compared if self._compared else None,
            p50_ms=p50,
            p99_ms=p99,
            infer_p95_ms=infer_p95,
            gate=gate,
            labels=dict(self._labels),
            refused=self.refused,
            shed=self.shed,
            errors=self.errors,
            waiting=waiting,
            last_at=self._last_at,
            latency_counts=list(self._histogram),
            latency_sum_ms=self._latency_sum_ms,
        )
