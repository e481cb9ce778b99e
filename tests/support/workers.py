"""A real worker process on real sockets, started as the supervisor starts it, for tests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from edgekit.envelope import FrameReader, seal
from edgekit.messages import Configure, Event, FromWorker, Link, Ready, ServiceReport, ToWorker, WorkerReport

T = TypeVar("T")
_ROOT = Path(__file__).resolve().parents[2]
_decoder: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)


def listening_socket() -> socket.socket:
    """The inference socket that outlives workers."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener


def configuration(state: Path, services: list[str], packages: dict[str, Path], **changes: object) -> Configure:
    """A configuration without a link, with room for 10 MB of spool."""
    fields: dict[str, object] = {
        "state_dir": str(state),
        "services": services,
        "packages": {ref: str(path) for ref, path in packages.items()},
        "link": Link(),
        "spool_quota": 10_000_000,
        "spool_reserve": 0,
        "device_id": "TEST-DEVICE",
    }
    return Configure(**(fields | changes))  # type: ignore[arg-type]


class WorkerProcess:
    """One started worker. `ready` and `reports` come from its control channel."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.port: int = listener.getsockname()[1]
        self.ready: Ready | None = None
        self.reports: list[WorkerReport] = []
        self.events: list[Event] = []
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, listener: socket.socket, configure: Configure | None, environment: dict[str, str] | None = None
    ) -> WorkerProcess:
        """Spawn it and send its configuration; does not wait until it is ready."""
        worker = cls(listener)
        ours, theirs = socket.socketpair()
        command = ["--control-fd", str(theirs.fileno()), "--http-fd", str(listener.fileno())]
        worker._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "edged.serve",
            *command,
            env=os.environ | {"PYTHONPATH": str(_ROOT)} | (environment or {}),
            pass_fds=(theirs.fileno(), listener.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
        )
        theirs.close()
        reader, worker._writer = await asyncio.open_unix_connection(sock=ours)
        worker._reading = asyncio.create_task(worker._read(reader))
        if configure is not None:
            worker.send(configure)
        return worker

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, message: ToWorker) -> None:
        assert self._writer is not None
        self._writer.write(seal(message))

    async def until_ready(self, timeout_s: float = 30.0) -> Ready:
        return await self.until(lambda: self.ready, timeout_s)

    async def until(self, look: Callable[[], T | None], timeout_s: float = 10.0) -> T:
        """Wait until `look` gives something true."""
        async with asyncio.timeout(timeout_s):
            while not (found := look()):
                assert self._process is not None
                assert self._process.returncode is None, f"the worker ended with {self._process.returncode}"
                await asyncio.sleep(0.01)
        return found

    def service(self, name: str) -> ServiceReport | None:
        """The newest report of one service."""
        services = self.reports[-1].services if self.reports else self.ready.services if self.ready else []
        return next((service for service in services if service.name == name), None)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def hang_up(self) -> None:
        """Close the supervisor's end of the control channel."""
        assert self._writer is not None
        self._writer.close()

    async def exit_status(self, timeout_s: float = 20.0) -> int:
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), timeout_s)

    async def end(self) -> None:
        """Kill it if it lives, and clean up."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()
        self.hang_up()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames = FrameReader(max_payload=0)
        while data := await reader.read(65_536):
            for header, _ in frames.feed(data):
                message = _decoder.decode(header)
                if isinstance(message, Ready):
                    self.ready = message
                elif isinstance(message, WorkerReport):
                    self.reports.append(message)
                else:
                    self.events.append(message)
