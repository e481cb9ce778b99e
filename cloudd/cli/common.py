"""What the verbs share: the flags --state and --json, the client, and output for people."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cloudd.client import AdminClient
from cloudd.config import find_socket
from edgekit.text import printable

Verbs = Any  # argparse has no public name for what add_subparsers returns
Do = Callable[[argparse.Namespace], int]


def verb(verbs: Verbs, name: str, summary: str, do: Do | None, details: str = "") -> argparse.ArgumentParser:
    """Add one verb with --state and --json; `summary` is one line, `details` follows it in --help."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary}\n\n{details}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if do is not None:
        parser.add_argument(
            "--state",
            type=Path,
            metavar="DIR",
            help="state directory of the daemon (default: /var/lib/cloudd for root, else below ~/.local/state)",
        )
        parser.add_argument("--json", action="store_true", help="print JSON for programs")
        parser.set_defaults(do=do)
    return parser


def client(args: argparse.Namespace, timeout_s: float = 60.0) -> AdminClient:
    """A client of the daemon that --state names; it waits `timeout_s` for each reply."""
    return AdminClient(find_socket(args.state), timeout_s)


def path(*parts: str) -> str:
    """A route with its parts quoted."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def show_json(value: object) -> int:
    """Print a reply for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
    return 0


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> int:
    """Print columns, or one sentence if there is no row. Control characters in cells are replaced."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        print(empty)
        return 0
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]
    for line in [list(head), *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def ago(seconds: float | None, now: float | None = None) -> str:
    """How long ago a wall-clock time was, for people."""
    if seconds is None:
        return "never"
    passed = max(0.0, (time.time() if now is None else now) - seconds)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if passed >= size:
            return f"{passed / size:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def count(text: str) -> int:
    """How many to show. Raises argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of answers; write a whole number from 1 up")
    return int(text)


def duration(text: str) -> float:
    """Seconds from "90", "30m", "2h" or "7d". Raises argparse.ArgumentTypeError."""
    factor = {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(text[-1:], 0)
    number = text[:-1] if factor else text
    try:
        return float(number) * (factor or 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 90, 30m, 2h or 7d") from None
