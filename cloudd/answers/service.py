"""From an uploaded hard sample to its one answer, by models that were loaded before it came."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from cloudd.answers.limits import KEEP_MODELS
from cloudd.answers.looks import Look
from cloudd.answers.pool import AnswerPool, Asker
from cloudd.answers.store import AnswerStore, Used
from cloudd.registry import Registry
from edgekit.dispatch.service_times import ServiceTimes
from edgekit.messages import Answer, HardSample, ModelEntry
from edgekit.packages import MANIFEST_NAME, parse_manifest, split_ref

log = logging.getLogger("cloudd.answers")

_TRIM_EVERY = 50
_STEADY_CV = 0.3  # as edgekit.dispatch predicts a run
_KEEP_S = 0.02
"""Seconds that storing an answer is taken to take until some were stored."""
_REMEMBERED = 256  # packages of which it is known what they answer


class UnknownModel(ValueError):
    """No registered model has the name that the sample asks for."""


class UnfitModel(ValueError):
    """The model that the sample asks for answers no such samples: it is one half of a split model, or is none."""


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
        self._tails: OrderedDict[str, list[str] | None] = OrderedDict()  # name@version -> cuts, see _cuts
        self._keeping = ServiceTimes(_KEEP_S)
        self._kept = 0
        self._trim: asyncio.Task[int] | None = None

    def start(self) -> None:
        """Begin to load what devices will probably ask; a large model takes longer than the first of them waits."""
        self._in_background(self._warm_likely())

    def added(self, entry: ModelEntry) -> None:
        """A model was registered: begin to load it if it is the only one, or a version of one that devices ask."""
        self._in_background(self._warm_added(entry))

    def check(self, device_id: str) -> None:
        """Raise pool.Busy if no sample of this device would be taken now."""
        self._pool.check(device_id)

    def now(self) -> float:
        """The clock of `answer`."""
        return self._pool.clock()

    async def answer(self, device_id: str, sample: HardSample, payload: bytes, arrived: float | None = None) -> Answer:
        """The answer, stored durably before this returns.

        `payload` is the picture or the features. `arrived`: when the request began to come in, from which on
        `sample.left_ms` counts; None: now. The same sample uploaded again while the first upload is being answered
        waits for that one answer. Raises UnknownModel, UnfitModel, PackageError (a model name that is none), pool.Busy,
        pool.PictureRefused or StorageError.
        """
        key = (device_id, sample.sample_id)
        running = self._running.get(key)
        if running is None:
            asker = self._asker(device_id, sample, self.now() if arrived is None else arrived)
            running = asyncio.create_task(self._answer_timed(asker, sample, payload))
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

    def _asker(self, device_id: str, sample: HardSample, arrived: float) -> Asker:
        left_s = math.inf if sample.late or sample.left_ms is None else sample.left_ms / 1e3
        # At most half, so that storing which was slow once does not refuse everybody for ever.
        keep_s = min(self._keeping.predicted(1.0, _STEADY_CV), max(0.0, left_s) / 2)
        return Asker(device_id, sample.priority, arrived + left_s - keep_s, sample.late)

    async def _answer_timed(self, asker: Asker, sample: HardSample, payload: bytes) -> Answer:
        began = self.now()
        answer = await self._answer_once(asker, sample, payload)
        if answer.repeated:
            return answer
        waited_ms = (self.now() - began) * 1e3 - answer.compute_ms
        return msgspec.structs.replace(answer, waited_ms=max(0.0, waited_ms))

    async def _answer_once(self, asker: Asker, sample: HardSample, payload: bytes) -> Answer:
        stored = await self._store.find(asker.tenant, sample.sample_id)
        if stored is not None:
            return stored
        wanted = sample.features.tail if sample.features is not None else sample.answer_model
        entry = await self._registry.resolve(wanted)
        if entry is None:
            raise UnknownModel(
                f'there is no model "{wanted}" on this cloudd; add it with `cloudd models add DIRECTORY`'
            )
        directory = await self._registry.materialise(entry)
        look = Look(sample.pipeline, sample.mosaic, sample.clean, sample.features)
        _check_fit(_ref(entry), await self._cuts(_ref(entry), directory), look)
        async with self._pool.asking(asker, _ref(entry), directory, payload, look) as result:
            began = self.now()
            answer = Answer(
                sample_id=sample.sample_id, verdict=result.verdict, compute_ms=result.compute_ms, mosaic=result.mosaic
            )
            picture = payload if sample.features is None else None
            kept = await self._store.keep(
                asker.tenant, sample, picture, answer, result.thumbnail, self._wall(), result.differing
            )
            self._keeping.add(self.now() - began)
        self._trim_sometimes()
        return kept

    async def _cuts(self, ref: str, directory: Path) -> list[str] | None:
        """The cuts that a tail package answers; none of a head package, None of a whole model."""
        if ref not in self._tails:
            manifest = parse_manifest(await asyncio.to_thread((directory / MANIFEST_NAME).read_bytes))
            halves = manifest.task in ("head", "tail")
            self._tails[ref] = [cut.name for cut in manifest.tail.cuts] if manifest.tail else [] if halves else None
            if len(self._tails) > _REMEMBERED:
                self._tails.popitem(last=False)
        return self._tails[ref]

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
        likely: dict[Used, ModelEntry] = {}
        for one in await self._in_use():
            entry = await self._registry.resolve(one.model)
            if entry is None or (len(entries) == KEEP_MODELS and _ref(entry) not in entries):
                continue
            entries[_ref(entry)] = entry
            likely[Used(_ref(entry), one.cut)] = entry
        if not likely and len(models := await self._registry.all()) == 1:
            only = await self._registry.entry(models[0].name, models[0].version)
            likely = {Used(_ref(only)): only} if only is not None else {}
        for used, entry in likely.items():
            # Each by itself: one that fails does not keep the others away.
            self._in_background(self._warm(entry, used.cut))

    async def _warm_added(self, entry: ModelEntry) -> None:
        cuts = {one.cut for one in await self._in_use() if split_ref(one.model)[0] == entry.name}
        if not cuts and len(await self._registry.all()) == 1:
            cuts = {""}
        for cut in cuts:
            await self._warm(entry, cut)

    async def _warm(self, entry: ModelEntry, cut: str) -> None:
        directory = await self._registry.materialise(entry)
        cuts = await self._cuts(_ref(entry), directory)
        if (cut in cuts) if cuts is not None else not cut:
            await self._pool.warm(_ref(entry), directory, cut)

    async def _in_use(self) -> list[Used]:
        """Models: those that answered last, then those that devices are told to ask."""
        return [*await self._store.models_used(), *(Used(ref) for ref in await self._wanted())]

    def _done(self, key: tuple[str, str], task: asyncio.Task[Answer]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen: when the device hung up, nobody else looks at it

    def _trim_sometimes(self) -> None:
        self._kept += 1
        if self._kept % _TRIM_EVERY == 1 and (self._trim is None or self._trim.done()):
            self._trim = asyncio.create_task(self._store.trim())
            self._trim.add_done_callback(_log_failure)


def _check_fit(ref: str, cuts: list[str] | None, look: Look) -> None:
    """Raise UnfitModel if a package with these cuts (see Answers._cuts) does not answer what `look` is at."""
    if look.features is None and cuts is not None:
        raise UnfitModel(f"{ref} is one half of a split model and answers no pictures; ask the whole model")
    if look.features is not None and look.cut not in (cuts or ()):
        text = f"it has the tails {', '.join(cuts)}" if cuts else "it is no tail package"
        raise UnfitModel(f'{ref} answers no features of the cut "{look.cut}"; {text}')


def _ref(entry: ModelEntry) -> str:
    return f"{entry.name}@{entry.version}"


def _log_failure(task: asyncio.Task[int]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("old pictures could not be removed: %s", error)
