"""What a worker and its source process say to each other: envelopes over a socket pair.

The worker sends Start, then one More for each frame it can take; so a frame is never older than it has to be, and a
source that floods fills nobody's memory but its own. The process says Opened once, then frames, and ends with Trouble
or Ended. Everything it sends is checked: it reads hostile bytes and may be anybody's by now.
"""

from __future__ import annotations

import msgspec

from edgekit.services import Source


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every message."""


class Start(_Message, frozen=True, kw_only=True, tag="start"):
    """The first message: which source to read."""

    source: Source


class More(_Message, frozen=True, kw_only=True, tag="more"):
    """The worker can take one more frame."""


class Opened(_Message, frozen=True, kw_only=True, tag="opened"):
    """The source answers; `text` says what it delivers, for the log."""

    text: str


class Frame(_Message, frozen=True, kw_only=True, tag="frame"):
    """One picture; the payload is a JPEG, or a PNG from a folder."""

    captured_at: float  # seconds since the epoch
    serial: str = ""
    skipped: int = 0  # frames given up since the last one, because a newer one came first


class Trouble(_Message, frozen=True, kw_only=True, tag="trouble"):
    """The last message of a process that cannot go on: a clause for people, without credentials."""

    text: str


class Ended(_Message, frozen=True, kw_only=True, tag="ended"):
    """The last message of a recording that was played to its end."""


ToSource = Start | More
FromSource = Opened | Frame | Trouble | Ended

MAX_FRAME = 16 << 20
"""Bytes of one picture; the same as over HTTP."""
