"""`cloudd version`."""

from __future__ import annotations

import argparse

from cloudd.cli import common
from edgekit import VERSION
from edgekit.messages import PROTOCOL


def add(verbs: common.Verbs) -> None:
    """Register the verb."""
    common.verb(verbs, "version", "Print the version of this program.", _do)


def _do(args: argparse.Namespace) -> int:
    if args.json:
        return common.show_json({"version": VERSION, "protocol": PROTOCOL})
    print(f"cloudd {VERSION} (protocol {PROTOCOL})")
    return 0
