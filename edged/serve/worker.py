"""The worker's life: take the configuration, load and prove, serve, report every second, drain, end."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edged.capture.folder import FolderSource
from edged.capture.outputs import JsonlOutput
from edged.collab.collaboration import Collaboration
from edged.serve import settings as run_settings
from edged.serve.app import Api
from edged.serve.control import ControlChannel
from edged.serve.engine import Engine
from edged.serve.http import BodyReader, JsonServer
from edged.serve.loading import LoadedService, Loader
from edged.serve.service_runtime import ServiceRuntime
from edgekit.envelope import EnvelopeError
from edgekit.messages import (
    Configure,
    Drain,
    Held,
    LinkChanged,
    PurgeSpool,
    Ready,
    Recalibrate,
    ToWorker,
    WorkerReport,
)
from edgekit.services import Service, ServiceError

log = logging.getLogger("edged.serve")

REPORT_S = 1.0
BACKLOG = 1024
"""Connections that may wait in the kernel while no worker accepts; the kernel's own limit may be lower."""
GRACE_S = 2.0
"""How long a draining worker waits for idle clients to ask once more and hear `Connection: close`."""
DRAIN_S = 10.0
"""How long it waits for what is in flight; with all flushes the supervisor's patience is still longer."""
FLUSH_S = 1.0

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
    os.chdir(_empty_directory(Path(configure.state_dir)))
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
        self._early: list[ToWorker] | None = []  # what was asked before the services are there; None: they are

    async def listen(self, messages: AsyncIterator[ToWorker]) -> None:
        """Act on every message of the supervisor. Its end of the channel closing means: drain."""
        try:
            async for message in messages:
                if isinstance(message, Drain):
                    self._draining.set()
                elif isinstance(message, LinkChanged):
                    self._link = message.link
                    if self._collaboration is not None:
                        self._collaboration.set_link(message.link)
                elif self._early is None:
                    await self._act(message)
                else:
                    self._early.append(message)
        except (EnvelopeError, msgspec.MsgspecError) as error:
            log.error("the supervisor sent something that is no message: %s", error)
        finally:
            self._draining.set()  # also after a fault of our own: who does not listen must be replaced

    async def _act(self, message: ToWorker) -> None:
        """Do what an operator asked for, or what follows from it."""
        assert self._collaboration is not None
        if isinstance(message, PurgeSpool):
            await self._collaboration.purge(message.service)
        elif isinstance(message, Recalibrate):
            self._collaboration.recalibrate(message.service)
        elif isinstance(message, Held):
            self._collaboration.set_wanted({*self._services, *message.services})

    async def run(self) -> int:
        """Load, serve until told to drain, drain; the exit status."""
        stop = asyncio.create_task(self._draining.wait())
        loading = _in_thread(self._load)
        either: list[asyncio.Future[Any]] = [stop, loading]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            return 0
        try:
            loaded = loading.result()
        except ServiceError as error:
            log.error("the configuration cannot be used: %s", error)
            return 1
        async with self._collaborate() as self._collaboration:
            self._collaboration.set_link(self._link)  # it may have changed while the spool was opened
            await self._serve(loaded, stop)
        self._channel.send(self._report())
        return 0

    async def _serve(self, loaded: list[LoadedService], stop: asyncio.Task[bool]) -> None:
        """From the first request to the last flush."""
        used = {entry.service.name: entry.setting for entry in loaded if entry.setting is not None}
        engine = Engine(
            run_settings.engine_threads(self._configure.threads, used, len(loaded)),
            at_once={name: setting.workers for name, setting in used.items()},
        )
        for entry in loaded:
            self._services[entry.service.name] = await self._runtime(entry, engine)
        early, self._early = self._early or [], None
        for message in (Held(services=self._configure.held), *early):
            await self._act(message)
        api = Api(self._services, engine, BodyReader())
        server = JsonServer(api.handle, handler_cancellation=True, access_log=None, lingering_time=2.0, logger=log)
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(server, sock=self._listener, backlog=BACKLOG)
        watching = {asyncio.create_task(folder.run()) for folder in self._folders}
        self._channel.send(Ready(services=[service.report() for service in self._services.values()]))
        while not self._draining.is_set():
            self._channel.send(self._report())
            await asyncio.wait([stop], timeout=REPORT_S)
        api.draining = True
        listening.close()  # this descriptor only: the socket stays open in the supervisor and the next worker
        for folder in self._folders:
            folder.stop()
        until = loop.time() + DRAIN_S
        await self._idle(server, api, until)
        server.pre_shutdown()
        await server.shutdown(max(0.1, until - loop.time()))
        if watching:
            await asyncio.wait(watching, timeout=max(0.1, until - loop.time()))
        await self._finish(engine, watching)

    async def _idle(self, server: JsonServer, api: Api, until: float) -> None:
        """Wait until nothing is in flight and idle clients have gone, or have had their time to."""
        loop = asyncio.get_running_loop()
        patient_until = loop.time() + GRACE_S
        while server.connections and loop.time() < until:
            if not api.in_flight and loop.time() > patient_until:
                return
            await asyncio.sleep(0.02)

    async def _finish(self, engine: Engine, watching: set[asyncio.Task[None]]) -> None:
        """Everything is answered: settle, flush and close what is below, each within bounds."""
        settled = [asyncio.create_task(service.settled()) for service in self._services.values()]
        if settled:
            await asyncio.wait(settled, timeout=FLUSH_S)
        closing = [asyncio.create_task(output.close()) for output in self._outputs.values()]
        if closing:
            await asyncio.wait(closing, timeout=FLUSH_S)
        if watching:  # a folder that waited for an output has been told by now that there is none
            await asyncio.wait(watching, timeout=FLUSH_S)
        try:
            await asyncio.wait_for(engine.stop(), FLUSH_S)
        except TimeoutError:
            log.warning("a model did not end in time while the worker drained")

    def _collaborate(self) -> Collaboration:
        configure = self._configure
        return Collaboration(
            Path(configure.state_dir),
            configure.device_id,
            self._link,
            quota=configure.spool_quota,
            reserve=configure.spool_reserve,
            on_event=self._channel.send,
            on_compared=self._compared,
        )

    def _compared(self, service: str, agrees: bool) -> None:
        """An audit or a late answer arrived; `settle` never saw it."""
        if service in self._services:
            self._services[service].statistics.compared(agrees)

    def _load(self) -> list[LoadedService]:
        def announce(name: str) -> None:
            self._channel.notify("ok", "service-loading", f"{name} is loading its model")

        return Loader(
            self._configure.packages,
            announce,
            run_settings.applied(self._configure.settings),
            self._channel.tell,
            Path(self._configure.state_dir),
        ).load_all(self._configure.services)

    async def _runtime(self, entry: LoadedService, engine: Engine) -> ServiceRuntime:
        assert self._collaboration is not None
        service = entry.service
        collaborator = await self._collaboration.add(service, entry.model.ref) if entry.model else None
        outputs = {path: self._output(path) for path in _output_paths(service)} if entry.model else {}
        runtime = ServiceRuntime(
            service,
            entry.model,
            entry.failure,
            engine,
            collaborator,
            outputs,
            self._channel.notify,
            run_settings.Watch(service.name, entry.setting, self._channel.send),
        )
        if entry.model is not None and service.source.kind == "folder":
            self._folders.append(
                FolderSource(
                    service.name,
                    service.source,
                    list(outputs),
                    runtime.inspect_file,
                    runtime.record,
                    self._channel.notify,
                    Path(self._configure.state_dir, "kept-files.db"),
                    self._collaboration.release_ballast,
                )
            )
        return runtime

    def _output(self, path: Path) -> JsonlOutput:
        """One writer a file, also where several services share it."""
        if path not in self._outputs:
            self._outputs[path] = JsonlOutput(path, self._channel.notify)
        return self._outputs[path]

    def _report(self) -> WorkerReport:
        assert self._collaboration is not None
        return WorkerReport(
            services=[service.report() for service in self._services.values()],
            spool=self._collaboration.spool_report(),
            rss=_resident_bytes(),
            uplink_bytes=self._collaboration.uplink_bytes,
            breaker=self._collaboration.breaker_state,
        )


def _empty_directory(state_dir: Path) -> Path:
    """Where the worker runs: nothing that a hostile model names relative to it exists there."""
    empty = state_dir / "run" / "empty"
    empty.mkdir(mode=0o700, parents=True, exist_ok=True)
    return empty


def _output_paths(service: Service) -> list[Path]:
    """The service's outputs. A folder without one gets a file of its own: a decision must be kept before it moves."""
    paths = [Path(output.path) for output in service.outputs]
    if not paths and service.source.kind == "folder":
        paths.append(Path(service.source.path) / "decisions.jsonl")
    return paths


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    return pages * resource.getpagesize()


def _in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run `work` in a daemon thread: a load that hangs must not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type] # None only where T allows it

    def run() -> None:
        try:
            outcome: tuple[T | None, Exception | None] = (work(), None)
        except Exception as error:
            outcome = (None, error)
        loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return future
