"""`cloudd devices list|show|revoke|restore|desired`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from cloudd.cli import common
from cloudd.client import ClientError
from edgekit.text import printable

_WHICH = "DEVICE is a device id, its first group, or the device's name."


def add(verbs: common.Verbs) -> None:
    """Register the verb and its sub-verbs."""
    group = common.verb(verbs, "devices", "List devices, lock them out, tell them what to run.", None)
    actions = group.add_subparsers(metavar="ACTION", required=True)
    common.verb(actions, "list", "List every device.", _list)
    _one(actions, "show", "Show one device with its services and what it should run.", _show)
    revoke = _one(
        actions,
        "revoke",
        "Lock a device out, at once and until it is restored; a new token does not let it in.",
        _revoke,
        "The pictures that it has brought to have its models retrained are removed with it.",
    )
    revoke.add_argument("--reason", default="", help="a note for the record")
    _one(actions, "restore", "Let a revoked device in again.", _restore)
    desired = _one(
        actions,
        "desired",
        "Set the services a device should run: exactly the given definitions.",
        _desired,
        "Each FILE is a service definition (TOML). Without a FILE, --none must say that nothing should run.",
    )
    desired.add_argument("files", nargs="*", type=Path, metavar="FILE", help="a service definition (TOML)")
    desired.add_argument("--none", action="store_true", help="run no service from here")


def _one(actions: common.Verbs, name: str, summary: str, do: common.Do, details: str = "") -> argparse.ArgumentParser:
    parser = common.verb(actions, name, summary, do, f"{details}\n{_WHICH}".strip())
    parser.add_argument("device", metavar="DEVICE", help="its id, the first group of that, or its name")
    return parser


def _list(args: argparse.Namespace) -> int:
    fleet = common.client(args).get("/devices")
    if args.json:
        return common.show_json(fleet)
    head = ("NAME", "ID", "STATE", "HEALTH", "SEEN", "SERVICES", "SPOOL")
    return common.show_table(head, map(_row, fleet), "No device has joined yet; `cloudd invite` prints the way in.")


def _row(device: dict[str, Any]) -> tuple[str, ...]:
    services = ", ".join(f"{one['name']} ({one['state']})" for one in device["services"])
    spool = str(device["spool"]["items"]) if device["spool"] else "-"
    seen = common.ago(device["seen_at"])
    return (device["name"], device["short_id"], _state(device), device["health"] or "-", seen, services or "-", spool)


def _state(device: dict[str, Any]) -> str:
    return "revoked" if device["revoked"] else "online" if device["online"] else "offline"


def _show(args: argparse.Namespace) -> int:
    detail = common.client(args).get(common.path("devices", args.device))
    if args.json:
        return common.show_json(detail)
    device = detail["device"]
    days = (device["certificate_until"] - time.time()) / 86_400
    print(f"{printable(device['name'])}: {_state(device)}, seen {common.ago(device['seen_at'])}")
    print(f"  id           {device['device_id']}")
    print(f"  machine      {printable(device['machine']) or '-'}, edged {printable(device['version'])}")
    print(f"  certificate  {days:.0f} days left")
    for problem in device["problems"]:
        print(f"  ! {printable(problem)}")
    for one in device["services"]:
        print(f"  service      {printable(one['name'])}: {one['state']}, model {printable(one['model'])}")
        print(f"               {one.get('inspected', 0)} inspected; {printable(one.get('gate', ''))}")
    if detail["desired"] is None:
        print("  desired      nothing set from here")
    else:
        followed = "followed" if device["in_sync"] else "not followed yet"
        print(f"  desired      {len(detail['desired'])} services, revision {device['desired_revision']} ({followed})")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    change = common.client(args).post(common.path("devices", args.device, "revoke"), {"reason": args.reason})
    return _done(args, change, "is locked out")


def _restore(args: argparse.Namespace) -> int:
    change = common.client(args).post(common.path("devices", args.device, "restore"))
    return _done(args, change, "may connect again")


def _desired(args: argparse.Namespace) -> int:
    if bool(args.files) == args.none:
        raise ClientError("name at least one FILE, or say --none to run no service", 400)
    texts = [_read(file) for file in args.files]
    change = common.client(args).post(common.path("devices", args.device, "desired"), {"services": texts})
    told = "was told" if change["delivered"] else "will be told when it connects"
    return _done(args, change, f"{told}: revision {change['revision']}")


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError:
        raise ClientError(f"{file} is not UTF-8 text", 400) from None


def _done(args: argparse.Namespace, change: dict[str, Any], what: str) -> int:
    if args.json:
        return common.show_json(change)
    print(f"{printable(change['name'])} ({change['device_id'].split('-')[0]}) {what}.")
    return 0
