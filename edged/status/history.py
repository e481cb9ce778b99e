"""What each service did over the last ten minutes, in a few kilobytes: the samples behind the page's pictures. Pure."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edgekit.messages import ServiceReport

SAMPLE_S = 2.0
"""Seconds between two samples."""
SPAN_S = 600.0
SAMPLES = int(SPAN_S / SAMPLE_S)


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment of one service; what a worker reports is an average over its last ten seconds."""

    at: float  # the clock that `take` was given, seconds
    per_s: float  # decisions a second
    p50_ms: float | None  # None: there was no decision
    p99_ms: float | None


@dataclass(slots=True)
class _Ring:
    """Columns of numbers: 20 bytes a sample. NaN stands for None."""

    at: array[float] = field(default_factory=lambda: array("d"))
    per_s: array[float] = field(default_factory=lambda: array("f"))
    p50_ms: array[float] = field(default_factory=lambda: array("f"))
    p99_ms: array[float] = field(default_factory=lambda: array("f"))

    def add(self, now: float, report: ServiceReport) -> None:
        values = (now, report.recent_per_s, _or_nan(report.recent_p50_ms), _or_nan(report.recent_p99_ms))
        for column, value in zip((self.at, self.per_s, self.p50_ms, self.p99_ms), values, strict=True):
            column.append(value)
            if len(column) > SAMPLES:
                del column[0]

    def samples(self, since: float) -> list[Sample]:
        columns = zip(self.at, self.per_s, self.p50_ms, self.p99_ms, strict=True)
        return [Sample(at, rate, _or_none(p50), _or_none(p99)) for at, rate, p50, p99 in columns if at >= since]


class History:
    """The last SAMPLES samples of every service."""

    def __init__(self) -> None:
        self._rings: dict[str, _Ring] = {}

    def take(self, reports: Iterable[ServiceReport], now: float) -> None:
        """One sample of each service at `now` (seconds of a steady clock); what is not reported any more is dropped."""
        rings: dict[str, _Ring] = {}
        for report in reports:
            ring = rings[report.name] = self._rings.get(report.name) or _Ring()
            ring.add(now, report)
        self._rings = rings

    def lately(self, now: float) -> Mapping[str, list[Sample]]:
        """The samples of the SPAN_S before `now`, by service, oldest first."""
        return {name: ring.samples(now - SPAN_S) for name, ring in self._rings.items()}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
