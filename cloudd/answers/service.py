"""From an uploaded hard sample to its one answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from cloudd.answers.pool import AnswerPool
from cloudd.answers.store import AnswerStore
from cloudd.registry import Registry
from edgekit.messages import Answer, HardSample

log = logging.getLogger("cloudd.answers")

_TRIM_EVERY = 50


class UnknownModel(ValueError):
    """No registered model has the name that the sample asks for."""


class Answers:
    """Answers every (device, sample id) once, whatever is repeated, at once or after a power cut."""

    def __init__(
        self, registry: Registry, pool: AnswerPool, store: AnswerStore, wall: Callable[[], float] = time.time
    ) -> None:
        self._registry, self._pool, self._store, self._wall = registry, pool, store, wall
        self._running: dict[tuple[str, str], asyncio.Task[Answer]] = {}
        self._kept = 0
        self._trim: asyncio.Task[int] | None = None

    def check(self, late: bool = False) -> None:
        """Raise pool.Busy if a sample would not be taken now."""
        self._pool.check(late)

    async def answer(self, device_id: str, sample: HardSample, picture: bytes) -> Answer:
        """The answer, stored durably before this returns.

        The same sample uploaded again while the first upload is being answered waits for that one answer. Raises
        UnknownModel, PackageError (a model name that is none), pool.Busy, pool.PictureRefused or StorageError.
        """
        key = (device_id, sample.sample_id)
        running = self._running.get(key)
        if running is None:
            running = asyncio.create_task(self._answer_once(device_id, sample, picture))
            self._running[key] = running
            running.add_done_callback(lambda task: self._done(key, task))
        # Shielded: the device may hang up, but the work is done, and its repetition then finds the answer.
        return await asyncio.shield(running)

    async def close(self) -> None:
        """Wait for what is being stored."""
        waiting = [*self._running.values(), *([self._trim] if self._trim is not None else [])]
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _answer_once(self, device_id: str, sample: HardSample, picture: bytes) -> Answer:
        stored = await self._store.find(device_id, sample.sample_id)
        if stored is not None:
            return stored
        entry = await self._registry.resolve(sample.answer_model)
        if entry is None:
            raise UnknownModel(
                f'there is no model "{sample.answer_model}" on this cloudd; add it with `cloudd models add DIRECTORY`'
            )
        directory = await self._registry.materialise(entry)
        result = await self._pool.ask(f"{entry.name}@{entry.version}", directory, picture, sample.late)
        answer = Answer(sample_id=sample.sample_id, verdict=result.verdict, compute_ms=result.compute_ms)
        kept = await self._store.keep(device_id, sample, picture, answer, result.thumbnail, self._wall())
        self._trim_sometimes()
        return kept

    def _done(self, key: tuple[str, str], task: asyncio.Task[Answer]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen: when the device hung up, nobody else looks at it

    def _trim_sometimes(self) -> None:
        self._kept += 1
        if self._kept % _TRIM_EVERY == 1 and (self._trim is None or self._trim.done()):
            self._trim = asyncio.create_task(self._store.trim())
            self._trim.add_done_callback(_log_failure)


def _log_failure(task: asyncio.Task[int]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("old pictures could not be removed: %s", error)
