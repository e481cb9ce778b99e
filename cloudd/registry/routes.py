"""What devices ask the registry for: an entry by name, and files by hash, whole or in ranges."""

from __future__ import annotations

import asyncio
import re

from aiohttp import web

from cloudd.registry.models import Registry, RegistryError
from cloudd.storage import StorageError
from cloudd.storage.blobs import Blobs, is_sha256
from cloudd.web import HttpProblem, json_response
from edgekit.packages import PackageError, check_name, check_version

_STALL_S = 60.0
"""Seconds a device may take to accept one chunk before its download is cut; it resumes where it was."""
_RETRY_S = 10.0
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def routes(registry: Registry, blobs: Blobs) -> list[web.RouteDef]:
    """Routes to mount on the device API, behind the middleware that checks the device."""

    async def model(request: web.Request) -> web.Response:
        name, version = request.match_info["name"], request.match_info.get("version")
        try:
            check_name(name)
            entry = await registry.offered(name, check_version(version) if version is not None else None)
        except PackageError as error:
            raise HttpProblem(400, str(error)) from None
        except RegistryError as error:
            raise HttpProblem(404, str(error)) from None
        if entry is None:
            raise HttpProblem(404, f"there is no model {name}{'@' + version if version else ''} here")
        return json_response(entry)

    async def blob(request: web.Request) -> web.StreamResponse:
        sha256 = request.match_info["sha256"]
        size = await registry.offered_size(sha256) if is_sha256(sha256) else None
        if size is None:
            raise HttpProblem(404, "no model for devices has a file with this SHA-256")
        return await send_blob(request, blobs, sha256, size)

    return [
        web.get("/v1/models/{name}", model),
        web.get("/v1/models/{name}/{version}", model),
        web.get("/v1/blobs/{sha256}", blob),
    ]


async def send_blob(request: web.Request, blobs: Blobs, sha256: str, size: int) -> web.StreamResponse:
    """A blob of `size` bytes whole, in a range, or not at all if the device has it. Raises HttpProblem."""
    tag = f'"{sha256}"'
    headers = {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "private, immutable, max-age=31536000"}
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    start, end, status = 0, size, 200
    if "Range" in request.headers and request.headers.get("If-Range", tag) == tag:
        wanted = parse_range(request.headers["Range"], size)
        if wanted is not None:
            start, end = wanted
            if start >= end:
                return web.Response(status=416, headers={**headers, "Content-Range": f"bytes */{size}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    response = web.StreamResponse(status=status, headers=headers)
    response.content_type = "application/octet-stream"
    response.content_length = end - start
    if request.method == "HEAD":
        await response.prepare(request)
        return response
    chunks = aiter(blobs.stream(sha256, start, end))
    try:
        chunk = await anext(chunks, b"")  # a blob that cannot be read must still become an error reply
    except (KeyError, StorageError) as error:
        raise HttpProblem(503, f"the file cannot be read at the moment: {error}", _RETRY_S) from None
    await response.prepare(request)
    try:
        while chunk:
            async with asyncio.timeout(_STALL_S):
                await response.write(memoryview(chunk))  # TLS takes it in pieces, and of bytes it copies the rest
            chunk = await anext(chunks, b"")
        async with asyncio.timeout(_STALL_S):
            await response.write_eof()
    except (TimeoutError, StorageError) as error:
        raise ConnectionError("the download was cut") from error  # the device sees a short body and resumes
    return response


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The bytes [start, end) that a Range header wants; None for what we answer with the whole file.

    Several ranges, other units and malformed headers are ignored, as RFC 9110 14.2 allows; start >= end means that
    nothing of the file lies in the range.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if not first:  # the last n bytes
        return max(0, size - int(last)), size if int(last) else 0
    start, end = int(first), int(last) + 1 if last else size
    if last and end <= start:
        return None
    return start, min(end, size)
