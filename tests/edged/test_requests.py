"""What a route of the local API or of a page is told of a request that does not fit."""

from __future__ import annotations

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from edged.api import ApiError
from edged.requests import count, read_body, read_upload, reply


class Body(msgspec.Struct):
    name: str


async def ask(query: str, body: bytes) -> tuple[int, str]:
    """The status and the text of a server that reads everything."""

    async def handle(request: web.Request) -> web.Response:
        try:
            number = count(request, "limit", 5, 100)
            if request.path == "/upload":
                return reply([number, len(await read_upload(request, 1 << 20, "a sample"))])
            return reply([number, (await read_body(request, Body)).name])
        except ApiError as error:
            return reply(str(error), error.status)

    app = web.Application()
    app.router.add_route("POST", "/{path}", handle)
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession() as session,
        session.post(server.make_url(query), data=body) as response,
    ):
        assert response.content_type == "application/json"
        return response.status, await response.text()


@pytest.mark.parametrize(
    ("query", "body", "status", "text"),
    [
        ("/body", b'{"name": "a"}', 200, '[5,"a"]'),
        ("/body?limit=7", b'{"name": "a"}', 200, '[7,"a"]'),
        ("/body?limit=999999999", b'{"name": "a"}', 200, '[100,"a"]'),
        ("/body?limit=-1", b"", 400, '"limit must be a whole number"'),
        ("/body?limit=%D9%A1", b"", 400, '"limit must be a whole number"'),
        ("/body?limit=1000000000", b"", 400, '"limit must be a whole number"'),
        ("/upload", bytes(1 << 20), 200, "[5,1048576]"),
        ("/upload", bytes((1 << 20) + 1), 413, '"a sample has at most 1 MiB"'),
    ],
)
async def test_a_request_is_read_within_its_bounds(query: str, body: bytes, status: int, text: str) -> None:
    assert await ask(query, body) == (status, text)


@pytest.mark.parametrize("body", [b"", b"{", b'{"name": 1}', b'{"name": "\xff"}', b"[" * 100_000])
async def test_a_body_that_is_not_what_belongs_there_is_refused_with_the_reason(body: bytes) -> None:
    status, text = await ask("/body", body)
    assert status == 400 and "the body cannot be read: " in text
