"""What the worker reports and what the sample store holds, as evidence for the state machines. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edged.learning.bodies import Stock
from edged.learning.place import Candidate, Counted, Place
from edged.learning.settings import certified, never_asks, never_trains
from edgekit.learning.ladder import Limits, Means, Spent
from edgekit.learning.records import RUNGS, Rung
from edgekit.learning.tally import Tally
from edgekit.learning.trial import Expected, Watch
from edgekit.learning.triggers import Evidence
from edgekit.messages import GateFacts, ServiceReport
from edgekit.services import Learning, Service

if TYPE_CHECKING:
    from edged.samples.records import SampleStats  # the supervisor's memory is counted

OFFLOAD_SAMPLES = 1000
"""A report's offload share is of so many: before the gate has seen them since its calibration it says nothing."""
MOST_AUDITS = 10_000
"""Of one look."""
CLOUD_LABELS = 20
"""Of each class of the model: about half of them teach (`edgekit.messages.retraining.FEWEST`)."""
_TRAINED: tuple[Rung, ...] = ("batchnorm", "head", "last-blocks", "full")


@dataclass(frozen=True, kw_only=True)
class Outside:
    """What one look sees of the world around a service."""

    now: float
    run: str  # of the supervisor: counters of a report are since its start
    report: ServiceReport | None = None  # None: nothing is known of the service yet
    stats: SampleStats | None = None  # None: it has no samples
    labels: Sequence[str] = ()  # of the model that decides
    link_up: bool = False
    settling: bool = False  # how the model runs best is still being measured
    busy: str = ""  # why no training can start now
    deaths: int = 0  # of workers since the last look in which the candidate decided


def evidence(place: Place, outside: Outside) -> Evidence:
    """What the triggers look at. A report of another model than the one that decides says nothing."""
    report = outside.report
    facts = report.gate_facts if report is not None and report.model == (place.decides or place.root) else None
    facts = facts or GateFacts()
    return Evidence(
        now=outside.now,
        labels=dict(outside.stats.labels) if outside.stats is not None else {},
        known=list(outside.labels),
        alarms=max(0, facts.alarms),
        looks=max(0, facts.looks),
        alpha=_share(facts.alpha),
        audits=max(0, facts.audits),
        audit_bound=_share(facts.audit_bound),
        offload=_share(steady_offload(report)),
        calibrated=_share(facts.calibrated),
        request=place.request,
    )


def means(
    service: Service, learning: Learning, outside: Outside, limits: Limits, place: Place, found: Evidence
) -> Means:
    """What the service has to learn with, and why a rung is impossible or has to wait."""
    never: dict[Rung, str] = {}
    later: dict[Rung, str] = {}
    for rung in RUNGS[:-1]:
        if learning.rungs is not None and rung not in learning.rungs:
            never[rung] = "learning.rungs leaves it out"
    if not certified(service.hard_samples) or service.may_leave == "nothing":
        never.setdefault("recalibrate", 'no threshold is certified without hard_samples.mode = "risk"')
    elif not outside.link_up:
        later["recalibrate"] = "the link to cloudd is down, and it needs answers"
    elif outside.report is None or outside.report.state != "ready":
        later["recalibrate"] = "the service is not ready"
    for rung in _TRAINED:
        if untrained := never_trains(service):
            never.setdefault(rung, untrained)
        elif rung == "head" and service.task == "detection":
            never.setdefault(rung, "a detector has no last layer in closed form")
        elif not found.labels:
            never.setdefault(rung, "there are no labels to judge a candidate by")
        elif outside.busy:
            later[rung] = outside.busy
    if reason := never_asks(service) or _too_few(found):
        never["cloud"] = reason
    elif not outside.link_up:
        later["cloud"] = "the link to cloudd is down"
    elif outside.busy:
        later["cloud"] = outside.busy
    classes = [
        count
        for label, count in found.labels.items()
        if label in found.known or count >= max(limits.head_labels, learning.triggers.new_class)
    ]
    return Means(
        pictures=outside.stats.items if outside.stats is not None else 0,
        fewest=min(classes, default=0),
        seconds=_last_seconds(place.state.ladder.spent),
        never=never,
        later=later,
    )


