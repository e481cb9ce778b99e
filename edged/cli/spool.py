"""`edged spool`: hard samples that wait for the link, and what has left the device."""

from __future__ import annotations

import argparse
import time
from urllib.parse import urlencode

from edged.api import Done, PurgeBody
from edged.cli.output import EXIT_OK, add_limit, age, client, print_json, print_table, size, verb
from edged.collab.spool_view import LeftRecord, SpooledSample

_EXAMPLES = """\
  edged spool list --limit 20          the most valuable first
  edged spool left --service solder    which pictures left this device, when, and what came of it
  edged spool purge solder             remove the waiting samples of one service
  edged spool purge --all"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "spool", "list or purge hard samples that wait for the link, show what left", _EXAMPLES)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, summary, run in (
        ("list", "list what waits, the most valuable first", list_spool),
        ("left", "show the record of what left this device, the newest first", show_left),
    ):
        listing = verb(actions, name, summary)
        listing.add_argument("--service", default="", help="of this service only")
        add_limit(listing, 50)
        listing.add_argument("--json", action="store_true", help="print JSON")
        listing.set_defaults(run=run)
    purging = verb(actions, "purge", "remove waiting samples for ever")
    which = purging.add_mutually_exclusive_group(required=True)
    which.add_argument("service", nargs="?", default="", help="of this service")
    which.add_argument("--all", action="store_true", help="of every service")
    purging.set_defaults(run=purge)


def list_spool(options: argparse.Namespace) -> int:
    """Print what waits."""
    query = urlencode({"limit": options.limit, "service": options.service})
    samples = client(options).get(f"/spool?{query}", list[SpooledSample])
    if options.json:
        print_json(samples)
    elif not samples:
        print("Nothing waits.")
    else:
        now = time.time()
        print_table(
            ("SAMPLE", "SERVICE", "REASON", "VALUE", "SIZE", "WAITS FOR", "STATE"),
            (
                (
                    sample.id,
                    sample.service,
                    sample.reason,
                    f"{sample.value:.2f}",
                    size(sample.bytes),
                    age(now - sample.stored_at),
                    sample.state,
                )
                for sample in samples
            ),
        )
    return EXIT_OK


def show_left(options: argparse.Namespace) -> int:
    """Print the record of what left."""
    query = urlencode({"limit": options.limit, "service": options.service})
    records = client(options).get(f"/spool/left?{query}", list[LeftRecord])
    if options.json:
        print_json(records)
    elif not records:
        print("Nothing has left this device.")
    else:
        print_table(
            ("LEFT AT", "SAMPLE", "SERVICE", "REASON", "SIZE", "SHA-256", "TO", "OUTCOME", "ANSWER"),
            (
                (
                    time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.at)),
                    record.sample_id,
                    record.service,
                    f"{record.reason}, late" if record.late else record.reason,
                    size(record.bytes) + _form(record),
                    record.sha256[:12],
                    record.authority[:12],
                    record.outcome or "unknown",
                    record.label or "-",
                )
                for record in records
            ),
        )
    return EXIT_OK


def _form(record: LeftRecord) -> str:
    """What it was, if no whole picture."""
    if record.cut:
        return f", features at {record.cut}"
    return f", {record.regions} regions" if record.regions else ""


def purge(options: argparse.Namespace) -> int:
    """Remove waiting samples."""
    print(client(options).post("/spool/purge", Done, PurgeBody(service=options.service)).text)
    return EXIT_OK
