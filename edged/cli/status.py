"""`edged status`: what the daemon does, for people or as JSON."""

from __future__ import annotations

import argparse

from edged.cli.output import EXIT_OK, EXIT_PROBLEM, age, clean, client, print_json, print_table, size, verb
from edged.federation.notes import JobView
from edged.learning.bodies import LearningState
from edged.status.state import StatusState

_EXAMPLES = """\
  edged status
  edged status --json | jq .services
Exit status 1 if something needs attention (an item of severity error)."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "status", "show what the daemon does", _EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the state."""
    state = client(options).get("/status", StatusState)
    if options.json:
        print_json(state)
    else:
        show(state)
    return EXIT_PROBLEM if state.health.level == "error" else EXIT_OK


def show(state: StatusState) -> None:
    """The human view."""
    print(clean(state.health.verdict))
    for item in state.health.items:
        print(f"  {item.severity}: {clean(item.text)} (for {age(state.now - item.since)})")
    print()
    print(f"device     {clean(state.name)}, {state.device_id}")
    print(f"cloud      {_cloud(state)}")
    print(f"worker     {_worker(state)}")
    print(f"inference  http://{state.addresses.inference}")
    print(f"page       http://{state.addresses.page}")
    print(f"spool      {_spool(state)}")
    print()
    for served in state.served:
        text = served.refused or served.detail
        print(f"serves     {served.model or served.wanted}, {served.state}{': ' if text else ''}{clean(text)}")
    if state.served:
        print()
    if not state.services and not state.served:
        print("No service runs here yet. Add one: edged services add FILE.toml")
    if state.services:
        _services(state)
    if state.learning or state.federation:
        print()
    for one in state.learning:
        print(f"learning   {clean(_learning(one))}")
    for job in state.federation:
        print(f"federated  {clean(_job(job))}")


def _services(state: StatusState) -> None:
    print_table(
        ("SERVICE", "STATE", "MODEL", "INSPECTED", "OFFLOAD", "AGREEMENT", "P99", "HARD SAMPLES"),
        (
            (
                service.name,
                service.report.state,
                service.report.model or service.model,
                str(service.report.inspected),
                f"{service.report.offload_share:.0%}",
                "-" if service.report.agreement is None else f"{service.report.agreement:.1%}",
                "-" if service.report.p99_ms is None else f"{service.report.p99_ms:.1f} ms",
                service.refused or service.report.detail or service.report.gate or service.hard_samples,
            )
            for service in state.services
        ),
    )
    for service in state.services:
        if service.report.plan is not None:
            print(clean(f"{service.name}: {service.report.plan.sentence}"))


def _cloud(state: StatusState) -> str:
    cloud = state.cloud
    if not cloud.joined:
        return "not joined (edged join TOKEN)"
    since = f" for {age(state.now - cloud.since)}" if cloud.since is not None else ""
    if cloud.up:
        return clean(f"connected to {cloud.name} at {cloud.url}{since}")
    return clean(f"no link to {cloud.url or 'cloudd'}{since}; local work goes on")


def _learning(one: LearningState) -> str:
    candidate = f", candidate {one.candidate}" if one.candidate else ""
    learned = f", learned {one.learned}" if one.learned else ""
    stock, labels = one.stock, ""
    if one.stage == "waiting" and not one.never and stock is not None and stock.known < one.wanted:
        labels = f" {stock.known} of about {one.wanted} labelled pictures that a judgement needs."
    return f"{one.service}: {one.stage}{candidate}{learned}. {one.sentence}{labels}"


def _job(view: JobView) -> str:
    note = view.note
    where = "works" if view.running else note.stage
    what = note.text if view.running or not view.why else view.why
    sums = f"{note.version} of {note.rounds} sums, {note.contributed} with this device's update"
    return f"{note.job[:12]} of {note.service}: {where}, {sums}{f': {what}' if what else ''}"


def _worker(state: StatusState) -> str:
    worker = state.worker
    text = f"{worker.state}, process {worker.pid}, {size(worker.rss)}" if worker.pid else worker.state
    if worker.swapping:
        text += ", a successor is loading"
    return f"{text}, {worker.restarts} restarts" if worker.restarts else text


def _spool(state: StatusState) -> str:
    spool = state.spool
    if spool is None:
        return "no report yet"
    text = f"{spool.items} samples, {size(spool.bytes)} of {size(spool.quota)}"
    return text if spool.oldest_at is None else f"{text}, the oldest waits for {age(state.now - spool.oldest_at)}"
