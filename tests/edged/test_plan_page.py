"""The plan of each service on the status page: every route with its figures, and nothing that was not escaped."""

from __future__ import annotations

import msgspec

from edged.status.page import render
from edged.status.state import ServiceState, StatusState
from edgekit.messages import PlanReport, RouteReport, ServiceReport


def state(plan: PlanReport | None) -> StatusState:
    report = ServiceReport(name="solder", model="small@1", state="ready", plan=plan)
    service = ServiceState(
        name="solder", origin="local", model="small", priority="inline", deadline_ms=300, source="http",
        may_leave="features", hard_samples="risk", answer_model="large", report=report,
    )  # fmt: skip
    return StatusState(
        version="1", name="line-1", device_id="x", state_dir="/x", started_at=1.0, now=2.0, services=[service]
    )


PLAN = PlanReport(
    route="split@c20",
    sentence="Of asked frames, the model runs on this device up to c20 and ends in the cloud.",
    reason="bandwidth went from 90 to 2",
    changes=1,
    routes=[
        RouteReport(
            name="split@c20", what="up to c20", feasible=True, chosen=True, accuracy="equal", latency_ms=91.234,
            bytes=4100.0, cost=91.234, why="chosen",
        ),
        RouteReport(name="edge", what="the small model's own answer stands", feasible=True, why="only that"),
        RouteReport(
            name="frame", what="the whole frame", accuracy="exact", bytes=41_000.0, why="pixels may not leave the site"
        ),
    ],
    omitted=2,
)  # fmt: skip


def test_the_plan_is_shown_with_every_route_and_its_reason() -> None:
    html = render(state(PLAN))
    for words in (
        "Way to the cloud", PLAN.sentence, "91.2\u00a0ms", "4.1\u00a0kB", "as good as exact", "chosen", "possible",
        "not now", "pixels may not leave the site", "Planned for latency; 1 change",
        "this one because bandwidth went from 90 to 2", "2 more routes are worse.",
    ):  # fmt: skip
        assert words in html, words


def test_a_service_that_asks_nobody_has_no_plan_to_show() -> None:
    assert "Way to the cloud" not in render(state(None))


def test_a_plan_from_a_hostile_package_is_escaped() -> None:
    evil = "<img src=x>"
    route = msgspec.structs.replace(PLAN.routes[0], name=evil, what=evil, why=evil)
    plan = PlanReport(route=evil, sentence=evil, reason=evil, objective=evil, routes=[route])
    assert evil not in render(state(plan))
