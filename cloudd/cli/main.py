"""`cloudd VERB ...`: parse, run the verb, turn refusals into one sentence and a fitting exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from cloudd.cli import (
    answers,
    compress,
    devices,
    fl,
    importing,
    invite,
    models,
    retraining,
    run,
    split,
    status,
    train,
    version,
)
from cloudd.client import ClientError
from cloudd.config import ConfigError
from edgekit.command import ended

VERBS: tuple[ModuleType, ...] = (
    *(run, invite, devices, models),
    *(train, importing, compress, split, fl, retraining),
    *(answers, status, version),
)

_ABOUT = """\
cloudd answers the hard samples of edge devices with a larger model, and keeps models and the fleet.

  cloudd run                     start it; nothing needs to be configured
  cloudd invite                  print a token and the command that joins a device
  cloudd models add DIRECTORY    register a model package
  cloudd train --data DIR        make the first model from labelled pictures
  cloudd import FILE             make a package of a model that was trained elsewhere
  cloudd compress MODEL          make smaller variants that answer as well
  cloudd split MODEL             cut it in two, for pictures that may not leave their site
  cloudd fl start FILE           have devices teach one model together
  cloudd status                  addresses, health and numbers
"""

_STATUSES = "exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 the daemon cannot be reached, 130 interrupted"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="cloudd", description=_ABOUT, epilog=_STATUSES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        verb.add(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (argparse itself leaves with 2 on wrong usage)."""
    args = build_parser().parse_args(arguments)
    try:
        return ended("cloudd", lambda: int(args.do(args)))
    except ClientError as error:
        print(f"cloudd: {error}", file=sys.stderr)
        return 1 if error.status else 3
    except ConfigError as error:
        print(f"cloudd: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
