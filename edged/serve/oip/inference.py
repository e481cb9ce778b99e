"""The way of an infer request: header, place in the queue, model thread (or the loop itself), reply.

Reading the header takes microseconds and happens in the loop, since it says how urgent the request is; a header of
many kilobytes, which is JSON with a tensor in it, is read elsewhere. Everything else is one piece of work for the
engine: data to arrays, the model, arrays to bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec
import numpy as np

from edged.serve.engine import Engine, EngineStopped, NotRun, Outcome, Priority
from edged.serve.http import HttpError, Request, Response
from edged.serve.oip.datatypes import Array
from edged.serve.oip.models import ServedModel
from edged.serve.oip.reply import EncodedOutputs, encode_outputs, rounded
from edged.serve.oip.request import InferRequest, Plain, PlainRequest, Wanted, json_size, read_request
from edged.serve.oip.tensors import Feeds, RequestError
from edgekit.runtimes import ModelError
from edgekit.vision.images import ImageError

EASY_JSON = 32 << 10
"""Bytes of JSON that are read in the loop: about 0.1 ms."""

_CLASSES: tuple[Priority, ...] = ("alarm", "inline", "audit")
_BINARY = "application/octet-stream"
_JSON = "application/json"
_now = time.perf_counter_ns

Fault = Callable[[Request, Exception], Response]
Stages = tuple[int, int, int]
"""Nanoseconds for reading (and preparing), the model, and encoding."""


class Work(Protocol):
    """One request's work for a model thread, and the reply made of it in the loop."""

    batch: int
    runs: int
    stages: Stages

    def run(self) -> None:
        """Do it. Raises RequestError, ImageError or ModelError."""
        ...

    def reply(self, queue_ms: float) -> Response:
        """The reply, once it is done."""
        ...


class InferWork:
    """`POST .../infer`"""

    __slots__ = ("_encoded", "_model", "_request", "batch", "runs", "stages")

    def __init__(self, model: ServedModel, request: InferRequest) -> None:
        self._model, self._request = model, request
        self._encoded: EncodedOutputs | None = None
        self.batch, self.runs = request.batch, 1
        self.stages: Stages = (0, 0, 0)

    def run(self) -> None:
        """See Work."""
        model, request = self._model, self._request
        started = _now()
        feeds = request.feeds()
        if feeds.arrays:
            read = _now()
            results = dict(zip(model.signature.outputs, model.loaded.session.run(feeds.arrays), strict=True))
            ran = _now()
        else:
            results, preparing = self._run_pictures(feeds)
            ran = _now()
            read = started + preparing
        self._encoded = encode_outputs(request.outputs, results, model.signature)
        self.stages = (read - started, ran - read, _now() - ran)

    def _run_pictures(self, feeds: Feeds) -> tuple[dict[str, Array], int]:
        """Outputs, and the nanoseconds that decoding and preparing took.

        One by one: a batch gains nothing on a CPU, and the model's batch size may be fixed.
        """
        model, spent = self._model, 0
        rows: list[list[Array]] = []
        for name in model.signature.inputs:
            sources: list[Any] = [*feeds.pictures.get(name, ()), *feeds.pixels.get(name, ())]
            prepare: Callable[[Any], Array] = model.picture if name in feeds.pictures else model.pixels
            for source in sources:
                started = _now()
                tensor = prepare(source)
                spent += _now() - started
                rows.append(model.loaded.session.run({name: tensor}))
        self.runs = len(rows)
        if not rows:
            raise RequestError(f"model '{model.name}' was given nothing to run on")
        columns = zip(model.signature.outputs, zip(*rows, strict=True), strict=True)
        return {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in columns}, spent

    def reply(self, queue_ms: float) -> Response:
        """See Work."""
        return reply(self._model, self._encoded, self._request, queue_ms, self.stages)


