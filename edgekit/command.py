"""How a command line ends: an exit status, and one sentence where the system refused something."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgekit.text import printable


def ended(name: str, work: Callable[[], int]) -> int:
    """Do the work of the program `name`; its exit status. What the work raises but OSError comes through.

    1 with a sentence on standard error: a disk is full, a file cannot be read. 0: nobody reads the output any more
    (`edged status | head`). 130: it was interrupted.
    """
    try:
        status = work()
        sys.stdout.flush()  # what the disk refuses shows here, and not when the interpreter ends
        return status
    except BrokenPipeError:
        _drop_output()
        return 0
    except OSError as error:
        print(f"{name}: {reason(error)}", file=sys.stderr)
        _drop_output()
        return 1
    except KeyboardInterrupt:
        return 130


def reason(error: Exception) -> str:
    """What an error says, safe to print; the system's without the number that Python puts before it."""
    if not isinstance(error, OSError) or not error.strerror:
        return printable(str(error))
    return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)


def _drop_output() -> None:
    """What waits in standard output cannot be written; the interpreter would complain about it once more at its end."""
    with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
