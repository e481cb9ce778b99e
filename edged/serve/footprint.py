"""How much memory each model needs while it is loaded and proved, measured in this process."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path

_RESET_PEAK = b"5"
"""Written to clear_refs it makes the peak of the resident set start anew (proc(5))."""
_PEAK = re.compile(rb"^VmHWM:\s*(\d+) kB$", re.MULTILINE)


class Footprint:
    """Resident bytes by package directory. One model is loaded at a time."""

    def __init__(self) -> None:
        self.base = resident_bytes()
        """Resident bytes before the first model."""
        self.models: dict[str, int] = {}

    @contextlib.contextmanager
    def of(self, directory: str) -> Iterator[None]:
        """What is done inside belongs to the model in this directory. One loaded in two ways needs the sum."""
        before = resident_bytes()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_bytes(_RESET_PEAK)
        try:
            yield
        finally:
            self.models[directory] = self.models.get(directory, 0) + max(0, _peak_bytes(before) - before)


def resident_bytes() -> int:
    """The resident set now."""
    pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    return pages * resource.getpagesize()


def _peak_bytes(least: int) -> int:
    found = _PEAK.search(Path("/proc/self/status").read_bytes())
    return int(found.group(1)) * 1024 if found else max(least, resident_bytes())
