"""The admin API of federated jobs, for `cloudd fl`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from cloudd.federation import views
from cloudd.federation.errors import FederationError
from cloudd.federation.service import MAX_START, Federation, StartRequest
from cloudd.web import HttpProblem, json_response, read_json

_MAX_LINES = 10_000

Handler = Callable[[web.Request], Awaitable[web.Response]]


def routes(federation: Federation) -> list[web.RouteDef]:
    """Routes to mount on the admin API."""

    async def start(request: web.Request) -> web.Response:
        row = await federation.start(await read_json(request, StartRequest, MAX_START))
        return json_response((await views.detail(federation, row.id)).job)

    async def jobs(_request: web.Request) -> web.Response:
        return json_response(await views.jobs(federation))

    async def job(request: web.Request) -> web.Response:
        lines = request.query.get("lines", "200")
        if not (lines.isascii() and lines.isdigit() and len(lines) < 9):
            raise HttpProblem(400, f"{lines[:40]!r} is no number of lines")
        shown = min(int(lines), _MAX_LINES)
        return json_response(await views.detail(federation, request.match_info["job"], shown))

    async def export(request: web.Request) -> web.Response:
        row = await federation.find(request.match_info["job"])
        if row.job.upper is not None:
            raise HttpProblem(422, f"{row.name} is a site's job itself; there are two tiers, not three")
        return json_response(row.job)

    async def stop(request: web.Request) -> web.Response:
        row = await federation.stop(request.match_info["job"])
        return json_response((await views.detail(federation, row.id)).job)

    return [
        web.post("/federation/jobs", _told(start)),
        web.get("/federation/jobs", _told(jobs)),
        web.get("/federation/jobs/{job}", _told(job)),
        web.get("/federation/jobs/{job}/export", _told(export)),
        web.post("/federation/jobs/{job}/stop", _told(stop)),
    ]


def _told(handler: Handler) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except FederationError as error:
            raise HttpProblem(422 if request.method == "POST" else 404, str(error)) from None

    return handle
