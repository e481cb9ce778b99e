"""A real cloudd process and real devices that speak TLS to it."""

from __future__ import annotations

import json
import os
import select
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from cloudd.client import AdminClient
from edgekit.envelope import seal
from edgekit.identity import (
    IdentityStore,
    JoinToken,
    client_context,
    generate_key,
    make_csr,
    parse_token,
    pinned_context,
)
from edgekit.messages import (
    PROTOCOL,
    AuthorityInfo,
    Certificate,
    EnrollRequest,
    HardSample,
    Hello,
    Notice,
    RenewRequest,
    ToEdge,
)


class Cloud:
    """`cloudd run` in its own process on free ports of loopback."""

    def __init__(self, state: Path, *flags: str, crash_at: str = "") -> None:
        self.state = state
        environ = {**os.environ, "EDGED_CRASH_AT": crash_at}
        for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET"):
            environ.pop(name, None)
        state.mkdir(parents=True, exist_ok=True)
        self.log = state / "stderr.log"
        command = [sys.executable, "-m", "cloudd.cli.main", "run", "--json", "--state", str(state), "--no-advertise"]
        command += ["--listen", "127.0.0.1:0", "--dashboard", "127.0.0.1:0", *flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environ)
        self.about: dict[str, Any] = json.loads(self._line(60.0))
        self.url: str = self.about["device_url"]
        self.page: str = self.about["dashboard_url"].rstrip("/")
        self.admin = AdminClient(state / "run" / "cloudd.sock")

    def _line(self, timeout_s: float) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline().decode() if ready else ""
        if not line:
            self.process.kill()
            raise AssertionError(f"cloudd did not start:\n{self.log.read_text()}")
        return line

    def invite(self, **wish: object) -> JoinToken:
        """A fresh token."""
        return parse_token(self.admin.post("/invites", wish)["token"])

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.wait()

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for the end."""
        status = self.process.wait(timeout_s)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def __enter__(self) -> Cloud:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()


class Reply:
    """Status and body of one exchange."""

    def __init__(self, status: int, body: bytes, headers: Any) -> None:
        self.status, self.body, self.headers = status, body, headers

    @property
    def error(self) -> str:
        """The sentence of a Problem."""
        return str(json.loads(self.body)["error"])


class FakeDevice:
    """The wire behaviour of a device, without edged."""

    def __init__(self, directory: Path, name: str = "press-1") -> None:
        self.store = IdentityStore(directory)
        self.name = name
        self.id = self.store.device_id
        self.csr = make_csr(self.store.key)

    async def authority(self, url: str) -> AuthorityInfo:
        """What a stranger sees before it trusts anybody."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        reply = await send("GET", f"{url}/v1/authority", context)
        return msgspec.json.decode(reply.body, type=AuthorityInfo)

    async def enroll(self, cloud: Cloud, token: JoinToken, csr: str | None = None, **changes: object) -> Reply:
        """Ask for a certificate; keeps it when it comes."""
        info = await self.authority(cloud.url)
        request = EnrollRequest(
            protocol=PROTOCOL,
            token_id=token.token_id,
            secret=token.secret,
            csr_pem=self.csr if csr is None else csr,
            name=self.name,
        )
        request = msgspec.structs.replace(request, **changes)
        body = msgspec.json.encode(request)
        reply = await send("POST", f"{cloud.url}/v1/enroll", pinned_context(info.certificate_pem), body)
        if reply.status == 200:
            certificate = msgspec.json.decode(reply.body, type=Certificate)
            self.store.install(certificate.certificate_pem, certificate.authority_pem)
        return reply

    async def renew(self, cloud: Cloud, csr: str | None = None) -> Reply:
        """Renew with the present certificate."""
        body = msgspec.json.encode(RenewRequest(csr_pem=csr or self.csr))
        return await self.send(cloud, "POST", "/v1/renew", body)

    def context(self) -> ssl.SSLContext:
        """Mutual TLS with what was enrolled."""
        identity = self.store.current()
        assert identity is not None
        return client_context(identity.authority_path, identity.certificate_path, identity.key_path)

    async def send(self, cloud: Cloud, method: str, route: str, body: bytes | None = None) -> Reply:
        """One request with the device certificate."""
        return await send(method, cloud.url + route, self.context(), body)

    def control(self, cloud: Cloud) -> Control:
        """Open the control channel (an async context manager)."""
        return Control(cloud.url, self.context(), self.name)


class Control:
    """One control channel."""

    def __init__(self, url: str, context: ssl.SSLContext, name: str) -> None:
        self._url, self._context, self._name = url, context, name

    async def __aenter__(self) -> Control:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._context))
        try:
            self.socket = await self._session.ws_connect(f"{self._url}/v1/control")
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()
        await self._session.close()

    async def hello(self, protocol: int = PROTOCOL, revision: str = "") -> None:
        """The first message."""
        await self.send(Hello(protocol=protocol, version="1.2.3", name=self._name, revision=revision, machine="test"))

    async def send(self, message: msgspec.Struct) -> None:
        """One message."""
        await self.socket.send_str(msgspec.json.encode(message).decode())

    async def receive(self, timeout_s: float = 10.0) -> Any:
        """The next message, or the close code once the other side closed."""
        frame = await self.socket.receive(timeout=timeout_s)
        if frame.type is aiohttp.WSMsgType.TEXT:
            return msgspec.json.decode(frame.data, type=ToEdge)
        return self.socket.close_code

    async def farewell(self, timeout_s: float = 10.0) -> tuple[str, int | None]:
        """Read until the other side closes; returns (code of its last notice, close code)."""
        last = ""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            message = await self.receive(timeout_s)
            if isinstance(message, Notice):
                last = message.code
            elif message is None or isinstance(message, int):
                return last, message
        raise AssertionError("the channel stayed open")


async def send(method: str, url: str, context: ssl.SSLContext, body: bytes | None = None) -> Reply:
    """One request on a connection of its own."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.request(method, url, data=body, timeout=aiohttp.ClientTimeout(total=20)) as reply,
    ):
        return Reply(reply.status, await reply.read(), reply.headers)


def foreign_csr() -> str:
    """A request for a key that is nobody's."""
    return make_csr(generate_key())


async def ask(device: FakeDevice, cloud: Cloud, sample: HardSample, picture: bytes) -> Reply:
    """Upload one hard sample."""
    return await device.send(cloud, "POST", "/v1/answers", seal(sample, picture))
