"""The worker's HTTP interface: which path does what, and which fault becomes which reply."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

import msgspec
from aiohttp import web

from edged.serve import oip
from edged.serve.engine import DeadlinePassed, Engine, EngineStopped, QueueFull
from edged.serve.http import BodyReader, HttpError, json_response, problem
from edged.serve.oip_codec import RequestError
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
_GET = frozenset({"GET", "HEAD"})

Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]


class Api:
    """Answers requests for the services. `draining` makes every reply close its connection."""

    def __init__(
        self,
        services: Mapping[str, ServiceRuntime],
        engine: Engine,
        bodies: BodyReader,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._services, self._engine, self._bodies = services, engine, bodies
        self._models = oip.ModelTable(services.values())
        self._clock, self._wall, self._randomness = clock, wall, randomness
        self.draining = False
        self.in_flight = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; every fault becomes a JSON reply."""
        self.in_flight += 1
        try:
            response = await self._guarded(request)
        finally:
            self.in_flight -= 1
        if self.draining:
            response.force_close()
        return response

    async def _guarded(self, request: web.BaseRequest) -> web.Response:
        try:
            return await self._route(request)
        except HttpError as error:
            if (
                error.status == 404 and self.draining
            ):  # a client of before the swap asks for what only the successor has
                error = HttpError(503, "this worker is being replaced; connect again", retry_after_s=1)
            return problem(error)
        except (RequestError, ImageError) as error:
            return problem(HttpError(400, str(error)))
        except (QueueFull, DeadlinePassed) as error:
            return problem(HttpError(503, str(error), retry_after_s=error.retry_after_s))
        except EngineStopped as error:
            return problem(HttpError(503, str(error), retry_after_s=1))
        except ServiceFailed as error:
            return problem(HttpError(503, str(error)))
        except ModelError as error:
            return problem(HttpError(500, str(error)))
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path[:200])
            return problem(HttpError(500, "an internal error occurred; the log of edged has the details"))

    def _route(self, request: web.BaseRequest) -> Awaitable[web.Response]:
        match request.path.split("/")[1:]:
            case ["v1", "services", name, "inspect"]:
                return self._allow(request, {"POST"}, lambda: self._inspect(request, name))
            case ["v1", "services"]:
                return self._allow(request, _GET, self._list_services)
            case ["v2", "models", name, "infer"]:
                return self._allow(request, {"POST"}, lambda: self._infer(request, name, None))
            case ["v2", "models", name, "versions", version, "infer"]:
                return self._allow(request, {"POST"}, lambda: self._infer(request, name, version))
            case ["v2"]:
                return self._allow(request, _GET, self._server_metadata)
            case ["v2", "health", "live"]:
                return self._allow(request, _GET, self._live)
            case ["v2", "health", "ready"]:
                return self._allow(request, _GET, self._ready)
            case ["v2", "models", name]:
                return self._allow(request, _GET, lambda: self._model_metadata(name, None))
            case ["v2", "models", name, "versions", version]:
                return self._allow(request, _GET, lambda: self._model_metadata(name, version))
            case ["v2", "models", name, "ready"]:
                return self._allow(request, _GET, lambda: self._model_ready(name, None))
            case ["v2", "models", name, "versions", version, "ready"]:
                return self._allow(request, _GET, lambda: self._model_ready(name, version))
        raise HttpError(404, "Not Found")

    @staticmethod
    def _allow(
        request: web.BaseRequest, methods: set[str] | frozenset[str], handler: Callable[[], Awaitable[web.Response]]
    ) -> Awaitable[web.Response]:
        if request.method not in methods:
            raise HttpError(405, "Method Not Allowed", headers={"Allow": ", ".join(sorted(methods))})
        # A browser names the page behind a POST; a web site must not feed pictures to the machine it is shown on.
        if request.method == "POST" and not origin_allowed(
            request.headers.get("Origin"), request.headers.get("Host", "")
        ):
            raise HttpError(403, "a page of another origin may not send pictures here")
        return handler()

    # --- inspection -------------------------------------------------------------------------------------------------

    async def _inspect(self, request: web.BaseRequest, name: str) -> web.Response:
        service = self._services.get(name)
        if service is None:
            known = ", ".join(sorted(self._services)) or "none"
            raise HttpError(404, f"there is no service '{name[:64]}'; known services: {known}")
        if service.failure:
            raise ServiceFailed(f"{name} cannot run: {service.failure}")
        if request.content_type.startswith(_REFUSED_TYPES):
            raise HttpError(
                415, "send the picture itself as the body (image/jpeg or image/png), without a form around it"
            )
        deadline = self._clock() + _deadline_ms(request, service.service.deadline_ms) / 1000
        captured_at = _captured_at(request, self._wall())
        serial = _serial(request)
        picture = await self._bodies.read(request)
        try:
            if not picture:
                raise HttpError(400, "the request has no body; send a JPEG or PNG")
            sample_id = timed_id(self._wall(), self._randomness(10))
            decision = await service.inspect(
                picture, sample_id=sample_id, captured_at=captured_at, serial=serial, deadline=deadline
            )
        finally:
            self._bodies.release(len(picture))
        return web.Response(body=msgspec.json.encode(decision), content_type="application/json")

    async def _list_services(self) -> web.Response:
        return json_response({"services": [service.report() for service in self._services.values()]})

    # --- Open Inference Protocol ------------------------------------------------------------------------------------

    async def _live(self) -> web.Response:
        return web.Response()

    async def _ready(self) -> web.Response:
        ready = not self._services or any(not service.failure for service in self._services.values())
        if self.draining or not ready:
            raise HttpError(400, "not ready")
        return web.Response()

    async def _server_metadata(self) -> web.Response:
        return oip.server_metadata()

    async def _model_metadata(self, name: str, version: str | None) -> web.Response:
        return oip.model_metadata(self._models.require(name, version), self._models.versions(name))

    async def _model_ready(self, name: str, version: str | None) -> web.Response:
        if self._models.find(name, version) is None:
            raise HttpError(400, "Model version not ready")
        return web.Response()

    async def _infer(self, request: web.BaseRequest, name: str, version: str | None) -> web.Response:
        model = self._models.require(name, version)
        statistics = model.runtime.statistics
        body = await self._bodies.read(request)
        try:
            header_length = request.headers.get("Inference-Header-Content-Length")
            return await oip.infer(model, body, header_length, self._engine, self._clock)
        except (RequestError, ImageError):
            statistics.refused += 1
            raise
        except (QueueFull, DeadlinePassed):
            statistics.shed += 1
            raise
        except ModelError:
            statistics.errors += 1
            raise
        finally:
            self._bodies.release(len(body))


def _deadline_ms(request: web.BaseRequest, default: float) -> float:
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


def _captured_at(request: web.BaseRequest, now: float) -> float:
    """`Edged-Captured-At`: seconds since the epoch, or ISO 8601 (local time if it names no zone)."""
    text = request.headers.get("Edged-Captured-At")
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


def _serial(request: web.BaseRequest) -> str:
    serial = request.headers.get("Edged-Serial", "").strip()
    if len(serial) > MAX_SERIAL or not serial.isprintable():
        raise HttpError(400, f"Edged-Serial must be printable text of at most {MAX_SERIAL} characters")
    return serial
