"""What came of a round: a published sum and the next state, figures, or a void with its reason; each in one step."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import msgspec
import numpy as np

from cloudd.federation.cohort import Cohort, CohortResult
from cloudd.federation.progress import Progress
from cloudd.federation.store import FederationStore, RoundRow
from cloudd.storage.references import is_used
from edgekit.faults import crash_point
from edgekit.federated.errors import FederatedError
from edgekit.federated.rounds import CohortSum
from edgekit.federated.strategy import State
from edgekit.messages.federation import PublishedRound, PublishedSum

Found = Mapping[int, CohortResult | str]
"""Number of a cohort -> its sum, or why there is none."""


@dataclass(frozen=True)
class Publisher:
    """Of one job. Methods raise StorageError, and may then be called again."""

    progress: Progress
    store: FederationStore
    wall: Callable[[], float] = time.time
    _held: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _kept: dict[int, str] = field(default_factory=dict)  # number of a cohort -> SHA-256 of its sum, a blob that is held

    async def keep(self, found: Found) -> None:
        """Have the sums in the blob store, durably and held until `let_go`. They may be looked at beside it."""
        for number, one in found.items():
            if isinstance(one, str) or number in self._kept:
                continue
            data = one.words.view(np.uint8).data
            sha256 = await asyncio.to_thread(_sha256, data)
            await self._held.enter_async_context(self.store.blobs.holding(sha256))
            await self.store.blobs.put(data, sha256)
            self._kept[number] = sha256

    async def let_go(self) -> None:
        """Hold the sums no longer; one that was not published goes."""
        await self._held.aclose()
        for sha256 in self._kept.values():
            await self.store.blobs.remove(sha256, partial(is_used, self.store.rows))
        self._kept.clear()

    async def next_state(self, cohorts: Sequence[Cohort], found: Found) -> tuple[State, float] | str:
        """The state that the sums lead to and the norm of the change, or why they lead nowhere."""
        sums = [
            CohortSum(one.words, len(one.survivors), cohort.config, frozenset(one.survivors))
            for cohort in cohorts
            if isinstance(one := found[cohort.row.number], CohortResult)
        ]
        reason = next((one for one in found.values() if isinstance(one, str)), "")
        if not sums or (reason and self.progress.rules.plan.robust is None):
            return reason
        try:
            return await asyncio.to_thread(self.progress.after, sums)
        except FederatedError as error:
            return f"the sum cannot be used: {error}"

    async def publish(self, cohorts: Sequence[Cohort], found: Found, change: float) -> PublishedRound:
        """The sums are there, and the job is one version further."""
        await self.keep(found)
        rules = self.progress.rules  # a device that vanished after masking must know whether its sums are in a head
        named = rules.plan.robust is not None or rules.head is not None
        sums: dict[int, PublishedSum] = {}
        closed = []
        for cohort in cohorts:
            number, one = cohort.row.number, found[cohort.row.number]
            if isinstance(one, str):
                closed.append(self.closed(cohort, "void", one))
                continue
            sums[number] = PublishedSum(
                number=number,
                config=cohort.row.config,
                sha256=self._kept[number],
                size=one.words.nbytes,
                survivors=len(one.survivors),
                nodes=one.survivors if named else (),
            )
            closed.append(self.closed(cohort, "summed", change=change))
        crash_point("federation.sum")
        version = self.progress.version + 1
        await self.store.publish(closed[0].job_id, version, closed, sums)
        return PublishedRound(version=version, sums=tuple(sums[number] for number in sorted(sums)))

    async def judged(self, cohort: Cohort, found: Found) -> RoundRow:
        """How an evaluation round is to be closed."""
        one = found[cohort.row.number]
        if isinstance(one, str):
            return self.closed(cohort, "void", one)
        try:
            figures = await asyncio.to_thread(
                self.progress.figures, CohortSum(one.words, len(one.survivors), cohort.config)
            )
        except FederatedError as error:
            return self.closed(cohort, "void", f"the sum cannot be used: {error}")
        row = self.closed(cohort, "summed")
        return msgspec.structs.replace(row, record=msgspec.structs.replace(row.record, figures=figures))

    def closed(
        self, cohort: Cohort, outcome: Literal["summed", "void"], reason: str = "", change: float | None = None
    ) -> RoundRow:
        """A cohort's row with all that is known of it."""
        record = msgspec.structs.replace(
            cohort.row.record,
            steps=cohort.steps,
            refusals=cohort.refusals,
            change=change,
            bytes_up=cohort.delivered * cohort.vectors.size,
        )
        return msgspec.structs.replace(cohort.row, closed_at=self.wall(), outcome=outcome, reason=reason, record=record)


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
