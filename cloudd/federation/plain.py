"""A cohort without masks: the same whole numbers, added as they come. Only for jobs that say `secure = false`."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import numpy as np

from cloudd.federation.cohort import Cohort, CohortResult, RoundOver
from cloudd.federation.store import Entry
from edgekit.faults import crash_point
from edgekit.secagg import masks
from edgekit.secagg.errors import Refusal, Void
from edgekit.secagg.fixedpoint import Encoding, check_sum

_STEP = "vectors"


class PlainCohort(Cohort):
    """`least`: devices that a sum is of, at least."""

    def __init__(self, *args: Any, least: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._least = least
        self._encoding = Encoding(self.config)
        self._words = np.zeros(self._encoding.words, masks.dtype(self.config.bits))
        self._closed = False
        self._kept: set[bytes] = set()  # whose vectors are durable, and in the journal or about to be

    async def run(self) -> CohortResult:
        """See Cohort."""
        if not self._closed:
            train, patience = self.left_s, self.deadlines.patience
            await self._until(
                (lambda: self.invited - self._away <= self._of(_STEP).keys(), 0.0),
                (lambda: self.delivered >= self._least, train),
                (lambda: True, train + patience),
            )
            async with self._lock:
                if self.delivered < self._least:
                    raise Void(f"{self.delivered} devices sent a vector; {self._least} are needed")
                # Not in the journal: nobody is told what follows from it before the sum is published, and a process
                # that begins again closes when it finds the same vectors.
                record = self._step(_STEP, self.delivered)
                self._closed = True
                self.steps.append(record)
        crash_point("federation.plain.closed")
        return CohortResult(self._words, tuple(sorted(self._of(_STEP))))

    @property
    def delivered(self) -> int:
        """See Cohort."""
        return len(self._of(_STEP))

    def finished(self, node: bytes) -> bool:
        """See Cohort."""
        return node in self._of(_STEP) or self._closed

    async def deliver(self, node: bytes, sha256: str) -> None:
        """A device's vector is whole. Raises Refusal, RoundOver, FederationError, StorageError, OSError."""
        self._check(node)
        try:
            await self._settled(self._accept(node, sha256))
        except Refusal as refusal:
            self.note_refusal(node, "cloudd", refusal.rule, str(refusal))
            raise

    async def _accept(self, node: bytes, sha256: str) -> None:
        """Add a vector, then keep it: the round goes on meanwhile, and is published only when all this is done."""
        digest = hashlib.sha256(sha256.encode()).digest()
        writing = self._writing.setdefault(node, asyncio.Lock())
        async with writing:
            if node not in self._whole and node not in self._of(_STEP) and not self._closed:
                await asyncio.to_thread(self.vectors.check, node, sha256)
                self._whole.add(node)
        async with self._lock:
            known = self._of(_STEP).get(node)
            if known is None:
                if self.over or self._closed:
                    raise RoundOver(self.over or "the round was closed without this device")
                await asyncio.to_thread(self._checked, node)
                self._of(_STEP)[node] = digest
            elif known != digest:
                raise Refusal("once", "the device has sent another vector in this round")
        self.bell.ring()
        async with writing:
            if node not in self._kept:
                await asyncio.to_thread(self.vectors.sync, node)
                self._kept.add(node)
                self._journal.note(_STEP, node, digest)
        await self._journal.flush()
        crash_point("federation.plain.vector")

    def _checked(self, node: bytes) -> None:
        try:
            self._add(node)
        except Refusal:
            self._whole.discard(node)
            self.vectors.forget(node)
            raise

    def _add(self, node: bytes) -> None:
        words = self.vectors.read(node, self.config.bits)
        check_sum(words, 1, self._encoding)  # one bad vector must not spoil the sum
        np.add(self._words, words, out=self._words)

    def _replay_message(self, entry: Entry) -> None:
        self._add(entry.node)
        self._kept.add(entry.node)
        self._of(_STEP)[entry.node] = entry.body

    def _replay_close(self, step: str) -> None:
        self._closed = True
