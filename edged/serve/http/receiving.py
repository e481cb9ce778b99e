"""How a connection receives: heads, bodies in one piece, in chunks or as a stream, and what comes too early.

Bytes land in a buffer that all connections share; a large body lands where it stays.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, Literal

from edged.serve.http import replies
from edged.serve.http.bodies import BodyStream, Chunked, inflate
from edged.serve.http.heads import END, MAX_HEAD, MAX_METHOD, may_begin, parse_head
from edged.serve.http.messages import HttpError, Request, Response, problem

if TYPE_CHECKING:
    from edged.serve.http.server import HttpServer

State = Literal["idle", "head", "body", "busy", "linger", "closed"]
"""`idle`: nothing of a request is here. `busy`: a handler has the request. `linger`: the last reply is sent, and what
the client still sends is read over, because closing on it would destroy the reply."""

ALIGNMENT = 16
"""A large body lies so that what is behind the server's `split_at` begins at a multiple of it: numbers can be read
there without a copy."""
FIRST_CLAIM = 1 << 20
"""Bytes reserved for a body before it comes; beyond that, room grows with what has come."""
MAX_KEPT_HEAD = 2 << 10
"""Bytes of a head that is kept to recognise the next one by."""
MAX_AHEAD = 64 << 10
"""Bytes of pipelined requests kept while one is being answered; then the client waits."""
MAX_BREAKS = 16
"""Bytes of empty lines that may come before a request."""
NEVER = float("inf")


class Receiving(asyncio.BufferedProtocol):
    """The receiving half of a connection."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._loop = server.loop
        self._scratch = server.scratch
        self._window = server.window
        self._transport: asyncio.Transport = None  # type: ignore[assignment] # set before anything else is called
        self.state: State = "idle"
        self.deadline = 0.0
        """Time of the monotonic clock at which `expire` is due."""
        self._last_head = b""
        self._last: Request | None = None  # what `_last_head` says
        self._ahead = bytearray()  # received, but not looked at yet
        self._request: Request | None = None
        self._body: bytearray | None = None
        self._lead = 0  # bytes before the body in that buffer
        self._got = 0  # with them
        self._chunked: Chunked | None = None
        self._stream: BodyStream | None = None
        self._stream_left = 0
        self._held = 0  # bytes of this request's body that count for all connections together
        self._counted = False  # among the requests in flight
        self._task: asyncio.Task[None] | None = None
        self._stuffed = False  # the client does not take its reply
        self._reading = True

    @abstractmethod
    def handle(self, request: Request, together: int) -> None:
        """Give the request to the handler. A reply that is there at once is written at once."""

    @abstractmethod
    def respond(self, request: Request, response: Response) -> None:
        """Send the reply; one to a request that is over goes nowhere."""

    @abstractmethod
    def _refuse(self, error: HttpError) -> None:
        """Refuse what is not even a complete request, and end the connection: what follows cannot be understood."""

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None and self._chunked is None:
            if self._got == len(self._body):
                assert self._request is not None
                self._body.extend(bytes(min(self._got, self._lead + self._request.length - self._got)))
            return memoryview(self._body)[self._got :]
        return self._window

    def buffer_updated(self, nbytes: int) -> None:
        server = self._server
        server.receiving = True
        try:
            if self._body is not None and self._chunked is None:
                self._more_body(nbytes)
            elif self.state == "idle":
                if self._last is None or not self._same_again(self._last, nbytes):
                    self._look(self._scratch, nbytes)
            else:
                self._more(nbytes)
        finally:
            server.received()

    def _more(self, nbytes: int) -> None:
        data = self._window[:nbytes]
        if self.state == "head":
            self._ahead += data
            self._look(self._ahead, len(self._ahead))
        elif self.state == "body":
            self._more_chunks(data)
        elif self.state == "busy":
            if self._stream is not None and not self._stream.ended:
                self._more_stream(data)
            else:
                self._keep(data)

    def _look(self, buffer: bytearray, size: int) -> None:
        """Is there a whole head at the start of these `size` bytes? `buffer` is the shared one or `_ahead`."""
        start = 0
        while buffer[start] in b"\r\n":  # allowed between requests, and some clients send it
            start += 1
            if start == size:
                self._ahead.clear()
                return
            if start > MAX_BREAKS:
                self._refuse(HttpError(400, "the request is not valid HTTP: it begins with empty lines"))
                return
        end = buffer.find(END, start, min(size, start + MAX_HEAD))
        if end < 0:
            self._part_of_head(buffer, start, size)
            return
        end += len(END)
        refusal: HttpError | None = None
        ahead = b""
        with memoryview(buffer) as view, view[end:size] as rest:
            try:
                used = self._begin(bytes(view[start:end]), rest)
                ahead = bytes(rest[used:])
            except HttpError as error:
                refusal = error
        if buffer is self._ahead:
            self._ahead = bytearray(ahead)
        elif ahead:
            self._ahead += ahead
        if refusal is not None:
            self._refuse(refusal)

    def _same_again(self, last: Request, nbytes: int) -> bool:
        """Take the request if its head is that of the last one, byte for byte, and no more of it than its body is here.

        That is what a steady client sends, and reading a head is a third of what a small request costs.
        """
        head = self._last_head
        size = len(head)
        missing = size + last.length - nbytes
        # What lies behind `nbytes` is of an earlier request.
        if nbytes < size or missing < 0 or not self._scratch.startswith(head):
            return False
        request = last.again(monotonic())
        request.attach(self)
        if missing:
            try:
                self._await_body(request, self._window[size:nbytes])
            except HttpError as error:
                self._refuse(error)
            return True
        if last.length:
            try:
                self._hold(last.length)
            except HttpError as error:
                self._refuse(error)
                return True
            request.body = bytes(self._window[size:nbytes])
        self._request = request
        self.state = "busy"
        self.deadline = NEVER
        self._count()
        self._server.ready(self, request)
        return True

    def _part_of_head(self, buffer: bytearray, start: int, size: int) -> None:
        if size - start >= MAX_HEAD:
            self._refuse(HttpError(431, f"the request header exceeds {MAX_HEAD} bytes"))
            return
        if not may_begin(buffer[start : min(size, start + MAX_METHOD)]):
            self._refuse(HttpError(400, "the request is not valid HTTP: it does not begin with a method"))
            return
        if buffer is self._ahead:
            del self._ahead[:start]
        else:
            self._ahead += self._window[start:size]
        if self.state == "idle":
            self.state = "head"
            self.deadline = monotonic() + self._server.limits.head_s

    def _begin(self, head: bytes, rest: memoryview) -> int:
        """A head and what came with it: how many bytes of `rest` are this request's body. Raises HttpError."""
        server = self._server
        received = monotonic()
        request = parse_head(head, received)
        request.attach(self)
        if server.wants_stream is not None and server.wants_stream(request.method, request.path):
            return self._begin_stream(request, rest)
        length = request.length
        if length > server.limits.body:
            raise HttpError(413, f"the request body exceeds {server.limits.body} bytes")
        if length <= len(rest) and not request.chunked:
            if length:
                self._hold(length)
                request.body = bytes(rest[:length])
            self._request = request
            self._complete(request)
            self._remember(head, request)
            return length
        if request.chunked:
            self._expect_body(request, not rest)
            self._chunked, self._body = Chunked(), bytearray()
            return self._feed_chunks(rest)
        self._await_body(request, rest)
        self._remember(head, request)
        return len(rest)

    def _remember(self, head: bytes, request: Request) -> None:
        """The next request of this connection may begin with the same head."""
        if len(head) <= MAX_KEPT_HEAD and not request.headers.keys() & {"content-encoding", "expect"}:
            self._last_head, self._last = head, request.again(0.0)

    def _expect_body(self, request: Request, nothing_came: bool) -> None:
        """More of this request is to come. Raises HttpError if it need not."""
        server = self._server
        if server.admit is not None:
            server.admit(request)
        self._request = request
        self.state = "body"
        self.deadline = request.received + server.limits.body_s
        if "expect" in request.headers and nothing_came and not request.old:
            self._transport.write(replies.CONTINUE)

    def _await_body(self, request: Request, start: memoryview) -> None:
        """Receive a body of known length, which begins with `start`. Raises HttpError."""
        self._expect_body(request, not start)
        got = len(start)
        self._hold(got)
        lead = self._lead = -self._server.split_at(request) % ALIGNMENT
        size = lead + request.length
        body = self._server.spares.take(size) or bytearray(min(size, max(FIRST_CLAIM, lead + got)))
        body[lead : lead + got] = start
        self._body, self._got = body, lead + got

    def _more_body(self, nbytes: int) -> None:
        self._got += nbytes
        assert self._request is not None and self._body is not None
        try:
            self._hold(nbytes)
        except HttpError as error:
            self._refuse(error)
            return
        if self._got == self._lead + self._request.length:
            self._server.spares.keep(self._body)
            self._request.body = memoryview(self._body)[self._lead :] if self._lead else self._body
            self._complete(self._request)

    def _more_chunks(self, data: memoryview) -> None:
        try:
            used = self._feed_chunks(data)
        except HttpError as error:
            self._refuse(error)
            return
        if used < len(data):
            self._keep(data[used:])

    def _feed_chunks(self, data: memoryview) -> int:
        assert self._chunked is not None and self._body is not None and self._request is not None
        used = self._chunked.feed(data, self._take)
        if self._chunked.done:
            self._request.body = self._body
            self._complete(self._request)
        return used

    def _take(self, part: memoryview) -> None:
        assert self._body is not None
        if len(self._body) + len(part) > self._server.limits.body:
            raise HttpError(413, f"the request body exceeds {self._server.limits.body} bytes")
        self._hold(len(part))
        self._body += part

    def _hold(self, size: int) -> None:
        """Count bytes of bodies. Raises HttpError 503 when all connections together hold too many."""
        server = self._server
        server.held += size
        self._held += size
        if server.held > server.limits.bodies:
            raise HttpError(503, "too many pictures are being received at once", retry_after_s=1)

    def _complete(self, request: Request) -> None:
        """The body is all here: decompress it if need be, then it is the handler's turn."""
        self._body = self._chunked = None
        self.state = "busy"
        self.deadline = NEVER
        self._count()
        encoding = request.headers.get("content-encoding", "").lower()
        if encoding and encoding != "identity" and request.body:
            limit = self._server.limits.body
            self._task = self._loop.create_task(self._inflate(request, encoding, limit))
        else:
            self._server.ready(self, request)

    async def _inflate(self, request: Request, encoding: str, limit: int) -> None:
        """In a thread, because it takes as long as a model. A client that hangs up meanwhile is forgotten."""
        try:
            plain = await self._loop.run_in_executor(None, inflate, request.body, encoding, limit)
            self._hold(len(plain) - len(request.body))
        except HttpError as error:
            self.respond(request, problem(error))
        except Exception as error:
            self.respond(request, self._server.fault(request, error))
        else:
            request.body = plain
            self._server.ready(self, request)
        finally:
            self._task = None

    def _count(self) -> None:
        self._counted = True
        self._server.in_flight += 1

    def _keep(self, data: memoryview) -> None:
        """The start of the next request, while this one is being answered."""
        self._ahead += data
        if len(self._ahead) > MAX_AHEAD and self._reading:
            self._reading = False
            self._transport.pause_reading()

    # --- a body that is read while it comes ---------------------------------------------------------------------------

    def _begin_stream(self, request: Request, rest: memoryview) -> int:
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpError(501, "a stream cannot be compressed")
        if self._server.admit is not None:
            self._server.admit(request)
        self._request = request
        self._stream = BodyStream(self._resume_stream)
        request.stream = self._stream
        self._chunked = Chunked() if request.chunked else None
        self._stream_left = request.length
        if "expect" in request.headers and not rest and not request.old:
            self._transport.write(replies.CONTINUE)
        self.state = "busy"
        self._count()
        self._server.ready(self, request)
        return self._feed_stream(rest)

    def _more_stream(self, data: memoryview) -> None:
        assert self._stream is not None
        try:
            used = self._feed_stream(data)
        except HttpError as error:
            self._stream.end(error)
            return
        if used < len(data):
            self._keep(data[used:])

    def _feed_stream(self, data: memoryview) -> int:
        stream = self._stream
        assert stream is not None
        self.deadline = monotonic() + self._server.limits.idle_s
        if self._chunked is not None:
            used = self._chunked.feed(data, stream.feed)
            complete = self._chunked.done
        else:
            used = min(len(data), self._stream_left)
            if used:
                stream.feed(data[:used])
            self._stream_left -= used
            complete = not self._stream_left
        if complete:
            stream.end()
            self.deadline = NEVER
        elif stream.full and self._reading:
            self._reading = False
            self._transport.pause_reading()
            self.deadline = NEVER  # now it is the reader who is slow
        return used

    def _resume_stream(self) -> None:
        if not self._reading and self._stream is not None and not self._stream.ended and self.state == "busy":
            self._reading = True
            self._transport.resume_reading()
            self.deadline = monotonic() + self._server.limits.idle_s
