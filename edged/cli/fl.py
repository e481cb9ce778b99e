"""`edged fl`: what this device does in federated jobs, what the plant allows, what left, and how to leave a job."""

from __future__ import annotations

import argparse
import json
import time
from urllib.parse import urlencode

from edged.api import Done
from edged.cli.output import EXIT_OK, EXIT_PROBLEM, Failure, clean, client, print_json, print_table, size, verb
from edged.federation.bodies import AuditReply, FederationState, PolicyReply, RefuseBody
from edged.federation.notes import JobView
from edgekit import toml

_EXAMPLES = """\
  edged fl status                    jobs, the privacy budget, what happened
  edged fl policy                    what the plant allows, whatever cloudd proposes
  edged fl audit                     the signed record of every round, newest first
  edged fl refuse 3f2a9c --reason "not with our parts"
  edged fl forgive                   after the ledger was lost: the jobs of that time are over"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "fl", "show federated jobs, their record and the policy; leave a job", _EXAMPLES)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, what, run in (
        ("status", "show jobs, budgets and what happened", status),
        ("policy", "show the policy in force", policy),
        ("audit", "show the signed record of rounds and check all of it", audit),
    ):
        action = verb(actions, name, what)
        action.add_argument("--json", action="store_true", help="print JSON")
        if name != "policy":
            action.add_argument("--limit", type=int, default=20)
        action.set_defaults(run=run)
    refusing = verb(actions, "refuse", "leave a job for ever")
    refusing.add_argument("job", help="its id, or the beginning of it")
    refusing.add_argument("--reason", default="", help="for the record")
    refusing.set_defaults(run=refuse)
    verb(actions, "forgive", "go on after the ledger was lost").set_defaults(run=forgive)


def status(options: argparse.Namespace) -> int:
    """Print jobs, budgets and events."""
    state = client(options).get(f"/federation?{urlencode({'limit': options.limit})}", FederationState)
    if options.json:
        print_json(state)
        return EXIT_OK
    if not state.enabled:
        print("This device takes part in no federated job: [federation] enabled is false in edged.toml.")
    if state.lost:
        print(f"Problem: {clean(state.lost)}.")
    if state.jobs:
        print_table(
            ("JOB", "SERVICE", "MODEL", "SUMS", "OWN", "STATE", "WHAT IT DOES"), [_row(view) for view in state.jobs]
        )
    elif state.enabled:
        print("There is no job for this device.")
    for service, spent in state.spent.items():
        budget = f" of {state.epsilon:g}" if state.epsilon is not None else ", no budget is set"
        print(f"Privacy of {clean(service)}: epsilon {spent:.3g}{budget} (delta {state.delta:g}).")
    for event in state.events:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
        mark = "" if event.level == "info" else f"{event.level}: "
        print(f"{at}  {event.job[:12]}  {mark}{clean(event.text)}")
    return EXIT_OK if not state.lost else EXIT_PROBLEM


def _row(view: JobView) -> tuple[str, ...]:
    note = view.note
    what = note.text if view.running or not view.why else view.why
    kind = "" if note.secure else " (no masks)"
    return (
        note.job[:12],
        note.service,
        note.model,
        f"{note.version}/{note.rounds}",
        str(note.contributed),
        ("works" if view.running else note.stage) + kind,
        what[:100],
    )


def policy(options: argparse.Namespace) -> int:
    """Print the table in force."""
    found = client(options).get("/federation/policy", PolicyReply)
    if options.json:
        print_json(found)
    else:
        print(toml.dump(found), end="")
    return EXIT_OK


def audit(options: argparse.Namespace) -> int:
    """Print records."""
    reply = client(options).get(f"/federation/audit?{urlencode({'limit': options.limit})}", AuditReply)
    records = [json.loads(bytes(one)) for one in reply.records]
    if options.json:
        print(json.dumps({"records": records, "count": reply.count, "wrong": reply.wrong}, indent=2))
        return EXIT_OK if reply.wrong is None else EXIT_PROBLEM
    print_table(
        ("AT", "JOB", "ROUND", "OUTCOME", "COHORT", "SUM OF", "PLANTS", "LEFT", "REFUSED"),
        [
            (
                time.strftime("%Y-%m-%d %H:%M", time.localtime(float(one["at"]))),
                str(one["session"])[:12],
                str(one["round"]),
                str(one["outcome"]) + (" ALARM" if one.get("alarm") else ""),
                str(one.get("cohort", "-")),
                str(one.get("survivors", "-")),
                str(one.get("plants", "-")),
                size(sum(int(left["bytes"]) for left in one.get("left", ()))),
                "; ".join(f"{refused['rule']}: {refused['text']}" for refused in one.get("refusals", ()))[:100] or "-",
            )
            for one in records
        ],
    )
    if reply.wrong is not None:
        raise Failure(f"record {reply.wrong} of {reply.count} is not signed by this device or does not follow")
    print(f"{reply.count} records, each signed by this device and following the one before.")
    return EXIT_OK


def refuse(options: argparse.Namespace) -> int:
    """Leave a job."""
    body = RefuseBody(job=options.job, reason=options.reason)
    print(client(options).post("/federation/refuse", Done, body, 60.0).text)
    return EXIT_OK


def forgive(options: argparse.Namespace) -> int:
    """Go on after the ledger was lost."""
    print(client(options).post("/federation/forgive", Done).text)
    return EXIT_OK
