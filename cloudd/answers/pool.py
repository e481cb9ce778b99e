"""The pool of answer workers: a bounded queue in front of processes that may die at any time.

Waiting devices come before samples from a spool, for which nobody waits. A worker that dies, hangs or exceeds its
memory costs at most the request it worked on; it is replaced, after a growing pause if it dies again and again, and
the next one loads what it held. A picture on which the worker or the loaded model fails twice is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloudd.answers.looks import WHOLE, Look
from cloudd.answers.process import Worker, WorkerDied
from edgekit.messages import Verdict
from edgekit.regions.header import MosaicAnswer

log = logging.getLogger("cloudd.answers")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0
_MODEL_REST_S = 30.0
"""How long a model that cannot be loaded is not tried again."""
_FAILED_RETRY_S = 5.0
_REMEMBERED = 10_000
_FAILURES = 2


class Busy(Exception):
    """Not now; `retry_after_s` is a fair guess when."""

    def __init__(self, text: str, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class PictureRefused(Exception):
    """The picture cannot be answered, now or later."""


@dataclass(frozen=True)
class Result:
    """What the model says, and a JPEG that the worker drew."""

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
    queue: int = 32  # questions that may wait; half of them from spools
    load_s: float = 120.0  # to load and prove a model
    answer_s: float = 20.0  # to answer one picture, or each looks.PART regions of a mosaic
    total_s: float = 50.0  # from question to answer, the queue included; for a mosaic more, as above


@dataclass(order=True)
class _Question:
    late: bool
    number: int
    model: str = field(compare=False)
    directory: str = field(compare=False)
    picture: bytes = field(compare=False)  # b"": only load the model
    result: asyncio.Future[Result | None] = field(compare=False)  # None: the model is loaded
    look: Look = field(compare=False, default=WHOLE)


class AnswerPool:
    """Runs `workers` processes; `ask` is the one question. `empty` is a directory that stays empty, their cwd."""

    def __init__(
        self, empty: Path, settings: PoolSettings | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings or PoolSettings()
        self._empty, self._clock = empty, clock
        self._queue: asyncio.PriorityQueue[_Question] = asyncio.PriorityQueue()
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._live: dict[int, Worker] = {}
        self._failures: OrderedDict[tuple[str, bytes], int] = OrderedDict()  # (model, picture hash) -> how often
        self._resting: dict[str, tuple[float, str]] = {}  # model -> (until, why)
        self._mean_s = 0.1
        self._warming = 0  # questions in the queue that only load a model
        self._one_model = asyncio.Lock()
        self.restarts = 0

    @property
    def pids(self) -> list[int]:
        """Process ids of the live workers."""
        return [worker.pid for worker in self._live.values()]

    async def start(self) -> None:
        """Start the workers' keepers; a worker process starts with its first question."""
        await asyncio.to_thread(self._empty.mkdir, mode=0o700, parents=True, exist_ok=True)
        self._tasks = [asyncio.create_task(self._keep(slot)) for slot in range(self.settings.workers)]

    async def stop(self) -> None:
        """End the workers; questions that wait are Busy."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._queue.empty():
            _fail(self._queue.get_nowait(), Busy("cloudd is stopping", 5.0))

    def check(self, late: bool) -> None:
        """Raise Busy if a question asked now would not be taken; cheap, so ask before reading a body."""
        limit = self.settings.queue // 2 if late else self.settings.queue
        waiting = self._queue.qsize() - self._warming
        if waiting >= limit:
            guess = max(1.0, waiting * self._mean_s / self.settings.workers)
            raise Busy(f"{waiting} samples wait for an answer already", guess)

    async def ask(self, model: str, directory: Path, picture: bytes, late: bool = False, look: Look = WHOLE) -> Result:
        """Answer a picture with the package in `directory`, looked at as `look` says.

        `model` is the package's name@version. Raises Busy (queue full, model cannot be loaded at the moment, worker
        died) or PictureRefused.
        """
        self.check(late)
        if self._failures and self._failures.get((model, _key(picture)), 0) >= _FAILURES:
            raise PictureRefused("the answer worker or the model failed on this picture twice; it is not tried again")
        question = self._question(model, str(directory), picture, late, look)
        self._queue.put_nowait(question)
        try:
            async with asyncio.timeout(self.settings.total_s + (look.pictures - 1) * self.settings.answer_s):
                result = await question.result
        except TimeoutError:
            raise Busy("no worker came to this sample in time", 2.0) from None
        assert result is not None
        return result

    async def warm(self, model: str, directory: Path) -> None:
        """Let idle workers load a model before its first picture comes; returns when they have, or cannot (a log)."""
        async with self._one_model:  # one after the other, so that each idle worker takes one question
            questions = [self._question(model, str(directory), b"", True) for _ in range(self.settings.workers)]
            self._warming += len(questions)
            for question in questions:
                self._queue.put_nowait(question)
            await asyncio.gather(*(question.result for question in questions), return_exceptions=True)

    def _question(self, model: str, directory: str, picture: bytes, late: bool, look: Look = WHOLE) -> _Question:
        result: asyncio.Future[Result | None] = asyncio.get_running_loop().create_future()
        result.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, should nobody wait for it
        return _Question(late, next(self._numbers), model, directory, picture, result, look)

    async def _keep(self, slot: int) -> None:
        """Own one worker: take questions, replace the worker when it dies."""
        pause = 0.0
        again: dict[str, str] = {}  # models that a lost worker held, by directory
        try:
            while True:
                question = await self._next(again)
                if question.result.done():  # nobody waits for it any more
                    continue
                try:
                    if slot in self._live and self._live[slot].ended:
                        again |= await self._lose(slot)
                    await self._work(slot, question)
                    if question.picture:
                        pause = 0.0
                except Exception as error:  # whatever it is, the next question finds a keeper
                    again |= await self._lose(slot)
                    self.restarts += 1
                    bug = not isinstance(error, (WorkerDied, OSError))
                    log.warning("%s; starting another", error, exc_info=bug)
                    pause = min(_LONGEST_PAUSE_S, pause * 2 or _FIRST_PAUSE_S)
                    _fail(question, Busy("the answer worker failed on this sample; try again", pause + 1.0))
                    await asyncio.sleep(pause)
                finally:
                    _fail(question, Busy("cloudd is stopping", 5.0))  # only if nothing else answered it
        finally:
            await self._lose(slot)

    async def _next(self, again: dict[str, str]) -> _Question:
        """The next question; while nobody asks, to load one of `again`, which is taken out."""
        if again and self._queue.empty():
            directory, model = again.popitem()
            return self._question(model, directory, b"", True)
        question = await self._queue.get()
        if not question.picture:
            self._warming -= 1
        return question

    async def _lose(self, slot: int) -> Mapping[str, str]:
        """End the slot's worker, if it has one; the models that it held, by directory."""
        worker = self._live.pop(slot, None)
        if worker is None:
            return {}
        await worker.end()
        return worker.held

    async def _work(self, slot: int, question: _Question) -> None:
        """Answer one question. Raises WorkerDied or OSError if the slot needs a new worker."""
        self._check_rest(question)
        if question.result.done():
            return
        worker = self._live.get(slot)
        if worker is None:
            settings = self.settings
            worker = self._live[slot] = await Worker.start(self._empty, settings.memory, settings.threads)
        if not worker.holds(question.directory) and not await self._load(worker, question):
            return
        if not question.picture and not question.result.done():
            question.result.set_result(None)
        if question.result.done():
            return
        started = self._clock()
        try:
            limit_s = self.settings.answer_s * question.look.pictures
            answer, thumbnail = await worker.ask(
                question.model, question.directory, question.picture, limit_s, question.look
            )
        except WorkerDied:
            self._count_failure(question)
            raise
        self._mean_s += 0.1 * (self._clock() - started - self._mean_s)
        if answer.fault == "picture":
            _fail(question, PictureRefused(answer.error))
        elif answer.verdict is None:
            # The model is loaded and proved, so it is this picture; or memory is short, so it gets one more try.
            self._count_failure(question)
            text = f"the model {question.model} failed on this picture: {answer.error}"
            log.warning("%s", text)
            _fail(question, Busy(text, _FAILED_RETRY_S))
        elif not question.result.done():
            differing = tuple(answer.differing)
            question.result.set_result(Result(answer.verdict, answer.compute_ms, thumbnail, answer.mosaic, differing))

    async def _load(self, worker: Worker, question: _Question) -> bool:
        """Load the model by itself, so that a model that kills its worker is not taken for a bad picture."""
        try:
            answer, _ = await worker.ask(question.model, question.directory, b"", self.settings.load_s)
            error = answer.error
        except WorkerDied as died:
            self._rest(question, str(died))
            raise
        if error:
            self._rest(question, error)
        else:
            log.info("the model %s is loaded", question.model)
        return not error

    def _rest(self, question: _Question, why: str) -> None:
        log.error("the model %s cannot be loaded: %s", question.model, why)
        self._resting[question.directory] = (self._clock() + _MODEL_REST_S, why)
        self._check_rest(question)

    def _check_rest(self, question: _Question) -> None:
        until, why = self._resting.get(question.directory, (0.0, ""))
        left = until - self._clock()
        if left > 0:
            _fail(question, Busy(f"the model {question.model} cannot be loaded: {why}", left))
        else:
            self._resting.pop(question.directory, None)

    def _count_failure(self, question: _Question) -> None:
        key = (question.model, _key(question.picture))
        self._failures[key] = self._failures.pop(key, 0) + 1
        while len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)


def _key(picture: bytes) -> bytes:
    return hashlib.sha256(picture).digest()


def _fail(question: _Question, error: Exception) -> None:
    """Answer with an error unless the question has its answer, or nobody waits for it."""
    with contextlib.suppress(asyncio.InvalidStateError):
        question.result.set_exception(error)
