"""From a Response to bytes on the wire, and the rule for compressing it. Pure."""

from __future__ import annotations

import http
import re
import zlib

from edged.serve.http.messages import Buffer, Request, Response

MIN_COMPRESSED = 8 << 10
"""Bytes of JSON from which compression pays for anybody."""

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in http.HTTPStatus}
_TOKEN = re.compile("[A-Za-z0-9-]+").fullmatch
_REMEMBERED = 256
_heads: dict[tuple[object, ...], bytes] = {}
"""Heads by what they say: one model's replies are all alike."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def head(request: Request | None, response: Response, length: int, close: bool) -> bytes:
    """Status line and headers for a body of `length` bytes. No date and no server name: a device's clock may be wrong.

    Raises ValueError for a header that would break the reply apart.
    """
    old = request is not None and request.old
    key = (response.status, response.content_type, length, close, old, *(response.headers or {}).items())
    known = _heads.get(key)
    if known is None:
        known = _head(response, length, close, old)
        if len(_heads) >= _REMEMBERED:
            _heads.clear()
        _heads[key] = known
    return known


def _head(response: Response, length: int, close: bool, old: bool) -> bytes:
    text = _LINES.get(response.status) or f"HTTP/1.1 {response.status} \r\n"
    if response.content_type:
        text += f"Content-Type: {response.content_type}\r\n"
    if response.headers:
        for name, value in response.headers.items():
            if not value.isprintable() or not _TOKEN(name):
                raise ValueError(f"the header {name!r} cannot be sent")
            text += f"{name}: {value}\r\n"
    if close:
        text += "Connection: close\r\n"
    elif old:
        text += "Connection: keep-alive\r\n"
    return f"{text}Content-Length: {length}\r\n\r\n".encode()


def parts(response: Response) -> tuple[list[Buffer], int]:
    """The body's buffers and their bytes together."""
    body = response.body
    if isinstance(body, (bytes, bytearray, memoryview)):
        return [body], len(body)
    return list(body), sum(len(part) for part in body)


def encoding_for(request: Request, response: Response, length: int) -> str:
    """`gzip` or `deflate` if the client asked for it and it helps: large JSON, nothing else. Otherwise empty."""
    if length < MIN_COMPRESSED or response.content_type != "application/json":
        return ""
    asked = request.headers.get("accept-encoding")
    if not asked or (response.headers and "Content-Encoding" in response.headers):
        return ""
    accepted = set()
    for entry in asked.lower().split(","):
        name, _, quality = entry.partition(";")
        quality = quality.strip()
        if not (quality.startswith("q=0") and not quality[3:].strip(".0")):
            accepted.add(name.strip())
    return next((name for name in ("gzip", "deflate") if name in accepted), "")


def compressed(response: Response, encoding: str) -> Response:
    """The same reply compressed. Takes a while: milliseconds per 100 KB."""
    compressor = zlib.compressobj(1, wbits=zlib.MAX_WBITS + (16 if encoding == "gzip" else 0))
    pieces = [compressor.compress(part) for part in parts(response)[0]]
    pieces.append(compressor.flush())
    headers = {**(response.headers or {}), "Content-Encoding": encoding, "Vary": "Accept-Encoding"}
    return Response(response.status, b"".join(pieces), response.content_type, headers, response.close)
