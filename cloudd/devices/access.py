"""Which requests of the device API need which identity, checked anew for every request."""

from __future__ import annotations

import time

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from cloudd.devices.fleet import Fleet
from cloudd.web import DEVICE_ID, HttpProblem
from edgekit.identity import peer_device_id

_STRANGERS = frozenset({"/v1/authority", "/v1/enroll", "/v1/health"})
_EXPIRED = frozenset({"/v1/renew"})


def require_device(fleet: Fleet) -> Middleware:
    """Middleware that sets DEVICE_ID to the id of the enrolled, unrevoked device that sent the request.

    Joining and its preparation are open to strangers (DEVICE_ID is missing there); renewal is open to a
    device whose certificate has expired. Everybody else gets 401, a revoked or forgotten device 403.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _STRANGERS:
            return await handler(request)
        tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
        device = peer_device_id(tls, time.time(), allow_expired=request.path in _EXPIRED)
        if device is None:
            raise HttpProblem(401, "this needs a device certificate; join this cloudd with `edged join TOKEN` first")
        await fleet.check(device)
        request[DEVICE_ID] = device
        return await handler(request)

    return middleware
