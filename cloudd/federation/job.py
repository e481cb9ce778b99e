"""One running job: devices gather, a round is held, its sum is published and applied, until there are enough sums."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from cloudd.federation import selection
from cloudd.federation.cohort import Bell, Cohort, CohortResult, RoundOver, vector_bytes
from cloudd.federation.definition import Definition
from cloudd.federation.errors import FederationError, storage_text
from cloudd.federation.journal import Journal
from cloudd.federation.plain import PlainCohort
from cloudd.federation.pool import Pool
from cloudd.federation.progress import Progress
from cloudd.federation.publishing import Found, Publisher
from cloudd.federation.secure import SecureCohort
from cloudd.federation.store import FederationStore, JobRow, RoundRow
from cloudd.federation.vectors import Vectors
from cloudd.web import STORAGE_ERRORS
from edgekit.faults import crash_point
from edgekit.messages.federation import (
    MAX_SUMS,
    WAIT_S,
    DeviceRefusal,
    Invitation,
    Later,
    Over,
    Publication,
    PublishedRound,
    RoundKind,
    Standing,
    Turn,
)
from edgekit.secagg import messages
from edgekit.secagg.errors import Refusal, Void
from edgekit.secagg.roster import Membership

log = logging.getLogger("cloudd.federation")

_STORAGE_S = 5.0
_NOTED = 5
"""Refusals of the whole job that are kept of one device."""
_EVALUATIONS = 2
"""Tries of one evaluation; then the job goes on without."""

T = TypeVar("T")


@dataclass
class JobRun:
    """A job that this process runs. `membership` is None of a plain job; `folder` is the job's own on the disk."""

    row: JobRow
    definition: Definition
    membership: Membership | None
    progress: Progress
    store: FederationStore
    folder: Path
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    cohorts: dict[int, Cohort] = field(default_factory=dict)
    gathering: str = ""
    """What the job waits for, in words; "" while a round goes on."""
    waits: str = ""
    """What storage says, while the job waits for it."""
    over: Over | None = None
    stopping: bool = False
    bell: Bell = field(default_factory=Bell)
    _resumed: asyncio.Event = field(default_factory=asyncio.Event)
    _declined: Counter[bytes] = field(default_factory=Counter)
    _evaluations: Counter[int] = field(default_factory=Counter)
    _newest: PublishedRound | None = None
    """What this process has published last: most devices ask for that, all at once."""
    _void: int = 0
    _number: int = 0
    _cramped: bool = False
    """Whether the disk had no room for the next round when this was last tried."""

    def __post_init__(self) -> None:
        members = None if self.membership is None else len(self.membership)
        self._pool = Pool(self.row.job, self.definition, self.progress.rules.plan, members)

    # --- the job's own task -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until all sums are published and judged. Raises FederationError if the job cannot go on.

        Cancelled, it can be run again from the rows.
        """
        cohorts = await self._storage(self._reopened)
        self.cohorts = {cohort.row.number: cohort for cohort in cohorts}
        self._resumed.set()
        if cohorts:
            await self._conduct(cohorts)
        while (kind := self._due()) is not None:
            chosen = await self._gather(kind)
            cohorts = await self._storage(partial(self._opened, kind, chosen))
            if cohorts:
                await self._conduct(cohorts)
        await asyncio.to_thread(self.progress.keep)

    def _due(self) -> RoundKind | None:
        version, job = self.progress.version, self.row.job
        every = job.evaluate_every
        looked_at = version > 0 and every and (version % every == 0 or version >= job.rounds)
        if looked_at and self._evaluations[version] < _EVALUATIONS:
            return "evaluate"
        return "learn" if version < job.rounds else None

    async def _gather(self, kind: RoundKind) -> list[tuple[bytes, ...]]:
        """Wait until enough devices stand ready within the window; the cohorts that they form."""
        plan, job = self.progress.rules.plan, self.row.job
        begun, enough_since = self.clock(), None
        while True:
            now = self.clock()
            found = self._pool.look(kind, self.progress.version, now=now, wall=self.wall())
            if not found.enough:
                enough_since = None
            elif enough_since is None:
                enough_since = now
            if enough_since is not None and (found.full or now - enough_since >= job.deadlines.settle):
                return selection.choose(list(found.fit), plan, kind, job.most, secrets.token_bytes(32))
            self.gathering = found.text
            if now - begun >= job.deadlines.gather and found.opened:
                begun = now
                await self._note(f"waiting since {job.deadlines.gather:g} s: {self.gathering}")
            await self.bell.wait(1.0)

    # --- rounds -----------------------------------------------------------------------------------------------------

    async def _reopened(self) -> list[Cohort]:
        """The cohorts that were open when the last process ended."""
        rows = await self.store.rounds(self.row.id)
        self._void = 0
        self._evaluations.clear()
        self._number = await self.store.next_number(self.row.id)
        for row in rows:
            if row.kind == "evaluate" and row.outcome:
                self._evaluations[row.version] += _EVALUATIONS if row.outcome == "summed" else 1
        for row in rows:
            if row.outcome == "summed":
                break
            self._void += row.outcome == "void"
        found = []
        for cohort in [self._cohort(row) for row in rows if not row.outcome]:
            try:
                await cohort.resume()
            except FederationError as error:
                closed = Publisher(self.progress, self.store, self.wall).closed(cohort, "void", str(error))
                await self.store.close_round(closed)
                await self._note(f"round {cohort.row.number} is void: {error}")
            else:
                found.append(cohort)
        return found

    async def _opened(self, kind: RoundKind, chosen: Sequence[tuple[bytes, ...]]) -> list[Cohort]:
        """New cohorts, on record before anybody is invited; none if the disk has no room for them."""
        rules, policy = self.progress.rules, self.definition.policy()
        aes = all(self._pool.aes(nodes) for nodes in chosen)
        rows = []
        for offset, nodes in enumerate(chosen):
            count = len(nodes)
            config = rules.config(
                kind,
                self.progress.digest,
                number=self._number + offset,
                colluders=max(policy.expected_colluders(size) for size in {count, min(count, policy.complete_to)}),
                prg="aes-256-ctr" if aes else "chacha20",
                rosters=self.membership.digest if self.membership is not None else bytes(32),
            )
            row = RoundRow(
                job_id=self.row.id,
                number=config.round,
                kind=kind,
                version=self.progress.version,
                config=messages.encode(config),
                invited=nodes,
                opened_at=self.wall(),
            )
            rows.append(row)
        cohorts = [self._cohort(row) for row in rows]
        try:
            for cohort in cohorts:
                await asyncio.to_thread(cohort.vectors.prepare, len(cohort.invited))
        except FederationError as error:
            self.gathering = str(error)
            if not self._cramped:
                await self._note(self.gathering)
            self._cramped = True
            await asyncio.sleep(_STORAGE_S)
            return []
        self.gathering, self._cramped = "", False
        await self.store.open_rounds(rows)
        self._number += len(rows)
        for nodes in chosen:
            self._pool.leave(nodes)
        crash_point("federation.opened")
        return cohorts

    def _cohort(self, row: RoundRow) -> Cohort:
        journal = Journal(self.store, self.row.id, row.number)
        config = messages.from_cloud(row.config)
        assert isinstance(config, messages.RoundConfig)
        vectors = Vectors(self.folder / f"round-{row.number}", vector_bytes(config))
        parts = (row, journal, vectors, self.row.job.deadlines)
        if self.membership is None:
            return PlainCohort(*parts, clock=self.clock, wall=self.wall, least=self.row.job.least)
        return SecureCohort(
            *parts, clock=self.clock, wall=self.wall, membership=self.membership, policy=self.definition.policy()
        )

    async def _conduct(self, cohorts: Sequence[Cohort]) -> None:
        """One round to its end: published, judged or void."""
        self.cohorts = {cohort.row.number: cohort for cohort in cohorts}
        self.bell.ring()
        try:
            ends = await asyncio.gather(*(self._held(cohort) for cohort in cohorts))
            found = {cohort.row.number: end for cohort, end in zip(cohorts, ends, strict=True)}
            await self._close(cohorts, found)
            for cohort in cohorts:
                cohort.end("the round is over")
                await asyncio.to_thread(cohort.vectors.remove)
        finally:
            for cohort in cohorts:
                if not self.stopping:
                    cohort.end("the job was ended")
                await cohort.settle()
            self.cohorts = {}
            self.bell.ring()

    async def _held(self, cohort: Cohort) -> CohortResult | str:
        try:
            return await self._storage(cohort.run)  # of a full disk the round is still whole in its journal
        except Void as void:
            return f"{void}{cohort.hints}"

    async def _close(self, cohorts: Sequence[Cohort], found: Found) -> None:
        """Put on record what came of a round."""
        publisher = Publisher(self.progress, self.store, self.wall)
        first = cohorts[0].row
        if first.kind == "evaluate":
            row = await publisher.judged(cohorts[0], found)
            await self._storage(lambda: self.store.close_round(row))
            self._evaluations[first.version] += _EVALUATIONS if row.outcome == "summed" else 1
            if row.reason:
                await self._note(f"round {first.number}, an evaluation of state {first.version}, is void: {row.reason}")
            return
        keeping = asyncio.ensure_future(publisher.keep(found))  # what fails now is done again before the sum counts
        try:
            following = await publisher.next_state(cohorts, found)
            await asyncio.wait([keeping])
            if isinstance(following, str):
                for cohort in cohorts:
                    row = publisher.closed(cohort, "void", following)
                    await self._storage(partial(self.store.close_round, row))
                await self._count_void(first.number, following)
                return
            state, change = following
            for cohort in cohorts:  # what it took is in its journal too, or never will be
                await cohort.settle()
            self._newest = await self._storage(lambda: publisher.publish(cohorts, found, change))
            crash_point("federation.published")
            await asyncio.to_thread(self.progress.move, state)
            self.bell.ring()
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            with contextlib.suppress(*STORAGE_ERRORS):
                await publisher.let_go()
        for one in found.values():
            self._pool.count(one.survivors if isinstance(one, CohortResult) else ())
        self._void = 0

    async def _count_void(self, number: int, reason: str) -> None:
        self._void += 1
        await self._note(f"round {number} is void: {reason}")
        if self._void >= self.definition.tries:
            raise FederationError(f"{self._void} rounds in a row were void, the last one because {reason}")

    # --- devices ----------------------------------------------------------------------------------------------------

    @property
    def standing(self) -> int:
        """Devices that stand ready."""
        return len(self._pool)

    def admits(self, node: bytes) -> bool:
        """Whether a device may take part."""
        return self.membership is None or node in self.membership

    async def cohort(self, number: int) -> Cohort:
        """An open cohort, also of a round that this process has only just taken up. Raises RoundOver."""
        await self._resumed.wait()
        found = self.cohorts.get(number)
        if found is None:
            raise RoundOver("this round is over")
        return found

    async def next(self, node: bytes, standing: Standing) -> Turn:
        """What a device is to do. Raises Refusal for one that holds another state, StorageError."""
        await self._resumed.wait()
        until = self.clock() + WAIT_S
        while True:
            version = self.progress.version
            if standing.version > version:
                raise Refusal(
                    "binding", f"the device holds the state {standing.version}; the job has published {version}"
                )
            newest = self._newest
            if newest is not None and standing.version + 1 == version == newest.version:
                return Publication(rounds=(newest,))
            if standing.version < version:
                return Publication(rounds=tuple(await self.store.published(self.row.id, standing.version, MAX_SUMS)))
            if standing.state != self.progress.digest.hex():
                raise Refusal("binding", f"the device holds another state {version} than this job, or another job")
            if self.over is not None:
                return self.over
            now = self.clock()
            for cohort in self.cohorts.values():
                if cohort.asked(node):
                    return Invitation(
                        number=cohort.row.number,
                        kind=cohort.row.kind,
                        version=version,
                        config=cohort.row.config,
                        left_s=cohort.left_s,
                    )
            if self._pool.stand(node, standing, now):
                self.bell.ring()
            if now >= until or self.stopping:
                reason = "cloudd is stopping" if self.stopping else self.gathering
                return Later(
                    reason=reason or "a round goes on without this device",
                    retry_after_s=_STORAGE_S if self.stopping else 0.0,
                )
            await self.bell.wait(until - now)

    def size_of(self, sha256: str) -> int | None:
        """Bytes of a sum of the round that was published last; None for any other file."""
        sums = self._newest.sums if self._newest is not None else ()
        return next((one.size for one in sums if one.sha256 == sha256), None)

    async def decline(self, node: bytes, refusal: DeviceRefusal, device: str) -> None:
        """A device says why it does not take part."""
        cohort = self.cohorts.get(refusal.number) if refusal.number is not None else None
        if cohort is not None:
            cohort.refuse(node, refusal.rule, refusal.text)
            return
        self._pool.leave([node])
        if self._declined[node] < _NOTED:
            self._declined[node] += 1
            await self._note(f"device {device} refuses ({refusal.rule}): {refusal.text}")

    def pause(self) -> None:
        """cloudd is about to end: nobody is held any longer."""
        self.stopping = True
        self._resumed.set()
        for cohort in self.cohorts.values():
            cohort.stopping = True
            cohort.bell.ring()
        self.bell.ring()

    def finish(self, over: Over) -> None:
        """Tell everybody that the job has ended."""
        self.over = over
        self._resumed.set()
        self.bell.ring()

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _note(self, text: str) -> None:
        log.info("job %s: %s", self.row.name, text)
        with contextlib.suppress(*STORAGE_ERRORS):
            await self.store.note(self.row.id, text)

    async def _storage(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` gives, tried again as long as storage fails."""
        begun, waited = self.clock(), ""
        while True:
            try:
                found = await work()
            except (*STORAGE_ERRORS, OSError) as error:
                log.error("job %s waits for storage: %s", self.row.name, error)
                self.waits = waited = storage_text(error)
                await asyncio.sleep(_STORAGE_S)
            else:
                if waited:
                    self.waits = ""
                    await self._note(f"goes on after {self.clock() - begun:.0f} s; storage had said: {waited}")
                return found
