"""`edged adapt`: measure now how models run best on this device."""

from __future__ import annotations

import argparse

from edged.api import AdaptBody, AdaptProgress
from edged.cli.output import EXIT_OK, Failure, Line, clean, client, print_json, verb

_EXAMPLES = """\
  edged adapt                  every model that has not been measured on this hardware yet
  edged adapt solder --again   the model of one service, measured again
The daemon does this by itself in quiet moments; this command does it now, also with adapt.mode = "never"."""
_ADAPT_S = 3600.0


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "adapt", "measure now how models run best on this device", _EXAMPLES)
    parser.add_argument("service", nargs="?", default="", help="a service (default: all)")
    parser.add_argument("--again", action="store_true", help="also where there is a choice already")
    parser.add_argument("--json", action="store_true", help="print the lines of progress as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Follow it to its end."""
    line = Line()
    problems: list[str] = []
    done = False
    try:
        body = AdaptBody(service=options.service, again=options.again)
        for progress in client(options).stream("/adapt", AdaptProgress, body, _ADAPT_S):
            if options.json:
                print_json(progress)
            elif not progress.text:
                line.draw(clean(f"{progress.model}: {progress.step}")[:110])
            else:
                line.clear()
                print(clean(progress.text))
            if progress.error:
                problems.append(progress.error)
            done = done or progress.done
    finally:
        line.clear()
    if problems:
        raise Failure("; ".join(problems))
    if not done:
        raise Failure("edged ended before the measurement did; look at its log")
    return EXIT_OK
