"""Fetches the models that wanted services need: one at a time, retried with growing delays, dropped when not needed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edged.link.errors import SyncError
from edged.models import ModelStore
from edgekit.messages import Link
from edgekit.packages import Package, find

log = logging.getLogger("edged.fetcher")

FIRST_RETRY_S = 5.0
LAST_RETRY_S = 300.0


class Source(Protocol):
    """Where models come from: the link."""

    @property
    def link(self) -> Link: ...
    async def fetch_model(self, ref: str, models: Path, progress: Callable[[int, int], None]) -> Package: ...


class Fetcher:
    """Keeps fetching whatever `missing()` names while the link is up."""

    def __init__(
        self,
        source: Source,
        models: ModelStore,
        missing: Callable[[], frozenset[str]],
        came: Callable[[], None],
    ) -> None:
        """`came` is called when a model has been installed."""
        self._source, self._models, self._missing, self._came = source, models, missing, came
        self._wake = asyncio.Event()
        self._tried = asyncio.Event()
        self._failures: dict[str, tuple[int, float, str]] = {}  # ref -> times, next try (monotonic), why
        self._progress: tuple[str, int, int] | None = None
        self._was_up = False

    def wake(self) -> None:
        """Something is missing, or the link has changed."""
        if self._source.link.up and not self._was_up:
            self._failures.clear()  # a new connection is a new chance
        self._was_up = self._source.link.up
        self._wake.set()

    def detail(self, ref: str) -> str:
        """One sentence about a missing model."""
        if self._progress is not None and self._progress[0] == ref:
            _, done, total = self._progress
            return f"the model {ref} is being fetched ({100 * done // total if total else 0} %)"
        if ref in self._failures:
            return self._failures[ref][2]
        if not self._source.link.url:
            return f"the model {ref} is not installed: add it with 'edged models add', or join a cloudd that has it"
        return f"the model {ref} is not installed and will be fetched when cloudd can be reached"

    async def wait(self, ref: str, timeout_s: float) -> bool:
        """Wait for one attempt to fetch `ref` to end. False if there is no hope now or the time is over."""
        deadline = time.monotonic() + timeout_s
        while ref in self._missing():
            if not self._source.link.up or ref in self._failures:
                return False
            self._tried.clear()
            try:
                await asyncio.wait_for(self._tried.wait(), max(0.0, min(1.0, deadline - time.monotonic())))
            except TimeoutError:
                if time.monotonic() >= deadline:
                    return False
        return True

    async def run(self) -> None:
        """Fetch until cancelled."""
        while True:
            self._wake.clear()
            # The wishes may be older than the newest download: what has come meanwhile is not missing.
            missing = {ref for ref in self._missing() if find(ref, self._models.installed()) is None}
            self._failures = {ref: failure for ref, failure in self._failures.items() if ref in missing}
            now = time.monotonic()
            due = {ref: self._failures[ref][1] if ref in self._failures else now for ref in sorted(missing)}
            ready = [ref for ref, at in due.items() if at <= now]
            if self._source.link.up and ready:
                await self._fetch(ready[0])
            else:
                await self._sleep(min(due.values()) - now if self._source.link.up and due else None)

    async def _fetch(self, ref: str) -> None:
        def progress(done: int, total: int) -> None:
            self._progress = (ref, done, total)

        self._progress = (ref, 0, 0)
        work = asyncio.ensure_future(self._source.fetch_model(ref, self._models.directory, progress))
        try:
            while not work.done():
                wake = asyncio.ensure_future(self._wake.wait())
                await asyncio.wait([work, wake], return_when=asyncio.FIRST_COMPLETED)
                wake.cancel()
                self._wake.clear()
                if ref not in self._missing() and not work.done():
                    log.info("The model %s is not needed any more; its download is dropped.", ref)
                    return
            package = work.result()
            log.info("The model %s was fetched from cloudd.", package.ref)
            self._failures.pop(ref, None)
            await asyncio.to_thread(self._models.refresh)
            self._came()
        except (SyncError, OSError) as error:
            times = self._failures.get(ref, (0, 0.0, ""))[0] + 1
            delay = min(FIRST_RETRY_S * 2.0 ** (times - 1), LAST_RETRY_S)
            self._failures[ref] = (times, time.monotonic() + delay, str(error))
            if times == 1:
                log.warning("%s", error)
        finally:
            self._progress = None
            work.cancel()
            self._tried.set()

    async def _sleep(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
