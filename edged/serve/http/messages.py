"""What a handler gets and gives: Request, Response, and HttpError for refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl

import msgspec

from edgekit.messages import Problem

Buffer = bytes | bytearray | memoryview
"""Bytes without a copy; a memoryview must be contiguous and of items of one byte."""

MAX_QUERY_FIELDS = 32


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


class Responder(Protocol):
    """Where the reply to a request goes: the connection it came by."""

    def respond(self, request: Request, response: Response) -> None:
        """Send the reply, unless the client is gone or has it already."""
        ...


class Request:
    """One request, complete unless `stream` is set. Use it on the event loop.

    `headers` has lower-case names; the values of a repeated header are joined with ", ". `path` is percent-decoded
    once, except that an encoded slash stays encoded, so that splitting at slashes is safe. `body` is complete and
    decompressed; it is a `bytearray` when it came in several parts and nobody else holds it, so it may be kept.
    `received` is the monotonic time at which the header was complete. `together` counts the requests that came in the
    same pass of the event loop, this one included. `stream`: the body's chunks as they arrive, only on routes that
    asked for it.
    """

    __slots__ = (
        "_closers",
        "_query",
        "_responder",
        "body",
        "chunked",
        "closed",
        "headers",
        "keep_alive",
        "length",
        "method",
        "old",
        "path",
        "query_string",
        "received",
        "stream",
        "target",
        "together",
    )

    def __init__(
        self,
        method: str,
        target: str,
        path: str,
        query_string: str,
        headers: Mapping[str, str],
        *,
        length: int = 0,
        chunked: bool = False,
        keep_alive: bool = True,
        old: bool = False,
        received: float = 0.0,
    ) -> None:
        """`length` and `chunked` say how the body comes; `old`: the client speaks HTTP/1.0."""
        self.method, self.target, self.path, self.query_string = method, target, path, query_string
        self.headers = headers
        self.length, self.chunked, self.keep_alive, self.old = length, chunked, keep_alive, old
        self.received = received
        self.body: Buffer = b""
        self.stream: AsyncIterator[bytes] | None = None
        self.together = 1
        self.closed = False
        self._query: dict[str, str] | None = None
        self._closers: list[Callable[[], None]] | None = None
        self._responder: Responder | None = None

    def again(self, received: float) -> Request:
        """Another request with the same head and no body yet."""
        return Request(
            self.method,
            self.target,
            self.path,
            self.query_string,
            self.headers,
            length=self.length,
            chunked=self.chunked,
            keep_alive=self.keep_alive,
            old=self.old,
            received=received,
        )

    @property
    def query(self) -> Mapping[str, str]:
        """The fields behind the question mark; the last one wins. Raises HttpError 400 for more than 32 of them."""
        if self._query is None:
            try:
                fields = parse_qsl(self.query_string, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
            except ValueError:
                raise HttpError(400, f"the query has more than {MAX_QUERY_FIELDS} fields") from None
            self._query = dict(fields)
        return self._query

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; `application/octet-stream` if the client names none."""
        named = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        return named or "application/octet-stream"

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call this when the client hangs up before it has its reply; at once if it has hung up already."""
        if self.closed:
            callback()
        elif self._closers is None:
            self._closers = [callback]
        else:
            self._closers.append(callback)

    def respond(self, response: Response) -> None:
        """The reply of a handler that returned None. On the loop; a client that is gone gets nothing, without fuss."""
        if self._responder is not None:
            self._responder.respond(self, response)

    def attach(self, responder: Responder) -> None:
        """Say where the reply goes. For the connection."""
        self._responder = responder

    def settle(self) -> None:
        """It is answered: let go of what waited for that. For the connection."""
        self._responder = self._closers = None

    def hang_up(self) -> None:
        """The client is gone: tell whoever asked to know. For the connection."""
        self.closed = True
        self._responder = None
        closers, self._closers = self._closers, None
        for callback in closers or ():
            callback()


class Response:
    """A reply. `body` is bytes or a sequence of buffers that are sent one behind the other.

    `close` ends the connection after it. HEAD, Content-Length and compression are the connection's business.
    """

    __slots__ = ("body", "close", "content_type", "headers", "status")

    def __init__(
        self,
        status: int = 200,
        body: Buffer | Sequence[Buffer] = b"",
        content_type: str = "",
        headers: dict[str, str] | None = None,
        close: bool = False,
    ) -> None:
        self.status, self.body, self.content_type, self.headers, self.close = status, body, content_type, headers, close


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A msgspec-encodable value as JSON."""
    return Response(status, msgspec.json.encode(value), "application/json", headers)


def problem(error: HttpError) -> Response:
    """The reply for a refusal: {"error": ...}, with Retry-After where it helps."""
    headers = dict(error.headers)
    retry = error.retry_after_s
    if retry is not None:
        headers["Retry-After"] = str(retry)
    body = Problem(error=error.text, retry_after_s=None if retry is None else float(retry))
    response = json_response(body, error.status, headers)
    response.close = error.close
    return response