class PlainWork:
    """`POST .../infer` with a header that is known already."""

    __slots__ = ("_encoded", "_model", "_request", "batch", "runs", "stages")

    def __init__(self, model: ServedModel, request: PlainRequest) -> None:
        self._model, self._request = model, request
        self._encoded: EncodedOutputs | None = None
        self.batch, self.runs = request.plain.batch, 1
        self.stages: Stages = (0, 0, 0)

    def run(self) -> None:
        """See Work."""
        request, model = self._request, self._model
        plain = request.plain
        started = _now()
        array = plain.array(request.binary)
        read = _now()
        found = model.loaded.session.run({plain.port.name: array})
        ran = _now()
        signature = model.signature
        self._encoded = encode_outputs(plain.outputs, dict(zip(signature.outputs, found, strict=True)), signature)
        self.stages = (read - started, ran - read, _now() - ran)

    def reply(self, queue_ms: float) -> Response:
        """See Work."""
        return reply(self._model, self._encoded, self._request.plain, queue_ms, self.stages)


class PictureWork:
    """`POST /v1/models/NAME/image`: the picture itself in, a small answer out."""

    __slots__ = ("_answer", "_model", "_picture", "batch", "runs", "stages")

    def __init__(self, model: ServedModel, picture: bytes) -> None:
        self._model, self._picture = model, picture
        self._answer: dict[str, Any] = {}
        self.batch = self.runs = 1
        self.stages: Stages = (0, 0, 0)

    def run(self) -> None:
        """See Work."""
        model = self._model
        started = _now()
        tensor = model.picture(self._picture)
        read = _now()
        classifier = model.classifier
        if classifier is not None:
            found = classifier.classify_tensor(tensor)
            ran = _now()
            self._answer = {"label": found.label, "index": found.index, "score": found.score, "margin": found.margin}
        else:
            (name,) = model.signature.inputs
            results = dict(zip(model.signature.outputs, model.loaded.session.run({name: tensor}), strict=True))
            ran = _now()
            wanted = [Wanted(output) for output in results]
            self._answer = {"outputs": msgspec.Raw(encode_outputs(wanted, results, model.signature).entries)}
        self.stages = (read - started, ran - read, _now() - ran)

    def reply(self, queue_ms: float) -> Response:
        """See Work."""
        times = {key.removesuffix("_ms"): value for key, value in timings(queue_ms, self.stages).items()}
        answer = self._answer | {"model": self._model.package.ref, "timings_ms": times}
        return Response(200, msgspec.json.encode(answer), _JSON)


def reply(
    model: ServedModel, encoded: EncodedOutputs | None, request: InferRequest | Plain, queue_ms: float, stages: Stages
) -> Response:
    """The reply to an infer request."""
    assert encoded is not None, "it was run"
    parameters = timings(queue_ms, stages) if request.timings else None
    buffers, json_length = encoded.body(model.prefix, request.id, parameters)
    if json_length is None:
        return Response(200, buffers[0], _JSON)
    return Response(200, buffers, _BINARY, {"Inference-Header-Content-Length": str(json_length)})


def timings(queue_ms: float, stages: Stages) -> Mapping[str, float]:
    """How long a request took where, in milliseconds."""
    read, ran, encoded = stages
    return {
        "queue_ms": rounded(queue_ms),
        "decode_ms": rounded(read / 1e6),
        "infer_ms": rounded(ran / 1e6),
        "encode_ms": rounded(encoded / 1e6),
    }


