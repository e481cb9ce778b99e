"""Counters that survive a worker: what earlier workers of this daemon counted, added to what the present one does."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

import msgspec

from edgekit.messages import ServiceReport

_COUNTERS = ("inspected", "edge", "cloud", "degraded", "refused", "shed", "errors", "latency_sum_ms")


class Tally:
    """Sums by service since the supervisor started; without it every swap would set the page back to zero."""

    def __init__(self) -> None:
        self._past: dict[str, ServiceReport] = {}
        self.uplink_bytes = 0

    def retire(self, reports: Iterable[ServiceReport], uplink_bytes: int) -> None:
        """A worker has ended; these were its last counters."""
        for report in reports:
            self._past[report.name] = add(report, self._past.get(report.name))
        self.uplink_bytes += uplink_bytes

    def total(self, report: ServiceReport) -> ServiceReport:
        """`report` with the counters of all earlier workers."""
        return add(report, self._past.get(report.name))

    def forget(self, keep: Iterable[str]) -> None:
        """Drop the counters of services that are not wanted any more."""
        self._past = {name: self._past[name] for name in keep if name in self._past}


def add(report: ServiceReport, past: ServiceReport | None) -> ServiceReport:
    """`report` with `past`'s counters added; what is no counter stays as `report` says."""
    if past is None:
        return report
    labels = dict(past.labels)
    for label, number in report.labels.items():
        labels[label] = labels.get(label, 0) + number
    sums = {name: getattr(report, name) + getattr(past, name) for name in _COUNTERS}
    histogram = [sum(pair) for pair in zip_longest(report.latency_counts, past.latency_counts, fillvalue=0)]
    return msgspec.structs.replace(
        report,
        labels=labels,
        latency_counts=histogram,
        last_at=past.last_at if report.last_at is None else report.last_at,
        **sums,
    )
