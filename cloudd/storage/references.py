"""Which rows name which blobs, and the sweep that removes blobs no row names."""

from __future__ import annotations

from sqlalchemy import exists, or_, select, union

from cloudd.storage.blobs import Blobs
from cloudd.storage.rows import Rows
from cloudd.storage.schema import answers, federation_files, federation_sums, model_files


async def is_used(rows: Rows, sha256: str) -> bool:
    """Whether any row names the blob."""
    question = select(
        or_(
            exists().where(model_files.c.sha256 == sha256),
            exists().where(answers.c.picture == sha256),
            exists().where(answers.c.thumbnail == sha256),
            exists().where(federation_files.c.sha256 == sha256),
            exists().where(federation_sums.c.sha256 == sha256),
        )
    )
    async with rows.reading(single=True) as connection:
        return bool(await connection.scalar(question))


async def sweep(rows: Rows, blobs: Blobs) -> int:
    """Remove what a power cut left between a blob and its row; returns how many. Call it at start, before requests."""
    await blobs.sweep()
    named = union(
        select(model_files.c.sha256),
        select(answers.c.picture).where(answers.c.picture.is_not(None)),
        select(answers.c.thumbnail).where(answers.c.thumbnail.is_not(None)),
        select(federation_files.c.sha256),
        select(federation_sums.c.sha256),
    )
    async with rows.reading() as connection:
        used = set((await connection.execute(named)).scalars())
    orphans = [sha256 async for sha256 in blobs.list() if sha256 not in used]

    async def still_used(sha256: str) -> bool:
        return await is_used(rows, sha256)

    return sum([await blobs.remove(sha256, still_used) for sha256 in orphans])
