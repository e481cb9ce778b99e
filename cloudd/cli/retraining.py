"""`cloudd retraining list|show|remove`: the models that devices have retrained here, and the pictures for it."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import urlencode

from cloudd.cli import common
from edgekit.text import printable

_WHICH = "JOB is the name of a job, or as much of it as no other begins with."


def add(verbs: common.Verbs) -> None:
    """Register the verb and its sub-verbs."""
    group = common.verb(verbs, "retraining", "List the models that devices have retrained here.", None)
    actions = group.add_subparsers(metavar="ACTION", required=True)
    listing = common.verb(actions, "list", "List every job that is on record, the newest first.", _list)
    listing.add_argument("--device", default="", metavar="DEVICE", help="only of this device")
    show = common.verb(actions, "show", "Show one job.", _show, _WHICH)
    remove = common.verb(
        actions,
        "remove",
        "End a job and remove its pictures and its candidate.",
        _remove,
        f"{_WHICH}\nPictures that another job of the same device names stay for that one.",
    )
    for one in (show, remove):
        one.add_argument("job", metavar="JOB", help="its name, or the beginning of it")


def _list(args: argparse.Namespace) -> int:
    asked = f"?{urlencode({'device': args.device})}" if args.device else ""
    jobs = common.client(args).get(f"/retraining{asked}")
    if args.json:
        return common.show_json(jobs)
    rows = [
        (
            one["job"][:12],
            one["short_id"],
            one["service"],
            one["stage"],
            str(one["pictures"]),
            f"{one['bytes'] / 1e6:.1f} MB",
            common.ago(one["created_at"]),
            one["text"],
        )
        for one in jobs
    ]
    head = ("JOB", "DEVICE", "SERVICE", "STAGE", "PICTURES", "SIZE", "ASKED", "")
    return common.show_table(head, rows, "No device has a model retrained here.")


def _show(args: argparse.Namespace) -> int:
    job = common.client(args).get(common.path("retraining", args.job))
    return common.show_json(job) if args.json else _told(job)


def _remove(args: argparse.Namespace) -> int:
    job = common.client(args).post(common.path("retraining", args.job, "remove"))
    if args.json:
        return common.show_json(job)
    print(f"The job {job['job'][:12]} of {printable(job['service'])} is removed with its pictures.")
    return 0


def _told(job: dict[str, Any]) -> int:
    share = f" ({job['done']} of {job['total']})" if job["total"] else ""
    print(f"{job['job']}: {job['stage']}{share}")
    print(f"  device    {job['device_id']}")
    print(f"  service   {printable(job['service'])}")
    print(f"  pictures  {job['pictures']}, {job['bytes'] / 1e6:.1f} MB with the network")
    print(f"  asked     {common.ago(job['created_at'])}")
    if job["ended_at"] is not None:
        print(f"  ended     {common.ago(job['ended_at'])}")
    if job["text"]:
        print(f"  {printable(job['text'])}")
    return 0
