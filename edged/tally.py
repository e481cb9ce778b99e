"""Counters that survive a worker: what earlier workers of this daemon counted, added to what the present one does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest

import msgspec

from edgekit.messages import ModelStatistics, OutputReport, ServiceReport, ShadowReport

MAX_MODELS = 256
"""Model versions whose counters are kept after their worker; the ones unused for longest are dropped."""

_COUNTERS = (
    "inspected", "edge", "cloud", "degraded", "refused", "shed", "errors", "latency_sum_ms", "runs", "inline_runs",
    "audited", "audited_differing",
)  # fmt: skip
_TABLES = ("labels", "verdicts", "regions", "stage_sums_ms", "not_run")
_SHADOW_STATE = frozenset({"candidate", "p95_ms", "failure"})
_SHADOW_COUNTERS = tuple(name for name in ShadowReport.__struct_fields__ if name not in _SHADOW_STATE)
_MODEL_STATE = frozenset({"name", "version", "pending", "last_at"})
_MODEL_COUNTERS = tuple(name for name in ModelStatistics.__struct_fields__ if name not in _MODEL_STATE)

ModelKey = tuple[str, str]
"""Name and version."""


class Tally:
    """Sums by service and by model since the supervisor started; without it every swap would set the page to zero."""

    def __init__(self) -> None:
        self._past: dict[str, ServiceReport] = {}
        self._models: dict[ModelKey, ModelStatistics] = {}
        self.uplink_bytes = 0

    def retire(
        self, reports: Iterable[ServiceReport], uplink_bytes: int, models: Iterable[ModelStatistics] = ()
    ) -> None:
        """A worker has ended; these were its last counters."""
        for report in reports:
            past = self._past.get(report.name)
            total = add(report, past)
            if past is not None and total.shadow is None:  # a worker that could not load the service says nothing of it
                total = msgspec.structs.replace(total, shadow=past.shadow)
            self._past[report.name] = total
        for model in models:
            key = (model.name, model.version)
            self._models[key] = add_model(model, self._models.pop(key, None))
        while len(self._models) > MAX_MODELS:
            del self._models[next(iter(self._models))]
        self.uplink_bytes += uplink_bytes

    def total(self, report: ServiceReport) -> ServiceReport:
        """`report` with the counters of all earlier workers."""
        return add(report, self._past.get(report.name))

    def total_model(self, model: ModelStatistics) -> ModelStatistics:
        """`model` with the counters of all earlier workers."""
        return add_model(model, self._models.get((model.name, model.version)))

    def forget(self, keep: Iterable[str]) -> None:
        """Drop the counters of services that are not wanted any more."""
        self._past = {name: self._past[name] for name in keep if name in self._past}


def add(report: ServiceReport, past: ServiceReport | None) -> ServiceReport:
    """`report` with `past`'s counters added; what is no counter stays as `report` says."""
    if past is None:
        return report
    sums = {name: getattr(report, name) + getattr(past, name) for name in _COUNTERS}
    tables = {name: _merged(getattr(report, name), getattr(past, name)) for name in _TABLES}
    stages = {
        stage: _columns(report.stage_counts.get(stage, []), past.stage_counts.get(stage, []))
        for stage in {**past.stage_counts, **report.stage_counts}
    }
    return msgspec.structs.replace(
        report,
        latency_counts=_columns(report.latency_counts, past.latency_counts),
        stage_counts=stages,
        outputs=_outputs(report.outputs, past.outputs),
        shadow=_shadow(report.shadow, past.shadow),
        last_at=past.last_at if report.last_at is None else report.last_at,
        **sums,
        **tables,
    )


def add_model(model: ModelStatistics, past: ModelStatistics | None) -> ModelStatistics:
    """`model` with `past`'s counters added."""
    if past is None:
        return model
    sums = {name: getattr(model, name) + getattr(past, name) for name in _MODEL_COUNTERS}
    return msgspec.structs.replace(model, last_at=max(model.last_at, past.last_at), **sums)


def _shadow(now: ShadowReport | None, past: ShadowReport | None) -> ShadowReport | None:
    """What was counted for another candidate says nothing about this one."""
    if now is None or past is None or now.candidate != past.candidate:
        return now
    sums = {name: getattr(now, name) + getattr(past, name) for name in _SHADOW_COUNTERS}
    return msgspec.structs.replace(now, **sums)


def _outputs(now: list[OutputReport], past: list[OutputReport]) -> list[OutputReport]:
    """An output that the definition no longer names is gone with what it counted."""
    before = {(output.kind, output.name): output for output in past}
    summed = []
    for output in now:
        earlier = before.get((output.kind, output.name))
        if earlier is not None:
            delivered, dropped = output.delivered + earlier.delivered, output.dropped + earlier.dropped
            output = msgspec.structs.replace(output, delivered=delivered, dropped=dropped)
        summed.append(output)
    return summed


def _merged(now: Mapping[str, float], past: Mapping[str, float]) -> dict[str, float]:
    merged = dict(past)
    for name, number in now.items():
        merged[name] = merged.get(name, 0) + number
    return merged


def _columns(now: Iterable[int], past: Iterable[int]) -> list[int]:
    return [sum(pair) for pair in zip_longest(now, past, fillvalue=0)]
