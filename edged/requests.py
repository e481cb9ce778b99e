"""What the routes of the local API and of the pages read from a request, and how they reply."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import web

from edged.api import ApiError

T = TypeVar("T")


async def read_body(request: web.Request, kind: type[T]) -> T:
    """The JSON in the body. Raises ApiError for another."""
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body cannot be read: {error}") from None


async def read_upload(request: web.Request, most: int, what: str) -> bytearray:
    """A body that may be larger than what `request.read()` stops at, but has at most `most` bytes. Raises ApiError."""
    data = bytearray()
    async for chunk in request.content.iter_any():
        data += chunk
        if len(data) > most:
            raise ApiError(413, f"{what} has at most {most >> 20} MiB")
    return data


def count(request: web.Request, name: str, default: int, most: int) -> int:
    """A whole number of the query, at most `most`. Raises ApiError for what is none."""
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ApiError(400, f"{name} must be a whole number")
    return min(int(text), most)


def reply(value: object, status: int = 200) -> web.Response:
    """As JSON."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
