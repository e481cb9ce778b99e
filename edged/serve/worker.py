"""The worker's life: take the configuration, load and prove, serve, report every second, drain, end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edged import handover
from edged.collab.collaboration import Collaboration
from edged.serve import settings as run_settings
from edged.serve.app import Api
from edged.serve.assembly import Assembly
from edged.serve.comparison import compare
from edged.serve.control import ControlChannel
from edged.serve.engine import Engine
from edged.serve.footprint import resident_bytes
from edged.serve.http import HttpServer
from edged.serve.leaving import Leaving, stop_accepting
from edged.serve.loading import Loaded, LoadedService, Loader
from edged.serve.management import Management
from edged.serve.offloading import Offloader
from edged.serve.oip import binary_at
from edged.serve.pictures import is_stream, only_this_machine
from edged.spawn import empty_directory
from edgekit.envelope import EnvelopeError
from edgekit.messages import (
    Answer,
    Comparison,
    Configure,
    DispatchChanged,
    Drain,
    HardSample,
    Held,
    LinkChanged,
    ModelDone,
    PurgeSpool,
    Ready,
    Recalibrate,
    ToWorker,
    WorkerReport,
)
from edgekit.packages import installed
from edgekit.services import ServiceError

log = logging.getLogger("edged.serve")

REPORT_S = 1.0
BACKLOG = 1024
"""Connections that may wait in the kernel while no worker accepts; the kernel's own limit may be lower."""
DRAIN_S = 10.0
"""How long a draining worker waits for what is in flight; the supervisor's patience is longer with all flushes."""
FLUSH_S = 1.0

T = TypeVar("T")


async def serve(control_fd: int, http_fd: int, on_inline: Callable[[], None] = lambda: None) -> int:
    """Run a worker on the inherited descriptors until it is drained; the exit status. `on_inline`: see Engine."""
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
    os.chdir(empty_directory(Path(configure.state_dir)))
    ends = handover.inherited(configure.send_fd), handover.inherited(configure.receive_fd)
    worker = Worker(configure, channel, listener, draining, *ends, on_inline=on_inline)
    listening = asyncio.create_task(worker.listen(messages))
    try:
        return await worker.run()
    finally:
        listening.cancel()
        await channel.flush()


