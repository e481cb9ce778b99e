"""The routes of the local API that are about learning.

GET  /learning                      GET  /learning/NAME             GET  /learning/NAME/log?limit=
POST /learning/NAME/start {by, rung?}
POST /learning/NAME/go {by}         POST /learning/NAME/stop {by}   POST /learning/NAME/revert {by}
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from edged.api import Done
from edged.learning.bodies import OrderBody, StartBody
from edged.learning.door import LearningDoor
from edged.learning.parts import MAX_LOG
from edged.requests import count, read_body, reply


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
        return reply(self._desk.states())

    async def state(self, request: web.Request) -> web.Response:
        return reply(await self._desk.state(request.match_info["name"]))

    async def log(self, request: web.Request) -> web.Response:
        limit = count(request, "limit", 20, MAX_LOG)
        return reply(await self._desk.log(request.match_info["name"], limit))

    async def start(self, request: web.Request) -> web.Response:
        body = await read_body(request, StartBody)
        return reply(await self._desk.start(request.match_info["name"], body.rung, body.by))

    async def go(self, request: web.Request) -> web.Response:
        return await self._order(request, self._desk.go)

    async def stop(self, request: web.Request) -> web.Response:
        return await self._order(request, self._desk.stop)

    async def revert(self, request: web.Request) -> web.Response:
        return await self._order(request, self._desk.revert)

    async def _order(self, request: web.Request, order: Callable[[str, str], Awaitable[Done]]) -> web.Response:
        body = await read_body(request, OrderBody)
        return reply(await order(request.match_info["name"], body.by))
