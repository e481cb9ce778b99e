"""What every HTTP listener of cloudd has in common: JSON errors, bounded bodies and times, a limit on connections."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from sqlalchemy.exc import SQLAlchemyError

from cloudd.storage import StorageError
from edgekit.messages import Problem
from edgekit.webguard import peer_key

log = logging.getLogger("cloudd.web")

StructT = TypeVar("StructT", bound=msgspec.Struct)

STORAGE_ERRORS = (StorageError, SQLAlchemyError)
"""What rows and blobs raise when the disk is full or the database is away."""
MAX_JSON = 1 << 20
"""Bytes of a JSON body. The largest is a device's desired state; models and pictures have routes of their own."""
BODY_S = 20.0
"""Seconds a small body may take to arrive."""
DEVICE_ID = web.RequestKey("device_id", str)
"""Where a request of the device API carries the id of the device that sent it; strangers' requests do not have it."""
_KEEPALIVE_S = 75.0
_HANDSHAKE_S = 10.0


class HttpProblem(Exception):
    """Ends a request with this status and a Problem body."""

    def __init__(self, status: int, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.retry_after_s = status, text, retry_after_s


def problem(status: int, text: str, retry_after_s: float | None = None) -> web.Response:
    """An error reply: JSON Problem, with Retry-After if waiting helps."""
    reply = json_response(Problem(error=text, retry_after_s=retry_after_s), status)
    if retry_after_s is not None:
        reply.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return reply


def json_response(value: object, status: int = 200) -> web.Response:
    """A msgspec Struct (or anything msgspec encodes) as a JSON reply."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def read_body(request: web.Request, limit: int, timeout_s: float = BODY_S) -> bytes:
    """The whole body. Raises HttpProblem: 413 if it is larger than `limit` bytes, 408 if it takes longer."""
    too_large = f"the body is larger than {limit} bytes"
    if (request.content_length or 0) > limit:
        raise HttpProblem(413, too_large)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise HttpProblem(413, too_large)
    except TimeoutError:
        raise HttpProblem(408, f"the body did not arrive within {timeout_s:.0f} seconds") from None
    return bytes(body)


async def read_json(request: web.Request, struct: type[StructT], limit: int = MAX_JSON) -> StructT:
    """The body as one message. Raises HttpProblem 400 naming the field that is wrong, or as read_body does."""
    body = await read_body(request, limit)
    try:
        return msgspec.json.decode(body or b"{}", type=struct)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpProblem(400, f"the body is not the JSON that belongs here: {error}") from None


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a Problem: ours with its sentence, a bug with a 500 and a log."""
    try:
        return await handler(request)
    except HttpProblem as error:
        return problem(error.status, error.text, error.retry_after_s)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        reply = problem(error.status, _sentence(error.status, request))
        if "Allow" in error.headers:
            reply.headers["Allow"] = error.headers["Allow"]
        return reply
    except (ConnectionError, asyncio.CancelledError):
        raise
    except STORAGE_ERRORS as error:
        log.error("%s %s: %s", request.method, request.path, error)
        return problem(503, "cloudd's storage cannot be used at the moment; its log says why", 15.0)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return problem(500, "cloudd failed to handle this request; its log says why")


def _sentence(status: int, request: web.Request) -> str:
    where = f"{request.method} {request.path[:120]}"
    known = {404: f"there is nothing at {where}", 405: f"{where} is not possible here", 413: "the body is too large"}
    return known.get(status, f"{where} was refused")


def new_app(*middlewares: Middleware) -> web.Application:
    """An application with JSON errors, a body limit for handlers that read on their own, and no Server header."""
    app = web.Application(middlewares=[problems, *middlewares], client_max_size=MAX_JSON)

    async def hide_software(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers.popall("Server", None)

    app.on_response_prepare.append(hide_software)
    return app


class _Connection(web.RequestHandler):
    """aiohttp's HTTP protocol with our reply to bytes that are not HTTP: JSON, short, and without a stack trace."""

    __slots__ = ("on_lost",)

    on_lost: Callable[[], None]

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.on_lost()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the reply has begun; the connection can only be closed")
        log.info("bad request from %s: %s", request.remote, message or exc)
        text = "this is not an HTTP request that cloudd understands" if status < 500 else "cloudd failed"
        reply = problem(status, text)
        reply.headers["Server"] = "cloudd"
        reply.force_close()
        return reply


class _Doorkeeper(asyncio.Protocol):
    """Sees a connection first (after the TLS handshake) and hands it to HTTP, or closes it when there are too many."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        peer = stranger(transport)
        if not self._listener.admit(peer):
            transport.abort()
            return
        protocol = self._listener.new_connection(peer)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


class Listener:
    """Serves one application on one listening socket.

    `per_stranger` bounds the open connections of one address that shows no client certificate; a plant's devices may
    share an address, so connections with a certificate count only towards `total`.
    """

    def __init__(
        self,
        app: web.Application,
        sock: socket.socket,
        tls: ssl.SSLContext | None = None,
        *,
        total: int = 8192,
        per_stranger: int = 64,
        shutdown_s: float = 5.0,
    ) -> None:
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=shutdown_s)
        self._sock, self._tls = sock, tls
        self._total, self._per_stranger = total, per_stranger
        self._open = 0
        self._strangers: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Begin to accept. Raises OSError."""
        await self._runner.setup()
        handshake_s, shutdown_s = (None, None) if self._tls is None else (_HANDSHAKE_S, 2.0)
        if self._sock.family == socket.AF_UNIX:
            self._server = await self._loop.create_unix_server(lambda: _Doorkeeper(self), sock=self._sock, backlog=128)
        else:
            self._server = await self._loop.create_server(
                lambda: _Doorkeeper(self),
                sock=self._sock,
                ssl=self._tls,
                backlog=512,
                ssl_handshake_timeout=handshake_s,
                ssl_shutdown_timeout=shutdown_s,
            )

    async def stop(self) -> None:
        """Accept no more, let running requests end for a few seconds, close everything."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    def admit(self, stranger: str) -> bool:
        """Whether one more connection may be opened: by this stranger's address, or by a known device ("")."""
        if self._open >= self._total:
            return False
        if stranger and self._strangers[stranger] >= self._per_stranger:
            log.warning("%s opened more than %d connections without a certificate", stranger, self._per_stranger)
            return False
        return True

    def new_connection(self, stranger: str) -> web.RequestHandler:
        """The HTTP protocol for an admitted connection, which is counted until it is lost."""
        assert self._runner.server is not None
        connection = _Connection(
            self._runner.server,
            loop=self._loop,
            keepalive_timeout=_KEEPALIVE_S,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # aiohttp takes None for "no access log"
            lingering_time=2.0,
        )
        self._open += 1
        if stranger:
            self._strangers[stranger] += 1

        def lost() -> None:
            self._open -= 1
            if stranger:
                self._strangers[stranger] -= 1
                if not self._strangers[stranger]:
                    del self._strangers[stranger]

        connection.on_lost = lost
        return connection


def stranger(transport: asyncio.Transport) -> str:
    """Address (for IPv6 its /64) of a TLS peer without a certificate; "" for everybody else."""
    tls, peer = transport.get_extra_info("ssl_object"), transport.get_extra_info("peername")
    if tls is None or not isinstance(peer, tuple) or tls.getpeercert(binary_form=True):
        return ""
    return peer_key(str(peer[0]))


def listen_tcp(host: str, port: int) -> socket.socket:
    """A bound TCP socket (port 0: any free one). Raises OSError with the address in its text."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    return sock


def listen_unix(path: Path, mode: int = 0o660) -> socket.socket:
    """A bound unix socket with this mode, in place of a stale one. Nobody can connect before the mode is set."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(mode)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {path}: {error.strerror}") from None
    return sock
