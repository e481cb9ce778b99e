"""What every message shares."""

from __future__ import annotations

from typing import Literal

import msgspec

PROTOCOL = 1
"""Version of the edged-cloudd protocol. cloudd refuses another major number with a sentence that says so."""

DecidedAt = Literal["edge", "cloud", "edge-degraded"]
SendReason = Literal["hard", "audit", "calibrating", "safe-mode"]
Level = Literal["ok", "warning", "error"]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every message."""
