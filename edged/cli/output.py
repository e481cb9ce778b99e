"""What the verbs share: exit statuses, the --state option, tables, sizes, ages and a progress bar for terminals."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from edged.client import Client

EXIT_OK = 0
EXIT_PROBLEM = 1
EXIT_NOT_RUNNING = 3


class Failure(Exception):
    """The command cannot do its work; the message is one sentence with what to do."""


def verb(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, examples: str = ""
) -> argparse.ArgumentParser:
    """A sub-command with help that teaches and the option --state."""
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_state(parser)
    return parser


def add_state(parser: argparse.ArgumentParser) -> None:
    """--state DIR: which daemon is meant."""
    parser.add_argument(
        "--state",
        metavar="DIR",
        default=argparse.SUPPRESS,  # an inner parser's default would undo what the outer one has read
        help="state directory of the daemon (default: $EDGED_STATE, else the system's daemon, else your own)",
    )


def add_limit(parser: argparse.ArgumentParser, default: int) -> None:
    """--limit N: how much of a list."""
    parser.add_argument("--limit", type=int, default=default, metavar="N", help="how many (default: %(default)s)")


def client(options: argparse.Namespace) -> Client:
    """The daemon that the options mean. Raises NotRunning."""
    return Client.find(options.state)


def print_json(value: Any) -> None:
    """A Struct (or list of them) as indented JSON."""
    print(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell. Cells are stripped of control characters: some come from files."""
    lines = [list(head), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def clean(text: str) -> str:
    """Without characters that would move a terminal's cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)


def size(number: int) -> str:
    """Bytes for people."""
    amount = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError("unreachable")


def age(seconds: float) -> str:
    """A duration for people."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


class Line:
    """One line on stderr that is drawn over and over, and only if that is a terminal: logs and pipes stay clean."""

    def __init__(self) -> None:
        self._drawn = 0
        self._on = sys.stderr.isatty()

    def draw(self, text: str) -> None:
        """In the place of what it showed before."""
        if self._on:
            print("\r" + text.ljust(self._drawn), end="", file=sys.stderr, flush=True)
            self._drawn = len(text)

    def clear(self) -> None:
        """Remove the line."""
        if self._drawn:
            print("\r" + " " * self._drawn + "\r", end="", file=sys.stderr, flush=True)
            self._drawn = 0


class ProgressBar(Line):
    """How much is done, behind a title."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def show(self, done: int, total: int) -> None:
        """Draw the present state; `total` 0 means that it is not known yet."""
        width = max(10, min(40, shutil.get_terminal_size().columns - len(self._title) - 32))
        share = done / total if total else 0.0
        filled = int(share * width)
        amount = f"{size(done)} of {size(total)}" if total else "working"
        self.draw(f"{self._title} [{'#' * filled}{'.' * (width - filled)}] {amount}")
