"""The pool of answer workers: processes that may die at any time, behind the rules of `admission`.

A worker that dies, hangs or exceeds its memory costs at most the question it worked on; it is replaced, after a growing
pause if it dies again and again, and the next one loads what it held. A picture on which the worker or the loaded model
fails twice is refused. Models are loaded ahead by workers that have nothing to answer.

What comes after the model, storing the answer, can take longer than the model, and there everybody would wait in one
row. So workers take no other question while too many answers are unfinished: who waits does so by admission's rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cloudd.answers.admission import Admission, NotAdmitted, Question
from cloudd.answers.looks import WHOLE, Look
from cloudd.answers.process import Key, Worker, WorkerDied
from edgekit.dispatch.policy import Priority
from edgekit.messages import FeaturesHeader, Verdict
from edgekit.regions.header import MosaicAnswer

log = logging.getLogger("cloudd.answers")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0
_MODEL_REST_S = 30.0
"""How long a model that cannot be loaded is not tried again."""
_FAILED_RETRY_S = 5.0
_REMEMBERED = 10_000
_FAILURES = 2
_UNFINISHED = 2
"""Answers a worker that may be unfinished. More do not make SQLite and a disk faster (53 a second against 50 with 4 and
40 with 8, all measured beside a busy machine's other work), and each makes the next alarm wait."""


class Busy(Exception):
    """Not now; `retry_after_s` is a fair guess when."""

    def __init__(self, text: str, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class PictureRefused(Exception):
    """The picture, or the features of one, cannot be answered, now or later."""


@dataclass(frozen=True)
class Asker:
    """Who asks, how urgently, and until when (of the pool's clock) it waits; see admission.Question."""

    tenant: str
    priority: Priority = "inline"
    deadline: float = math.inf
    late: bool = False


@dataclass(frozen=True)
class Result:
    """What the model says, and a JPEG that the worker drew (b"" of features)."""

    verdict: Verdict
    compute_ms: float
    thumbnail: bytes
    mosaic: MosaicAnswer | None = None
    differing: tuple[int, ...] = ()  # indices of the regions to which the answer is not the edge's


@dataclass(frozen=True)
class PoolSettings:
    """Limits of the pool."""

    workers: int = 1
    threads: int = 1  # of each worker
    memory: int = 4 << 30  # bytes of address space of each worker; onnxruntime reserves far more than it uses
    queue: int = 32  # questions that may wait; half as many more from spools
    load_s: float = 120.0  # to load and prove a model
    answer_s: float = 20.0  # to answer one picture, or each looks.PART regions of a mosaic
    total_s: float = 50.0  # from question to answer, the queue included; for a mosaic more, as above


class PoolLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How busy the pool is, and what it could not do since it was started."""

    workers: int
    running: int  # questions
    waiting: int
    backlog_s: float  # until all that waits would be answered
    refused: int  # questions, and uploads before they came: no place for them, or no answer in time
    restarts: int  # workers that were lost


@dataclass(eq=False)
class _Job:
    model: str
    key: Key
    payload: bytes  # b"": only load the model
    look: Look
    result: asyncio.Future[Result | None]  # None: the model is loaded


class AnswerPool:
    """Runs `workers` processes; `asking` is the one question. `empty` is a directory that stays empty, their cwd."""

    def __init__(
        self, empty: Path, settings: PoolSettings | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` is what deadlines are times of. Raises ValueError for settings without worker or place."""
        self.settings = settings or PoolSettings()
        self.clock = clock
        self._empty = empty
        self._admission: Admission[_Job] = Admission(self.settings.workers, self.settings.queue)
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = [asyncio.Event() for _ in range(self.settings.workers)]
        self._loads: list[dict[Key, _Job]] = [{} for _ in range(self.settings.workers)]  # to be loaded ahead
        self._unfinished: set[_Job] = set()
        self._live: dict[int, Worker] = {}
        self._failures: OrderedDict[tuple[str, bytes], int] = OrderedDict()  # (model, payload's hash) -> how often
        self._resting: dict[Key, tuple[float, str]] = {}  # models that cannot be loaded: until when, and why
        self._refused = 0
        self.restarts = 0

    @property
    def pids(self) -> list[int]:
        """Process ids of the live workers."""
        return [worker.pid for worker in self._live.values()]

    def load(self) -> PoolLoad:
        """How busy it is now."""
        return PoolLoad(
            workers=self._admission.workers,
            running=self._admission.running,
            waiting=self._admission.waiting,
            backlog_s=self._admission.backlog_s(),
            refused=self._refused,
            restarts=self.restarts,
        )

    async def start(self) -> None:
        """Start the workers' keepers; a worker process starts with its first question."""
        await asyncio.to_thread(self._empty.mkdir, mode=0o700, parents=True, exist_ok=True)
        self._tasks = [asyncio.create_task(self._keep(slot)) for slot in range(self.settings.workers)]

    async def stop(self) -> None:
        """End the workers; questions that wait are Busy."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        now = self.clock()
        while (question := self._admission.take(now)) is not None:
            self._admission.done(question, now, measured=False)
            _stop(question.item)
        self._refuse_dropped()
        for loads in self._loads:
            for job in loads.values():
                _stop(job)
            loads.clear()

    def check(self, tenant: str) -> None:
        """Raise Busy if this tenant could ask nothing now; cheap, so do it before reading a body."""
        try:
            self._admission.check(tenant, priority="alarm")
        except NotAdmitted as error:
            raise self._busy(error) from None

    @contextlib.asynccontextmanager
    async def asking(
        self, asker: Asker, model: str, directory: Path, payload: bytes, look: Look = WHOLE
    ) -> AsyncIterator[Result]:
        """Answer a picture, or features, with the package in `directory`, looked at as `look` says.

        Until the block ends the answer is unfinished. `model` is the package's name@version. Raises Busy (no place, no
        answer in time, model cannot be loaded at the moment, worker died) or PictureRefused.
        """
        job = self._job(model, (str(directory), look.cut), payload, look)
        if self._failures and self._failures.get(_failure(job), 0) >= _FAILURES:
            raise PictureRefused("the answer worker or the model failed on this picture twice; it is not tried again")
        question = Question(
            asker.tenant,
            f"{model} {look.kind}",
            job,
            priority=asker.priority,
            deadline=asker.deadline,
            late=asker.late,
            runs=look.pictures,
        )
        try:
            self._admission.offer(question, self.clock())
        except NotAdmitted as error:
            raise self._busy(error) from None
        self._refuse_dropped()
        self._wake_all()
        try:
            try:
                async with asyncio.timeout(self.settings.total_s + (look.pictures - 1) * self.settings.answer_s):
                    result = await job.result
            except TimeoutError:
                raise Busy("no worker came to this sample in time", 2.0) from None
            assert result is not None
            yield result
        finally:
            self._admission.cancel(question)
            self._unfinished.discard(job)
            self._wake_all()

    async def warm(self, model: str, directory: Path, cut: str = "") -> None:
        """Let every worker load a model, or one cut of a tail package, while nobody asks.

        Returns when all have, or cannot (a log).
        """
        look = Look(features=FeaturesHeader(tail=model, cut=cut) if cut else None)
        slots = range(self.settings.workers)
        jobs = [self._load_ahead(slot, model, (str(directory), cut), look) for slot in slots]
        self._wake_all()
        await asyncio.wait([job.result for job in jobs])

    def _job(self, model: str, key: Key, payload: bytes, look: Look) -> _Job:
        result: asyncio.Future[Result | None] = asyncio.get_running_loop().create_future()
        result.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, should nobody wait for it
        return _Job(model, key, payload, look, result)

    def _load_ahead(self, slot: int, model: str, key: Key, look: Look) -> _Job:
        return self._loads[slot].setdefault(key, self._job(model, key, b"", look))

    def _wake_all(self) -> None:
        for wake in self._wake:
            wake.set()

    def _busy(self, error: NotAdmitted) -> Busy:
        self._refused += 1
        return Busy(str(error), error.retry_after_s)

    def _refuse_dropped(self) -> None:
        """Answer those that were given up after they had been admitted."""
        for question, error in self._admission.dropped:
            _fail(question.item, self._busy(error))
        self._admission.dropped.clear()

    # --- the keepers of the workers ---------------------------------------------------------------------------------

    async def _keep(self, slot: int) -> None:
        """Own one worker: take questions, replace the worker when it dies."""
        pause = 0.0
        try:
            while True:
                job, question = await self._next(slot)
                measured = lost = False
                try:
                    if slot in self._live and self._live[slot].ended:
                        await self._lose(slot)
                    measured = await self._work(slot, job, question)
                    if job.payload:
                        pause = 0.0
                except Exception as error:  # whatever it is, the next question finds a keeper
                    lost = True
                    await self._lose(slot)
                    self.restarts += 1
                    bug = not isinstance(error, (WorkerDied, OSError))
                    log.warning("%s; starting another", error, exc_info=bug)
                    pause = min(_LONGEST_PAUSE_S, pause * 2 or _FIRST_PAUSE_S)
                    _fail(job, Busy("the answer worker failed on this sample; try again", pause + 1.0))
                finally:
                    if question is not None:
                        self._admission.done(question, self.clock(), measured)
                    _stop(job)  # only if nothing else answered it
                if lost:
                    await asyncio.sleep(pause)
        finally:
            await self._lose(slot)

    async def _next(self, slot: int) -> tuple[_Job, Question[_Job] | None]:
        """The next question; while nobody asks, what this slot's worker is to load ahead."""
        while True:
            may_take = len(self._unfinished) < _UNFINISHED * self.settings.workers
            if may_take:
                question = self._admission.take(self.clock())
                self._refuse_dropped()
                if question is not None:
                    return question.item, question
            loads = self._loads[slot]
            if loads and (may_take or not self._admission.waiting):
                return loads.pop(next(iter(loads))), None
            self._wake[slot].clear()
            await self._wake[slot].wait()

    async def _lose(self, slot: int) -> None:
        """End the slot's worker, if it has one; its successor is to load what it held."""
        worker = self._live.pop(slot, None)
        if worker is None:
            return
        for key, model in worker.held.items():
            look = Look(features=FeaturesHeader(tail=model, cut=key[1]) if key[1] else None)
            self._load_ahead(slot, model, key, look)
        await worker.end()

    async def _work(self, slot: int, job: _Job, question: Question[_Job] | None) -> bool:
        """Do one job; whether its time tells how long its model takes.

        Raises WorkerDied or OSError if the slot needs a new worker.
        """
        self._check_rest(job)
        if job.result.done():
            return False
        worker = self._live.get(slot)
        if worker is None:
            settings = self.settings
            worker = self._live[slot] = await Worker.start(self._empty, settings.memory, settings.threads)
        if not worker.holds(*job.key) and not await self._load(worker, job):
            return False
        if question is None and not job.result.done():
            job.result.set_result(None)
        if question is None or job.result.done():
            return False
        usual = worker.has_answered(*job.key)
        self._admission.begun(question, self.clock())
        try:
            limit_s = self.settings.answer_s * job.look.pictures
            answer, thumbnail = await worker.ask(job.model, job.key[0], job.payload, limit_s, job.look)
        except WorkerDied:
            self._count_failure(job)
            raise
        if answer.fault == "picture":
            _fail(job, PictureRefused(answer.error))
        elif answer.verdict is None:
            # The model is loaded and proved, so it is this picture; or memory is short, so it gets one more try.
            self._count_failure(job)
            text = f"the model {job.model} failed on this picture: {answer.error}"
            log.warning("%s", text)
            _fail(job, Busy(text, _FAILED_RETRY_S))
        else:
            if not job.result.done():
                differing = tuple(answer.differing)
                job.result.set_result(Result(answer.verdict, answer.compute_ms, thumbnail, answer.mosaic, differing))
                self._unfinished.add(job)
            return usual
        return False

    async def _load(self, worker: Worker, job: _Job) -> bool:
        """Load the model by itself, so that a model that kills its worker is not taken for a bad picture."""
        look = Look(features=job.look.features)
        try:
            answer, _ = await worker.ask(job.model, job.key[0], b"", self.settings.load_s, look)
            error = answer.error
        except WorkerDied as died:
            self._rest(job, str(died))
            raise
        if error:
            self._rest(job, error)
        else:
            log.info("the model %s is loaded", _named(job))
        return not error

    def _rest(self, job: _Job, why: str) -> None:
        log.error("the model %s cannot be loaded: %s", _named(job), why)
        self._resting[job.key] = (self.clock() + _MODEL_REST_S, why)
        self._check_rest(job)

    def _check_rest(self, job: _Job) -> None:
        until, why = self._resting.get(job.key, (0.0, ""))
        left = until - self.clock()
        if left > 0:
            _fail(job, Busy(f"the model {_named(job)} cannot be loaded: {why}", left))
        else:
            self._resting.pop(job.key, None)

    def _count_failure(self, job: _Job) -> None:
        key = _failure(job)
        self._failures[key] = self._failures.pop(key, 0) + 1
        while len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)


def _named(job: _Job) -> str:
    return f"{job.model} ({job.look.cut})" if job.look.cut else job.model


def _failure(job: _Job) -> tuple[str, bytes]:
    return _named(job), hashlib.sha256(job.payload).digest()


def _stop(job: _Job) -> None:
    _fail(job, Busy("cloudd is stopping", 5.0))


def _fail(job: _Job, error: Exception) -> None:
    """Answer with an error unless the job has its answer, or nobody waits for it."""
    with contextlib.suppress(asyncio.InvalidStateError):
        job.result.set_exception(error)
