"""The worker's HTTP interface: which path does what, and which fault becomes which reply."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from edged.gallery.live import Galleries
from edged.serve.engine import Engine, EngineStopped, NotRun
from edged.serve.enrolment import Enrolment
from edged.serve.http import HttpError, Request, Response, json_response, problem
from edged.serve.loading import LoadedAlone
from edged.serve.management import Management
from edged.serve.oip import ModelTable, ProtocolApi, RequestError, Unsupported, of_service, without_service
from edged.serve.pictures import Pictures, running
from edged.serve.plain_model import as_model
from edged.serve.refusals import Kept
from edged.serve.routes import Answer, Router
from edged.serve.sample_id import timed_id
from edged.serve.service_runtime import ServiceFailed, ServiceRuntime
from edgekit.runtimes import ModelError
from edgekit.vision.images import ImageError
from edgekit.webguard import origin_allowed

log = logging.getLogger("edged.serve")

MAX_SERIAL = 200
"""Characters of a serial number."""
MAX_DEADLINE_MS = 600_000.0

_REFUSED_TYPES = ("multipart/", "application/json")


class Api:
    """Answers requests for the services. `draining`: a successor is there, and has what is not found here."""

    def __init__(
        self,
        services: Mapping[str, ServiceRuntime],
        engine: Engine,
        *,
        alone: Sequence[LoadedAlone] = (),
        management: Management | None = None,
        packages: Callable[[], Iterable[str]] = tuple,
        galleries: Galleries | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._services, self._engine = services, engine
        self._clock, self._wall, self._randomness = clock, wall, randomness
        self.pictures = Pictures(services, wall)
        enrolment = Enrolment(services, engine, galleries, management)
        self.protocol = ProtocolApi(
            _models(services.values(), alone),
            engine,
            self.fault,
            packages=packages,
            failures=_failures(services.values(), alone),
            management=management,
            wall=wall,
        )
        self.draining = False
        self.succeeded = False  # a successor takes the connections over
        self._router = Router(
            (
                ("POST", "/v1/services/{name}/inspect", self._inspect),
                ("POST", "/v1/services/{name}/stream", self.pictures.push),
                ("GET", "/v1/services/{name}/preview.jpg", self.pictures.preview),
                ("POST", "/v1/services/{name}/gallery", enrolment.enrol),
                ("GET", "/v1/services", self._list_services),
                ("GET", "/v2/health/live", self._live),
                ("GET", "/v2/health/ready", self._ready),
                *self.protocol.routes,
            )
        )

    def handle(self, request: Request) -> Answer:
        """Answer one request. What it raises, `fault` turns into a reply."""
        handler, values = self.admit(request)
        return handler(request, *values)

    def admit(self, request: Request) -> tuple[Callable[..., Answer], list[str]]:
        """Who answers this request; known before its body is. Raises HttpError 403, 404 or 405."""
        found = self._router.resolve(request)
        # A browser names the page behind a POST; a web site must not feed pictures to the machine it is shown on.
        if request.method == "POST" and "origin" in request.headers:
            headers = request.headers
            if not origin_allowed(headers["origin"], headers.get("host", "")):
                raise HttpError(403, "a page of another origin may not send pictures here")
        return found

    def fault(self, request: Request, error: Exception) -> Response:
        """The reply for what a handler raised."""
        if isinstance(error, HttpError):
            if error.status == 404 and self.draining:
                # a client of before the swap asks for what only the successor has
                error = HttpError(503, "this worker is being replaced; connect again", retry_after_s=1)
            return problem(error)
        if isinstance(error, Unsupported):
            return problem(HttpError(501, str(error)))
        if isinstance(error, (RequestError, ImageError)):
            return problem(HttpError(400, str(error)))
        if isinstance(error, Kept):
            return json_response({"sample_id": error.sample_id, "kept": True, "reason": str(error)}, 202)
        if isinstance(error, NotRun):
            return problem(HttpError(503, str(error), retry_after_s=error.retry_after_s))
        if isinstance(error, EngineStopped):
            return problem(HttpError(503, str(error), retry_after_s=1))
        if isinstance(error, ServiceFailed):
            return problem(HttpError(503, str(error)))
        if isinstance(error, ModelError):
            return problem(HttpError(500, str(error)))
        log.error("%s %s failed", request.method, request.path[:200], exc_info=error)
        return problem(HttpError(500, "an internal error occurred; the log of edged has the details"))

    # --- inspection -------------------------------------------------------------------------------------------------

    def _inspect(self, request: Request, name: str) -> Awaitable[Response]:
        service = running(self._services, name)
        if request.content_type.startswith(_REFUSED_TYPES):
            raise HttpError(
                415, "send the picture itself as the body (image/jpeg or image/png), without a form around it"
            )
        deadline = request.received + _deadline_ms(request, service.service.deadline_ms) / 1000
        captured_at = _captured_at(request, self._wall())
        serial = _serial(request)
        if not request.body:
            raise HttpError(400, "the request has no body; send a JPEG or PNG")
        return self._decide(service, bytes(request.body), captured_at, serial, deadline)

    async def _decide(
        self, service: ServiceRuntime, picture: bytes, captured_at: float, serial: str, deadline: float
    ) -> Response:
        sample_id = timed_id(self._wall(), self._randomness(10))
        decision = await service.inspect(
            picture, sample_id=sample_id, captured_at=captured_at, serial=serial, deadline=deadline
        )
        return Response(200, msgspec.json.encode(decision), "application/json")

    def _list_services(self, request: Request) -> Response:
        return json_response({"services": [service.report() for service in self._services.values()]})

    # --- Open Inference Protocol ------------------------------------------------------------------------------------

    def _live(self, request: Request) -> Response:
        return Response()

    def _ready(self, request: Request) -> Response:
        ready = not self._services or any(not service.failure for service in self._services.values())
        if (self.draining and not self.succeeded) or not ready:
            raise HttpError(400, "not ready")
        return Response()


def _models(services: Iterable[ServiceRuntime], alone: Iterable[LoadedAlone]) -> ModelTable:
    """What can be asked for by the protocol; a service's model waits in the service's lane."""
    behind = [model for service in services if (model := of_service(service)) is not None]
    return ModelTable([*behind, *(without_service(found.model) for found in alone if found.model is not None)])


def _failures(services: Iterable[ServiceRuntime], alone: Iterable[LoadedAlone]) -> dict[str, str]:
    """Why models cannot be asked for, by reference."""
    failures = {found.ref: found.failure for found in alone if found.failure}
    for service in services:
        if service.failure:
            failures[service.service.model] = service.failure
        elif service.model is not None and isinstance(why := as_model(service.model.vision), str):
            failures[service.model.ref] = why
    return failures


def _deadline_ms(request: Request, default: float) -> float:
    text = request.query.get("deadline_ms")
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= MAX_DEADLINE_MS:
        raise HttpError(400, f"deadline_ms must be a number of milliseconds up to {MAX_DEADLINE_MS:.0f}")
    return value


def _captured_at(request: Request, now: float) -> float:
    """`Edged-Captured-At`: seconds since the epoch, or ISO 8601 (local time if it names no zone)."""
    text = request.headers.get("edged-captured-at")
    if text is None:
        return now
    try:
        value = float(text)
    except ValueError:
        try:
            value = datetime.fromisoformat(text.strip()).timestamp()
        except (ValueError, OverflowError, OSError):
            value = -1.0
    if not 0.0 <= value < 1e11:
        raise HttpError(400, "Edged-Captured-At must be seconds since 1970 or an ISO 8601 time")
    return value


def _serial(request: Request) -> str:
    serial = request.headers.get("edged-serial", "").strip()
    if len(serial) > MAX_SERIAL or not serial.isprintable():
        raise HttpError(400, f"Edged-Serial must be printable text of at most {MAX_SERIAL} characters")
    return serial
