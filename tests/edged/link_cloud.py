"""A small cloudd, a rogue one and a network in between, all with real TLS, for the tests of the link."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from pathlib import Path

import msgspec
from aiohttp import WSMsgType, web

from edged.link.service import LinkService
from edged.link.timing import Timing
from edgekit.identity import (
    Authority,
    JoinToken,
    check_secret,
    device_id,
    generate_key,
    hash_secret,
    new_token,
    peer_device_id,
    read_csr,
    save_key,
    server_context,
)
from edgekit.messages import (
    PROTOCOL,
    AuthorityInfo,
    Certificate,
    Desired,
    EnrollRequest,
    Hello,
    Link,
    ModelEntry,
    Notice,
    Problem,
    RenewRequest,
    Report,
    ToCloud,
    Welcome,
)

FAST = Timing(
    attempt=2.0,
    ping=0.4,
    retry_base=0.05,
    retry_cap=0.2,
    stable=1.0,
    refused=30.0,
    search=1.0,
    renew_retry_base=0.05,
    renew_retry_cap=0.1,
    fetch_retry_base=0.02,
    fetch_retry_cap=0.1,
    fetch_patience=0.3,
)


def json(message: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(message), status=status, content_type="application/json")


class Cloud:
    """Enough of cloudd's device API, over TLS on loopback."""

    def __init__(self, directory: Path, name: str = "cloud") -> None:
        self.authority = Authority.create(name, time.time())
        self.directory = directory
        self.lifetime, self.backdate = 30 * 86_400.0, 86_400.0
        self.tokens: dict[str, str] = {}
        self.requests: list[str] = []
        self.hellos: list[Hello] = []
        self.reports: list[Report] = []
        self.revoked: set[str] = set()
        self.refusal = "this device was revoked; `cloudd devices restore ABC` lets it in again"
        self.desired: Desired | None = None
        self.renewals = 0
        self.renewal_works = True
        self.clock_error = 0.0
        self.heartbeat_s = 0.2
        self.models: dict[str, ModelEntry] = {}
        self.blobs: dict[str, bytes] = {}
        self.cut_after: list[int] = []  # bytes after which the next blob replies break off
        self.ranges: list[str] = []
        self.sockets: list[web.WebSocketResponse] = []
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def invite(self) -> JoinToken:
        token = new_token(self.authority.fingerprint)
        self.tokens[token.token_id] = hash_secret(token.secret)
        return token

    async def start(self, port: int = 0) -> None:
        self.directory.mkdir(exist_ok=True)
        self.authority.save(self.directory)
        key = generate_key()
        save_key(key, self.directory / "server-key.pem")
        (self.directory / "server.pem").write_text(self.authority.server_certificate(key, ["127.0.0.1"], time.time()))
        context = server_context(
            self.directory / "server.pem", self.directory / "server-key.pem", self.directory / "root.pem"
        )
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/authority", self._authority),
                web.post("/v1/enroll", self._enroll),
                web.post("/v1/renew", self._renew),
                web.get("/v1/control", self._control),
                web.get("/v1/models/{name}", self._model),
                web.get("/v1/models/{name}/{version}", self._model),
                web.get("/v1/blobs/{sha256}", self._blob),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=context)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        for socket in self.sockets:
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def add_model(self, name: str, version: str, root: Path) -> ModelEntry:
        files = []
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            self.blobs[sha256] = data
            files.append({"path": path.relative_to(root).as_posix(), "sha256": sha256, "size": len(data)})
        digest = next(f["sha256"] for f in files if f["path"] == "package.toml")
        entry = msgspec.convert({"name": name, "version": version, "digest": digest, "files": files}, ModelEntry)
        self.models[name] = self.models[f"{name}/{version}"] = entry
        return entry

    def _problem(self, kind: type[web.HTTPException], text: str) -> web.HTTPException:
        return kind(text=msgspec.json.encode(Problem(error=text)).decode(), content_type="application/json")

    def _device(self, request: web.Request, allow_expired: bool = False) -> str:
        self.requests.append(request.path)
        assert request.transport is not None
        device = peer_device_id(request.transport.get_extra_info("ssl_object"), allow_expired=allow_expired)
        if device is None:
            raise self._problem(web.HTTPUnauthorized, "no certificate")
        if device in self.revoked:
            raise self._problem(web.HTTPForbidden, self.refusal)
        return device

    async def _authority(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        return json(
            AuthorityInfo(
                protocol=PROTOCOL,
                name="cloud",
                certificate_pem=self.authority.certificate_pem,
                fingerprint=self.authority.fingerprint,
            )
        )

    async def _enroll(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        asked = msgspec.json.decode(await request.read(), type=EnrollRequest)
        stored = self.tokens.pop(asked.token_id, "")
        if not check_secret(asked.secret, stored):
            return json(Problem(error="the token is unknown, used or expired"), 403)
        return self._issue(asked.csr_pem)

    async def _renew(self, request: web.Request) -> web.Response:
        device = self._device(request, allow_expired=True)
        asked = msgspec.json.decode(await request.read(), type=RenewRequest)
        if not self.renewal_works:
            return json(Problem(error="the authority is locked"), 500)
        assert device == device_id(read_csr(asked.csr_pem))
        self.renewals += 1
        return self._issue(asked.csr_pem)

    def _issue(self, csr_pem: str) -> web.Response:
        now = time.time()
        pem, _ = self.authority.sign_csr(csr_pem, now, self.lifetime, self.backdate)
        return json(
            Certificate(
                device_id=device_id(read_csr(csr_pem)),
                certificate_pem=pem,
                authority_pem=self.authority.certificate_pem,
                not_after=now + self.lifetime,
            )
        )

    async def _control(self, request: web.Request) -> web.WebSocketResponse:
        device = self._device(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        async for frame in socket:
            if frame.type is not WSMsgType.TEXT:
                continue
            message = msgspec.json.decode(frame.data, type=ToCloud)
            if isinstance(message, Hello):
                self.hellos.append(message)
                await self._send(
                    socket, Welcome(heartbeat_s=self.heartbeat_s, time=time.time() + self.clock_error, name="cloud")
                )
                if self.desired is not None and self.desired.revision != message.revision:
                    await self._send(socket, self.desired)
            elif isinstance(message, Report):
                self.reports.append(message)
                if device in self.revoked:
                    await self._send(socket, Notice(code="revoked", text="this device was revoked"))
                    await socket.close(code=4003)
        return socket

    async def _send(self, socket: web.WebSocketResponse, message: msgspec.Struct) -> None:
        await socket.send_str(msgspec.json.encode(message).decode())

    async def _model(self, request: web.Request) -> web.Response:
        self._device(request)
        name, version = request.match_info["name"], request.match_info.get("version", "")
        entry = self.models.get(f"{name}/{version}" if version else name)
        return json(entry) if entry else json(Problem(error=f"there is no model {name}"), 404)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        self._device(request)
        sha256 = request.match_info["sha256"]
        data = self.blobs[sha256]
        wanted = request.headers.get("Range", "")
        self.ranges.append(wanted)
        start = 0
        if wanted and request.headers.get("If-Range") == f'"{sha256}"':
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        response = web.StreamResponse(status=206 if start else 200, headers={"ETag": f'"{sha256}"'})
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        response.content_length = len(data) - start
        await response.prepare(request)
        body = data[start:]
        if self.cut_after:
            await response.write(body[: self.cut_after.pop(0)])
            await asyncio.sleep(0.05)
            assert request.transport is not None
            request.transport.abort()  # type: ignore[attr-defined]
            return response
        for at in range(0, len(body), 65_536):
            await response.write(body[at : at + 65_536])
        return response


class Rogue:
    """A TLS server without the authority's key. It keeps every byte that anybody encrypts for it."""

    def __init__(self, directory: Path, certificate: str = "", protocol: int = PROTOCOL) -> None:
        """`certificate` is what it shows as its authority: its own, or another's that it has copied."""
        self.authority = Authority.create("cloud", time.time())
        self.shown = certificate or self.authority.certificate_pem
        self.protocol = protocol
        self.directory = directory
        self.decrypted = bytearray()
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        self.directory.mkdir(exist_ok=True)
        key = generate_key()
        save_key(key, self.directory / "key.pem")
        (self.directory / "cert.pem").write_text(self.authority.server_certificate(key, ["127.0.0.1"], time.time()))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "cert.pem", self.directory / "key.pem")
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        info = AuthorityInfo(protocol=self.protocol, name="cloud", certificate_pem=self.shown, fingerprint="x")
        body = msgspec.json.encode(info)
        try:
            while data := await reader.read(65_536):
                self.decrypted += data
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()


class Wire:
    """A TCP relay that can go dead without closing anything, as a pulled cable does."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self.alive = asyncio.Event()
        self.alive.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.alive.wait()
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._copy(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                await self.alive.wait()
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()


class Device:
    """A LinkService with everything it said."""

    def __init__(self, directory: Path, **options: object) -> None:
        directory.mkdir(exist_ok=True)
        self.links: list[Link] = []
        self.desired: list[Desired] = []
        self.reports: list[tuple[str, str, str]] = []
        self.revision = ""
        settings: dict[str, object] = {"discover": False, "timing": FAST, "name": "press-7", "version": "0.1.0"}
        self.service = LinkService(
            directory,
            on_link=self.links.append,
            on_desired=self.desired.append,
            state=lambda: Report(services=[], spool=None, health="ok", revision=self.revision),
            report=lambda *words: self.reports.append(words),
            **{**settings, **options},  # type: ignore[arg-type]
        )

    def codes(self, level: str) -> list[str]:
        return [code for said, code, _ in self.reports if said == level]


async def until(condition: object, timeout: float = 20.0) -> None:
    """Wait until the function gives something true."""
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)
