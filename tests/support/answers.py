"""The answering part of a cloudd, without network: real storage, real registry, real workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cloudd.answers.pool import AnswerPool, PoolSettings
from cloudd.answers.service import Answers
from cloudd.answers.store import AnswerStore, Retention
from cloudd.registry import Registry
from cloudd.storage import Blobs, Rows
from cloudd.storage.rows import sqlite_url
from edgekit.messages import HardSample, Verdict

EDGE = Verdict(label="dark", score=0.6, margin=0.2, model="small@1")


def sample(number: int = 1, model: str = "big", **changes: object) -> HardSample:
    base = HardSample(
        sample_id=f"s{number}", service="solder", answer_model=model, edge=EDGE, reason="hard", captured_at=5.0
    )
    return msgspec.structs.replace(base, **changes)


@dataclass
class Cloud:
    """One cloudd without its outer layers."""

    rows: Rows
    blobs: Blobs
    registry: Registry
    pool: AnswerPool
    store: AnswerStore
    answers: Answers


async def nobody_asks() -> list[str]:
    return []


@contextlib.asynccontextmanager
async def cloud(
    root: Path,
    settings: PoolSettings | None = None,
    retention: Retention | None = None,
    wanted: Callable[[], Awaitable[list[str]]] = nobody_asks,
) -> AsyncIterator[Cloud]:
    """Opened on the state in `root`; `wanted` as of Answers, which are not started."""
    rows = await Rows.open(sqlite_url(root / "cloudd.db"))
    blobs = await Blobs.open(str(root / "blobs"))
    registry = Registry(rows, blobs, root / "cache")
    pool = AnswerPool(root / "empty", settings)
    store = AnswerStore(rows, blobs, retention)
    answers = Answers(registry, pool, store, wall=lambda: 1000.0, wanted=wanted)
    await pool.start()
    try:
        yield Cloud(rows, blobs, registry, pool, store, answers)
    finally:
        await answers.close()
        await pool.stop()
        await rows.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)


async def loaded(here: Cloud, *models: str) -> None:
    """Until some worker holds these models and no others; without any, until it holds one."""

    def held() -> set[str]:
        return {model for worker in here.pool._live.values() for model in worker.held.values()}

    await until(lambda: held() == set(models) if models else bool(held()))
