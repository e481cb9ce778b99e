"""Asks cloudd over one persistent mTLS session. Every wait has an end and every reply a size limit."""

from __future__ import annotations

import asyncio
import math
import ssl
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from edgekit.envelope import seal
from edgekit.identity import IdentityError, client_context, fingerprint, parse_certificate
from edgekit.messages import Answer, HardSample, Link, Problem
from edgekit.regions.header import Cell, MosaicHeader, RegionError, check_answer
from edgekit.vision.sniff import ImageError, sniff

if TYPE_CHECKING:
    import aiohttp  # a third of a worker's start; imported with the first link, so that others do without

MAX_PICTURE = 16 << 20
"""Bytes. cloudd takes no larger picture."""
MAX_REPLY = 512 * 1024
"""Bytes. An answer has a few hundred; one with the most boxes that a mosaic may have, and long labels, 400,000."""

_CHUNK = 64 * 1024
_CONNECTIONS = 8
_KEEP_ALIVE_S = 75.0
_LONGEST_REST_S = 300.0  # a `Retry-After` of a day would be an error, not a wish
_MAX_TEXT = 256

Kind = Literal["down", "timeout", "refused", "busy", "rejected"]


class UplinkError(RuntimeError):
    """No answer. `kind` says what it means for others:

    down      no connection, broken off, or a reply that is none: the link's fault
    timeout   nothing in time: the link's fault
    refused   cloudd does not accept this device (revoked, or not joined): a person must act
    busy      cloudd asks for a rest of `retry_after_s`
    rejected  cloudd works, but not for this sample; `status` is 404 for an unknown model, else it never will
    """

    def __init__(
        self, kind: Kind, text: str, *, status: int = 0, retry_after_s: float = 0.0, sent: bool = False
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.status = status
        self.retry_after_s = retry_after_s
        self.sent = sent  # some of the picture may have left


@dataclass(eq=False)
class _Line:
    """One client session and the link it was made for. A replaced one is closed when its last user has gone."""

    link: Link
    session: aiohttp.ClientSession
    authority: str
    users: int = 0
    retired: bool = False


_Trace: TypeAlias = SimpleNamespace


class Uplink:
    """The client half of `POST /v1/answers`. Belongs to one event loop."""

    def __init__(self, link: Link) -> None:
        """Opens nothing yet."""
        self._link = link
        self._line: _Line | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.bytes = 0
        """Bytes of requests and replies so far, without TLS and TCP headers."""

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
        body = seal(header, picture)
        reply = await self._request("POST", "/v1/answers", body, timeout_s)
        try:
            answer = msgspec.json.decode(reply, type=Answer)
        except msgspec.MsgspecError as error:
            raise UplinkError("down", f"cloudd's answer cannot be read ({error})", sent=True) from error
        if answer.sample_id != header.sample_id or not _is_sane(answer):
            raise UplinkError("down", "cloudd's answer does not belong to this sample or is no answer", sent=True)
        if header.mosaic is not None and answer.mosaic is None:  # it has answered now, and keeps to that
            raise UplinkError("rejected", "cloudd does not know regions yet and must be updated", sent=True)
        try:
            _check_regions(header, answer, picture)
        except (RegionError, ImageError, OverflowError) as error:
            raise UplinkError("down", f"cloudd's answer cannot be used ({error})", sent=True) from error
        return answer

    async def check(self, timeout_s: float) -> None:
        """Find out whether cloudd can be reached, and leave a warm connection. Raises UplinkError."""
        await self._request("GET", "/v1/health", None, timeout_s)

    async def close(self) -> None:
        """Close every connection."""
        self._retire()
        if self._closing:
            await asyncio.wait(self._closing)

    # --- one request -------------------------------------------------------------------------------------------------

    async def _request(self, method: str, path: str, body: bytes | None, timeout_s: float) -> bytes:
        import aiohttp

        line = self._open()
        trace = _Trace(sent=False)
        line.users += 1
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
            reply = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                self.bytes += len(chunk)
                reply += chunk
                if len(reply) > MAX_REPLY:
                    raise UplinkError("down", f"cloudd's reply exceeds {MAX_REPLY} bytes")
            if response.status == 200:
                return bytes(reply)
            raise _refusal(response.status, response.headers.get("Retry-After", ""), bytes(reply))

    # --- the session -------------------------------------------------------------------------------------------------

    def _open(self) -> _Line:
        if self._line is not None:
            return self._line
        link = self._link
        if not link.url or not link.identity:
            raise UplinkError("down", "this device has not joined a cloudd")
        if not link.url.startswith("https://"):
            raise UplinkError("down", f"the address of cloudd must begin with https://, not {link.url[:_MAX_TEXT]!r}")
        directory = Path(link.identity)
        try:
            context = client_context(directory / "authority.pem", directory / "certificate.pem", directory / "key.pem")
            authority = fingerprint(parse_certificate((directory / "authority.pem").read_text("ascii", "replace")))
        except (OSError, IdentityError) as error:
            raise UplinkError("down", f"this device's identity cannot be read ({error}); join again") from error
        import aiohttp

        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE_S),
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


def _refusal(status: int, retry_after: str, reply: bytes) -> UplinkError:
    """What a reply other than 200 means."""
    try:
        problem = msgspec.json.decode(reply, type=Problem)
    except msgspec.MsgspecError:
        problem = Problem(error="")
    said = f"cloudd says: {problem.error[:_MAX_TEXT]}" if problem.error else f"cloudd answers with status {status}"
    if status in (429, 503):
        return UplinkError("busy", said, status=status, retry_after_s=_rest(retry_after, problem.retry_after_s))
    if status in (401, 403):
        return UplinkError("refused", said, status=status)
    if status in (400, 404, 409, 413, 415, 422):
        return UplinkError("rejected", said, status=status)
    return UplinkError("down", said, status=status)


def _rest(header: str, said: float | None) -> float:
    """Seconds of rest that cloudd asks for: the header if it is a number, else the body's, else one second."""
    wanted = float(header) if header.isascii() and header.isdigit() and len(header) < 10 else said
    if wanted is None or not math.isfinite(wanted):
        return 1.0
    return min(max(wanted, 0.0), _LONGEST_REST_S)


def _check_regions(header: HardSample, answer: Answer, picture: bytes) -> None:
    """Raise RegionError (or ImageError) unless the regions in the answer are those of the sample."""
    if answer.mosaic is None:
        return
    if header.mosaic is not None:
        check_answer(header.mosaic, answer.mosaic)
        return
    if answer.mosaic.task != "detection":
        raise RegionError("it is about regions, and a whole picture was asked about")
    info = sniff(picture)
    frame = (info.width, info.height)
    whole = Cell(place=(0, 0, *frame), box=(0, 0, *frame), regions=[])
    check_answer(MosaicHeader(frame=frame, size=frame, cells=[whole]), answer.mosaic)


def _is_sane(answer: Answer) -> bool:
    verdict = answer.verdict
    return (
        0 < len(verdict.label) <= _MAX_TEXT
        and 0 < len(verdict.model) <= _MAX_TEXT
        and 0.0 <= verdict.score <= 1.0
        and 0.0 <= verdict.margin <= 1.0
        and answer.compute_ms >= 0.0
    )
