"""Answers at rest: one row a sample, its picture and thumbnail as blobs, and a bound on all of it.

Features are not kept: nobody can look at them, and a device sends them where its pictures are not to be anywhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import IntegrityError

from cloudd.storage import Blobs, Rows, references
from cloudd.storage.schema import answers
from edgekit.faults import crash_point
from edgekit.messages import UNSEEN, Answer, HardSample, Verdict
from edgekit.regions.header import MosaicAnswer, MosaicHeader

log = logging.getLogger("cloudd.answers")

_BATCH = 200
_LOOKED_AT = 200
"""Newest answers in which the models in use are looked for."""
_BEFORE = select(answers.c.cloud, answers.c.compute_ms, answers.c.mosaic_answer).where(
    answers.c.device_id == bindparam("device"), answers.c.sample_id == bindparam("sample")
)
"""Built once: every sample asks this."""


@dataclass(frozen=True)
class Retention:
    """How much is kept; the oldest goes first. Rows outlive their pictures, so that a repeat stays a repeat."""

    pictures: int = 20_000
    bytes: int = 8 << 30  # of pictures and thumbnails together
    rows: int = 1_000_000


class StoredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One answered hard sample, for lists."""

    id: int
    device_id: str
    sample_id: str
    service: str
    serial: str
    reason: str
    late: bool
    captured_at: float
    answered_at: float
    compute_ms: float
    edge: Verdict
    cloud: Verdict
    agrees: bool
    picture: str | None  # SHA-256 of the blob, None once it was removed
    thumbnail: str | None
    regions: int  # of a mosaic, 0 of a whole picture
    differing: list[int]  # indices of the regions to which the answer is not the edge's
    tail: str  # of features: the tail package, name@version, and its cut; "" of a picture
    cut: str


@dataclass(frozen=True)
class Used:
    """What answered: a model (name or name@version), or one cut of a tail package."""

    model: str
    cut: str = ""


class Counts(msgspec.Struct, frozen=True):
    """Sums over all stored answers."""

    answered: int
    compared: int  # where the edge had said something itself
    agreed: int  # of these, where it was the same


