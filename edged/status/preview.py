"""The preview of a service, fetched from the worker that draws it: the supervisor never touches a picture's inside."""

from __future__ import annotations

from urllib.parse import quote

import aiohttp
import msgspec

from edged.api import ApiError, Problem

MAX_BYTES = 2 << 20
"""More than a JPEG of 640 pixels ever has."""
TIMEOUT_S = 3.0
_ANY = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - where to connect to a socket that listens everywhere


async def fetch_preview(inference: str, token: str, name: str) -> bytes:
    """A JPEG from the worker behind `inference` (host:port). Raises ApiError 404 without a picture, else 503."""
    host, _, port = inference.rpartition(":")
    url = f"http://{_ANY.get(host, host)}:{port}/v1/services/{quote(name, safe='')}/preview.jpg"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), trust_env=False) as session,
            session.get(url, headers={"Edged-Management": token}, allow_redirects=False) as response,
        ):
            body = await response.content.read(MAX_BYTES + 1)
            while len(body) <= MAX_BYTES and (more := await response.content.read(MAX_BYTES + 1 - len(body))):
                body += more
            if response.status == 200 and len(body) <= MAX_BYTES:
                return body
            status = 404 if response.status == 404 else 503
            raise ApiError(status, _reason(body))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise ApiError(503, f"the worker does not show a picture now ({type(error).__name__})") from None


def _reason(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=Problem).error[:300]
    except msgspec.MsgspecError:
        return "the worker does not show a picture now"
