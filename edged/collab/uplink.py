"""Asks cloudd over one persistent mTLS session. Every wait has an end and every reply a size limit."""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec.structs import replace

from edged.collab.uplink_replies import MAX_TEXT, Kind, check_regions, cloud_ms, is_sane, refusal
from edged.collab.uplink_replies import UplinkError as UplinkError
from edged.collab.uplink_turns import Leaving, Turns
from edgekit.envelope import seal
from edgekit.identity import IdentityError, client_context, fingerprint, parse_certificate
from edgekit.messages import Answer, HardSample, Link, in_full, packed
from edgekit.regions.header import RegionError
from edgekit.vision.sniff import ImageError

if TYPE_CHECKING:
    import aiohttp  # a third of a worker's start; imported with the first link, so that others do without

MAX_PICTURE = 16 << 20
"""Bytes. cloudd takes no larger picture."""
MAX_REPLY = 512 * 1024
"""Bytes. An answer has a few hundred; one with the most boxes that a mosaic may have, and long labels, 400,000."""

log = logging.getLogger("edged.collab")

_CHUNK = 64 * 1024
_HEADER = 600  # bytes before a picture, about
_CONNECTIONS = 8
_KEEP_ALIVE_S = 75.0


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request to cloudd as the link saw it; see `Uplink.observers`."""

    size: int
    """Bytes of the body, without HTTP's and TLS's own; 0: only a health check."""
    seconds: float
    """From asking for a connection to the end of the reply, or until it failed or was given up."""
    outcome: Literal["answered"] | Kind
    """`answered`: a whole reply of status 200 came; else the kind of the UplinkError."""
    reused: bool
    """It went over a kept connection, so `seconds` holds no handshake."""
    cloud_ms: float
    """Of `seconds`, what cloudd says it waited and computed; 0 if it said nothing. Its word: check before use."""
    small: bool
    """It had no body, so it shows the round trip and not the bandwidth."""


@dataclass(eq=False)
class _Line:
    """One client session and the link it was made for. A replaced one is closed when its last user has gone."""

    link: Link
    session: aiohttp.ClientSession
    authority: str
    users: int = 0
    retired: bool = False


@dataclass(eq=False)
class _Trace:
    """What happened to one request so far."""

    reused: bool = False
    sent: bool = False
    cloud_ms: float = 0.0
    leaving: Leaving | None = None


_asking: ContextVar[_Trace] = ContextVar("asking")
"""The request for which this task asks for a connection: aiohttp tells nobody else which one it gets."""


class Uplink:
    """The client half of `POST /v1/answers`. Belongs to one event loop."""

    def __init__(self, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        """Opens nothing yet. `clock`: seconds; only for what observers are told."""
        self._link = link
        self._line: _Line | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._clock = clock
        self.observers: list[Callable[[Exchange], None]] = []
        """Each is called in the event loop at the end of every request that had a link, however it ended; one that
        its caller cancelled is not told. They must be quick; one that raises is logged and harms nobody."""
        self.turns: Turns | None = None
        """Who lets one body after the other leave; None: each leaves when it comes."""
        self.bytes = 0
        """Bytes of requests and replies so far, without TLS and TCP headers."""
        self.takes_webp = False
        """cloudd has said in its last answer to a mosaic that the next one may be a WebP."""

    @property
    def link(self) -> Link:
        return self._link

    def set_link(self, link: Link) -> None:
        """Use this link from now on. Requests under way end on the old connection."""
        same = (link.url, link.identity, link.generation) == (
            self._link.url,
            self._link.identity,
            self._link.generation,
        )
        self._link = link
        if link.url:
            import aiohttp  # noqa: F401 - now, and not while the first sample waits
        if not same:
            self.takes_webp = False
            self._retire()

    def authority(self) -> str:
        """Fingerprint of the pinned authority, for the record of what left. Raises UplinkError if there is none."""
        return self._open().authority

    async def ask(self, header: HardSample, picture: bytes, timeout_s: float) -> Answer:
        """Send one sample and wait for its answer, `timeout_s` at most for everything. Raises UplinkError.

        A kept connection that the other side has closed meanwhile is no failure: the request, which cloudd answers only
        once for each sample id, is repeated on a fresh one in the time that is left.
        """
        if len(picture) > MAX_PICTURE:
            text = f"the picture has {len(picture)} bytes; cloudd takes {MAX_PICTURE}"
            raise UplinkError("rejected", text, status=413)
        end = self._clock() + timeout_s
        if header.late or header.reason == "audit":
            header = replace(header, priority="audit")  # nobody waits for it, whatever its service is
        turns = self.turns
        if turns is None:
            return await self._ask(_with_time(header, timeout_s), picture, timeout_s, None)
        try:
            async with asyncio.timeout(timeout_s):
                key = await turns.begin(header, len(picture) + _HEADER)
        except TimeoutError:
            raise UplinkError("timeout", f"the uplink was not free within {timeout_s * 1000:.0f} ms") from None
        try:
            left = max(0.0, end - self._clock())
            leaving = Leaving(len(picture), lambda fresh: turns.sent(key, fresh))
            return await self._ask(_with_time(header, left, timeout_s - left), picture, left, leaving)
        finally:
            turns.end(key)

    async def _ask(self, header: HardSample, picture: bytes, timeout_s: float, leaving: Leaving | None) -> Answer:
        body = seal(*packed(header, picture))
        try:
            reply = await self._request("POST", "/v1/answers", body, timeout_s, _Trace(leaving=leaving))
        except UplinkError as error:
            if error.kind == "rejected" and header.mosaic is not None:  # it may be an older cloudd by now
                self.takes_webp = False
            raise
        try:
            answer = in_full(header, msgspec.json.decode(reply, type=Answer))
        except (msgspec.MsgspecError, RegionError) as error:
            raise UplinkError("down", f"cloudd's answer cannot be read ({error})", sent=True) from error
        if answer.sample_id != header.sample_id or not is_sane(answer):
            raise UplinkError("down", "cloudd's answer does not belong to this sample or is no answer", sent=True)
        if header.mosaic is not None and answer.mosaic is None:  # it has answered now, and keeps to that
            raise UplinkError("rejected", "cloudd does not know regions yet and must be updated", sent=True)
        try:
            check_regions(header, answer, picture)
        except (RegionError, ImageError, OverflowError) as error:
            raise UplinkError("down", f"cloudd's answer cannot be used ({error})", sent=True) from error
        if header.mosaic is not None:
            self.takes_webp = answer.webp
        return answer

    async def check(self, timeout_s: float) -> bool:
        """Find out whether cloudd can be reached, and leave a warm connection. Raises UplinkError.

        True if it went over a kept connection, so that it took no handshake.
        """
        trace = _Trace()
        await self._request("GET", "/v1/health", None, timeout_s, trace)
        return trace.reused

    def renew(self) -> None:
        """What is connected may be dead: use fresh connections from now on. Requests under way end on the old ones."""
        self._retire()

    async def close(self) -> None:
        """Close every connection."""
        self._retire()
        if self._closing:
            await asyncio.wait(self._closing)

    # --- one request -------------------------------------------------------------------------------------------------

    async def _request(self, method: str, path: str, body: bytes | None, timeout_s: float, trace: _Trace) -> bytes:
        """One request, of which the observers are told."""
        line = self._open()
        started = self._clock()
        outcome: Literal["answered"] | Kind = "answered"
        reply = b""
        try:
            reply = await self._reply(line, method, path, body, timeout_s, trace)
            return reply
        except UplinkError as error:
            outcome = error.kind
            raise
        except BaseException:  # called off: that says nothing about the link
            started = math.nan
            raise
        finally:
            if self.observers and not math.isnan(started):
                self._tell(
                    Exchange(
                        size=len(body or b""),
                        seconds=self._clock() - started,
                        outcome=outcome,
                        reused=trace.reused,
                        cloud_ms=cloud_ms(reply) if reply and body is not None else 0.0,
                        small=body is None,
                    )
                )

    def _tell(self, exchange: Exchange) -> None:
        for observer in self.observers:
            try:
                observer(exchange)
            except Exception:
                log.exception("an observer of the uplink failed")

    async def _reply(
        self, line: _Line, method: str, path: str, body: bytes | None, timeout_s: float, trace: _Trace
    ) -> bytes:
        import aiohttp

        line.users += 1
        _asking.set(trace)
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    return await self._exchange(line, method, path, body, trace)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError):
                    if not trace.reused:
                        raise
                    return await self._exchange(line, method, path, body, trace)
        except TimeoutError:
            raise UplinkError(
                "timeout", f"cloudd did not answer within {timeout_s * 1000:.0f} ms", sent=trace.sent
            ) from None
        except UplinkError as error:
            error.sent = trace.sent
            raise
        except ssl.SSLError as error:
            raise UplinkError("down", f"the TLS handshake with cloudd failed ({error})", sent=trace.sent) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            text = str(error) or type(error).__name__
            raise UplinkError("down", f"cloudd cannot be reached ({text})", sent=trace.sent) from error
        finally:
            if trace.leaving is not None:
                trace.leaving.stop()
            line.users -= 1
            self._sweep(line)

    async def _exchange(self, line: _Line, method: str, path: str, body: bytes | None, trace: _Trace) -> bytes:
        trace.reused = False
        async with line.session.request(
            method,
            line.link.url.rstrip("/") + path,
            data=body,
            headers={"Content-Type": "application/octet-stream"} if body is not None else None,
            allow_redirects=False,
            trace_request_ctx=trace,
        ) as response:
            if trace.leaving is not None:
                trace.leaving.over()
            reply = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                self.bytes += len(chunk)
                reply += chunk
                if len(reply) > MAX_REPLY:
                    raise UplinkError("down", f"cloudd's reply exceeds {MAX_REPLY} bytes")
            if response.status == 200:
                return bytes(reply)
            raise refusal(response.status, response.headers.get("Retry-After", ""), bytes(reply))

    # --- the session -------------------------------------------------------------------------------------------------

    def _open(self) -> _Line:
        if self._line is not None:
            return self._line
        link = self._link
        if not link.url or not link.identity:
            raise UplinkError("down", "this device has not joined a cloudd")
        if not link.url.startswith("https://"):
            raise UplinkError("down", f"the address of cloudd must begin with https://, not {link.url[:MAX_TEXT]!r}")
        directory = Path(link.identity)
        try:
            context = client_context(directory / "authority.pem", directory / "certificate.pem", directory / "key.pem")
            authority = fingerprint(parse_certificate((directory / "authority.pem").read_text("ascii", "replace")))
        except (OSError, IdentityError) as error:
            raise UplinkError("down", f"this device's identity cannot be read ({error}); join again") from error
        import aiohttp

        session = aiohttp.ClientSession(
            connector=_connector(ssl=context, limit=_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
            trace_configs=[self._tracing()],
        )
        self._line = _Line(link, session, authority)
        return self._line

    def _tracing(self) -> aiohttp.TraceConfig:
        """Counts what is sent, and learns whether the connection was a kept one and whether anything left."""
        import aiohttp

        config = aiohttp.TraceConfig()

        async def reused(session: object, context: SimpleNamespace, params: object) -> None:
            context.trace_request_ctx.reused = True

        async def sent(session: object, context: SimpleNamespace, params: aiohttp.TraceRequestChunkSentParams) -> None:
            context.trace_request_ctx.sent = True
            self.bytes += len(params.chunk)

        config.on_connection_reuseconn.append(reused)
        config.on_request_chunk_sent.append(sent)
        return config

    def _retire(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.retired = True
            self._sweep(line)

    def _sweep(self, line: _Line) -> None:
        if line.retired and line.users == 0 and not line.session.closed:
            task = asyncio.get_running_loop().create_task(line.session.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _connector(**options: Any) -> aiohttp.TCPConnector:
    """A connector that tells the body of a request over which connection it leaves."""
    import aiohttp

    class Telling(aiohttp.TCPConnector):
        async def connect(self, *arguments: Any, **named: Any) -> Any:
            connection = await super().connect(*arguments, **named)
            trace = _asking.get(None)
            if trace is not None and trace.leaving is not None:
                trace.leaving.connected(connection.transport, not trace.reused)
            return connection

    return Telling(**options)


def _with_time(header: HardSample, left_s: float, waited_s: float = 0.0) -> HardSample:
    """The header with the time that its sender still waits; `left_s`, unless its maker knew better before the wait."""
    if header.late:
        return replace(header, left_ms=None)
    left_ms = left_s * 1e3 if header.left_ms is None else max(0.0, header.left_ms - waited_s * 1e3)
    return replace(header, left_ms=round(left_ms, 1))