class Inference:
    """Has the work done and counts it. Use it on the event loop."""

    def __init__(self, engine: Engine, fault: Fault, wall: Callable[[], float]) -> None:
        """`fault` makes a reply of what goes wrong after the handler has returned."""
        self._engine, self._fault, self._wall = engine, fault, wall

    def infer(self, request: Request, model: ServedModel) -> Response | Awaitable[Response] | None:
        """Answer an infer request: at once, or None and later. Raises RequestError, ImageError, ModelError, NotRun."""
        started = _now()
        header_length = request.headers.get("inference-header-content-length")
        body = request.body
        if json_size(body, header_length) > EASY_JSON:
            return self._infer_slowly(request, model, header_length, started)
        try:
            json_output = header_length == "0" and bool(request.query_string) and request.query.get("output") == "json"
            wish = read_request(body, header_length, model.signature, json_output)
        except RequestError as error:
            raise self._counted(model, error, started) from None
        if isinstance(wish, PlainRequest):
            return self.run(request, model, PlainWork(model, wish), started, wish.plain)
        return self.run(request, model, InferWork(model, wish), started, wish)

    async def _infer_slowly(
        self, request: Request, model: ServedModel, header_length: str | None, started: int
    ) -> Response:
        loop = asyncio.get_running_loop()
        try:
            wish = await loop.run_in_executor(None, read_request, request.body, header_length, model.signature)
            assert isinstance(wish, InferRequest), "so long a header is not remembered"
            work = InferWork(model, wish)
            outcome = await self._engine.submit(
                model.lane,
                request_class(model.priority, wish.priority),
                request.received + model.deadline_ms / 1000,
                work.run,
                stream=wish.stream,
                timeout_s=wish.timeout_s,
            )
        except asyncio.CancelledError:
            model.counters.failed("canceled", _now() - started)
            raise
        except Exception as error:
            raise self._counted(model, error, started) from None
        return self._answered(model, work, outcome.queue_ms, started)

    def run(
        self, request: Request, model: ServedModel, work: Work, started: int, wish: InferRequest | Plain | None = None
    ) -> Response | None:
        """Have `work` done now, if that is quick and nothing else is there, or else in its turn (None)."""
        try:
            outcome = self._engine.inline(model.lane, work.run, request.together)
            if outcome is not None:
                return self._answered(model, work, 0.0, started)

            def done(result: Outcome[Any] | BaseException) -> None:
                if isinstance(result, Outcome):
                    response = self._answered(model, work, result.queue_ms, started)
                elif isinstance(result, Exception):
                    response = self._fault(request, self._counted(model, result, started))
                else:
                    model.counters.failed("other", _now() - started)
                    response = self._fault(request, RuntimeError(f"the work ended with {result!r}"))
                request.respond(response)

            ticket = self._engine.call(
                model.lane,
                model.priority if wish is None else request_class(model.priority, wish.priority),
                request.received + model.deadline_ms / 1000,
                work.run,
                done,
                stream="" if wish is None else wish.stream,
                timeout_s=None if wish is None else wish.timeout_s,
            )
        except Exception as error:
            raise self._counted(model, error, started) from None

        def hung_up() -> None:
            ticket.cancel()
            model.counters.failed("canceled", _now() - started)

        request.on_close(hung_up)
        return None

    def _answered(self, model: ServedModel, work: Work, queue_ms: float, started: int) -> Response:
        response = work.reply(queue_ms)
        model.counters.answered(work.batch, work.runs, work.stages, int(queue_ms * 1e6), _now() - started, self._wall())
        return response

    @staticmethod
    def _counted(model: ServedModel, error: Exception, started: int) -> Exception:
        """The same error, counted by whose fault it is."""
        spent, service = _now() - started, model.service
        if isinstance(error, (RequestError, ImageError, HttpError)):
            model.counters.failed("other", spent)
            if service is not None:
                service.refused += 1
        elif isinstance(error, (NotRun, EngineStopped)):
            model.counters.failed("rejected", spent)
            if service is not None:
                service.shed += 1
        elif isinstance(error, ModelError):
            model.counters.failed("backend", spent)
            if service is not None:
                service.errors += 1
        else:
            model.counters.failed("other", spent)
        return error


def request_class(own: Priority, priority: int) -> Priority:
    """The class of a request to a model of the class `own`.

    Never above it: the alarms of others must not be displaced by whoever can reach the port.
    """
    return _CLASSES[min(len(_CLASSES) - 1, _CLASSES.index(own) + max(0, priority - 1))]
