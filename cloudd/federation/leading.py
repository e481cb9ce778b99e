"""What the leader of a site's job asks and brings: handlers for the routes of edgekit.messages.federation."""

from __future__ import annotations

import asyncio

from aiohttp import web

from cloudd.federation.led import LedRun
from cloudd.federation.nodes import node_of
from cloudd.federation.service import Federation
from cloudd.storage.blobs import is_sha256
from cloudd.web import DEVICE_ID, HttpProblem, json_response, read_body, read_json
from edgekit.messages.federation import (
    MAX_CHUNK,
    MAX_STANDING,
    LeadOrder,
    Over,
    PublishedRound,
    Uploaded,
)

_MAX_ROUND = 4 << 20
"""Bytes of a PublishedRound: a robust one names the survivors of every bucket."""
_RETRY_S = 2.0


class Leading:
    """Every handler raises HttpProblem for a device that does not lead the job, Refusal, FederationError, OSError."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation

    async def state(self, request: web.Request) -> web.Response:
        """GET .../lead"""
        return json_response(await self._run(request).lead_state())

    async def sum(self, request: web.Request) -> web.Response:
        """POST .../lead/sum"""
        run = self._run(request)
        made = await run.collect(await read_json(request, LeadOrder, MAX_STANDING))
        return web.Response(status=202) if made is None else json_response(made)

    async def upload(self, request: web.Request) -> web.Response:
        """PUT .../lead/upper/SHA256"""
        run, sha256 = self._run(request), _sha256(request)
        offset = request.query.get("offset", "")
        if not (offset.isascii() and offset.isdigit() and len(offset) <= 12):
            raise HttpProblem(400, "offset: the number of bytes before this part belongs there")
        data = await read_body(request, MAX_CHUNK)
        return json_response(Uploaded(size=await run.bring(sha256, int(offset), data), whole=run.upper_size))

    async def uploaded(self, request: web.Request) -> web.Response:
        """GET .../lead/upper/SHA256"""
        run = self._run(request)
        return json_response(Uploaded(size=await run.bring(_sha256(request), 0, b""), whole=run.upper_size))

    async def published(self, request: web.Request) -> web.Response:
        """POST .../lead/published"""
        run = self._run(request)
        if not await run.take(await read_json(request, PublishedRound, _MAX_ROUND)):
            raise HttpProblem(503, "the state cannot move at the moment", _RETRY_S)
        return web.Response(status=204)

    async def over(self, request: web.Request) -> web.Response:
        """POST .../lead/over"""
        if not await self._run(request).upper_over(await read_json(request, Over, MAX_STANDING)):
            raise HttpProblem(503, "the job is not at its end yet", _RETRY_S)
        return web.Response(status=204)

    async def file(self, request: web.Request) -> web.StreamResponse | None:
        """A site's sum, if this is its leader and it asks for one."""
        run = self._federation.runs.get(request.match_info["job"])
        if not isinstance(run, LedRun):
            return None
        path = run.sum_file(node_of(request[DEVICE_ID]), request.match_info["sha256"])
        if path is None or not await asyncio.to_thread(path.is_file):
            return None
        return web.FileResponse(path)

    def _run(self, request: web.Request) -> LedRun:
        run = self._federation.runs.get(request.match_info["job"])
        if not isinstance(run, LedRun) or run.leader != node_of(request[DEVICE_ID]):
            raise HttpProblem(404, "there is no running job that this device leads")
        return run


def _sha256(request: web.Request) -> str:
    sha256 = request.match_info["sha256"]
    if not is_sha256(sha256):
        raise HttpProblem(404, "that is no SHA-256")
    return sha256
