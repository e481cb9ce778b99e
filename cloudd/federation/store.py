"""Rows of federated jobs: what they are, their rounds and sums, the journal of open rounds, the log."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal, NamedTuple

import msgspec
from sqlalchemy import Row, delete, func, insert, select, update

from cloudd.storage import Blobs, Rows
from cloudd.storage.schema import (
    federation_files,
    federation_jobs,
    federation_journal,
    federation_log,
    federation_rounds,
    federation_sums,
)
from edgekit.faults import crash_point
from edgekit.messages import FileEntry
from edgekit.messages.federation import FederatedJob, PublishedRound, PublishedSum, RoundKind

Status = Literal["running", "packing", "finished", "stopped", "failed"]
NODE = 32
MAX_REFUSALS = 100
"""Kept of one round."""


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a round came to its end."""

    step: str
    at: float  # wall clock
    devices: int  # that took part in it


class RefusalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Something was refused: by cloudd, or by a device that said so."""

    device: str  # short id
    by: Literal["cloudd", "device"]
    rule: str
    text: str
    at: float


class FiguresRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation round found, over all devices."""

    accuracy: float
    loss: float
    f1: dict[str, float | None]
    samples: int
    devices: int


class CollectedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The sum of a site's round, which its leader fetches: a file of the job's folder, never published."""

    sha256: str
    size: int  # bytes
    survivors: int


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a round."""

    steps: list[StepRecord] = []
    refusals: list[RefusalRecord] = []
    figures: FiguresRecord | None = None
    change: float | None = None  # Euclidean norm of the mean update
    bytes_up: int = 0  # of vectors
    collected: CollectedRecord | None = None


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """One job."""

    id: str
    name: str
    job: FederatedJob
    definition: str
    created_at: float
    status: Status
    reason: str
    version: int
    result: str
    ended_at: float | None


class RoundRow(msgspec.Struct, frozen=True, kw_only=True):
    """One try of one cohort."""

    job_id: str
    number: int
    kind: RoundKind
    version: int
    config: bytes
    invited: tuple[bytes, ...]
    opened_at: float
    closed_at: float | None = None
    outcome: Literal["", "summed", "void"] = ""
    reason: str = ""
    record: RoundRecord = RoundRecord()


class Entry(NamedTuple):
    """One entry of a journal."""

    place: int
    kind: str
    node: bytes
    body: bytes


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence of a job's log."""

    at: float
    text: str


