"""What is said about wanted services and models while no worker, a starting one, or the right one runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.desired import Entry, model_entry
from edged.plan import Plan, make_plan
from edged.standing import Standing
from edgekit.messages import Comparison

PACKAGES = {"m@1": Path("/m1"), "m@2": Path("/m2")}


def entry(name: str, model: str) -> Entry:
    return Entry(name=name, text=f'name = "{name}"\nmodel = "{model}"\n', origin="local")


SERVICES = {"runs": entry("runs", "m@1"), "waits": entry("waits", "absent")}
ALONE = {model_entry("m"): Entry(name=model_entry("m"), text="m", origin="local")}


def plan(services: dict[str, Entry]) -> Plan:
    return make_plan([*services.values(), *ALONE.values()], PACKAGES)


@pytest.fixture
def standing() -> Standing:
    """Looked at once; no worker is there."""
    found = Standing(lambda: None)
    found.look(SERVICES, ALONE, plan(SERVICES))
    return found


def test_what_is_not_here_is_missing_and_its_service_is_held(standing: Standing) -> None:
    assert standing.missing == {"absent"}
    assert standing.held == ["waits"]
    assert set(standing.planned) == {"runs"}, "models without a service are no services"
    states = {report.name: (report.state, report.detail) for report in standing.reports()}
    assert states == {
        "runs": ("loading", "its model is loading"),
        "waits": ("loading", "the model absent is not installed"),
    }


def test_a_plan_counts_as_running_once_it_is_accepted(standing: Standing) -> None:
    wanted = plan(SERVICES)
    running = standing.running("runs")
    assert running is not None and running.ref == "m@1", "what starts is told before it runs"
    assert (standing.as_planned, standing.runs(wanted)) == (False, False)
    standing.accept(wanted)
    assert (standing.as_planned, standing.runs(wanted)) == (True, True)
    newer = {**SERVICES, "runs": entry("runs", "m@2")}
    standing.look(newer, ALONE, plan(newer))
    assert (standing.as_planned, standing.runs(plan(newer))) == (False, False)
    running = standing.running("runs")
    assert running is not None and running.ref == "m@1", "until its successor is accepted"


def test_a_model_without_a_service_is_loading_until_a_worker_says_otherwise(standing: Standing) -> None:
    report = standing.model_report(model_entry("m"))
    assert (report.model, report.state) == ("m@2", "loading")
    assert not standing.failed, "nothing that is loaded has failed"


def test_the_last_comparison_of_a_service_stays(standing: Standing) -> None:
    one = Comparison(service="runs", model="m@1", previous="m@0", samples=1, agreed=1)
    standing.accept(plan(SERVICES), [one])
    standing.accept(plan(SERVICES))
    assert standing.comparisons == {"runs": one}
