"""`cloudd fl start|status|stop|log`."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloudd.cli import common
from edgekit.text import printable

_START_S = 900.0
_START = """\
  cloudd fl start solder.toml

    name = "solder-1"
    service = "solder"            # of the devices
    model = "solder-small@3"      # registered here; the devices run exactly this one
    rounds = 20
    evaluate_every = 5
    least = 5                     # devices of a sum
    rosters = ["north.roster"]    # as the plants signed them
    [plants]
    north = "02ab..."             # as `edged roster key` prints it
    [local]
    epochs = 1
    learning_rate = 0.01
    [plan.strategy]
    strategy = "fedavg"
    clip = 10.0

The train step is derived from the registered model; devices of the job fetch it, train on their own samples and send
masked updates. cloudd learns the sum of a cohort and nothing else. docs/federated.md has every key.

Exit status: 0 started, 1 refused, 2 wrong usage, 3 the daemon is not reachable."""


_EXPORT = """\
  cloudd fl export solder-1 solder-1.job        at the upper cloudd, once the job is started there
  cloudd fl start north.toml                    at each site's cloudd

    name = "solder-north"
    upper = "solder-1.job"
    leader = "MTGNMCG-..."        # the device that takes part up there for this site
    least = 5                     # devices of each sum of this site
    rosters = ["north.roster"]
    [plants]
    north = "02ab..."

The upper job decides what is learned; the site decides on its cohorts, deadlines, window and rosters."""


def add(verbs: common.Verbs) -> None:
    """Register the verb and its sub-verbs."""
    group = common.verb(verbs, "fl", "Federated jobs: devices teach one model together.", None)
    actions = group.add_subparsers(metavar="ACTION", required=True)
    start = common.verb(actions, "start", "Start a job.", _start_job, _START)
    start.add_argument("definition", type=Path, metavar="FILE", help="the job, a TOML file")
    export = common.verb(
        actions, "export", "Write a job to a file, for the cloudds of its sites (two tiers).", _export, _EXPORT
    )
    export.add_argument("job", metavar="JOB", help="name of a job, or the beginning of its id")
    export.add_argument("file", type=Path, metavar="FILE", help="where to; it holds no secret")
    status = common.verb(actions, "status", "List the jobs, or show one with its rounds.", _status)
    status.add_argument("job", nargs="?", metavar="JOB", help="name of a job, or the beginning of its id")
    stop = common.verb(actions, "stop", "End a job now; what was published stays for its devices.", _stop)
    stop.add_argument("job", metavar="JOB", help="name of a job, or the beginning of its id")
    log = common.verb(actions, "log", "Print what happened in a job.", _log)
    log.add_argument("job", metavar="JOB", help="name of a job, or the beginning of its id")
    log.add_argument("--lines", type=common.count, default=200, metavar="N", help="how many, newest last (200)")


def _start_job(args: argparse.Namespace) -> int:
    from cloudd.federation.definition import read  # the other verbs must not wait for numpy
    from cloudd.federation.errors import FederationError

    try:
        text = args.definition.read_text("utf-8")
        text = _with_upper(text, args.definition)
        definition, _ = read(text)
    except UnicodeDecodeError:
        print(f"cloudd: {printable(str(args.definition))} is no text, so it is no job", file=sys.stderr)
        return 1
    except FederationError as error:
        print(f"cloudd: {error}", file=sys.stderr)
        return 1
    rosters = [base64.b64encode((args.definition.parent / name).read_bytes()).decode() for name in definition.rosters]
    job = common.client(args, _START_S).post("/federation/jobs", {"definition": text, "rosters": rosters})
    if args.json:
        return common.show_json(job)
    name, service = printable(job["name"]), printable(job["service"])
    print(
        f"The job {name} is running: {job['rounds']} rounds.\n"
        f"Devices that trust its plants and run the service {service} with that model take part; "
        f"see `cloudd fl status {name}`."
    )
    return 0


def _with_upper(text: str, path: Path) -> str:
    """The definition of a site's job with the upper job in it; any other as it is. Raises FederationError, OSError."""
    from cloudd.federation import sites
    from edgekit import toml

    try:
        upper = toml.read(text.encode(), len(text.encode()) + 1).get("upper")
    except toml.TomlError:
        return text  # told by whoever reads the whole
    return sites.composed(text, (path.parent / str(upper)).read_bytes()) if upper else text


