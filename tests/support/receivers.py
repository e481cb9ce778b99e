"""Receivers of decisions for tests: an HTTP server that answers as told, and a real mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
from aiohttp import web

from edgekit.identity import Authority, generate_key, make_csr, save_key
from edgekit.messages import Decision, Level, Verdict


def decision(number: int, **changes: Any) -> Decision:
    """A decision that knows its number."""
    fields: dict[str, Any] = {
        "sample_id": f"SAMPLE{number:06}",
        "service": "solder",
        "label": "good",
        "score": 0.9,
        "decided": "edge",
        "model": "m@1",
        "edge": Verdict(label="good", score=0.9, margin=0.8, model="m@1"),
        "serial": f"board-{number}",
        "captured_at": 1_800_000_000.0 + number,
    }
    return Decision(**(fields | changes))


class Events(list[tuple[Level, str, str]]):
    """What was told to the supervisor."""

    def __call__(self, level: Level, code: str, text: str, *, passing: bool = False) -> None:
        self.append((level, code, text))

    def codes(self) -> list[str]:
        return [code.partition(":")[0] for _, code, _ in self]


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Certificates:
    """A certificate authority, a server certificate for 127.0.0.1 and localhost, and one of a client."""

    ca: Path
    certificate: Path
    key: Path
    client: Path
    client_key: Path


def make_certificates(directory: Path, *names: str) -> Certificates:
    directory.mkdir(exist_ok=True)
    authority = Authority.create("test", time.time())
    key = generate_key()
    files = ("ca.pem", "server.pem", "server-key.pem", "client.pem", "client-key.pem")
    found = Certificates(*(directory / name for name in files))
    found.ca.write_text(authority.certificate_pem)
    save_key(key, found.key)
    found.certificate.write_text(authority.server_certificate(key, list(names) or ["127.0.0.1"], time.time()))
    client_key = generate_key()
    save_key(client_key, found.client_key)
    found.client.write_text(authority.sign_csr(make_csr(client_key), time.time())[0])
    return found


class Hook:
    """An HTTP receiver. `answer` may be changed at any time: it gets the request's number, from 1, and replies."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.taken: list[str] = []  # sample ids of what was answered with 2xx
        self.answer: Callable[[int], web.Response] = lambda number: web.Response(status=204)
        self.delay_s = 0.0
        self.port = free_port()
        self._runner: web.AppRunner | None = None

    async def start(self, tls: Certificates | None = None) -> None:
        application = web.Application()
        application.router.add_route("*", "/{rest:.*}", self._take)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        context = None
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append((dict(request.headers) | {":path": request.path_qs}, body))
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        reply = self.answer(len(self.requests))
        if 200 <= reply.status < 300:
            self.taken.append(json.loads(body)["sample_id"])
        return reply


class Mosquitto:
    """A broker of its own on a loopback port that stays the same over restarts."""

    def __init__(
        self,
        directory: Path,
        *,
        tls: Certificates | None = None,
        ask_certificate: bool = False,
        password_file: Path | None = None,
        persistent: bool = False,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.port = free_port()
        self._config = directory / "mosquitto.conf"
        self._log = directory / "mosquitto.log"
        lines = [
            f"listener {self.port} 127.0.0.1",
            f"persistence {_word(persistent)}",
            f"allow_anonymous {_word(not password_file)}",
        ]
        lines += [f"persistence_location {directory}/", "max_inflight_messages 100"]
        lines += [f"log_dest file {self._log}", "log_type all", "max_queued_messages 100000", "user root"]
        if password_file is not None:
            lines.append(f"password_file {password_file}")
        if tls is not None:
            lines += [f"cafile {tls.ca}", f"certfile {tls.certificate}", f"keyfile {tls.key}"]
            lines.append(f"require_certificate {_word(ask_certificate)}")
        self._config.write_text("\n".join(lines) + "\n")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        program = mosquitto()
        assert program is not None
        self._process = await asyncio.create_subprocess_exec(
            program, "-c", str(self._config), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                assert self._process.returncode is None, self._log.read_text() if self._log.exists() else "no log"
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """SIGKILL: nothing is said to anybody."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def terminate(self) -> None:
        """SIGTERM: it writes its sessions to the disk, if it is persistent."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    def session(self, identifier: str, topic: str) -> Callable[[int], Awaitable[list[str]]]:
        """A subscriber whose session the broker keeps: the result connects and collects so many sample ids."""

        async def collect(distinct: int) -> list[str]:
            found: list[str] = []
            async with aiomqtt.Client("127.0.0.1", self.port, identifier=identifier, clean_session=False) as client:
                await client.subscribe(topic, qos=1)
                if distinct:
                    async with asyncio.timeout(20):
                        async for message in client.messages:
                            found.append(json.loads(bytes(message.payload))["sample_id"])
                            if len(set(found)) == distinct:
                                break
            return found

        return collect

    @contextlib.asynccontextmanager
    async def listener(self, *topics: str) -> AsyncIterator[list[tuple[str, bytes, bool]]]:
        """Collects topic, payload and the retain flag of everything that arrives."""
        heard: list[tuple[str, bytes, bool]] = []

        async def listen(client: aiomqtt.Client) -> None:
            async for message in client.messages:
                heard.append((str(message.topic), bytes(message.payload), message.retain))

        async with aiomqtt.Client("127.0.0.1", self.port) as client:
            for topic in topics:
                await client.subscribe(topic, qos=1)
            task = asyncio.create_task(listen(client))
            try:
                yield heard
            finally:
                task.cancel()


def mosquitto() -> str | None:
    """The program, which Debian puts where only root's path leads."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def _word(value: bool) -> str:
    return "true" if value else "false"
