"""The routes of the local API that are about galleries.

GET    /gallery/SERVICE                                  who is enrolled
POST   /gallery/SERVICE/pictures?identity=&by=&force=1   enrol the picture in the body; no identity: it is a stranger's
DELETE /gallery/SERVICE/identities?name=                 forget somebody
DELETE /gallery/SERVICE?what=everybody|strangers|unreadable
"""

from __future__ import annotations

from aiohttp import web

from edged.api import ApiError
from edged.gallery.desk import GalleryDesk
from edged.requests import read_upload, reply

MAX_PICTURE = 16 << 20
"""Bytes; the same as of a picture that is inspected."""


def add(app: web.Application, desk: GalleryDesk) -> None:
    """Add the routes to the local API."""
    api = _Gallery(desk)
    app.router.add_get("/gallery/{service}", api.show)
    app.router.add_post("/gallery/{service}/pictures", api.enrol)
    app.router.add_delete("/gallery/{service}/identities", api.remove)
    app.router.add_delete("/gallery/{service}", api.clear)


class _Gallery:
    def __init__(self, desk: GalleryDesk) -> None:
        self._desk = desk

    async def show(self, request: web.Request) -> web.Response:
        return reply(await self._desk.show(request.match_info["service"]))

    async def enrol(self, request: web.Request) -> web.Response:
        data = await read_upload(request, MAX_PICTURE, "a picture")
        if not data:
            raise ApiError(400, "the request has no body; send a JPEG or PNG")
        query = request.query
        identity, by, force = query.get("identity", ""), query.get("by", ""), query.get("force") == "1"
        return reply(await self._desk.enrol(request.match_info["service"], identity, by, force, bytes(data)))

    async def remove(self, request: web.Request) -> web.Response:
        return reply(await self._desk.remove(request.match_info["service"], request.query.get("name", "")))

    async def clear(self, request: web.Request) -> web.Response:
        service, what = request.match_info["service"], request.query.get("what", "")
        if what == "everybody":
            return reply(await self._desk.clear(service))
        if what == "strangers":
            return reply(await self._desk.remove_strangers(service))
        if what == "unreadable":
            return reply(await self._desk.remove_unreadable(service))
        raise ApiError(400, 'say what to forget: what is "everybody", "strangers" or "unreadable"')
