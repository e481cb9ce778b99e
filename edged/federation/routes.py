"""The routes of the local API that are about federated jobs.

GET  /federation?limit=             GET /federation/policy        GET /federation/audit?limit=
POST /federation/refuse {job, reason?}                            POST /federation/forgive
POST /federation/leave {service, reason?, stay?}                  POST /federation/agree {job}
POST /federation/join {token}
"""

from __future__ import annotations

from aiohttp import web

from edged.api import ApiError
from edged.federation.front import FederationFront
from edged.requests import read_body, reply

MAX_LIMIT = 1000


def add(app: web.Application, front: FederationFront) -> None:
    """Add the routes to the local API."""
    routes = _Routes(front)
    app.router.add_get("/federation", routes.state)
    app.router.add_get("/federation/policy", routes.policy)
    app.router.add_get("/federation/audit", routes.audit)
    app.router.add_post("/federation/refuse", routes.refuse)
    app.router.add_post("/federation/agree", routes.agree)
    app.router.add_post("/federation/leave", routes.leave)
    app.router.add_post("/federation/forgive", routes.forgive)
    app.router.add_post("/federation/join", routes.join)


class _Routes:
    def __init__(self, front: FederationFront) -> None:
        self._front = front

    async def state(self, request: web.Request) -> web.Response:
        return reply(await self._front.desk.state(_limit(request)))

    async def policy(self, request: web.Request) -> web.Response:
        from edged.federation.bodies import PolicyReply

        return reply(PolicyReply(federation=self._front.desk.policy()))

    async def audit(self, request: web.Request) -> web.Response:
        return reply(await self._front.desk.audit(_limit(request)))

    async def refuse(self, request: web.Request) -> web.Response:
        from edged.federation.bodies import RefuseBody  # not before there is a job

        body = await read_body(request, RefuseBody)
        return reply(await self._front.desk.refuse(body.job, body.reason))

    async def join(self, request: web.Request) -> web.Response:
        from edged.federation.bodies import JoinUpperBody

        body = await read_body(request, JoinUpperBody)
        return reply(await self._front.desk.upward.joined(body.token))

    async def agree(self, request: web.Request) -> web.Response:
        from edged.federation.bodies import AgreeBody

        body = await read_body(request, AgreeBody)
        return reply(await self._front.desk.agree(body.job))

    async def leave(self, request: web.Request) -> web.Response:
        from edged.federation.bodies import LeaveBody

        body = await read_body(request, LeaveBody)
        return reply(await self._front.desk.leave(body.service, body.reason, body.stay))

    async def forgive(self, request: web.Request) -> web.Response:
        return reply(await self._front.desk.forgive())


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", "20")
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MAX_LIMIT):
        raise ApiError(400, f"limit must be a whole number from 1 to {MAX_LIMIT}")
    return int(text)
