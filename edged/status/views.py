"""Puts the wish, plan and report of each service together, and what is known of the link, for people. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from edged.comparison import sentence
from edged.desired import Entry, combination_key
from edged.health import Health
from edged.link.service import LinkService
from edged.plan import Choice, service_of
from edged.runner import Runner
from edged.status.state import CloudState, ServiceState, WorkerState
from edgekit.messages import Comparison, ServiceReport
from edgekit.packages import PackageError, find
from edgekit.services import HardSamples, place


def service_state(
    entry: Entry,
    report: ServiceReport | None,
    running: Choice | None,
    packages: Mapping[str, Path],
    missing_detail: Callable[[str], str],
    compared: Comparison | None = None,
) -> ServiceState:
    """What the page shows of `entry`. `missing_detail` says what is being done about a model that is not installed.

    `compared` is the last comparison of a model of this service with the one before.
    """
    service = service_of(entry)
    model = service.model if service is not None else ""
    ref = _find(model, packages)
    if report is None:
        report = ServiceReport(name=entry.name, model=ref or model, state="loading", detail="it was just added")
    elif report.state == "loading" and model and ref is None:
        report = msgspec.structs.replace(report, detail=missing_detail(model))
    last_good = running is not None and running.last_good
    refused = ""
    if ref is not None and entry.refused_key == combination_key(entry.text, ref):
        refused = entry.refused_why
    elif last_good and ref is None:
        refused = missing_detail(model) if model else "its definition cannot be read by this version of edged"
    return ServiceState(
        name=entry.name,
        origin=entry.origin,
        model=model,
        priority=service.priority if service is not None else "",
        deadline_ms=service.deadline_ms if service is not None else 0.0,
        source=place(service.source) if service is not None else "",
        may_leave=service.may_leave if service is not None else "",
        hard_samples=_policy(service.hard_samples) if service is not None else "",
        answer_model=service.hard_samples.answer_model if service is not None else "",
        report=report,
        refused=refused,
        last_good=last_good,
        comparison=sentence(compared) if compared is not None and running and running.ref == compared.model else "",
    )


def cloud_state(link: LinkService, health: Health, since: float) -> CloudState:
    """The link to cloudd as the page shows it; `since` is when it last went up or down."""
    identity = link.identity
    items = {item.code: item.text for item in health.items()}
    detail = items.get("link.refused") or items.get("link.authority") or items.get("link") or ""
    return CloudState(
        joined=identity is not None,
        url=link.link.url,
        name=link.cloud_name,
        up=link.link.up,
        since=since,
        authority=identity.authority_fingerprint if identity is not None else "",
        certificate_until=identity.not_after if identity is not None else None,
        detail="" if link.link.up else detail,
    )


def worker_state(runner: Runner) -> WorkerState:
    """The process that runs the models."""
    worker = runner.worker
    report = worker.report if worker is not None else None
    return WorkerState(
        state=runner.state(),
        pid=worker.pid if worker is not None else None,
        since=worker.started_at if worker is not None else None,
        restarts=runner.restarts,
        rss=report.rss if report is not None else 0,
        breaker=report.breaker if report is not None else "closed",
        uplink_bytes=runner.standing.uplink_bytes,
        swapping=runner.swapping,
    )


def observe_services(services: Iterable[ServiceState], missing: Collection[str], health: Health) -> None:
    """Raise a health item for each service that does not do what was asked, and clear the others."""
    raised: set[str] = set()
    for service in services:
        code, report = f"service.{service.name}", service.report
        if report.state == "failed":
            health.report(code, "error", f"Service {service.name} does not run: {report.detail}.")
        elif service.refused:
            text = f"The newest definition of service {service.name} does not run: {service.refused}."
            health.report(code, "warning", f"{text} The last good one goes on.")
        elif report.state == "loading" and service.model in missing:
            health.report(code, "warning", f"Service {service.name} waits: {report.detail}.")
        else:
            continue
        raised.add(code)
    health.clear_prefix("service.", raised)


def _policy(hard: HardSamples) -> str:
    return hard.mode if hard.asks else "off"


def _find(model: str, packages: Mapping[str, Path]) -> str | None:
    try:
        return find(model, packages)
    except PackageError:
        return None
