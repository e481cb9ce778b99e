"""A cloudd-shaped TLS server that answers, or misbehaves in every way a network and a server can."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
from aiohttp import web

from edgekit.envelope import unseal
from edgekit.identity import Authority, IdentityStore, generate_key, make_csr, peer_device_id, save_key, server_context
from edgekit.messages import Answer, HardSample, Link, Problem, Verdict, briefly, unpacked
from edgekit.regions.header import MosaicAnswer, check_header
from edgekit.vision.sniff import sniff


def make_link(root: Path, url: str, authority: Authority, *, up: bool = True, generation: int = 0) -> Link:
    """An enrolled device's link."""
    store = IdentityStore(root / "identity")
    certificate, _ = authority.sign_csr(make_csr(store.key), time.time())
    identity = store.install(certificate, authority.certificate_pem)
    return Link(url=url, up=up, identity=str(identity.directory), generation=generation)


class FaultyCloud:
    """`mode` says how the next requests are treated; what arrived is in `received`, in order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.authority = Authority.create("test", time.time())
        self.mode = "answer"
        self.label = "bad"
        self.model = "large@1"
        self.delay = 0.0
        self.poison: set[str] = set()  # sample ids that it always fails on
        self.webp = False  # it takes mosaics as WebP, and says so
        self.regions: Callable[[HardSample], MosaicAnswer | None] = lambda header: None
        self.received: list[HardSample] = []
        self.pictures: dict[str, bytes] = {}
        self.answered: dict[str, Answer] = {}
        self.devices: set[str | None] = set()
        self.requests = 0
        self.checks = 0
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.root.mkdir(exist_ok=True)
        key_path, cert_path, ca_path = (self.root / name for name in ("key.pem", "cert.pem", "ca.pem"))
        if not key_path.exists():
            key = generate_key()
            save_key(key, key_path)
            cert_path.write_text(self.authority.server_certificate(key, ["127.0.0.1"], time.time()))
            ca_path.write_text(self.authority.certificate_pem)
        app = web.Application(client_max_size=20 << 20)
        app.router.add_post("/v1/answers", self._answers)
        app.router.add_get("/v1/health", self._health)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        context = server_context(cert_path, key_path, ca_path)
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, request: web.Request) -> web.StreamResponse:
        self.checks += 1
        if self.mode == "hang":
            await asyncio.sleep(60)
        return web.json_response({"protocol": 1, "name": "test"})

    async def _answers(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        mode = self.mode
        if mode == "rst before body":
            return self._reset(request)
        body = await request.read()
        head, picture = unseal(body)
        header, picture = unpacked(msgspec.json.decode(head, type=HardSample), picture)
        if header.mosaic is not None:
            check_header(header.mosaic)
            info = sniff(picture, webp=True)
            if info.format == "webp" and not self.webp:
                return self._problem(422)
            assert header.pipeline is None and (info.width, info.height) == header.mosaic.size
        assert request.transport is not None
        self.devices.add(peer_device_id(request.transport.get_extra_info("ssl_object")))
        if header.sample_id in self.poison:
            return web.Response(status=503, headers={"Retry-After": "1"}, body=b"")
        if mode == "hang":
            await asyncio.sleep(60)
        if mode.startswith("status "):
            return self._problem(int(mode.split()[1]))
        if mode.startswith("busy "):
            return web.Response(status=503, headers={"Retry-After": mode.split()[1]}, body=b"")
        if mode == "redirect":
            return web.Response(status=307, headers={"Location": "/v1/elsewhere"})
        if mode == "garbage":
            return web.Response(body=b"\x00\xffnot an answer")
        if mode == "oversized":
            return web.Response(body=b"{" + b" " * (1 << 20))
        await asyncio.sleep(self.delay)
        self.received.append(header)
        self.pictures[header.sample_id] = picture
        known = self.answered.get(header.sample_id)
        answer = known or Answer(
            sample_id=header.sample_id,
            verdict=Verdict(label=self.label, score=0.99, margin=0.98, model=self.model),
            compute_ms=1.0,
            mosaic=self.regions(header),
        )
        if self.webp:
            answer = briefly(header, answer)
        self.answered[header.sample_id] = answer
        reply = msgspec.structs.replace(answer, repeated=known is not None)
        if mode == "wrong sample":
            reply = msgspec.structs.replace(reply, sample_id="other")
        if mode == "insane":
            reply = msgspec.structs.replace(reply, verdict=msgspec.structs.replace(reply.verdict, score=7.0))
        encoded = msgspec.json.encode(reply)
        if mode in ("trickle", "rst mid reply"):
            response = web.StreamResponse(headers={"Content-Length": str(len(encoded))})
            await response.prepare(request)
            await response.write(encoded[:10])
            if mode == "rst mid reply":
                return self._reset(request)
            for byte in encoded[10:]:
                await asyncio.sleep(0.05)
                await response.write(bytes([byte]))
            return response
        return web.Response(body=encoded, content_type="application/json")

    def _problem(self, status: int) -> web.Response:
        body = msgspec.json.encode(Problem(error=f"problem {status}"))
        return web.Response(status=status, body=body, content_type="application/json")

    def _reset(self, request: web.Request) -> web.StreamResponse:
        """Drop the TCP connection with RST."""
        assert request.transport is not None
        raw = request.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
        return web.Response()


@contextlib.asynccontextmanager
async def running(root: Path) -> AsyncIterator[FaultyCloud]:
    cloud = FaultyCloud(root)
    await cloud.start()
    try:
        yield cloud
    finally:
        await cloud.stop()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def silent_listener() -> Iterator[int]:
    """The kernel completes connections, and nobody ever reads them or speaks TLS."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(64)
        yield sock.getsockname()[1]


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port whose backlog is full: connection requests are dropped without a reply, as by a firewall."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(sock.getsockname())
        yield sock.getsockname()[1]


class Wire:
    """A TCP proxy that can go silent: connections stay open and nothing passes, as after a pulled cable."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._cut = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        self._cut.set()

    def mend(self) -> None:
        self._cut.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._cut.is_set():
                await asyncio.sleep(3600)
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
            finally:
                there_writer.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self._cut.is_set():
                await asyncio.sleep(3600)
            writer.write(data)
            await writer.drain()
        writer.close()
