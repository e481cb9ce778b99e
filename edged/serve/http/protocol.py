"""One connection: answers requests one after the other, in order, and notices clients that hang up or are slow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable
from time import monotonic

from edged.serve.http import replies
from edged.serve.http.messages import Buffer, HttpError, Request, Response, problem
from edged.serve.http.receiving import MAX_AHEAD, NEVER, Receiving

log = logging.getLogger("edged.serve")

JOINED = 64 << 10
"""A reply up to this size is copied into one piece with its head: cheaper than a second call of the kernel."""


class Connection(Receiving):
    """The protocol of one accepted socket."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a TCP transport
        self._transport.set_write_buffer_limits(high=0)
        self.deadline = monotonic() + self._server.limits.idle_s
        if not self._server.opened(self):
            self._refuse(HttpError(503, "too many connections are open; try again later", retry_after_s=1))

    def eof_received(self) -> None:
        """A client that sends nothing more has hung up: the transport closes, and what is in flight is dropped."""

    def pause_writing(self) -> None:
        self._stuffed = True
        self.deadline = monotonic() + self._server.limits.write_s

    def resume_writing(self) -> None:
        self._stuffed = False
        if self.state == "idle":
            self._next()
        elif self.state in ("linger", "closed"):
            self.deadline = monotonic() + self._server.limits.linger_s

    def connection_lost(self, exc: Exception | None) -> None:
        self.state = "closed"
        self._server.lost(self)
        if self._stream is not None:
            self._stream.end(ConnectionError("the client hung up"))
        if self._task is not None:
            self._task.cancel()
        request = self._request
        self._done()
        self._ahead.clear()
        if request is not None:
            request.hang_up()

    # --- answering ----------------------------------------------------------------------------------------------------

    def handle(self, request: Request, together: int) -> None:
        """Give the request to the handler. A reply that is there at once is written at once."""
        if request is not self._request:
            return  # it hung up between two passes of the loop
        request.together = together
        try:
            result = self._server.handler(request)
        except Exception as error:
            result = self._server.fault(request, error)
        if isinstance(result, Response):
            self.respond(request, result)
        elif result is not None:
            self._task = self._loop.create_task(self._wait(request, result))

    async def _wait(self, request: Request, result: Awaitable[Response]) -> None:
        try:
            response = await result
        except asyncio.CancelledError:
            if request is self._request:  # not its client, but somebody else ended it
                self._transport.abort()
            raise
        except Exception as error:
            response = self._server.fault(request, error)
        self._task = None
        self.respond(request, response)

    def respond(self, request: Request, response: Response) -> None:
        """Send the reply; one to a request that is over goes nowhere."""
        if request is not self._request:
            return
        try:
            buffers, length = replies.parts(response)
            encoding = replies.encoding_for(request, response, length) if length >= replies.MIN_COMPRESSED else ""
            if encoding:
                self._task = self._loop.create_task(self._respond_compressed(request, response, encoding))
            else:
                self._send(request, response, buffers, length)
        except Exception:
            log.exception("the reply to %s %s cannot be sent", request.method, request.path[:200])
            self._transport.abort()

    async def _respond_compressed(self, request: Request, response: Response, encoding: str) -> None:
        try:
            response = await self._loop.run_in_executor(None, replies.compressed, response, encoding)
            self._task = None
            if request is self._request:
                self._send(request, response, *replies.parts(response))
        except Exception:
            log.exception("the reply to %s %s cannot be sent", request.method, request.path[:200])
            self._transport.abort()

    def _send(self, request: Request, response: Response, buffers: list[Buffer], length: int) -> None:
        unread = self._stream is not None and not self._stream.complete
        close = response.close or not request.keep_alive or self._server.draining or unread
        try:
            head = replies.head(request, response, length, close)
        except ValueError as error:
            response = self._server.fault(request, error)
            buffers, length = replies.parts(response)
            head = replies.head(request, response, length, close)
        self._done()
        request.settle()  # now: a hang-up callback that knows the request would keep its body until a collection
        transport = self._transport
        if request.method == "HEAD" or not length:
            transport.write(head)
        elif length <= JOINED:
            transport.write(b"".join((head, *buffers)))
        else:
            transport.write(head)
            for buffer in buffers:
                transport.write(buffer)
        if close:
            self._end(linger=unread or response.close)
            return
        self.state = "idle"
        if self._ahead or self._stuffed or not self._reading:
            if not self._stuffed:
                self._next()
        else:
            self.deadline = monotonic() + self._server.limits.idle_s
        if self._server.parting and self.idle:
            self._reading = False
            transport.pause_reading()

    def _next(self) -> None:
        """Idle again: go on with what has come meanwhile."""
        self.deadline = monotonic() + self._server.limits.idle_s
        if self._ahead:
            self._look(self._ahead, len(self._ahead))
        if not self._reading and len(self._ahead) <= MAX_AHEAD and self.state != "linger":
            self._reading = True
            self._transport.resume_reading()

    def _done(self) -> None:
        """The request is over: nothing of it is held any more."""
        server = self._server
        if self._counted:
            self._counted = False
            server.in_flight -= 1
        server.held -= self._held
        self._held = 0
        self._request = None
        self._body = self._chunked = self._stream = None

    def _refuse(self, error: HttpError) -> None:
        """Refuse what is not even a complete request, and end the connection: what follows cannot be understood."""
        method = self._request.method if self._request is not None else ""
        self._done()
        response = problem(error)
        buffers, length = replies.parts(response)
        head = replies.head(None, response, length, close=True)
        self._transport.write(head if method == "HEAD" else b"".join((head, *buffers)))
        self._end(linger=True)

    def _end(self, linger: bool) -> None:
        self._ahead.clear()
        limits = self._server.limits
        self.deadline = monotonic() + (limits.write_s if self._stuffed else limits.linger_s)
        if not linger:
            self.state = "closed"
            self._transport.close()
            return
        self.state = "linger"
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        with contextlib.suppress(OSError):  # the client has reset the connection; that is reported in a moment
            self._transport.write_eof()

    # --- what the server calls ----------------------------------------------------------------------------------------

    def expire(self) -> None:
        """The deadline has passed: the client was silent, slow, or does not take its reply."""
        limits = self._server.limits
        if self._stuffed or self.state in ("linger", "closed"):
            self._transport.abort()
        elif self.state == "idle":
            self.state = "closed"
            self._transport.close()
        elif self.state == "head":
            self._refuse(HttpError(408, f"the request header did not arrive within {limits.head_s:g} s"))
        elif self.state == "body":
            self._refuse(HttpError(408, f"the request body did not arrive within {limits.body_s:g} s"))
        elif self._stream is not None:
            self._stream.end(HttpError(408, f"nothing came for {limits.idle_s:g} s", close=True))
            self.deadline = NEVER

    @property
    def idle(self) -> bool:
        """True if nothing of a request or reply is here, so that another process can go on with the socket."""
        return self.state == "idle" and not self._ahead and not self._stuffed and not self._transport.is_closing()

    def read_again(self) -> None:
        """Nobody takes the connection over after all."""
        if self.idle and not self._reading:
            self._next()

    def detach(self) -> socket.socket:
        """A duplicate of the socket; this connection lets go of it without telling the client. Only while idle."""
        self._transport.pause_reading()
        duplicate: socket.socket = self._transport.get_extra_info("socket").dup()
        self.state = "closed"
        self._transport.abort()
        return duplicate

    @property
    def evictable(self) -> bool:
        """True if only patience keeps it open: no request of it is complete."""
        return self.state in ("idle", "head", "linger")

    def end(self) -> None:
        """Close after what is being sent."""
        if self.state == "idle" or self.state == "head":
            self._end(linger=False)

    def abort(self) -> None:
        """End the connection now."""
        self.state = "closed"
        self._transport.abort()
