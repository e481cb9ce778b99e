"""The device API of retraining; edgekit.messages.retraining says what each route takes and gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from cloudd.retraining.errors import RetrainingError
from cloudd.retraining.service import Retraining
from cloudd.web import DEVICE_ID, HttpProblem, json_response, read_body
from edgekit.messages.retraining import MAX_CHUNK, MAX_REQUEST

_BODY_S = 120.0
"""Seconds that a request, or a part of a file, may take to arrive on a slow link."""
_STORAGE_RETRY_S = 60.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(retraining: Retraining) -> list[web.RouteDef]:
    """Routes to mount on the device API, behind the middleware that sets DEVICE_ID."""

    async def begin(request: web.Request) -> web.StreamResponse:
        body = await read_body(request, MAX_REQUEST, _BODY_S)
        return json_response(await retraining.begin(request[DEVICE_ID], request.match_info["job"], body))

    async def state(request: web.Request) -> web.StreamResponse:
        return json_response(retraining.state(request[DEVICE_ID], request.match_info["job"]))

    async def missing(request: web.Request) -> web.StreamResponse:
        return json_response(await retraining.missing(request[DEVICE_ID], request.match_info["job"]))

    async def store(request: web.Request) -> web.StreamResponse:
        offset = request.query.get("offset", "")
        if not (offset.isascii() and offset.isdigit() and len(offset) <= 12):
            raise HttpProblem(400, "offset: the number of bytes before this part belongs there")
        part = await read_body(request, MAX_CHUNK, _BODY_S)
        job, sha256 = request.match_info["job"], request.match_info["sha256"]
        return json_response(await retraining.store(request[DEVICE_ID], job, sha256, int(offset), part))

    async def result(request: web.Request) -> web.StreamResponse:
        job, sha256 = request.match_info["job"], request.match_info["sha256"]
        path = await retraining.result(request[DEVICE_ID], job, sha256)
        return web.FileResponse(path, headers={"ETag": f'"{sha256}"', "Content-Type": "application/octet-stream"})

    async def end(request: web.Request) -> web.StreamResponse:
        forget = request.query.get("forget") == "1"
        await retraining.end(request[DEVICE_ID], request.match_info["job"], forget)
        return web.Response(status=204)

    job = r"/v1/retraining/{job:[0-9a-f]{32}}"
    return [
        web.put(job, _told(begin)),
        web.get(job, _told(state)),
        web.get(f"{job}/missing", _told(missing)),
        web.put(job + r"/files/{sha256:[0-9a-f]{64}}", _told(store)),
        web.get(job + r"/results/{sha256:[0-9a-f]{64}}", _told(result)),
        web.delete(job, _told(end)),
    ]


def _told(handler: Handler) -> Handler:
    """What is refused becomes a status that a device understands."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except RetrainingError as error:
            raise HttpProblem(error.status, str(error)) from None
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            raise HttpProblem(503, f"it cannot be kept at the moment: {error.strerror}", _STORAGE_RETRY_S) from None

    return handle
