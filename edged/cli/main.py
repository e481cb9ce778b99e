"""`edged`: finds the verb and turns every expected failure into one sentence and an exit status."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from edged.api import ApiError
from edged.cli.output import EXIT_NOT_RUNNING, EXIT_PROBLEM, Failure, add_state
from edged.client import NotRunning
from edgekit import VERSION
from edgekit.command import ended

VERBS = (
    "run",
    "join",
    "status",
    "doctor",
    "adapt",
    "models",
    "services",
    "inspect",
    "spool",
    "samples",
    "datasets",
    "learning",
    "fl",
    "roster",
    "gallery",
    "install",
    "version",
)
"""Modules of this package, in the order of --help. Each has `add(subparsers)`."""

_EPILOG = """\
start here:
  edged run                              the daemon; everything has a default
  edged join edg1.AbC...                 connect it to a cloudd ('cloudd invite' makes the token)
  edged models add ./solder-small        install a model package
  edged services add solder.toml         inspect with it
  edged inspect solder board.jpg         try it
  edged status                           see what happens (or open the page it names)
  edged doctor                           see what is wrong and what to do

exit status: 0 all is well, 1 a problem was found or the work failed, 2 wrong usage, 3 the daemon cannot be reached
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="edged",
        description="Inspection on the edge: answers locally, asks a cloudd about hard samples, never waits for it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edged {VERSION}")
    add_state(parser)
    parser.set_defaults(state=None)
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        importlib.import_module(f"edged.cli.{verb}").add(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (argparse itself leaves with 2 on wrong usage)."""
    options = build_parser().parse_args(arguments)
    try:
        return ended("edged", lambda: int(options.run(options)))
    except NotRunning as error:
        print(f"edged: {error}", file=sys.stderr)
        return EXIT_NOT_RUNNING
    except (ApiError, Failure) as error:
        print(f"edged: {error}", file=sys.stderr)
        return EXIT_PROBLEM


if __name__ == "__main__":
    sys.exit(main())
