"""The local API: JSON over HTTP on a unix socket. Whoever may open the socket (mode 0660) may do everything.

    GET  /version /status /doctor /hardware /metrics
    POST /adapt {service?, again?}      measure now how models run best (lines of progress)
    POST /join                          {token, url?, name?}
    GET  /services  /services/NAME      POST /services (TOML)   DELETE /services/NAME   POST /services/NAME/recalibrate
    GET  /models                        POST /models {path}|{ref} (lines of progress)   DELETE /models/REF
    GET  /spool?limit=&service=         POST /spool/purge {service}
    GET  /spool/left?limit=&service=
    /samples /datasets                  see edged.samples.routes
    /gallery/SERVICE                    see edged.gallery.routes
    /learning                           see edged.learning.routes
    /federation                         see edged.federation.routes

A browser cannot reach a unix socket; a request that carries an Origin all the same is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from aiohttp import web

from edged.api import (
    AdaptBody,
    AdaptProgress,
    ApiError,
    Done,
    Finding,
    JoinBody,
    JoinReply,
    ModelBody,
    Problem,
    Progress,
    PurgeBody,
    ServeBody,
    ServiceText,
)
from edged.collab.spool_view import LeftRecord, SpooledSample
from edged.federation import routes as federation_routes
from edged.federation.front import FederationFront
from edged.gallery import routes as gallery_routes
from edged.gallery.desk import GalleryDesk
from edged.learning import routes as learning_routes
from edged.learning.door import LearningDoor
from edged.requests import read_body, reply
from edged.samples import metrics as sample_metrics
from edged.samples import routes as sample_routes
from edged.samples.desk import SampleDesk
from edged.status import metrics
from edged.status.hardware import HardwareReport
from edged.status.server import no_server_header
from edged.status.state import ModelState, ServedState, ServiceState, StatusState
from edgekit import VERSION
from edgekit.services import MAX_SERVICE

log = logging.getLogger("edged.api")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY = 2 * MAX_SERVICE
PROGRESS_S = 0.25
"""Seconds between two lines of progress."""


class Backend(Protocol):
    """What the API needs of the device. Methods raise ApiError."""

    @property
    def samples(self) -> SampleDesk: ...
    @property
    def galleries(self) -> GalleryDesk: ...
    @property
    def learning(self) -> LearningDoor: ...
    @property
    def federation(self) -> FederationFront: ...

    def status(self) -> StatusState: ...
    async def doctor(self) -> list[Finding]: ...
    def hardware(self) -> HardwareReport: ...
    async def adapt(self, service: str, again: bool, say: Callable[[AdaptProgress], None]) -> None: ...
    async def join(self, token: str, url: str, name: str) -> JoinReply: ...
    def services(self) -> list[ServiceState]: ...
    def service_text(self, name: str) -> ServiceText: ...
    async def add_service(self, text: str, wait_s: float) -> ServiceState: ...
    async def remove_service(self, name: str) -> Done: ...
    def recalibrate(self, name: str) -> Done: ...
    def models(self) -> list[ModelState]: ...
    async def add_model(self, path: str) -> str: ...
    async def pull_model(self, ref: str, progress: Callable[[int, int], None]) -> str: ...
    async def remove_model(self, ref: str) -> Done: ...
    async def serve_model(self, ref: str, wait_s: float) -> ServedState: ...
    async def unserve_model(self, ref: str) -> Done: ...
    async def spool(self, service: str, limit: int) -> list[SpooledSample]: ...
    async def left(self, service: str, limit: int) -> list[LeftRecord]: ...
    def purge_spool(self, service: str) -> Done: ...


def build(backend: Backend) -> web.Application:
    """The application behind the unix socket."""
    api = _Api(backend)
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors])
    app.on_response_prepare.append(no_server_header)
    app.router.add_get("/version", api.version)
    app.router.add_get("/status", api.status)
    app.router.add_get("/doctor", api.doctor)
    app.router.add_get("/hardware", api.hardware)
    app.router.add_post("/adapt", api.adapt)
    app.router.add_get("/metrics", api.metrics)
    app.router.add_post("/join", api.join)
    app.router.add_get("/services", api.services)
    app.router.add_post("/services", api.add_service)
    app.router.add_get("/services/{name}", api.service)
    app.router.add_delete("/services/{name}", api.remove_service)
    app.router.add_post("/services/{name}/recalibrate", api.recalibrate)
    app.router.add_get("/models", api.models)
    app.router.add_post("/models", api.add_model)
    app.router.add_delete("/models/{ref}", api.remove_model)
    app.router.add_get("/served", api.served)
    app.router.add_post("/served", api.serve_model)
    app.router.add_delete("/served/{ref}", api.unserve_model)
    app.router.add_get("/spool", api.spool)
    app.router.add_get("/spool/left", api.left)
    app.router.add_post("/spool/purge", api.purge)
    sample_routes.add(app, backend.samples)
    gallery_routes.add(app, backend.galleries)
    learning_routes.add(app, backend.learning)
    federation_routes.add(app, backend.federation)
    return app


class _Api:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def version(self, request: web.Request) -> web.Response:
        return reply(Done(text=VERSION))

    async def status(self, request: web.Request) -> web.Response:
        return reply(self._backend.status())

    async def doctor(self, request: web.Request) -> web.Response:
        return reply(await self._backend.doctor())

    async def hardware(self, request: web.Request) -> web.Response:
        return reply(self._backend.hardware())

    async def adapt(self, request: web.Request) -> web.StreamResponse:
        """Lines of AdaptProgress while it works; the last one has `done` or `error`."""
        body = await read_body(request, AdaptBody)
        lines: asyncio.Queue[AdaptProgress] = asyncio.Queue()
        work = asyncio.ensure_future(self._backend.adapt(body.service, body.again, lines.put_nowait))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        try:
            await response.prepare(request)
            while not (work.done() and lines.empty()):
                next_line = asyncio.ensure_future(lines.get())
                try:
                    await asyncio.wait([next_line, work], return_when=asyncio.FIRST_COMPLETED)
                    if next_line.done():
                        await response.write(_line(next_line.result()))
                finally:
                    next_line.cancel()
            try:
                work.result()
            except ApiError as error:
                await response.write(_line(AdaptProgress(error=str(error))))
        finally:
            if not work.done():
                work.cancel()  # the client went away
        return response

    async def metrics(self, request: web.Request) -> web.Response:
        text = metrics.render(self._backend.status()) + sample_metrics.render(await self._backend.samples.overview())
        return web.Response(body=text.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def join(self, request: web.Request) -> web.Response:
        body = await read_body(request, JoinBody)
        return reply(await self._backend.join(body.token, body.url, body.name))

    async def services(self, request: web.Request) -> web.Response:
        return reply(self._backend.services())

    async def service(self, request: web.Request) -> web.Response:
        return reply(self._backend.service_text(request.match_info["name"]))

    async def add_service(self, request: web.Request) -> web.Response:
        try:
            text = (await request.read()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ApiError(400, f"the definition is not UTF-8 text (byte {error.start})") from None
        return reply(await self._backend.add_service(text, _number(request, "wait_s", 120.0, 0.0, 600.0)))

    async def remove_service(self, request: web.Request) -> web.Response:
        return reply(await self._backend.remove_service(request.match_info["name"]))

    async def recalibrate(self, request: web.Request) -> web.Response:
        return reply(self._backend.recalibrate(request.match_info["name"]))

    async def models(self, request: web.Request) -> web.Response:
        return reply(self._backend.models())

    async def add_model(self, request: web.Request) -> web.StreamResponse:
        """Lines of Progress while it works; the last one has `ref` or `error`."""
        body = await read_body(request, ModelBody)
        if bool(body.path) == bool(body.ref):
            raise ApiError(400, 'name either a directory ("path") or a model of cloudd ("ref")')
        done = [0, 0]

        def progress(now: int, total: int) -> None:
            done[:] = now, total

        work = asyncio.ensure_future(
            self._backend.add_model(body.path) if body.path else self._backend.pull_model(body.ref, progress)
        )
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        try:
            await response.prepare(request)
            while not (await asyncio.wait([work], timeout=PROGRESS_S))[0]:
                await response.write(_line(Progress(done=done[0], total=done[1])))
            try:
                last = Progress(done=done[1], total=done[1], ref=work.result())
            except ApiError as error:
                last = Progress(error=str(error))
            await response.write(_line(last))
        finally:
            if not work.done():
                work.cancel()  # the client went away; what was fetched stays for the next try
        return response

    async def remove_model(self, request: web.Request) -> web.Response:
        return reply(await self._backend.remove_model(request.match_info["ref"]))

    async def served(self, request: web.Request) -> web.Response:
        return reply(self._backend.status().served)

    async def serve_model(self, request: web.Request) -> web.Response:
        body = await read_body(request, ServeBody)
        return reply(await self._backend.serve_model(body.ref, _number(request, "wait_s", 120.0, 0.0, 600.0)))

    async def unserve_model(self, request: web.Request) -> web.Response:
        return reply(await self._backend.unserve_model(request.match_info["ref"]))

    async def spool(self, request: web.Request) -> web.Response:
        return reply(await self._backend.spool(request.query.get("service", ""), _limit(request)))

    async def left(self, request: web.Request) -> web.Response:
        return reply(await self._backend.left(request.query.get("service", ""), _limit(request)))

    async def purge(self, request: web.Request) -> web.Response:
        return reply(self._backend.purge_spool((await read_body(request, PurgeBody)).service))


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        if "Origin" in request.headers:
            raise ApiError(403, "this API is not for browsers")
        return await handler(request)
    except ApiError as error:
        return reply(Problem(error=str(error)), error.status)
    except web.HTTPException as error:
        text = {404: f"there is no {request.path} here", 413: f"the body has more than {MAX_BODY} bytes"}
        return reply(Problem(error=text.get(error.status, error.reason)), error.status)
    except Exception:
        log.exception("The local API could not answer %s %s.", request.method, request.path)
        return reply(Problem(error="edged has an internal error; its log has the details"), 500)


def _number(request: web.Request, name: str, default: float, low: float, high: float) -> float:
    try:
        value = float(request.query.get(name, default))
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ApiError(400, f"{name} must be a number from {low:g} to {high:g}")
    return value


def _limit(request: web.Request) -> int:
    return int(_number(request, "limit", 100, 1, 100_000))


def _line(progress: msgspec.Struct) -> bytes:
    return msgspec.json.encode(progress) + b"\n"
