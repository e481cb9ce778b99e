"""Idle connections of a real worker wait for its successor, also where that comes later or the first one dies."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.models import make_package, picture
from support.workers import configuration, listening_socket

from edged.spawn import spawn
from edged.worker import Worker
from edgekit.messages import Configure


class Line:
    """One listening socket, workers one after the other, and a client that keeps its connection."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "empty"
        self.directory.mkdir()
        package = make_package(root / "package")
        text = 'name = "solder"\nmodel = "brightness@1"\ndeadline_ms = 5000\n[hard_samples]\nmode = "off"\n'
        self.configure: Configure = configuration(root / "state", [text], {"brightness@1": package.root})
        self.listener = listening_socket()
        self.client = http.client.HTTPConnection(*self.listener.getsockname(), timeout=20)
        self.workers: list[Worker] = []

    async def start(self, inherits: socket.socket | None = None) -> Worker:
        spawned = spawn(self.listener, self.directory, inherits=inherits)
        worker = await Worker.start(self.configure, spawned, lambda worker, event: None)
        self.workers.append(worker)
        return worker

    async def ask(self) -> int:
        """Ask on the client's connection, which is not opened a second time."""

        def ask() -> int:
            self.client.request("POST", "/v1/services/solder/inspect", picture(0.1), {"Content-Type": "image/png"})
            response = self.client.getresponse()
            response.read()
            assert not response.will_close
            return response.status

        return await asyncio.to_thread(ask)

    async def end(self) -> None:
        for worker in self.workers:
            worker.kill()
            await worker.exited
            worker.handed.close()
        self.client.close()
        self.listener.close()


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    line = Line(tmp_path)
    yield line
    await line.end()


async def test_connections_wait_for_a_successor_that_starts_after_the_end(line: Line) -> None:
    first = await line.start()
    await asyncio.wait_for(first.ready, 30)
    line.client.connect()
    line.client.auto_open = 0
    assert await line.ask() == 200
    assert await first.drain(10, handover=True) == 0
    asking = asyncio.create_task(line.ask())  # nobody is there, but the connection is
    dead = await line.start(first.handed)
    os.kill(dead.pid, signal.SIGKILL)
    assert await dead.exited == -signal.SIGKILL
    await line.start(first.handed)
    assert await asyncio.wait_for(asking, 30) == 200
    assert await line.ask() == 200


async def test_without_a_successor_a_client_is_told_to_connect_again(line: Line) -> None:
    first = await line.start()
    await asyncio.wait_for(first.ready, 30)
    line.client.connect()
    assert await line.ask() == 200
    draining = asyncio.create_task(first.drain(10))
    await asyncio.sleep(0.3)
    line.client.request("GET", "/v2/health/live")
    response = await asyncio.to_thread(line.client.getresponse)
    assert (response.status, response.will_close) == (200, True)
    assert await draining == 0


async def test_a_successor_that_takes_nothing_does_not_hold_up_the_end(line: Line) -> None:
    first = await line.start()
    await asyncio.wait_for(first.ready, 30)
    line.client.connect()
    assert await line.ask() == 200
    first.handed.close()  # nobody can take them: the worker keeps its connections and closes them itself
    assert await first.drain(10, handover=True) == 0
    assert line.client.sock is not None
    assert await asyncio.to_thread(line.client.sock.recv, 100) == b""
