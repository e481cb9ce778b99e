"""A site's job (two tiers): its rounds are held when its leader asks, their sums go to the leader, and to nobody else.

The state is the upper job's. What the upper job publishes comes here through the leader, is checked and applied as
devices do, and only that moves the state. So the leader may ask, bring and be killed as often as it likes: everything
that it says names the state that it is about, and is answered the same again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from cloudd.federation import files
from cloudd.federation.brought import Brought
from cloudd.federation.cohort import Cohort, CohortResult
from cloudd.federation.errors import FederationError
from cloudd.federation.job import JobRun
from cloudd.federation.publishing import Found, Publisher
from cloudd.federation.store import NODE, CollectedRecord, RoundRow
from cloudd.federation.vectors import Vectors
from edgekit import atomic
from edgekit.faults import crash_point
from edgekit.federated.errors import FederatedError
from edgekit.federated.rounds import CohortSum, read_words
from edgekit.federated.strategy import State
from edgekit.federated.tiers import site_result
from edgekit.messages.federation import (
    WAIT_S,
    LeadOrder,
    LeadState,
    Over,
    PublishedRound,
    RoundKind,
    SiteSum,
    Standing,
    Turn,
)
from edgekit.secagg import messages
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import MAX_COHORT, RoundConfig

log = logging.getLogger("cloudd.federation")

_UPPER = "upper"
_LOOK_S = 5.0


@dataclass(frozen=True)
class _Next:
    """What the leader has brought, whole and checked."""

    published: PublishedRound
    data: dict[str, bytes]  # SHA-256 -> a sum
    state: State


@dataclass
class LedRun(JobRun):
    """`leader`: node of the device that leads."""

    leader: bytes = b""
    _wanted: RoundKind | None = None
    _collected: dict[tuple[RoundKind, int], SiteSum] = field(default_factory=dict)
    _attempts: Counter[tuple[RoundKind, int]] = field(default_factory=Counter)
    _without: dict[tuple[RoundKind, int], str] = field(default_factory=dict)
    _next: _Next | None = None
    _upper_over: Over | None = None
    _work: asyncio.Task[None] | None = None
    _bringing: asyncio.Lock = field(default_factory=asyncio.Lock)

    # --- the job's own task -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the upper job is over. Raises FederationError if it did not come to its end, or this one cannot go on.

        Cancelled, it can be run again from the rows.
        """
        cohorts = await self._storage(self._reopened)
        self.cohorts = {cohort.row.number: cohort for cohort in cohorts}
        self._resumed.set()
        try:
            if cohorts:
                self._begin(self._conduct(cohorts))
            while self._upper_over is None:
                await self._turn()
            await self._break_off("the upper job is over")
        finally:
            await self._end_work()
        await asyncio.to_thread(self.progress.keep)
        over = self._upper_over
        if over.outcome != "finished" and self.progress.version < self.row.job.rounds:
            raise FederationError(f"the upper job was {over.outcome}" + (f": {over.reason}" if over.reason else ""))
        # Before the leader hears it: it tells nobody a second time.
        await self._storage(lambda: self.store.set_status(self.row.id, "packing"))

    async def _turn(self) -> None:
        """Whatever is to be done now, or wait until there is something."""
        if self._next is not None:
            await self._break_off("the upper job went on without this site's sum")
            await self._move(self._next)
            self._next = None
            self.bell.ring()
        elif self._work is not None and self._work.done():
            work, self._work = self._work, None
            work.result()
        elif self._work is None and (kind := self._due()) is not None:
            self._begin(self._attempt(kind))
        else:
            if self._work is None:
                self.gathering = "the leader has not asked for a sum of this state"
            await self.bell.wait(_LOOK_S)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = asyncio.create_task(work)
        self._work.add_done_callback(lambda _: self.bell.ring())

    def _due(self) -> RoundKind | None:
        if self._wanted is None:
            return None
        key = self._wanted, self.progress.version
        return None if key in self._collected or key in self._without else self._wanted

    async def _attempt(self, kind: RoundKind) -> None:
        chosen = await self._gather(kind)
        cohorts = await self._storage(partial(self._opened, kind, chosen))
        if cohorts:
            await self._conduct(cohorts)

    async def _end_work(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _break_off(self, reason: str) -> None:
        """End a round that nobody needs any more."""
        await self._end_work()

        async def close() -> None:
            for row in await self.store.rounds(self.row.id, open_only=True):
                closed = msgspec.structs.replace(row, closed_at=self.wall(), outcome="void", reason=reason)
                await self.store.close_round(closed)
                await asyncio.to_thread(self._vectors_of(row).remove)

        await self._storage(close)

    def _vectors_of(self, row: RoundRow) -> Vectors:
        return Vectors(self.folder / f"round-{row.number}", 0)

    async def _reopened(self) -> list[Cohort]:
        cohorts = await super()._reopened()
        self._attempts.clear()
        for row in await self.store.rounds(self.row.id):
            key, made = (row.kind, row.version), row.record.collected
            if made is not None and self._sum_path(made.sha256).is_file():
                self._collected[key] = _site_sum(row, made)
            elif row.outcome == "void":
                self._attempts[key] += 1
        return cohorts

    # --- rounds -----------------------------------------------------------------------------------------------------

    async def _close(self, cohorts: Sequence[Cohort], found: Found) -> None:
        """A round gave the site's sum, or is void."""
        (cohort,) = cohorts
        publisher, one = Publisher(self.progress, self.store, self.wall), found[cohort.row.number]
        row = await self._judged(publisher, cohort, found)
        if row.outcome == "summed" and isinstance(one, CohortResult):
            data = one.words.tobytes()
            sha256 = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
            path, made = self._sum_path(sha256), CollectedRecord(
                sha256=sha256, size=len(data), survivors=len(one.survivors)
            )  # fmt: skip
            await self._storage(lambda: asyncio.to_thread(atomic.write_file, path, data))
            crash_point("federation.site.sum")
            row = msgspec.structs.replace(row, record=msgspec.structs.replace(row.record, collected=made))
            await self._storage(lambda: self.store.close_round(row))
            crash_point("federation.site.collected")
            self._collected[row.kind, row.version] = _site_sum(row, made)
            self._pool.count(one.survivors)
            return
        await self._storage(lambda: self.store.close_round(row))
        key = row.kind, row.version
        self._attempts[key] += 1
        await self._note(f"round {row.number} is void: {row.reason}")
        if self._attempts[key] >= self.definition.tries:
            self._without[key] = (
                f"{self._attempts[key]} rounds of the state {row.version} were void, the last one because {row.reason}"
            )
            await self._note(f"the site has no sum for the state {row.version} of the upper job")

    async def _judged(self, publisher: Publisher, cohort: Cohort, found: Found) -> RoundRow:
        if cohort.row.kind == "evaluate":
            return await publisher.judged(cohort, found)
        one = found[cohort.row.number]
        if isinstance(one, str):
            return publisher.closed(cohort, "void", one)
        total = CohortSum(one.words, len(one.survivors), cohort.config)
        try:
            await asyncio.to_thread(site_result, self.progress.rules, self.progress.state, total)
        except FederatedError as error:
            return publisher.closed(cohort, "void", f"the sum cannot be used: {error}")
        return publisher.closed(cohort, "summed")

    async def _move(self, following: _Next) -> None:
        """The upper job's sums are published here too, and the state is the one that they lead to."""
        published = following.published

        async def publish() -> None:
            async with contextlib.AsyncExitStack() as held:
                for one in published.sums:
                    await held.enter_async_context(self.store.blobs.holding(one.sha256))
                    await self.store.blobs.put_stream(files.one(following.data[one.sha256]), expected=one.sha256)
                sums = {one.number: one for one in published.sums}
                await self.store.publish(self.row.id, published.version, (), sums)

        await self._storage(publish)
        crash_point("federation.site.moved")
        await asyncio.to_thread(self.progress.move, following.state)
        self._wanted = None
        await asyncio.to_thread(self._brought.remove)
        for kind, version in list(self._collected):
            if version < self.progress.version:
                old = self._collected.pop((kind, version))
                self._sum_path(old.sha256).unlink(missing_ok=True)

    # --- the leader -------------------------------------------------------------------------------------------------

    def admits(self, node: bytes) -> bool:
        """Members of the rosters, and the leader."""
        return node == self.leader or super().admits(node)

    async def next(self, node: bytes, standing: Standing) -> Turn:
        """See JobRun."""
        if not super().admits(node):
            raise Refusal("identity", "the leader takes no part in the rounds of its site")
        return await super().next(node, standing)

    async def lead_state(self) -> LeadState:
        """Where this job stands."""
        await self._resumed.wait()
        return LeadState(version=self.progress.version, standing=len(self._pool), samples=self._pool.samples)

    async def collect(self, order: LeadOrder) -> SiteSum | None:
        """The site's sum for a state of the upper job; None if it is not there within WAIT_S.

        Raises Refusal for another state than this job's, and where the site has no sum for it.
        """
        await self._resumed.wait()
        until, key = self.clock() + WAIT_S, (order.kind, order.version)
        while True:
            if self.over is not None or self._upper_over is not None:
                raise Refusal("order", "the site's job is over")
            if order.version != self.progress.version:
                raise Refusal(
                    "binding", f"the leader holds the state {order.version}; this site holds {self.progress.version}"
                )
            if order.state != (await asyncio.to_thread(self.progress.moving_digest)).hex():
                raise Refusal("binding", f"the leader holds another state {order.version} than this site")
            if key in self._collected:
                return self._collected[key]
            if key in self._without:
                raise Refusal("survivors", self._without[key])
            if self._wanted != order.kind:
                self._wanted = order.kind
                self.bell.ring()
            left = until - self.clock()
            if left <= 0 or self.stopping:
                return None
            await self.bell.wait(left)

    async def bring(self, sha256: str, offset: int, data: bytes) -> int:
        """A part of a sum of the upper job; returns how much is there. Raises FederationError, OSError."""
        async with self._bringing:
            return await asyncio.to_thread(self._brought.write, sha256, offset, data)

    @property
    def upper_size(self) -> int:
        """Bytes of a sum of the upper job."""
        moving = self.progress.moving
        return (moving.numbers("learn").parameters + 2) * moving.room.bits // 8

    @property
    def _brought(self) -> Brought:
        return Brought(self.folder / _UPPER, self.upper_size)

    async def take(self, published: PublishedRound) -> bool:
        """The upper job has published these, and their sums are here: move on. False: not done within WAIT_S.

        What was taken before is done. Raises Refusal for what cannot follow this job's state, FederationError for a
        sum that is not whole, OSError.
        """
        await self._resumed.wait()
        if published.version > self.progress.version + 1:
            raise Refusal("order", f"sums of the state {published.version} do not follow {self.progress.version}")
        if published.version == self.progress.version + 1 and self._next is None:
            async with self._bringing:
                self._next = await self._checked(published)
            self.bell.ring()
        return await self._wait(lambda: self.progress.version >= published.version)

    async def upper_over(self, over: Over) -> bool:
        """The upper job is over, and so is this one when this returns True; False: not yet, within WAIT_S.

        Raises Refusal while sums are missing here.
        """
        await self._resumed.wait()
        if over.version > self.progress.version:
            raise Refusal("order", f"the upper job has published {over.version} sums; {self.progress.version} are here")
        self._upper_over = over
        self.bell.ring()
        return await self._wait(lambda: self.over is not None)

    def sum_file(self, node: bytes, sha256: str) -> Path | None:
        """The file of a site's sum, for the leader alone."""
        known = any(one.sha256 == sha256 for one in self._collected.values())
        return self._sum_path(sha256) if known and node == self.leader else None

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _wait(self, done: Callable[[], bool]) -> bool:
        """Whether it is done within WAIT_S."""
        until = self.clock() + WAIT_S
        while not done():
            left = until - self.clock()
            if left <= 0 or self.stopping or self.over is not None:
                return False
            await self.bell.wait(left)
        return True

    async def _checked(self, published: PublishedRound) -> _Next:
        moving, progress = self.progress.moving, self.progress
        digest, sums, data = await asyncio.to_thread(progress.moving_digest), [], {}
        try:
            for one in published.sums:
                if one.size != self.upper_size or not 1 <= one.survivors <= MAX_COHORT:
                    raise FederatedError(f"a sum of {one.size} bytes and {one.survivors} devices is none of this job")
                if any(len(node) != NODE for node in one.nodes):
                    raise FederatedError("the devices of a sum are named in another way than by 32 bytes")
                config = messages.from_cloud(one.config)
                if not isinstance(config, RoundConfig):
                    raise FederatedError("a sum without the configuration of its round")
                moving.check(config, "learn", digest, one.number)
                data[one.sha256] = await asyncio.to_thread(self._brought.read, one.sha256)
                words = read_words(data[one.sha256], config)
                sums.append(CohortSum(words, one.survivors, config, frozenset(one.nodes)))
            state, _ = await asyncio.to_thread(progress.after, sums)
        except FederatedError as error:
            raise Refusal("value", f"the upper job's sum cannot be used: {error}") from None
        return _Next(published, data, state)

    def _sum_path(self, sha256: str) -> Path:
        return self.folder / f"site-{sha256}.sum"


def _site_sum(row: RoundRow, made: CollectedRecord) -> SiteSum:
    return SiteSum(
        number=row.number,
        kind=row.kind,
        version=row.version,
        config=row.config,
        sha256=made.sha256,
        size=made.size,
        survivors=made.survivors,
    )