class FederationStore:
    """Every method raises StorageError when rows or blobs fail."""

    def __init__(self, rows: Rows, blobs: Blobs, wall: Callable[[], float] = time.time) -> None:
        self.rows, self.blobs, self._wall = rows, blobs, wall

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def add_job(
        self, job: FederatedJob, name: str, definition: str, files: Mapping[str, AsyncIterator[bytes]]
    ) -> None:
        """Store a job with its files, whose hashes must be those in the job. Raises ValueError for others."""
        entries = {entry.path: entry for entry in (*job.files, *job.rosters)}
        async with AsyncExitStack() as held:
            for path, chunks in files.items():
                await held.enter_async_context(self.blobs.holding(entries[path].sha256))
                await self.blobs.put_stream(chunks, expected=entries[path].sha256)
            crash_point("federation.files")
            async with self.rows.writing() as connection:
                row = {
                    "id": job.id,
                    "name": name,
                    "job": msgspec.json.encode(job).decode(),
                    "definition": definition,
                    "created_at": self._wall(),
                    "status": "running",
                }
                await connection.execute(insert(federation_jobs).values(row))
                listed = [
                    {"job_id": job.id, "path": one.path, "sha256": one.sha256, "size": one.size}
                    for one in entries.values()
                ]
                await connection.execute(insert(federation_files), listed)

    async def jobs(self, *statuses: Status) -> list[JobRow]:
        """All jobs, or those of these statuses, newest first."""
        query = select(federation_jobs).order_by(federation_jobs.c.created_at.desc())
        if statuses:
            query = query.where(federation_jobs.c.status.in_(statuses))
        async with self.rows.reading() as connection:
            return [_job(row) for row in await connection.execute(query)]

    async def job(self, job_id: str) -> JobRow | None:
        """One job."""
        async with self.rows.reading() as connection:
            query = select(federation_jobs).where(federation_jobs.c.id == job_id)
            row = (await connection.execute(query)).first()
        return None if row is None else _job(row)

    async def set_status(self, job_id: str, status: Status, reason: str = "", result: str = "") -> None:
        """How a job stands; an end is dated."""
        values: dict[str, Any] = {"status": status, "reason": reason}
        if result:
            values["result"] = result
        if status in ("finished", "stopped", "failed"):
            values["ended_at"] = self._wall()
        async with self.rows.writing() as connection:
            await connection.execute(update(federation_jobs).where(federation_jobs.c.id == job_id).values(values))

    async def file_size(self, job_id: str, sha256: str) -> int | None:
        """Bytes of a file or sum of a job; None if it has none of this hash."""
        async with self.rows.reading() as connection:
            for table in (federation_files, federation_sums):
                query = select(table.c.size).where(table.c.job_id == job_id, table.c.sha256 == sha256).limit(1)
                size: int | None = await connection.scalar(query)
                if size is not None:
                    return size
        return None

    async def forget(self, before: float, keep: Collection[str] = ()) -> list[FileEntry]:
        """Remove jobs that ended before a time, but for those to `keep`; returns the files that were theirs."""
        gone = (federation_jobs.c.ended_at < before) & federation_jobs.c.id.not_in(list(keep))
        old = select(federation_jobs.c.id).where(gone)
        async with self.rows.writing() as connection:
            found = [
                FileEntry(path="", sha256=row.sha256, size=row.size)
                for table in (federation_files, federation_sums)
                for row in await connection.execute(select(table.c.sha256, table.c.size).where(table.c.job_id.in_(old)))
            ]
            await connection.execute(delete(federation_jobs).where(gone))
        return found

    # --- rounds -----------------------------------------------------------------------------------------------------

    async def open_rounds(self, rounds: Sequence[RoundRow]) -> None:
        """Write the cohorts of one round before anybody is invited."""
        async with self.rows.writing() as connection:
            await connection.execute(insert(federation_rounds), [_round_values(one) for one in rounds])

    async def next_number(self, job_id: str) -> int:
        """For the next cohort."""
        query = select(func.max(federation_rounds.c.number)).where(federation_rounds.c.job_id == job_id)
        async with self.rows.reading() as connection:
            highest: int | None = await connection.scalar(query)
        return 0 if highest is None else highest + 1

    async def rounds(self, job_id: str, *, open_only: bool = False, limit: int = 1000) -> list[RoundRow]:
        """Rounds of a job, newest first."""
        query = select(federation_rounds).where(federation_rounds.c.job_id == job_id)
        if open_only:
            query = query.where(federation_rounds.c.closed_at.is_(None))
        async with self.rows.reading() as connection:
            query = query.order_by(federation_rounds.c.number.desc()).limit(limit)
            return [_round(row) for row in await connection.execute(query)]

    async def append(self, job_id: str, number: int, entries: Sequence[Entry]) -> None:
        """Write what a round has accepted, before anybody is told."""
        rows = [{"job_id": job_id, "number": number, **entry._asdict()} for entry in entries]
        async with self.rows.writing() as connection:
            await connection.execute(insert(federation_journal), rows)

    async def journal(self, job_id: str, number: int) -> list[Entry]:
        """All that a round has accepted, in order."""
        table = federation_journal
        query = (
            select(table.c.place, table.c.kind, table.c.node, table.c.body)
            .where(table.c.job_id == job_id, table.c.number == number)
            .order_by(table.c.place)
        )
        async with self.rows.reading() as connection:
            return [Entry(*row) for row in await connection.execute(query)]

    async def close_round(self, one: RoundRow) -> None:
        """A try came to its end without a sum that is published: it was void, or an evaluation."""
        async with self.rows.writing() as connection:
            await _close(connection, one)

    async def publish(
        self, job_id: str, version: int, closed: Sequence[RoundRow], sums: Mapping[int, PublishedSum]
    ) -> None:
        """The sums of a round are there and its cohorts are closed, in one step. The sums' blobs must be held."""
        rows = [
            {
                "job_id": job_id,
                "number": number,
                "version": version,
                "sha256": one.sha256,
                "size": one.size,
                "survivors": one.survivors,
                "config": one.config,
                "nodes": b"".join(one.nodes),
            }
            for number, one in sums.items()
        ]
        async with self.rows.writing() as connection:
            await connection.execute(insert(federation_sums), rows)
            for one in closed:
                await _close(connection, one)
            await connection.execute(
                update(federation_jobs).where(federation_jobs.c.id == job_id).values({"version": version})
            )

    async def published(self, job_id: str, after: int, limit: int) -> list[PublishedRound]:
        """What leads from the state `after` on, oldest first."""
        table = federation_sums
        query = (
            select(table)
            .where(table.c.job_id == job_id, table.c.version > after, table.c.version <= after + limit)
            .order_by(table.c.version, table.c.number)
        )
        found: dict[int, list[PublishedSum]] = {}
        async with self.rows.reading() as connection:
            for row in await connection.execute(query):
                one = PublishedSum(
                    number=row.number,
                    config=row.config,
                    sha256=row.sha256,
                    size=row.size,
                    survivors=row.survivors,
                    nodes=tuple(_nodes(row.nodes)),
                )
                found.setdefault(row.version, []).append(one)
        return [PublishedRound(version=version, sums=tuple(sums)) for version, sums in found.items()]

    # --- log --------------------------------------------------------------------------------------------------------

    async def note(self, job_id: str, text: str) -> None:
        """One more sentence."""
        async with self.rows.writing() as connection:
            await connection.execute(insert(federation_log).values(job_id=job_id, at=self._wall(), text=text[:1000]))

    async def log(self, job_id: str, limit: int) -> list[LogLine]:
        """The newest sentences, oldest first."""
        query = (
            select(federation_log.c.at, federation_log.c.text)
            .where(federation_log.c.job_id == job_id)
            .order_by(federation_log.c.id.desc())
            .limit(limit)
        )
        async with self.rows.reading() as connection:
            found = [LogLine(at=row.at, text=row.text) for row in await connection.execute(query)]
        return found[::-1]


async def _close(connection: Any, one: RoundRow) -> None:
    here = (federation_rounds.c.job_id == one.job_id) & (federation_rounds.c.number == one.number)
    await connection.execute(
        update(federation_rounds)
        .where(here)
        .values(
            closed_at=one.closed_at,
            outcome=one.outcome,
            reason=one.reason,
            record=msgspec.to_builtins(one.record),
        )
    )
    await connection.execute(
        delete(federation_journal).where(
            federation_journal.c.job_id == one.job_id, federation_journal.c.number == one.number
        )
    )


def _round_values(one: RoundRow) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(one),
        "invited": b"".join(one.invited),
        "record": msgspec.to_builtins(one.record),
    }


def _round(row: Row[Any]) -> RoundRow:
    values = {**row._mapping, "invited": tuple(_nodes(row.invited))}
    values["record"] = msgspec.convert(row.record, RoundRecord)
    return RoundRow(**values)


def _job(row: Row[Any]) -> JobRow:
    return JobRow(**{**row._mapping, "job": msgspec.json.decode(row.job, type=FederatedJob)})


def _nodes(joined: bytes) -> Iterable[bytes]:
    return (joined[start : start + NODE] for start in range(0, len(joined), NODE))
