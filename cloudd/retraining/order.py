"""Between the daemon and the process of a job: one order on its stdin, events as lines of JSON on its stdout."""

from __future__ import annotations

from typing import Literal

import msgspec

MAX_LINE = 1 << 16
"""Bytes of an event."""


class WorkOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One job. The same order goes on where an earlier process stood."""

    folder: str  # of the job: `request.json` is in it, `work` and `result` are made
    files: str  # where its files lie by their hashes
    seconds: float  # of computing that are planned for, both trainings together
    threads: int = 1


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """A few a second at most. `text`: a clause about cloudd, such as "trains the larger network"."""

    text: str
    done: int
    total: int


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """The last word. `done`: the package lies in `result`. `paused`: it was asked to stop and has saved.

    `refused`: nothing can be learned here, ever. `failed`: it broke; the reason is a clause.
    """

    kind: Literal["done", "paused", "refused", "failed"]
    reason: str = ""


Event = Progress | Ended
