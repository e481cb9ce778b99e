"""All connections of a worker: limits, the pump that hands requests over, deadlines, drain and hand-over."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic

from edged.serve.http.bodies import Spares
from edged.serve.http.messages import HttpError, Request, Response, problem
from edged.serve.http.protocol import Connection
from edged.serve.http.receiving import Receiving

log = logging.getLogger("edged.serve")

Handler = Callable[[Request], Response | Awaitable[Response] | None]
"""A Response is written at once; an awaitable becomes a task, cancelled when the client hangs up; None means that
`request.respond` is called later (`request.on_close` tells when nobody waits for it any more)."""

RECEIVED_AT_ONCE = 256 << 10
"""Bytes of the buffer into which all connections receive."""
_SPARE_FILES = 160
"""File descriptors that are not for connections."""
_TURNED_AWAY = 64
"""Connections beyond the limit that may be told so at one time; those beyond are closed without a word."""


def _most_connections() -> int:
    return max(64, min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0]) - _SPARE_FILES)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may use up: bytes and seconds."""

    body: int = 16 << 20
    """Bytes of one request body, after decompression."""
    bodies: int = 256 << 20
    """Bytes of all bodies in memory at one time; beyond that requests are shed."""
    head_s: float = 30.0
    """From the first byte of a request to the end of its header."""
    body_s: float = 30.0
    """From the end of the header to the end of the body."""
    idle_s: float = 300.0
    """Between two requests of a connection, and between two pieces of a streamed body."""
    write_s: float = 60.0
    """For taking a reply."""
    linger_s: float = 2.0
    """For reading over the rest of a body that was refused."""
    connections: int = field(default_factory=_most_connections)


class HttpServer:
    """The protocol factory for `loop.create_server`, and what its connections share. Create it on the loop."""

    def __init__(
        self,
        handler: Handler,
        limits: Limits | None = None,
        *,
        wants_stream: Callable[[str, str], bool] | None = None,
        admit: Callable[[Request], object] | None = None,
        fault: Callable[[Request, Exception], Response] | None = None,
        split_at: Callable[[Request], int] = lambda request: 0,
    ) -> None:
        """`wants_stream(method, path)`: the handler takes this body as `request.stream` while it arrives.

        `admit` may raise HttpError for a request whose body has not come yet, which then need not be sent.
        `fault` makes a reply of what a handler raised; without it only HttpError is more than an internal error.
        `split_at(request)`: where in its body numbers begin, which are wanted aligned.
        """
        self.handler, self.limits = handler, limits or Limits()
        self.wants_stream, self.admit = wants_stream, admit
        self.split_at = split_at
        self._fault = fault
        self.loop = asyncio.get_running_loop()
        self.scratch = bytearray(RECEIVED_AT_ONCE)
        self.window = memoryview(self.scratch)
        self.spares = Spares()
        self.held = 0
        """Bytes of request bodies in memory."""
        self.in_flight = 0
        """Requests that a handler has."""
        self.draining = False
        """Set it: every reply closes its connection from now on."""
        self.parting = False
        self._connections: dict[Connection, None] = {}
        self._batch: list[tuple[Receiving, Request]] = []
        self._scheduled = False
        self.receiving = False
        """A connection looks at what it received, and calls `received` at the end."""
        # What the loop has yet to do in this pass. Where it shows that (asyncio's own does) and that is nothing, the
        # request just received is the only one, and waiting for the next pass would cost a fifth of a small reply.
        self._others: deque[object] | None = getattr(self.loop, "_ready", None)
        self._sweeping: asyncio.TimerHandle | None = None
        limits = self.limits
        shortest = min(limits.head_s, limits.body_s, limits.idle_s, limits.write_s, limits.linger_s)
        self._sweep_s = min(1.0, shortest / 4)

    def __call__(self) -> Connection:
        """A protocol for the next connection."""
        return Connection(self)

    @property
    def connections(self) -> list[Connection]:
        """All that are open."""
        return list(self._connections)

    def idle_connections(self, most: int | None = None) -> list[socket.socket]:
        """Take the idle connections (at most `most`) away from this process, as sockets of which not a byte is lost.

        For the hand-over to a successor, which calls `adopt` with each; the caller closes its copies. What a client
        sends meanwhile waits in the socket. Connections with a request under way stay; ask again when they are idle.
        With `part` they read nothing between their reply and that.
        """
        return [connection.detach() for connection in [one for one in self.connections if one.idle][:most]]

    def part(self, parting: bool) -> None:
        """Whether a connection that has replied leaves what comes next in its socket, for a successor to read."""
        self.parting = parting
        if not parting:
            for connection in self.connections:
                connection.read_again()

    async def adopt(self, sock: socket.socket) -> None:
        """Go on with a connection that another process gave away. The socket belongs to the server from now on."""
        sock.setblocking(False)
        sock.set_inheritable(False)
        await self.loop.connect_accepted_socket(self, sock)

    async def shutdown(self, timeout_s: float) -> None:
        """Answer what is in flight for at most so long, then end all connections."""
        self.draining = True
        until = monotonic() + timeout_s
        while self._connections and monotonic() < until:
            for connection in self.connections:
                connection.end()
            await asyncio.sleep(0.01)  # for sockets to drain; no event tells
        for connection in self.connections:
            connection.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        await asyncio.sleep(0)  # for the tasks of aborted connections, which end by being cancelled

    def fault(self, request: Request, error: Exception) -> Response:
        """The reply to a request whose handler raised."""
        if self._fault is not None:
            try:
                return self._fault(request, error)
            except Exception as second:
                error = second
        if isinstance(error, HttpError):
            return problem(error)
        log.error("%s %s failed", request.method, request.path[:200], exc_info=error)
        return problem(HttpError(500, "an internal error occurred; the log of edged has the details"))

    # --- what connections call ----------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> bool:
        """A connection has opened; False if it is one too many. The longest idle one makes room for it."""
        self._connections[connection] = None
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(self._sweep_s, self._sweep)
        if len(self._connections) <= self.limits.connections:
            return True
        idle = [other for other in self._connections if other.evictable and other is not connection]
        if idle:
            min(idle, key=lambda other: other.deadline).abort()
            return True
        if len(self._connections) > self.limits.connections + _TURNED_AWAY:
            connection.abort()
        return False

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.pop(connection, None)

    def ready(self, connection: Receiving, request: Request) -> None:
        """A request is complete. All that become complete in one pass of the loop are handled together."""
        self._batch.append((connection, request))
        if not self.receiving and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._pump)

    def received(self) -> None:
        """A connection has looked at what it received: go on now, or after the others of this pass."""
        self.receiving = False
        if self._batch and not self._scheduled:
            if self._others is not None and not self._others:
                self._pump()
            else:
                self._scheduled = True
                self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        batch, self._batch = self._batch, []
        for connection, request in batch:
            connection.handle(request, len(batch))

    def _sweep(self) -> None:
        now = monotonic()
        for connection in self.connections:
            if connection.deadline <= now:
                connection.expire()
        self._sweeping = self.loop.call_later(self._sweep_s, self._sweep) if self._connections else None