class Worker:
    """Everything between the first and the last message."""

    def __init__(
        self,
        configure: Configure,
        channel: ControlChannel,
        listener: socket.socket,
        draining: asyncio.Event,
        sending: socket.socket | None = None,
        receiving: socket.socket | None = None,
        on_inline: Callable[[], None] = lambda: None,
    ) -> None:
        """`sending` takes idle connections to the successor, `receiving` brings those of the worker before."""
        self._configure, self._channel, self._listener = configure, channel, listener
        self._sending, self._receiving = sending, receiving
        self._on_inline = on_inline
        self._handover = False  # there is a successor that takes connections
        self._api: Api | None = None
        self._management = Management(configure.management_token, channel.send)
        self._draining = draining
        self._link = configure.link
        self._policy = configure.dispatch
        self._offloader: Offloader | None = None
        self._collaboration: Collaboration | None = None
        self._assembly: Assembly | None = None
        self._early: list[ToWorker] | None = []  # what was asked before the services are there; None: they are

    async def listen(self, messages: AsyncIterator[ToWorker]) -> None:
        """Act on every message of the supervisor. Its end of the channel closing means: drain."""
        try:
            async for message in messages:
                if isinstance(message, Drain):
                    self._handover = message.handover
                    self._draining.set()
                elif isinstance(message, ModelDone):
                    self._management.answered(message)
                elif isinstance(message, LinkChanged):
                    self._link = message.link
                    if self._collaboration is not None:
                        self._collaboration.set_link(message.link)
                    if self._offloader is not None:
                        self._offloader.link_changed()
                elif isinstance(message, DispatchChanged):
                    self._policy = message.policy
                    if self._offloader is not None:
                        self._offloader.set_policy(message.policy)
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
        assert self._collaboration is not None and self._assembly is not None
        if isinstance(message, PurgeSpool):
            await self._collaboration.purge(message.service)
        elif isinstance(message, Recalibrate):
            self._collaboration.recalibrate(message.service)
        elif isinstance(message, Held):
            self._collaboration.set_wanted({*self._assembly.services, *message.services})

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

    async def _serve(self, loaded: Loaded, stop: asyncio.Task[bool]) -> None:
        """From the first request to the last flush."""
        used = {entry.service.name: entry.setting for entry in loaded.services if entry.setting is not None}
        engine = Engine(
            run_settings.engine_threads(self._configure.threads, used, len(loaded.services) + len(loaded.alone)),
            at_once={name: setting.workers for name, setting in used.items()},
            on_inline=self._on_inline,
        )
        assert self._collaboration is not None
        offloader = self._offloader = Offloader(engine, self._collaboration)
        offloader.set_policy(self._policy)
        assembly = self._assembly = Assembly(
            self._configure, self._channel, self._collaboration, engine, offloader, loaded.services
        )
        keeper, sources = assembly.keeper, assembly.sources
        keeping = asyncio.create_task(keeper.run()) if keeper.wanted else None
        beating = asyncio.create_task(offloader.run())
        await assembly.add_all()
        galleries = assembly.galleries
        following = asyncio.create_task(galleries.run()) if galleries is not None else None
        early, self._early = self._early or [], None
        for message in (Held(services=self._configure.held), *early):
            await self._act(message)
        api = self._api = Api(
            assembly.services,
            engine,
            alone=loaded.alone,
            management=self._management,
            packages=self._packages,
            galleries=assembly.galleries,
        )
        api.pictures.allow_preview(self._configure.management_token, only_this_machine(self._listener))
        server = HttpServer(api.handle, wants_stream=is_stream, admit=api.admit, fault=api.fault, split_at=binary_at)
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(server, sock=self._listener, backlog=BACKLOG)
        inheriting = handover.Receiver(self._receiving, server.adopt) if self._receiving is not None else None
        watching = {asyncio.create_task(source.run()) for source in sources}
        self._channel.send(self._ready(loaded))
        assembly.outputs.start_sweep()
        for shadow in assembly.shadows.values():  # last of all: what they need is not missed by the services
            shadow.start()
        while not self._draining.is_set():
            self._channel.send(self._report())
            await asyncio.wait([stop], timeout=REPORT_S)
        await stop_accepting(listening)  # the socket stays open in the supervisor and the next worker
        for stopping in (*assembly.shadows.values(), *sources):
            stopping.stop()
        api.pictures.stop()
        until = loop.time() + DRAIN_S
        if inheriting is not None:
            await inheriting.close()
        successor = self._sending if self._handover else None
        await Leaving(server, api, successor, lambda: self._channel.send(self._report(leaving=True))).run(until)
        if watching:
            await asyncio.wait(watching, timeout=max(0.1, until - loop.time()))
        await self._finish(engine, assembly, watching)
        if keeping is not None:
            keeping.cancel()
        await asyncio.wait([asyncio.create_task(keeper.close())], timeout=FLUSH_S)
        if galleries is not None and following is not None:
            following.cancel()
            await asyncio.wait([asyncio.create_task(galleries.close())], timeout=FLUSH_S)
        beating.cancel()
        await offloader.close()

    async def _finish(self, engine: Engine, assembly: Assembly, watching: set[asyncio.Task[None]]) -> None:
        """Everything is answered: settle, flush and close what is below, each within bounds."""
        settled = [asyncio.create_task(service.settled()) for service in assembly.services.values()]
        if settled:
            await asyncio.wait(settled, timeout=FLUSH_S)
        await asyncio.wait([asyncio.create_task(assembly.outputs.close())], timeout=FLUSH_S)
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
            on_late=self._late,
        )

    def _compared(self, service: str, agrees: bool) -> None:
        if self._assembly is not None:
            self._assembly.compared(service, agrees)

    def _late(self, header: HardSample, answer: Answer) -> None:
        if self._assembly is not None:
            self._assembly.late(header, answer)

    def _load(self) -> Loaded:
        def announce(name: str) -> None:
            self._channel.notify("ok", "service-loading", f"{name} is loading its model")

        configure = self._configure
        loader = Loader(
            configure.packages,
            announce,
            run_settings.applied(configure.settings),
            self._channel.tell,
            Path(configure.state_dir),
        )
        services = loader.load_all(configure.services)
        loaded = Loaded(services, loader.load_models(configure.models), loader.footprint)
        loaded.comparisons = list(filter(None, map(self._compare, services)))
        return loaded

    def _compare(self, entry: LoadedService) -> Comparison | None:
        """With the model that the service runs now in another worker, if it is another one."""
        directory = self._configure.packages.get(self._configure.compare.get(entry.service.name, ""))
        if entry.model is None or directory is None:
            return None
        return compare(entry.service.name, entry.model.vision, Path(directory))

    def _ready(self, loaded: Loaded) -> Ready:
        assert self._assembly is not None
        directories = {directory: ref for ref, directory in self._configure.packages.items()}
        footprint = loaded.footprint
        return Ready(
            services=self._assembly.reports(),
            models=[model.report for model in loaded.alone],
            comparisons=loaded.comparisons,
            base=footprint.base,
            memory={directories[path]: size for path, size in footprint.models.items() if path in directories},
        )

    def _packages(self) -> list[str]:
        """References of the packages that are installed now, also of those that came after this worker."""
        return [*self._configure.packages, *installed(Path(self._configure.state_dir, "models"))]

    def _report(self, *, leaving: bool = False) -> WorkerReport:
        assert self._collaboration is not None and self._assembly is not None
        return WorkerReport(
            services=self._assembly.reports(),
            spool=self._collaboration.spool_report(),
            rss=resident_bytes(),
            uplink_bytes=self._collaboration.uplink_bytes,
            breaker=self._collaboration.breaker_state,
            models=self._api.protocol.statistics() if self._api is not None else [],
            leaving=leaving,
        )


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
