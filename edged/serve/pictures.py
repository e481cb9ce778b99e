"""Two routes of the worker: pictures pushed as one endless multipart stream, and the preview of the newest decision."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import count

from edged.capture.feed import Feed
from edged.capture.multipart import MultipartError, MultipartReader, Part, boundary_of
from edged.serve.http import HttpError, Request, Response, json_response
from edged.serve.service_runtime import ServiceFailed, ServiceRuntime
from edgekit.messages import Decision
from edgekit.vision.sniff import ImageError
from edgekit.webguard import LOOPBACK_HOSTS, host_allowed

MAX_PICTURE = 16 << 20
"""Bytes of one part; the same as of a single picture."""
MAX_STREAMS = 8
MAX_HELD = 128 << 20
"""Bytes of pushed pictures under way, all streams together; beyond that new ones are given up."""
MAX_SERIAL = 200
TOKEN_HEADER = "edged-management"  # noqa: S105 - the header's name


def is_stream(method: str, path: str) -> bool:
    """Whether the body of such a request is to be read while it arrives."""
    return method == "POST" and path.startswith("/v1/services/") and path.endswith("/stream")


def only_this_machine(listener: socket.socket) -> bool:
    """Whether nobody else can connect to this socket."""
    name = listener.getsockname()
    return listener.family == socket.AF_UNIX or ipaddress.ip_address(name[0].partition("%")[0]).is_loopback


class Pictures:
    """Handlers of both routes. `stop` ends every stream with its reply: another worker takes over."""

    def __init__(self, services: Mapping[str, ServiceRuntime], wall: Callable[[], float] = time.time) -> None:
        self._services, self._wall = services, wall
        self._token, self._open = "", False
        self._stopping = asyncio.Event()
        self._numbers = count(1)
        self._feeds: set[Feed] = set()
        self._forgetting: set[asyncio.Task[None]] = set()

    def allow_preview(self, token: str, loopback: bool) -> None:
        """Who may see previews: who knows `token`, and if only this machine can connect at all, everybody on it."""
        self._token, self._open = token, loopback

    def stop(self) -> None:
        """Take no more of any stream."""
        self._stopping.set()

    # --- preview ----------------------------------------------------------------------------------------------------

    async def preview(self, request: Request, name: str) -> Response:
        """`GET /v1/services/NAME/preview.jpg`. Raises HttpError."""
        # The Host is checked because a hostile name server could turn a web site's own name towards this machine.
        if not self._knows_token(request) and not (
            self._open and host_allowed(request.headers.get("host"), LOOPBACK_HOSTS)
        ):
            raise HttpError(403, "the preview is shown on the status page; here it needs the management token")
        try:
            picture = await running(self._services, name).preview.jpeg()
        except ImageError as error:
            raise HttpError(404, f"the newest picture of {name} cannot be drawn: {error}") from None
        if picture is None:
            raise HttpError(404, f"{name} has no picture to show yet")
        headers = {"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"}
        return Response(200, picture, "image/jpeg", headers)

    def _knows_token(self, request: Request) -> bool:
        given = request.headers.get(TOKEN_HEADER, "")
        return bool(self._token) and hmac.compare_digest(given.encode(errors="surrogateescape"), self._token.encode())

    # --- stream -----------------------------------------------------------------------------------------------------

    async def push(self, request: Request, name: str) -> Response:
        """`POST /v1/services/NAME/stream`: inspect the newest part whenever there is time. Raises HttpError.

        The reply comes at the end of the stream and counts what became of its parts.
        """
        service = running(self._services, name)
        try:
            parts = MultipartReader(boundary_of(request.headers.get("content-type", "")), MAX_PICTURE)
        except MultipartError as error:
            raise HttpError(415, f"send multipart/x-mixed-replace or multipart/mixed: {error}", close=True) from None
        if len(self._feeds) >= MAX_STREAMS:
            raise HttpError(503, f"there are {MAX_STREAMS} streams already", retry_after_s=5, close=True)
        labels: Counter[str] = Counter()

        def decided(decision: Decision) -> None:
            labels[decision.label] += 1

        feed = Feed(f"push:{next(self._numbers)}", service.inspect_frame, decided)
        self._feeds.add(feed)
        try:
            assert request.stream is not None
            whole = await self._read(request.stream, parts, feed)
            await feed.settled()
        except MultipartError as error:
            raise HttpError(400, f"after {feed.counts.frames} pictures: {error}", close=True) from None
        finally:
            forgetting = asyncio.create_task(self._forget(feed))
            self._forgetting.add(forgetting)
            forgetting.add_done_callback(self._forgetting.discard)
        counts = feed.counts
        return json_response(
            {
                "service": name,
                "frames": counts.frames,
                "decided": counts.decided,
                "stale": counts.stale,
                "shed": counts.shed,
                "refused": counts.refused,
                "failed": counts.failed,
                "labels": dict(labels),
                "complete": whole,  # False: this worker is being replaced; connect again
            }
        )

    async def _read(self, stream: AsyncIterator[bytes], parts: MultipartReader, feed: Feed) -> bool:
        """Take parts until the stream ends (True) or we are to stop (False). Raises MultipartError."""
        taking = asyncio.create_task(self._take(stream, parts, feed))
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({taking, stop}, return_when=asyncio.FIRST_COMPLETED)
            if taking.done():
                taking.result()
            return taking.done()
        finally:
            taking.cancel()
            stop.cancel()

    async def _take(self, stream: AsyncIterator[bytes], parts: MultipartReader, feed: Feed) -> None:
        async for data in stream:
            for part in parts.feed(data):
                if part.body:
                    self._offer(part, feed)
            await asyncio.sleep(0)  # a client that sends without a pause must not keep the others waiting

    def _offer(self, part: Part, feed: Feed) -> None:
        if sum(one.held for one in self._feeds) + len(part.body) > MAX_HELD:
            feed.counts.frames += 1
            feed.counts.shed += 1
            return
        serial = part.headers.get("edged-serial", "")
        feed.offer(part.body, self._wall(), serial if serial.isprintable() and len(serial) <= MAX_SERIAL else "")

    async def _forget(self, feed: Feed) -> None:
        """What a client pushed before it hung up is decided all the same, and counts as held until then."""
        await feed.settled()
        self._feeds.discard(feed)


def running(services: Mapping[str, ServiceRuntime], name: str) -> ServiceRuntime:
    """The service of this name. Raises HttpError 404 for an unknown one, ServiceFailed for one that cannot run."""
    service = services.get(name)
    if service is None:
        known = ", ".join(sorted(services)) or "none"
        raise HttpError(404, f"there is no service '{name[:64]}'; known services: {known}")
    if service.failure:
        raise ServiceFailed(f"{name} cannot run: {service.failure}")
    return service
