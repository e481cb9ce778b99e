"""The routes of the local API that are about samples and dataset versions.

GET  /samples?service=&limit=&since=&until=&source=&label=&tag=&labelled=0|1     GET /samples/queue?service=&limit=
GET  /samples/stats?service=        GET /samples/ID         GET /samples/ID/picture
POST /samples (envelope)            POST /samples/remove    POST /samples/ID/label    POST /samples/ID/tags
GET  /datasets                      POST /datasets          GET /datasets/NAME
GET  /datasets/NAME/pictures?after=&limit=                  DELETE /datasets/NAME
"""

from __future__ import annotations

import math

import msgspec
from aiohttp import web

from edged.api import ApiError
from edged.requests import count, read_body, read_upload, reply
from edged.samples.bodies import MAX_PAGE, AddHeader, LabelBody, MakeBody, RemoveBody, TagBody
from edged.samples.desk import SampleDesk
from edged.samples.reading import Filter
from edgekit.datasets.dataset import MAX_PICTURE_BYTES
from edgekit.envelope import MAX_HEADER, EnvelopeError, unseal

MAX_COUNT = 1_000_000
"""No list is longer, and no version has more pictures."""
MAX_ENVELOPE = MAX_PICTURE_BYTES + MAX_HEADER + 8


def add(app: web.Application, desk: SampleDesk) -> None:
    """Add the routes to the local API."""
    api = _Samples(desk)
    app.router.add_get("/samples", api.select)
    app.router.add_post("/samples", api.add)
    app.router.add_get("/samples/queue", api.queue)
    app.router.add_get("/samples/stats", api.stats)
    app.router.add_post("/samples/remove", api.remove)
    app.router.add_get("/samples/{id}", api.sample)
    app.router.add_get("/samples/{id}/picture", api.picture)
    app.router.add_post("/samples/{id}/label", api.label)
    app.router.add_post("/samples/{id}/tags", api.tag)
    app.router.add_get("/datasets", api.versions)
    app.router.add_post("/datasets", api.make)
    app.router.add_get("/datasets/{name}", api.version)
    app.router.add_get("/datasets/{name}/pictures", api.pictures)
    app.router.add_delete("/datasets/{name}", api.delete_version)


class _Samples:
    def __init__(self, desk: SampleDesk) -> None:
        self._desk = desk

    async def select(self, request: web.Request) -> web.Response:
        query = request.query
        labelled = {"": None, "0": False, "1": True}.get(query.get("labelled", ""))
        which = Filter(
            service=query.get("service", ""),
            since=_time(request, "since"),
            until=_time(request, "until"),
            source=query.get("source", ""),
            label=query.get("label", ""),
            tag=query.get("tag", ""),
            labelled=labelled,
        )
        return reply(await self._desk.select(which, count(request, "limit", 100, MAX_COUNT)))

    async def queue(self, request: web.Request) -> web.Response:
        return reply(await self._desk.queue(request.query.get("service", ""), count(request, "limit", 100, MAX_COUNT)))

    async def stats(self, request: web.Request) -> web.Response:
        return reply(await self._desk.stats(request.query.get("service", "")))

    async def sample(self, request: web.Request) -> web.Response:
        return reply(await self._desk.sample(request.match_info["id"]))

    async def picture(self, request: web.Request) -> web.Response:
        data = await self._desk.picture(request.match_info["id"])
        return web.Response(body=data, content_type="image/png" if data[:1] == b"\x89" else "image/jpeg")

    async def add(self, request: web.Request) -> web.Response:
        data = await read_upload(request, MAX_ENVELOPE, "a sample")
        try:
            head, picture = unseal(memoryview(data))
            header = msgspec.json.decode(head, type=AddHeader)
        except (EnvelopeError, msgspec.DecodeError) as error:
            raise ApiError(400, f"the body is no envelope of a sample: {error}") from None
        return reply(await self._desk.add(header, picture))

    async def label(self, request: web.Request) -> web.Response:
        return reply(await self._desk.label(request.match_info["id"], await read_body(request, LabelBody)))

    async def tag(self, request: web.Request) -> web.Response:
        return reply(await self._desk.tag(request.match_info["id"], await read_body(request, TagBody)))

    async def remove(self, request: web.Request) -> web.Response:
        return reply(await self._desk.remove(await read_body(request, RemoveBody)))

    async def versions(self, request: web.Request) -> web.Response:
        return reply(await self._desk.versions())

    async def make(self, request: web.Request) -> web.Response:
        return reply(await self._desk.make(await read_body(request, MakeBody)))

    async def version(self, request: web.Request) -> web.Response:
        return reply(await self._desk.version(request.match_info["name"]))

    async def pictures(self, request: web.Request) -> web.Response:
        after = count(request, "after", 0, MAX_COUNT)
        limit = min(MAX_PAGE, count(request, "limit", MAX_PAGE, MAX_COUNT))
        return reply(await self._desk.pictures(request.match_info["name"], after, limit))

    async def delete_version(self, request: web.Request) -> web.Response:
        return reply(await self._desk.delete_version(request.match_info["name"]))


def _time(request: web.Request, name: str) -> float | None:
    text = request.query.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ApiError(400, f"{name} must be seconds since the epoch")
    return value
