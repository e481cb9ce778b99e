"""What the verbs share that make packages on this host: where the model lies, a line of progress, registering."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from cloudd.cli import common
from edgekit.packages import PackageError, check_version, split_ref
from edgekit.text import printable

NICE = 10
"""A host that answers devices goes on answering them."""
_REGISTER_S = 3600.0

OutcomeT = TypeVar("OutcomeT", bound=msgspec.Struct)


def directory(args: argparse.Namespace) -> Path:
    """Where the package lies: as the user said, or where the daemon keeps the registered model."""
    given = Path(args.model)
    if given.is_dir() or "/" in args.model:
        return given
    split_ref(args.model)
    return Path(common.client(args, _REGISTER_S).get(common.path("models", args.model, "directory"))["path"])


def register(args: argparse.Namespace, directory: str) -> None:
    """Have the daemon register the package in `directory`. Raises ClientError."""
    common.client(args, _REGISTER_S).post("/models", {"path": str(Path(directory).absolute())})


def made(args: argparse.Namespace, outcome: OutcomeT, package: str, show: Callable[[OutcomeT, bool], None]) -> int:
    """Register the new package in the directory `package`, "" for none, if that was asked for, and say what was made.

    `show` prints it for people, and hears whether it was registered. Returns the exit status. Raises ClientError.
    """
    if args.register and package:
        register(args, package)
    if args.json:
        common.show_json(msgspec.to_builtins(outcome))
    else:
        show(outcome, args.register)
    return 0 if package else 1


def version(text: str) -> str:
    """A model version. Raises argparse.ArgumentTypeError."""
    try:
        return check_version(text)
    except PackageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class Line:
    """One line on stderr that is drawn over and over, and only if that is a terminal."""

    def __init__(self) -> None:
        self._drawn = 0
        self._on = sys.stderr.isatty()

    def show(self, step: str, done: int, total: int) -> None:
        """Draw what is done now; `total` 0 means that nobody knows how much of it there is."""
        if not self._on:
            return
        width = max(10, min(40, shutil.get_terminal_size().columns - 40))
        filled = done * width // total if total else 0
        text = f"{step:18} [{'#' * filled}{'.' * (width - filled)}] {f'{done} of {total}' if total else ''}"
        print("\r" + text.ljust(self._drawn), end="", file=sys.stderr, flush=True)
        self._drawn = len(text)

    def clear(self) -> None:
        """Remove the line."""
        if self._drawn:
            print("\r" + " " * self._drawn + "\r", end="", file=sys.stderr, flush=True)
            self._drawn = 0

    def refused(self, error: Exception) -> int:
        """Say why nothing was made; the exit status."""
        self.clear()
        print(f"cloudd: {printable(str(error))}", file=sys.stderr)
        return 1
