"""The head of a request: from its bytes to a checked Request without a body. Pure.

A parser reads exactly one head and is thrown away (it costs a third of a microsecond), so nothing that a head says can
influence how the next one is read. What proxies and servers are known to read differently is refused: two lengths, a
length beside chunks, folded lines, bare line feeds.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import httptools

from edged.serve.http.messages import HttpError, Request

MAX_HEAD = 16 << 10
"""Bytes of the request line and all headers together."""
MAX_HEADERS = 100
MAX_METHOD = 16
"""Bytes at the start of a head by which `may_begin` judges."""
END = b"\r\n\r\n"

_ONCE = frozenset({"content-length", "transfer-encoding", "host", "expect", "content-encoding"})
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
# Names as clients spell them, so that most headers need no conversion.
_NAMES = {
    spelling.encode(): name
    for name in (
        "host",
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "edged-captured-at",
        "edged-serial",
        "expect",
        "inference-header-content-length",
        "origin",
        "user-agent",
    )
    for spelling in (name, name.title())
}
_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}


class _Fields:
    """What the parser calls back."""

    __slots__ = ("count", "fault", "headers", "heads", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[str, str] = {}
        self.heads = 0
        self.count = 0
        self.fault = ""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, raw: bytes, value: bytes) -> None:
        name = _NAMES.get(raw) or raw.lower().decode("latin-1")
        try:
            text = value.decode().strip(" \t")
        except UnicodeDecodeError:
            text = value.decode("latin-1").strip(" \t")  # what HTTP once said, and what old clients mean
        self.count += 1
        if name not in self.headers:
            self.headers[name] = text
        elif name in _ONCE:
            self.fault = f"the header {name} is there twice"
        else:
            self.headers[name] += f", {text}"

    def on_headers_complete(self) -> None:
        self.heads += 1


def may_begin(start: bytes | bytearray) -> bool:
    """Can a request begin so? What cannot is refused now, not when its head should have been complete.

    `start`: the first bytes, up to MAX_METHOD of them, or fewer that have come.
    """
    method, space, _ = start.partition(b" ")
    return method.isalpha() and method.isascii() and (bool(space) or len(start) < MAX_METHOD)


def parse_head(head: bytes, received: float = 0.0) -> Request:
    """The Request of one head, which ends with its empty line. Raises HttpError with a status that fits."""
    fields = _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # an offer that we do not take up; the request is answered as it stands
    except httptools.HttpParserError as error:
        raise HttpError(400, f"the request is not valid HTTP: {str(error).strip() or 'bad request line'}") from None
    if fields.heads != 1 or not head.endswith(END) or b"\r\n " in head or b"\r\n\t" in head:
        raise HttpError(400, "the request is not valid HTTP: its header has a folded or wrongly ended line")
    if fields.fault:
        raise HttpError(400, f"the request is not valid HTTP: {fields.fault}")
    if fields.count > MAX_HEADERS:
        raise HttpError(431, f"the request has more than {MAX_HEADERS} headers")
    line = head.find(b"\r\n")
    version = head[line - 8 : line]
    if version != b"HTTP/1.1" and version != b"HTTP/1.0":
        raise HttpError(505, "only HTTP/1.1 and HTTP/1.0 are understood")
    headers = fields.headers
    raw_method = parser.get_method()
    method = _METHODS.get(raw_method)
    if method is None:
        raise HttpError(501, f"the method {raw_method.decode('latin-1')[:20]} is not known here")
    target, path, query = _target(fields.target)
    old = version == b"HTTP/1.0"
    request = Request(method, target, path, query, headers, keep_alive=not old, old=old, received=received)
    connection = headers.get("connection")
    if connection is not None:
        options = {option.strip() for option in connection.lower().split(",")}
        request.keep_alive = "close" not in options and (not old or "keep-alive" in options)
    _body(request)
    return request


def _body(request: Request) -> None:
    """How the body comes. Raises HttpError for what is ambiguous or not understood."""
    headers = request.headers
    length = headers.get("content-length")
    transfer = headers.get("transfer-encoding")
    if transfer is not None:
        if length is not None:
            raise HttpError(400, "the request is not valid HTTP: it has both Content-Length and Transfer-Encoding")
        if request.old:
            raise HttpError(400, "the request is not valid HTTP: HTTP/1.0 has no Transfer-Encoding")
        if transfer.lower() != "chunked":
            raise HttpError(501, "the only Transfer-Encoding understood is chunked")
        request.chunked = True
    elif length is not None:
        if not length.isascii() or not length.isdigit() or len(length) > 15:
            raise HttpError(400, "the request is not valid HTTP: its Content-Length is no number of bytes")
        request.length = int(length)
    if headers.get("content-encoding", "").lower() not in _ENCODINGS:
        raise HttpError(501, "Unsupported compression type; gzip and deflate are understood")
    if headers.get("expect", "100-continue").lower() != "100-continue":
        raise HttpError(417, "the only expectation understood is 100-continue")


def _target(raw: bytes) -> tuple[str, str, str]:
    """Request target, decoded path and query. Raises HttpError 400."""
    try:
        target = raw.decode("ascii")
    except UnicodeDecodeError:
        raise HttpError(400, "the request target has characters that must be percent-encoded") from None
    path = target.partition("#")[0]
    if not path.startswith("/") and path != "*":
        # As sent to a proxy: http://host/path
        scheme, separator, rest = path.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            raise HttpError(400, "the request target is no path")
        host = re.split("[/?]", rest, maxsplit=1)[0]
        path = rest[len(host) :]
        if not path.startswith("/"):
            path = f"/{path}"
    path, _, query = path.partition("?")
    if "%" in path:
        path = _decoded(path)
    return target, path, query


def _decoded(path: str) -> str:
    try:
        decoded = unquote_to_bytes(path.replace("%2f", "%252F").replace("%2F", "%252F")).decode()
    except UnicodeDecodeError:
        raise HttpError(400, "the path is not UTF-8 after percent-decoding") from None
    if not decoded.isprintable():
        raise HttpError(400, "the path has control characters after percent-decoding")
    return decoded
