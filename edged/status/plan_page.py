"""The card of the status page that shows how each service's asked samples reach the answer model, and why that way."""

from __future__ import annotations

from edged.status.state import StatusState
from edgekit.html import badge, table, text
from edgekit.messages import PlanReport, RouteReport
from edgekit.planning.explain import number, size


def plan_card(state: StatusState) -> str:
    """A table of routes for each service that may ask; nothing if there is none."""
    shown = "".join(
        f"<h3>{text(service.name)}</h3>{_plan(service.report.plan)}"
        for service in state.services
        if service.report.plan is not None
    )
    return f'<section class="card" id="plan"><h2>Way to the cloud</h2>{shown}</section>' if shown else ""


def _plan(plan: PlanReport) -> str:
    head = [("route", False), ("", False), ("answer", True), ("a frame sends", True), ("cost", True), ("why", False)]
    changes = "1 change" if plan.changes == 1 else f"{plan.changes} changes"
    last = f"{changes} since the worker started" + (f", this one because {plan.reason}" if plan.reason else "")
    more = f" {plan.omitted} more routes are worse." if plan.omitted else ""
    return (
        f"<p>{text(plan.sentence)}</p>{table(head, [_row(route) for route in plan.routes], '')}"
        f'<p class="soft">Planned for {text(plan.objective)}; {text(last)}.{text(more)}</p>'
    )


def _row(route: RouteReport) -> list[str]:
    if route.chosen:
        kind = badge("chosen", "ok" if route.feasible else "warning")
    else:
        kind = badge("possible") if route.feasible else badge("not now", "warning")
    return [
        f"<strong>{text(route.name)}</strong><br><span class='soft'>{text(route.what)}</span>",
        kind,
        f"{number(route.latency_ms)}\u00a0ms<br><span class='soft'>{_accuracy(route)}</span>",
        size(route.bytes).replace(" ", "\u00a0"),
        f"{number(route.cost)}\u00a0ms",
        text(route.why),
    ]


def _accuracy(route: RouteReport) -> str:
    return {"exact": "exact", "equal": "as good as exact"}.get(route.accuracy, "the small model's")
