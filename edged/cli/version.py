"""`edged version`: of this program, and of the daemon if one runs."""

from __future__ import annotations

import argparse
import contextlib

from edged.api import ApiError, Done
from edged.cli.output import EXIT_OK, client, verb
from edged.client import NotRunning
from edgekit import VERSION


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "version", "print the versions of this program and of the running daemon")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print them."""
    print(f"edged {VERSION}")
    with contextlib.suppress(NotRunning, ApiError):
        running = client(options).get("/version", Done, timeout_s=2.0).text
        if running != VERSION:
            print(f"the running daemon is {running}: restart it to work with the new version")
    return EXIT_OK
