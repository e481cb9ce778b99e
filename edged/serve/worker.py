"""The worker's life: take the configuration, load and prove, serve, report every second, drain, end."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from edged.capture.folder import FolderSource
from edged.capture.outputs import JsonlOutput
from edged.serve.app import Api
from edged.serve.control import ControlChannel
from edged.serve.engine import Engine
from edged.serve.http import BodyReader, JsonServer
from edged.serve.loading import LoadedService, Loader
from edged.serve.service_runtime import ServiceRuntime
from edged.serve.wiring import Collaboration
from edgekit.envelope import EnvelopeError
from edgekit.messages import Configure, Drain, Event, LinkChanged, PurgeSpool, Ready, Recalibrate, WorkerReport
from edgekit.services import Service, ServiceError

log = logging.getLogger("edged.serve")

REPORT_S = 1.0
BACKLOG = 1024
"""Connections that may wait in the kernel while no worker accepts; the kernel's own limit may be lower."""
GRACE_S = 2.0
"""How long a draining worker waits for idle clients to ask once more and hear `Connection: close`."""
DRAIN_S = 10.0
"""How long it waits for what is in flight; the supervisor's patience is longer."""
FLUSH_S = 2.0

T = TypeVar("T")


async def serve(control_fd: int, http_fd: int) -> int:
    """Run a worker on the inherited descriptors until it is drained; the exit status."""
    channel = await ControlChannel.open(control_fd)
    listener = socket.socket(fileno=http_fd)
    listener.setblocking(False)
    listener.set_inheritable(False)
    draining = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, draining.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C is the supervisor's business; it drains us
    messages = channel.messages()
    configure = await anext(messages, None)
    if configure is None:
        return 0
    if not isinstance(configure, Configure):
        log.error("the first message must be the configuration, not %s", type(configure).__name__)
        return 1
    empty = Path(configure.state_dir, "run", "empty")
    empty.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chdir(empty)
    worker = Worker(configure, channel, listener, draining)
    listening = asyncio.create_task(worker.listen(messages))
    try:
        return await worker.run()
    finally:
        listening.cancel()
        await channel.flush()


class Worker:
    """Everything between the first and the last message."""

    def __init__(
        self, configure: Configure, channel: ControlChannel, listener: socket.socket, draining: asyncio.Event
    ) -> None:
        self._configure, self._channel, self._listener = configure, channel, listener
        self._draining = draining
        self._link = configure.link
        self._collaboration: Collaboration | None = None
        self._services: dict[str, ServiceRuntime] = {}
        self._outputs: dict[Path, JsonlOutput] = {}
        self._folders: list[FolderSource] = []

    async def listen(self, messages: "asyncio.StreamReader | object") -> None:
        raise AssertionError

