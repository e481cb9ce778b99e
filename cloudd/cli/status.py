"""`cloudd status`."""

from __future__ import annotations

import argparse

from cloudd.cli import common
from edgekit.text import printable


def add(verbs: common.Verbs) -> None:
    """Register the verb."""
    common.verb(
        verbs,
        "status",
        "Show addresses, health and totals of the running daemon.",
        _do,
        "Exit status 0 if everything is well, 1 if the health list is not empty, 3 if the daemon does not run.",
    )


def _do(args: argparse.Namespace) -> int:
    status = common.client(args).get("/status")
    if args.json:
        common.show_json(status)
    else:
        about, totals = status["about"], status["totals"]
        print(f"{printable(about['name'])}, cloudd {about['version']}, started {common.ago(about['started_at'])}")
        print(f"  device API   {about['device_url']}" + (" (advertised on the LAN)" if about["advertised"] else ""))
        print(f"  dashboard    {about['dashboard_url']}")
        print(f"  authority    {about['fingerprint']}")
        print(f"  state        {about['state_dir']}")
        print(f"  devices      {totals['online']} of {totals['devices']} online, {totals['services']} services")
        print(f"  inspected    {totals['inspected']} samples on the devices, {totals['spooled']} waiting in spools")
        print(f"  answered     {totals['answered']} hard samples, {totals['agreed']} as the edge said")
        for problem in status["problems"]:
            print(f"  ! {printable(problem)}")
    return 1 if status["problems"] else 0