class AnswerStore:
    """Writes, finds and forgets answers."""

    def __init__(self, rows: Rows, blobs: Blobs, retention: Retention | None = None) -> None:
        self._rows, self._blobs = rows, blobs
        self._retention = retention or Retention()
        self._trimming = asyncio.Lock()

    async def find(self, device_id: str, sample_id: str) -> Answer | None:
        """The answer this sample got before, marked as repeated; None if it got none."""
        async with self._rows.reading(single=True) as connection:
            row = (await connection.execute(_BEFORE, {"device": device_id, "sample": sample_id})).first()
        if row is None:
            return None
        return Answer(
            sample_id=sample_id,
            verdict=msgspec.convert(row.cloud, Verdict),
            compute_ms=row.compute_ms,
            repeated=True,
            mosaic=msgspec.convert(row.mosaic_answer, MosaicAnswer | None),
        )

    async def keep(
        self,
        device_id: str,
        sample: HardSample,
        picture: bytes | None,
        answer: Answer,
        thumbnail: bytes,
        now: float,
        differing: Sequence[int] = (),
    ) -> Answer:
        """Store an answer with its picture, durably; returns the one to send. After features there is no picture.

        That is `answer`, or the stored one if another cloudd answered the same sample meanwhile. `differing`: the
        regions of a mosaic to which the answer is not the edge's. Raises StorageError.
        """
        mosaic, features = sample.mosaic, sample.features
        compared = sample.edge.label != UNSEEN
        same = sample.edge.label == answer.verdict.label if mosaic is None else not differing
        async with AsyncExitStack() as held:
            names: Sequence[str | None] = (None, None)
            if picture is not None:
                names = await self._put(held, picture, thumbnail)
            crash_point("answer.blob")
            row = {
                "device_id": device_id,
                "sample_id": sample.sample_id,
                "service": sample.service,
                "serial": sample.serial,
                "reason": sample.reason,
                "late": sample.late,
                "captured_at": sample.captured_at,
                "answered_at": now,
                "compute_ms": answer.compute_ms,
                "edge": msgspec.to_builtins(sample.edge),
                "cloud": msgspec.to_builtins(answer.verdict),
                "agrees": same or not compared,
                "picture": names[0],
                "thumbnail": names[1],
                "bytes": len(picture) + len(thumbnail) if picture is not None else 0,
                "regions": len(mosaic.regions()) if mosaic is not None else 0,
                "differing": list(differing),
                "mosaic": msgspec.to_builtins(mosaic),
                "mosaic_answer": msgspec.to_builtins(answer.mosaic),
                "tail": features.tail if features is not None else "",
                "cut": features.cut if features is not None else "",
                "compared": compared,
            }
            try:
                async with self._rows.writing() as connection:
                    await connection.execute(insert(answers).values(row))
            except IntegrityError:
                stored = await self.find(device_id, sample.sample_id)
                if stored is None:
                    raise
                return stored
        crash_point("answer.row")
        return answer

    async def _put(self, held: AsyncExitStack, *blobs: bytes) -> list[str]:
        """Store all at once, because each waits for the disk, and hold them as long as `held` is open."""
        entering = (held.enter_async_context(self._blobs.putting(data)) for data in blobs)
        # All come to an end before the first failure is raised: none may begin to be held after `held` was closed.
        names: list[str] = []
        for name in await asyncio.gather(*entering, return_exceptions=True):
            if isinstance(name, BaseException):
                raise name
            names.append(name)
        return names

    async def recent(self, limit: int, before: int | None = None) -> list[StoredAnswer]:
        """The newest answers, newest first; `before` (an id) continues a list."""
        listed = (answers.c[name] for name in StoredAnswer.__struct_fields__)  # a mosaic's header takes some KiB
        query = select(*listed).order_by(answers.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(answers.c.id < before)
        async with self._rows.reading() as connection:
            return [_stored(row) for row in (await connection.execute(query)).mappings()]

    async def picture(self, answer_id: int, thumbnail: bool = False) -> bytes | None:
        """The picture (JPEG or PNG, as a device sent it: hostile) or our own JPEG thumbnail; None if it is not kept."""
        column = answers.c.thumbnail if thumbnail else answers.c.picture
        async with self._rows.reading(single=True) as connection:
            name = await connection.scalar(select(column).where(answers.c.id == answer_id))
        if name is None:
            return None
        try:
            return await self._blobs.get(name)
        except KeyError:  # retention was faster
            return None

    async def mosaic(self, answer_id: int) -> tuple[MosaicHeader | None, MosaicAnswer | None]:
        """What was where in an answer's mosaic, None of a whole picture and once that was removed; and what is said of
        its parts, None if a whole picture was classified."""
        query = select(answers.c.mosaic, answers.c.mosaic_answer).where(answers.c.id == answer_id)
        async with self._rows.reading(single=True) as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None, None
        return msgspec.convert(row.mosaic, MosaicHeader | None), msgspec.convert(row.mosaic_answer, MosaicAnswer | None)

    async def models_used(self) -> list[Used]:
        """The models that gave the newest answers, the one used last first."""
        query = select(answers.c.cloud, answers.c.tail, answers.c.cut).order_by(answers.c.id.desc()).limit(_LOOKED_AT)
        async with self._rows.reading() as connection:
            rows = await connection.execute(query)
            used = (Used(row.tail or msgspec.convert(row.cloud, Verdict).model, row.cut) for row in rows)
            return list(dict.fromkeys(used))

    async def counts(self) -> Counts:
        """How many samples were answered, and how often the edge had said the same."""
        compared = answers.c.compared
        query = select(
            func.count(), func.count().filter(compared), func.count().filter(compared, answers.c.agrees)
        ).select_from(answers)
        async with self._rows.reading() as connection:
            return Counts(*(await connection.execute(query)).one())

    async def trim(self) -> int:
        """Bring everything within the retention limits; returns how many pictures were removed."""
        async with self._trimming:
            removed = 0
            while names := await self._forget_oldest():
                removed += len(names) // 2
                for name in names:
                    await self._blobs.remove(name, self._used)
            await self._drop_rows()
            return removed

    async def _used(self, sha256: str) -> bool:
        return await references.is_used(self._rows, sha256)

    async def _forget_oldest(self) -> list[str]:
        """Unname the pictures of the oldest samples above the limits, one batch; returns their blobs."""
        kept = answers.c.picture.is_not(None)
        async with self._rows.writing() as connection:
            count, size = (
                await connection.execute(select(func.count(), func.coalesce(func.sum(answers.c.bytes), 0)).where(kept))
            ).one()
            oldest = await connection.execute(
                select(answers.c.id, answers.c.picture, answers.c.thumbnail, answers.c.bytes)
                .where(kept)
                .order_by(answers.c.id)
                .limit(_BATCH)
            )
            ids: list[int] = []
            names: list[str] = []
            for row in oldest:
                if count <= self._retention.pictures and size <= self._retention.bytes:
                    break
                count, size = count - 1, size - row.bytes
                ids.append(row.id)
                names += [row.picture, row.thumbnail]
            if ids:
                gone = {"picture": None, "thumbnail": None, "mosaic": None, "bytes": 0}
                await connection.execute(update(answers).where(answers.c.id.in_(ids)).values(gone))
        return names

    async def _drop_rows(self) -> None:
        async with self._rows.writing() as connection:
            newest_to_drop = await connection.scalar(
                select(answers.c.id).order_by(answers.c.id.desc()).offset(self._retention.rows).limit(1)
            )
            if newest_to_drop is not None:
                # A row whose picture is still kept stays: its blobs must keep their name until they are removed.
                await connection.execute(
                    delete(answers).where(answers.c.id <= newest_to_drop, answers.c.picture.is_(None))
                )


def _stored(row: RowMapping) -> StoredAnswer:
    return msgspec.convert({key: row[key] for key in StoredAnswer.__struct_fields__}, StoredAnswer)
