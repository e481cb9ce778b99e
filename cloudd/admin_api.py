"""The admin API: JSON over HTTP on a unix socket whose mode (0660) says who may use it. The commands are its client."""

from __future__ import annotations

import logging
import socket
import struct

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from cloudd.federation import admin as federation_admin
from cloudd.federation.service import Federation
from cloudd.operations import InviteRequest, Operations
from cloudd.web import HttpProblem, json_response, new_app, read_json

log = logging.getLogger("cloudd.admin")

_MAX_ANSWERS = 1000
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class DesiredRequest(msgspec.Struct, kw_only=True):
    """Body of POST /devices/ID/desired: service definition texts (TOML)."""

    services: list[str]


class RevokeRequest(msgspec.Struct, kw_only=True):
    """Body of POST /devices/ID/revoke."""

    reason: str = ""


class ModelRequest(msgspec.Struct, kw_only=True):
    """Body of POST /models: an absolute path on this host."""

    path: str


def application(operations: Operations, federation: Federation) -> web.Application:
    """All routes of the admin socket."""
    app = new_app(_log_writes)

    async def status(_request: web.Request) -> web.Response:
        return json_response(await operations.status())

    async def state(_request: web.Request) -> web.Response:
        return json_response(await operations.dashboard())

    async def invite(request: web.Request) -> web.Response:
        return json_response(await operations.invite(await read_json(request, InviteRequest)))

    async def devices(_request: web.Request) -> web.Response:
        return json_response(await operations.devices())

    async def device(request: web.Request) -> web.Response:
        return json_response(await operations.device(request.match_info["id"]))

    async def revoke(request: web.Request) -> web.Response:
        asked = await read_json(request, RevokeRequest)
        return json_response(await operations.revoke(request.match_info["id"], asked.reason))

    async def restore(request: web.Request) -> web.Response:
        return json_response(await operations.restore(request.match_info["id"]))

    async def desired(request: web.Request) -> web.Response:
        asked = await read_json(request, DesiredRequest)
        return json_response(await operations.set_desired(request.match_info["id"], asked.services))

    async def models(_request: web.Request) -> web.Response:
        return json_response(await operations.models())

    async def model(request: web.Request) -> web.Response:
        return json_response(await operations.model(request.match_info["ref"]))

    async def model_directory(request: web.Request) -> web.Response:
        return json_response(await operations.model_directory(request.match_info["ref"]))

    async def add_model(request: web.Request) -> web.Response:
        return json_response(await operations.add_model((await read_json(request, ModelRequest)).path))

    async def answers(request: web.Request) -> web.Response:
        limit = _number(request.query.get("limit", "50"))
        before = _number(request.query["before"]) if "before" in request.query else None
        return json_response(await operations.answers(min(limit, _MAX_ANSWERS), before))

    async def answer(request: web.Request) -> web.Response:
        return json_response(await operations.answer(_number(request.match_info["id"])))

    async def picture(request: web.Request) -> web.Response:
        return web.Response(body=await operations.picture(_number(request.match_info["id"])))

    async def retraining(request: web.Request) -> web.Response:
        return json_response(await operations.retraining(request.query.get("device", "")))

    async def retraining_job(request: web.Request) -> web.Response:
        return json_response(await operations.retraining_job(request.match_info["job"]))

    async def remove_retraining(request: web.Request) -> web.Response:
        return json_response(await operations.remove_retraining(request.match_info["job"]))

    app.add_routes(
        [
            web.get("/status", status),
            web.get("/state", state),
            web.post("/invites", invite),
            web.get("/devices", devices),
            web.get("/devices/{id}", device),
            web.post("/devices/{id}/revoke", revoke),
            web.post("/devices/{id}/restore", restore),
            web.post("/devices/{id}/desired", desired),
            web.get("/models", models),
            web.get("/models/{ref}", model),
            web.get("/models/{ref}/directory", model_directory),
            web.post("/models", add_model),
            web.get("/retraining", retraining),
            web.get("/retraining/{job}", retraining_job),
            web.post("/retraining/{job}/remove", remove_retraining),
            web.get("/answers", answers),
            web.get("/answers/{id}", answer),
            web.get("/answers/{id}/picture", picture),
        ]
    )
    app.add_routes(federation_admin.routes(federation))
    return app


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise HttpProblem(400, f"{text[:40]!r} is not a whole number")
    return int(text)


@web.middleware
async def _log_writes(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.method not in {"GET", "HEAD"}:
        log.info("%s %s by uid %d", request.method, request.path, _peer_uid(request))
    return await handler(request)


def _peer_uid(request: web.Request) -> int:
    sock = request.transport.get_extra_info("socket") if request.transport is not None else None
    if sock is None:
        return -1
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _pid, uid, _gid = _PEER.unpack(packed)
    return int(uid)