def _export(args: argparse.Namespace) -> int:
    job = common.client(args).get(common.path("federation", "jobs", args.job, "export"))
    args.file.write_text(json.dumps(job) + "\n", "utf-8")
    if args.json:
        return common.show_json({"file": str(args.file)})
    name = printable(str(args.file))
    print(f'The job is in {name}. A site starts its part with upper = "{printable(args.file.name)}" in its definition.')
    return 0


def _status(args: argparse.Namespace) -> int:
    client = common.client(args)
    if args.job is None:
        jobs = client.get("/federation/jobs")
        if args.json:
            return common.show_json(jobs)
        head = ("JOB", "SERVICE", "MODEL", "STATE", "ROUNDS", "READY", "")
        return common.show_table(head, map(_job_row, jobs), "No job was started yet; `cloudd fl start FILE` does.")
    detail = client.get(common.path("federation", "jobs", args.job))
    if args.json:
        return common.show_json(detail)
    job = detail["job"]
    print(f"{printable(job['name'])} ({job['id']}): {job['status']}, {job['version']} of {job['rounds']} rounds")
    print(printable(job["doing"]))
    if job.get("upper"):
        print(printable(f"a site of the job {job['upper'][:12]}, led by {job['leader']}"))
    if job["result"]:
        print(f"merged model: {printable(job['result'])}")
    head = ("ROUND", "STATE", "KIND", "BEGAN", "DEVICES", "STEPS", "OUTCOME")
    common.show_table(head, map(_round_row, detail["rounds"]), "No round has begun yet.")
    for one in detail["rounds"]:
        for refusal in one["refusals"]:
            what = (
                f"round {one['number']}, {refusal['device']}, refused by {'it' if refusal['by'] == 'device' else 'us'}"
            )
            print(printable(f"{what} ({refusal['rule']}): {refusal['text']}"))
    return 0


def _job_row(one: dict[str, Any]) -> tuple[str, ...]:
    rounds = f"{one['version']} of {one['rounds']}"
    state = one["status"] if one["secure"] else f"{one['status']}, not secure"
    return (one["name"], one["service"], one["model"], state, rounds, str(one["standing"]), one["doing"])


def _round_row(one: dict[str, Any]) -> tuple[str, ...]:
    steps = " ".join(f"{step['step']}:{step['devices']}" for step in one["steps"])
    outcome = one["outcome"] or "open"
    if one["figures"]:
        outcome += f", accuracy {one['figures']['accuracy']:.1%} of {one['figures']['samples']}"
    if one["reason"]:
        outcome += f": {one['reason']}"
    devices = f"{one['delivered']} of {one['invited']}"
    began = _clock(one["opened_at"])
    return (str(one["number"]), str(one["version"]), one["kind"], began, devices, steps or "-", outcome)


def _stop(args: argparse.Namespace) -> int:
    job = common.client(args).post(common.path("federation", "jobs", args.job, "stop"))
    if args.json:
        return common.show_json(job)
    print(f"The job {printable(job['name'])} is stopped after {job['version']} of {job['rounds']} rounds.")
    return 0


def _log(args: argparse.Namespace) -> int:
    route = f"{common.path('federation', 'jobs', args.job)}?lines={args.lines}"
    lines = common.client(args).get(route)["log"]
    if args.json:
        return common.show_json(lines)
    for one in lines:
        print(f"{_clock(one['at'])}  {printable(one['text'])}")
    return 0


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
