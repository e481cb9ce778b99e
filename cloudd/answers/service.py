"""From an uploaded hard sample to its one answer, by models that were loaded before it came."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from cloudd.answers.limits import KEEP_MODELS
from cloudd.answers.looks import Look
from cloudd.answers.pool import AnswerPool
from cloudd.answers.store import AnswerStore
from cloudd.registry import Registry
from edgekit.messages import Answer, HardSample, ModelEntry
from edgekit.packages import split_ref

log = logging.getLogger("cloudd.answers")

_TRIM_EVERY = 50


class UnknownModel(ValueError):
    """No registered model has the name that the sample asks for."""


async def _nothing() -> list[str]:
    return []


class Answers:
    """Answers every (device, sample id) once, whatever is repeated, at once or after a power cut."""

    def __init__(
        self,
        registry: Registry,
        pool: AnswerPool,
        store: AnswerStore,
        wall: Callable[[], float] = time.time,
        wanted: Callable[[], Awaitable[list[str]]] = _nothing,
    ) -> None:
        """`wanted` names models (name or name@version) that devices are told to ask, the most important first."""
        self._registry, self._pool, self._store, self._wall, self._wanted = registry, pool, store, wall, wanted
        self._running: dict[tuple[str, str], asyncio.Task[Answer]] = {}
        self._warming: set[asyncio.Task[None]] = set()
        self._kept = 0
        self._trim: asyncio.Task[int] | None = None

    def start(self) -> None:
        """Begin to load what devices will probably ask; a large model takes longer than the first of them waits."""
        self._in_background(self._warm_likely())

    def added(self, entry: ModelEntry) -> None:
        """A model was registered: begin to load it if it is the only one, or a version of one that devices ask."""
        self._in_background(self._warm_added(entry))

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
        """Load no more models, and wait for what is being stored."""
        for warming in self._warming:
            warming.cancel()
        waiting = [*self._warming, *self._running.values(), *([self._trim] if self._trim is not None else [])]
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
        look = Look(sample.pipeline, sample.mosaic, sample.clean)
        result = await self._pool.ask(_ref(entry), directory, picture, sample.late, look)
        answer = Answer(
            sample_id=sample.sample_id, verdict=result.verdict, compute_ms=result.compute_ms, mosaic=result.mosaic
        )
        kept = await self._store.keep(
            device_id, sample, picture, answer, result.thumbnail, self._wall(), result.differing
        )
        self._trim_sometimes()
        return kept

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        warming = asyncio.create_task(work)
        self._warming.add(warming)
        warming.add_done_callback(self._warmed)

    def _warmed(self, task: asyncio.Task[None]) -> None:
        self._warming.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a model could not be loaded ahead, so the first sample for it will wait: %s", error)

    async def _warm_likely(self) -> None:
        entries: dict[str, ModelEntry] = {}
        for ref in await self._in_use():
            if len(entries) == KEEP_MODELS:
                break
            entry = await self._registry.resolve(ref)
            if entry is not None:
                entries[_ref(entry)] = entry
        if not entries and len(models := await self._registry.all()) == 1:
            only = await self._registry.entry(models[0].name, models[0].version)
            entries = {_ref(only): only} if only is not None else {}
        for entry in entries.values():
            self._in_background(self._warm(entry))  # each by itself: one that fails does not keep the others away

    async def _warm_added(self, entry: ModelEntry) -> None:
        names = {split_ref(ref)[0] for ref in await self._in_use()}
        if entry.name in names or len(await self._registry.all()) == 1:
            await self._warm(entry)

    async def _warm(self, entry: ModelEntry) -> None:
        await self._pool.warm(_ref(entry), await self._registry.materialise(entry))

    async def _in_use(self) -> list[str]:
        """Models by their references: those that answered last, then those that devices are told to ask."""
        return [*await self._store.models_used(), *await self._wanted()]

    def _done(self, key: tuple[str, str], task: asyncio.Task[Answer]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen: when the device hung up, nobody else looks at it

    def _trim_sometimes(self) -> None:
        self._kept += 1
        if self._kept % _TRIM_EVERY == 1 and (self._trim is None or self._trim.done()):
            self._trim = asyncio.create_task(self._store.trim())
            self._trim.add_done_callback(_log_failure)


def _ref(entry: ModelEntry) -> str:
    return f"{entry.name}@{entry.version}"


def _log_failure(task: asyncio.Task[int]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("old pictures could not be removed: %s", error)
