"""`edged fl`: what this device does in federated jobs, what the plant allows, what left, and how to leave a job."""

from __future__ import annotations

import argparse
import json
import sys
import time
from urllib.parse import urlencode

from edged.api import Done
from edged.cli.output import (
    EXIT_OK,
    EXIT_PROBLEM,
    Failure,
    add_limit,
    clean,
    client,
    print_json,
    print_table,
    size,
    verb,
)
from edged.federation.bodies import (
    AgreeBody,
    AuditReply,
    FederationState,
    JoinUpperBody,
    LeaveBody,
    PolicyReply,
    RefuseBody,
)
from edged.federation.notes import JobView
from edgekit import toml

_EXAMPLES = """\
  edged fl status                    jobs, the privacy budget, what happened
  edged fl policy                    what the plant allows, whatever cloudd proposes
  edged fl audit                     the signed record of every round, newest first
  edged fl refuse 3f2a9c --reason "not with our parts"
  edged fl join edg1.AbC.x1.s3cret   a site's leader: join the upper cloudd of federation.upper
  edged fl agree 3f2a9c              where [federation] says ask = true: take part in this job
  edged fl leave solder              this device's sums come out of the heads of a service; --stay: no, leave them
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
            add_limit(action, 20)
        action.set_defaults(run=run)
    refusing = verb(actions, "refuse", "leave a job for ever")
    refusing.add_argument("job", help="its id, or the beginning of it: 4 characters at least")
    refusing.add_argument("--reason", default="", help="for the record")
    refusing.set_defaults(run=refuse)
    joining = verb(actions, "join", "join the upper cloudd of [federation] upper, as the leader of this site")
    joining.add_argument("token", help="from cloudd invite there, or - to read it from standard input")
    joining.set_defaults(run=join)
    agreeing = verb(actions, "agree", "let this device take part in a job that waits for that")
    agreeing.add_argument("job", help="its id, or the beginning of it: 4 characters at least")
    agreeing.set_defaults(run=agree)
    going = verb(actions, "leave", "take this device's sums out of all heads of a service")
    going.add_argument("service", help="its name")
    going.add_argument("--reason", default="", help="for the record")
    going.add_argument("--stay", action="store_true", help="do not take them out, or put them in again")
    going.set_defaults(run=leave)
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
    for service, reason in state.leaving.items():
        print(f"This device is to have nothing in the heads of {clean(service)}: {clean(reason)}.")
    for event in state.events:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
        mark = "" if event.level == "info" else f"{event.level}: "
        print(f"{at}  {event.job[:12]}  {mark}{clean(event.text)}")
    return EXIT_OK if not state.lost else EXIT_PROBLEM


def _row(view: JobView) -> tuple[str, ...]:
    note = view.note
    what = note.text if view.running or not view.why else view.why
    kind = (", leads its site" if note.leads else "") + ("" if note.secure else " (no masks)")
    return (
        note.job[:12],
        note.service,
        note.model,
        f"{note.version}/{note.rounds}",
        str(note.contributed),
        ("works" if view.running else note.stage) + kind,
        what,
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
                "; ".join(f"{refused['rule']}: {refused['text']}" for refused in one.get("refusals", ())) or "-",
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


def join(options: argparse.Namespace) -> int:
    """Join the upper cloudd."""
    token = sys.stdin.readline().strip() if options.token == "-" else options.token  # noqa: S105 - the dash is no token
    print(client(options).post("/federation/join", Done, JoinUpperBody(token=token), 120.0).text)
    return EXIT_OK


def agree(options: argparse.Namespace) -> int:
    """Take part in a job."""
    print(client(options).post("/federation/agree", Done, AgreeBody(job=options.job), 60.0).text)
    return EXIT_OK


def leave(options: argparse.Namespace) -> int:
    """Take this device's sums out of the heads of a service."""
    body = LeaveBody(service=options.service, reason=options.reason, stay=options.stay)
    print(client(options).post("/federation/leave", Done, body, 60.0).text)
    return EXIT_OK


def forgive(options: argparse.Namespace) -> int:
    """Go on after the ledger was lost."""
    print(client(options).post("/federation/forgive", Done).text)
    return EXIT_OK
