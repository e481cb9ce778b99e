"""The routes of the review page, on the page port. Reading them needs the page token, on loopback too: the pictures lie
encrypted on the disk, and whoever may read them may label them.

GET  /review                    the page           GET  /review/services.json
GET  /review/queue.json?service=&limit=            GET  /review/samples/ID.json, /review/samples/ID/picture
POST /api/samples/ID/label      a LabelSaid
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web

from edged.api import ApiError
from edged.requests import count, read_upload, reply
from edged.status.review import COUNTED, LabelSaid, Review
from edgekit.webguard import security_headers

PATH = "/review"
MAX_LABEL_BYTES = 2 << 20
"""Of one label: the 10,000 boxes that a picture may have."""
_ID = "{id:[0-9a-f]{64}}"


def add(app: web.Application, review: Review, device: Callable[[], tuple[str, str]]) -> None:
    """Add the routes to the page. `device` gives the device's name and id."""
    routes = _Routes(review, device)
    app.router.add_get("/review", routes.show)
    app.router.add_get("/review/services.json", routes.services)
    app.router.add_get("/review/queue.json", routes.queue)
    app.router.add_get(f"/review/samples/{_ID}.json", routes.sample)
    app.router.add_get(f"/review/samples/{_ID}/picture", routes.picture)
    app.router.add_post(f"/api/samples/{_ID}/label", routes.label)


def is_review(path: str) -> bool:
    """Whether a path is one of the pages or pictures that need the token everywhere."""
    return path == PATH or path.startswith(f"{PATH}/")


class _Routes:
    def __init__(self, review: Review, device: Callable[[], tuple[str, str]]) -> None:
        self._review, self._device = review, device

    async def show(self, request: web.Request) -> web.Response:
        from edged.status import review_page  # nobody may ever look, and the supervisor's memory is counted

        response = web.Response(text=review_page.render(*self._device()), content_type="text/html")
        response.headers.update(security_headers(review_page.STYLES, review_page.SCRIPTS))
        return response

    async def services(self, request: web.Request) -> web.Response:
        return reply(await self._review.services())

    async def queue(self, request: web.Request) -> web.Response:
        limit = count(request, "limit", 50, COUNTED)
        return reply(await self._review.queue(request.query.get("service", ""), limit))

    async def sample(self, request: web.Request) -> web.Response:
        return reply(await self._review.sample(request.match_info["id"]))

    async def picture(self, request: web.Request) -> web.Response:
        data, kind = await self._review.picture(request.match_info["id"])
        return web.Response(body=data, content_type=kind)

    async def label(self, request: web.Request) -> web.Response:
        data = await read_upload(request, MAX_LABEL_BYTES, "a label")
        try:
            said = msgspec.json.decode(data, type=LabelSaid)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(400, f"the label cannot be read: {error}") from None
        return reply(await self._review.label(request.match_info["id"], said))
