"""Feeds the service manager's watchdog, but only while the event loop turns and the disk answers.

A process whose loop is stuck behind a dead disk looks alive from outside; a fed watchdog would keep it that way. A full
disk is no reason to restart: it is a health item, and local answers go on.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

from edged.health import Health
from edgekit import systemd

INTERVAL_S = 20.0
"""Between two looks when no manager watches."""
LAG_S = 5.0
"""A loop that answers this late is not serving anybody."""
PROBE_S = 15.0
"""An fsync of one byte takes milliseconds, on a dying SD card seconds. After this the storage hangs."""


class Watchdog:
    """One look every interval."""

    def __init__(self, probe: Path, health: Health) -> None:
        """`probe` is a file on the storage that matters; it is written and synced at each look."""
        self._probe, self._health = probe, health
        self._pending: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Look and feed until cancelled."""
        interval = systemd.watchdog_interval_s() or INTERVAL_S
        while True:
            before = time.monotonic()
            await asyncio.sleep(interval / 2)
            lag = time.monotonic() - before - interval / 2
            storage = await self._storage_answers(min(PROBE_S, interval / 3))
            if lag < LAG_S and storage:
                systemd.notify("WATCHDOG=1")
            if lag >= LAG_S:
                self._health.note("warning", "loop.lag", f"The daemon was stuck for {lag:.1f} s.")

    async def _storage_answers(self, timeout_s: float) -> bool:
        """True unless writing one byte hangs. One write at a time: a hung one is waited for again."""
        if self._pending is None:
            self._pending = asyncio.ensure_future(asyncio.to_thread(_write, self._probe))
        done, _ = await asyncio.wait([self._pending], timeout=timeout_s)
        if not done:
            text = f"The storage of {self._probe.parent} has not answered for {timeout_s:.0f} s."
            self._health.report("storage", "error", text)
            return False
        error = self._pending.exception()
        self._pending = None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = "The disk is full: local answers go on, but nothing new can be kept. Make room."
            self._health.report("storage", "error", text)
        elif error is not None:
            self._health.report("storage", "error", f"The storage cannot be written: {error}. Local answers go on.")
        else:
            self._health.clear("storage", "The storage works again.")
        return True


def _write(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, b"x")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
