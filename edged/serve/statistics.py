"""Counters and latencies of one service, cheap enough to keep for every request. Pure: the clock is passed in."""

from __future__ import annotations

import bisect
import math
from collections import Counter, deque

from edgekit.messages import LATENCY_BOUNDS_MS, STAGE_BOUNDS_MS, UNSEEN, Decision, ServiceReport
from edgekit.planning.routes import Demand

SHARE_WINDOW = 1000
"""The offload share is that of the last 1,000 samples."""
MAX_LABELS = 1000
"""Labels counted by name; a package cannot make a report grow beyond that."""

STAGES = ("queue", "decode", "infer", "cloud")
"""Parts of `timings_ms` that have a histogram of their own."""

_SLOT_S = 10.0
_SLOTS = 6  # percentiles cover the last 50 to 60 seconds
_RECENT_SLOT_S = 2.0  # those of the picture over time cover the last 8 to 10
_RECENT_SLOTS = 5
_RATIO = 2 ** (1 / 8)
_FLOOR_MS = 0.01
_BUCKETS = 192  # 0.01 ms * 2^(192/8) = 168 s; what is slower counts as that


def _bucket(milliseconds: float) -> int:
    if milliseconds <= _FLOOR_MS:
        return 0
    return min(_BUCKETS - 1, int(math.log(milliseconds / _FLOOR_MS, _RATIO)))


class LatencyWindow:
    """Percentiles over a sliding window of `slots` histograms of `slot_s` seconds each with buckets 9 % apart."""

    def __init__(self, slot_s: float = _SLOT_S, slots: int = _SLOTS) -> None:
        self._slot_s, self._count = slot_s, slots
        self._slots: deque[tuple[int, list[int]]] = deque(maxlen=slots)
        self._first = math.inf  # when the first latency was counted

    def add(self, milliseconds: float, now: float) -> None:
        """Count one latency at `now` (monotonic seconds)."""
        self._first = min(self._first, now)
        epoch = int(now // self._slot_s)
        if not self._slots or self._slots[-1][0] != epoch:
            self._slots.append((epoch, [0] * _BUCKETS))
        self._slots[-1][1][_bucket(milliseconds)] += 1

    def per_s(self, now: float) -> float:
        """Latencies counted a second, over the window or the time since the first one, one second at least."""
        oldest = int(now // self._slot_s) - self._count + 1
        counted = sum(sum(counts) for epoch, counts in self._slots if epoch >= oldest)
        return counted / max(1.0, now - max(oldest * self._slot_s, self._first)) if counted else 0.0

    def percentiles(self, shares: tuple[float, ...], now: float) -> list[float | None]:
        """For each share (0.99) the latency in milliseconds that it stays under, None if nothing was measured."""
        oldest = int(now // self._slot_s) - self._count + 1
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
        self._recent = LatencyWindow(_RECENT_SLOT_S, _RECENT_SLOTS)
        self._inference = LatencyWindow()
        self._working = LatencyWindow()  # decode and infer
        self._before = LatencyWindow()  # and the queue before them
        self._verdicts: Counter[str] = Counter()
        self._regions: Counter[str] = Counter()
        self._stage_counts: dict[str, list[int]] = {}
        self._stage_sums: dict[str, float] = {}
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
        if decision.cloud is not None and decision.edge.label != UNSEEN:
            self.compared(decision.cloud.label == decision.edge.label)
        if decision.verdict:
            self._verdicts[decision.verdict] += 1
        self._window.add(total_ms, now)
        self._recent.add(total_ms, now)
        for stage in STAGES:
            if stage in decision.timings_ms:
                self._took(stage, decision.timings_ms[stage])
        if "infer" in decision.timings_ms:
            self._inference.add(decision.timings_ms["infer"], now)
            working = decision.timings_ms["infer"] + decision.timings_ms.get("decode", 0.0)
            self._working.add(working, now)
            self._before.add(working + decision.timings_ms.get("queue", 0.0), now)
        self._histogram[bisect.bisect_left(LATENCY_BOUNDS_MS, total_ms)] += 1
        self._latency_sum_ms += total_ms
        self._last_at = wall

    def _took(self, stage: str, milliseconds: float) -> None:
        counts = self._stage_counts.setdefault(stage, [0] * (len(STAGE_BOUNDS_MS) + 1))
        counts[bisect.bisect_left(STAGE_BOUNDS_MS, milliseconds)] += 1
        self._stage_sums[stage] = self._stage_sums.get(stage, 0.0) + milliseconds

    def regions(self, candidates: int, decision: Decision) -> None:
        """Count the regions of one decision, for which the edge had so many candidates."""
        answered = sum(region.decided == "cloud" for region in decision.regions)
        self._regions.update(candidates=candidates, defects=decision.defects, cloud=answered)

    def compared(self, agrees: bool) -> None:
        """Count one cloud answer against the edge's own."""
        self._compared += 1
        self._agreed += agrees

    def demand(self, cores: float, now: float) -> Demand:
        """What the line brings, for the planner; `cores` serve it. Before the first decision every sample is asked."""
        (before_ms,) = self._before.percentiles((0.95,), now)
        (working_ms,) = self._working.percentiles((0.5,), now)
        return Demand(
            frames_per_s=self._recent.per_s(now),
            asked_share=self._offloaded_count / len(self._offloaded) if self._offloaded else 1.0,
            before_ms=before_ms or 0.0,
            cpu_ms=working_ms or 0.0,
            cores=cores,
        )

    def report(self, name: str, model: str, gate: str, waiting: int, now: float) -> ServiceReport:
        """The service's report; `now` is the monotonic clock that `decided` was given."""
        p50, p99 = self._window.percentiles((0.5, 0.99), now)
        recent_p50, recent_p99 = self._recent.percentiles((0.5, 0.99), now)
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
            verdicts=dict(self._verdicts),
            regions=dict(self._regions),
            recent_p50_ms=recent_p50,
            recent_p99_ms=recent_p99,
            recent_per_s=self._recent.per_s(now),
            stage_counts={stage: list(counts) for stage, counts in self._stage_counts.items()},
            stage_sums_ms=dict(self._stage_sums),
        )
