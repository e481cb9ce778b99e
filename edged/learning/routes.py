"""The routes of the local API that are about learning.

GET  /learning                      GET  /learning/NAME             GET  /learning/NAME/log?limit=
POST /learning/NAME/start {by, rung?}
POST /learning/NAME/go {by}         POST /learning/NAME/stop {by}   POST /learning/NAME/revert {by}
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from aiohttp import web

from edged.api import ApiError, Done
from edged.learning.bodies import OrderBody, StartBody
from edged.learning.door import LearningDoor
from edged.learning.parts import MAX_LOG

T = TypeVar("T")


def add(app: web.Application, desk: LearningDoor) -> None:
    """Add the routes to the local API."""
    api = _Learning(desk)
    app.router.add_get("/learning", api.states)
    app.router.add_get("/learning/{name}", api.state)
    app.router.add_get("/learning/{name}/log", api.log)
    app.router.add_post("/learning/{name}/start", api.start)
    app.router.add_post("/learning/{name}/go", api.go)
    app.router.add_post("/learning/{name}/stop", api.stop)
    app.router.add_post("/learning/{name}/revert", api.revert)


class _Learning:
    def __init__(self, desk: LearningDoor) -> None:
        self._desk = desk

    async def states(self, request: web.Request) -> web.Response:
        return _json(self._desk.states())

    async def state(self, request: web.Request) -> web.Response:
        return _json(await self._desk.state(request.match_info["name"]))

    async def log(self, request: web.Request) -> web.Response:
        text = request.query.get("limit", "20")
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise ApiError(400, "limit must be a whole number")
        return _json(await self._desk.log(request.match_info["name"], min(int(text), MAX_LOG)))

    async def start(self, request: web.Request) -> web.Response:
        body = await _body(request, StartBody)
        return _json(await self._desk.start(request.match_info["name"], body.rung, body.by))

    async def go(self, request: web.Request) -> web.Response:
        return await self._order(request, self._desk.go)

    async def stop(self, request: web.Request) -> web.Response:
        return await self._order(request, self._desk.stop)

    async def revert(self, request: web.Request) -> web.Response:
        return await self._order(request, self._desk.revert)

    async def _order(self, request: web.Request, order: Callable[[str, str], Awaitable[Done]]) -> web.Response:
        body = await _body(request, OrderBody)
        return _json(await order(request.match_info["name"], body.by))


async def _body(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body cannot be read: {error}") from None


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
