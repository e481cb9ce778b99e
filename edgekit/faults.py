"""Named crash points: with `EDGED_CRASH_AT=name` (or `name:3`, the third pass) the process kills itself there.

SIGKILL is the honest model of a power cut for one process: no handler, no flush, no `finally` runs. Without the
variable a crash point costs one look-up at import and one comparison per pass.
"""

from __future__ import annotations

import os
import signal

_wanted, _, _count = os.environ.get("EDGED_CRASH_AT", "").partition(":")
_remaining = int(_count) if _count.isdigit() else 1


def crash_point(name: str) -> None:
    """Kill this process with SIGKILL if the environment names this point (and its pass count is reached)."""
    global _remaining
    if name != _wanted:
        return
    _remaining -= 1
    if _remaining <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
