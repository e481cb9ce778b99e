"""HTTP without surprises: bounded bodies, and every refusal is JSON, whoever noticed the fault."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from edgekit.messages import Problem

log = logging.getLogger("edged.serve")

MAX_BODY = 16 << 20
"""Bytes of one request body, after decompression."""
MAX_BODIES = 256 << 20
"""Bytes of all bodies in memory at one time; beyond that requests are shed."""
BODY_TIMEOUT_S = 30.0

_PLAIN = frozenset({"", "identity", "gzip", "deflate"})


class HttpError(Exception):
    """A refusal: status, a sentence for people, and when to try again if that helps."""

    def __init__(
        self,
        status: int,
        text: str,
        *,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
        close: bool = False,
    ) -> None:
        """`close`: the connection cannot be used any more, because what is left of the body is not worth reading."""
        super().__init__(text)
        self.status, self.text, self.retry_after_s = status, text, retry_after_s
        self.headers = headers or {}
        self.close = close


def problem(error: HttpError) -> web.Response:
    """The reply for a refusal: {"error": ...}, with Retry-After where it helps."""
    headers = dict(error.headers)
    retry = error.retry_after_s
    if retry is not None:
        headers["Retry-After"] = str(retry)
    body = Problem(error=error.text, retry_after_s=None if retry is None else float(retry))
    response = json_response(body, status=error.status, headers=headers)
    if error.close:
        response.force_close()
    return response


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A msgspec-encodable value as JSON."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, headers=headers, content_type="application/json"
    )


class BodyReader:
    """Reads request bodies within MAX_BODY each and MAX_BODIES together."""

    def __init__(self, each: int = MAX_BODY, together: int = MAX_BODIES, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._each, self._together, self._timeout_s = each, together, timeout_s
        self._held = 0

    async def read(self, request: web.BaseRequest) -> bytes:
        """The whole, decompressed body. Raises HttpError 400, 408, 413, 501 or 503.

        The bytes count as held until `release` is called with their number.
        """
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _PLAIN:
            raise HttpError(501, "Unsupported compression type; gzip and deflate are understood")
        if request.content_length is not None and request.content_length > self._each:
            raise self._too_large()
        if request.headers.get("Expect", "").strip().lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                while chunk := await request.content.readany():
                    self._held += len(chunk)
                    body += chunk
                    if len(body) > self._each:
                        raise self._too_large()
                    if self._held > self._together:
                        raise HttpError(
                            503, "too many pictures are being received at once", retry_after_s=1, close=True
                        )
        except TimeoutError:
            self.release(len(body))
            raise HttpError(
                408, f"the request body did not arrive within {self._timeout_s:.0f} s", close=True
            ) from None
        except (web.RequestPayloadError, HttpProcessingError, ClientError, ValueError) as error:
            self.release(len(body))
            reason = str(error).rpartition("\n")[2].strip()
            raise HttpError(400, f"the request body cannot be read: {reason}", close=True) from None
        except BaseException:
            self.release(len(body))
            raise
        return bytes(body)

    def release(self, size: int) -> None:
        """Bytes that are no longer held."""
        self._held -= size

    def _too_large(self) -> HttpError:
        return HttpError(413, f"the request body exceeds {self._each} bytes", close=True)


class JsonErrorHandler(RequestHandler):
    """Answers what never reaches our handler (malformed HTTP, oversized headers) in JSON, too."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp's hook for requests it cannot parse and handlers that failed. The connection closes afterwards."""
        if request.writer.output_size > 0:
            raise ConnectionError("part of a reply is sent already")
        if status >= 500:
            log.error("request from %s failed", request.remote, exc_info=exc)
            text = "an internal error occurred; the log of edged has the details"
        else:
            text = (message or "").strip().partition("\n")[0].rstrip(": ") or "the request is not valid HTTP"
        return problem(HttpError(status, text, close=True))

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """A client's broken body is its own fault, answered already; it must not fill our log."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)


class _Request(web.BaseRequest):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """aiohttp's last look at a reply. It names itself and its version there, which is nobody's business."""
        response.headers.pop("Server", None)


class JsonServer(web.Server):
    """aiohttp's low-level server with our error replies. A handler is cancelled when its client hangs up."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], **options: Any) -> None:
        super().__init__(handler, request_factory=self._request, **options)

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return _Request(message, payload, protocol, writer, task, self._loop)

    def __call__(self) -> RequestHandler:
        return JsonErrorHandler(self, loop=self._loop, **self._kwargs)