def _too_few(found: Evidence) -> str:
    """Why cloudd cannot retrain with these labels: its larger network learns from them alone. "" if it can."""
    short = [label for label in found.known if found.labels.get(label, 0) < CLOUD_LABELS]
    if not short and found.known:
        return ""
    rarest = min(short, key=lambda label: found.labels.get(label, 0), default="")
    return f'it needs {CLOUD_LABELS} labels of every class, "{rarest[:64]}" has {found.labels.get(rarest, 0)}'


def stock(stats: SampleStats, labels: Sequence[str]) -> Stock:
    """What there is to learn from, for a model with these `labels`."""
    known = sum(stats.labels.get(label, 0) for label in set(labels))
    return Stock(kept=stats.items, labelled=sum(stats.labels.values()), known=known)


def seen_by(candidate: Candidate, outside: Outside) -> Candidate:
    """With what the worker reports of its shadow; a new run of the supervisor counts from nothing."""
    if candidate.run != outside.run:
        candidate = replace(candidate, past=candidate.tally, seen=Tally(), run=outside.run)
    shadow = outside.report.shadow if outside.report is not None else None
    if shadow is None or shadow.candidate != candidate.ref:
        return candidate
    seen = Tally(**{name: getattr(shadow, name) for name in Tally.__struct_fields__})
    return replace(candidate, seen=seen, failure=shadow.failure)


def expected(given: Expected, report: ServiceReport | None) -> Expected:
    """What is expected of a candidate on live pictures: where nothing else is known, what the present model does."""
    gate = report.gate_facts if report is not None else None
    offload = gate.calibrated if gate is not None else None
    run_time = report.infer_p95_ms if report is not None else None
    return Expected(
        differing=given.differing,
        offload=given.offload if given.offload is not None else _positive(offload),
        # What is measured beside the line at low priority is no measure for the line.
        p95_ms=_positive(run_time) if run_time is not None else given.p95_ms,
    )


def watched(candidate: Candidate, outside: Outside) -> tuple[Candidate, Watch]:
    """What happened on probation since the last look."""
    report = outside.report
    if report is None or report.model != candidate.ref or report.state != "ready":
        return candidate, Watch(failures=outside.deaths)
    counted = Counted(
        run=outside.run,
        inspected=report.inspected,
        audited=report.audited,
        differing=report.audited_differing,
        errors=report.errors,
    )
    before = candidate.counted
    if before is None:  # the first look since it decides: what the one before counted is not its own
        return replace(candidate, counted=counted), Watch(failures=outside.deaths)
    if before.run != outside.run:
        before = Counted(run=outside.run)
    watch = Watch(
        items=max(0, counted.inspected - before.inspected),
        audits=_spread(counted.audited - before.audited, counted.differing - before.differing),
        failures=outside.deaths + max(0, counted.errors - before.errors),
        offload=_share(steady_offload(report)),
        p95_ms=None if outside.settling else _positive(report.infer_p95_ms),
    )
    return replace(candidate, counted=counted), watch


def steady_offload(report: ServiceReport | None) -> float | None:
    """The share that is sent, once what the calibration sent is no part of it any more."""
    facts = report.gate_facts if report is not None else None
    if report is None or facts is None or facts.calibrated is None or facts.seen < OFFLOAD_SAMPLES:
        return None
    return report.offload_share


def _spread(audits: int, differing: int) -> list[bool]:
    """So many audits with so many that differ. Which came first is not known; the last ones are the mildest guess."""
    audits = min(max(0, audits), MOST_AUDITS)
    differing = min(max(0, differing), audits)
    return [False] * (audits - differing) + [True] * differing


def _last_seconds(spent: Sequence[Spent]) -> dict[Rung, float]:
    return {one.rung: one.seconds for one in spent}


def _share(value: float | None) -> float | None:
    return None if value is None or not 0.0 <= value <= 1.0 else value


def _positive(value: float | None) -> float | None:
    return None if value is None or not (math.isfinite(value) and value > 0.0) else value
