"""What one cohort has accepted and closed, in order, so that a restarted cloudd is in the same step with the same sums.

The state machine of a round is deterministic: fed with the same messages and closed at the same places it makes the
same roll, survivors and sum. So the messages are the state. Nobody is told what follows from an entry before it is
written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from cloudd.federation.errors import storage_text
from cloudd.federation.store import Entry, FederationStore, StepRecord
from cloudd.web import STORAGE_ERRORS

log = logging.getLogger("cloudd.federation")

CLOSE = "close"
_RETRY_S = 2.0


class Journal:
    """Of one cohort. Whoever notes something holds the cohort's lock; what was noted meanwhile is written together."""

    def __init__(self, store: FederationStore, job_id: str, number: int) -> None:
        self._store, self._job_id, self._number = store, job_id, number
        self._pending: list[Entry] = []
        self._place = 0
        self._writing = asyncio.Lock()

    async def read(self) -> list[Entry]:
        """All that was written, before anything is noted. Raises StorageError."""
        found = await self._store.journal(self._job_id, self._number)
        self._place = len(found)
        return found

    def note(self, kind: str, node: bytes, body: bytes) -> None:
        """The round has accepted a message. It is not written yet."""
        self._pending.append(Entry(self._place, kind, node, body))
        self._place += 1

    def close(self, step: StepRecord) -> None:
        """The round has closed a step."""
        self.note(CLOSE, b"", msgspec.msgpack.encode(step))

    async def flush(self) -> None:
        """Return when all that was noted is written. Raises StorageError; then it is still to be written."""
        wanted = self._place
        async with self._writing:
            if self._pending and self._pending[0].place < wanted:
                entries = list(self._pending)
                await self._store.append(self._job_id, self._number, entries)
                del self._pending[: len(entries)]

    async def insist(self, say: Callable[[str], None]) -> None:
        """Write what was noted, however long the storage takes to be there again; `say` hears why, or ""."""
        while True:
            try:
                await self.flush()
            except STORAGE_ERRORS as error:
                say(storage_text(error))
                log.error("the journal of round %d of job %s waits for storage: %s", self._number, self._job_id, error)
                await asyncio.sleep(_RETRY_S)
            else:
                return say("")


def closed_step(entry: Entry) -> StepRecord:
    """What a closing entry says."""
    return msgspec.msgpack.decode(entry.body, type=StepRecord)
