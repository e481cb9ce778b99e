"""From loaded services to running ones: each with its collaborator, its outputs, its source of pictures, its shadow."""

from __future__ import annotations

import contextlib
import random
import time
from asyncio import get_running_loop
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edged.capture.camera import CameraSource
from edged.capture.folder import FolderSource
from edged.capture.outputs.opening import Outputs
from edged.collab.collaboration import AnyCollaborator, Collaboration
from edged.gallery.live import Galleries
from edged.samples.keeper import SampleKeeper
from edged.samples.opening import open_store
from edged.samples.store import SampleStore
from edged.serve import settings as run_settings
from edged.serve.control import ControlChannel
from edged.serve.engine import Engine
from edged.serve.heads import EngineHeads
from edged.serve.inspecting import Identifying
from edged.serve.loading import LoadedService
from edged.serve.offloading import Offloader
from edged.serve.service_runtime import ServiceRuntime
from edged.serve.shadow.shadow import SHARE, Shadow
from edged.serve.shadow.wire import Order
from edgekit.messages import NOTHING_FOUND, Answer, Configure, Decision, Event, HardSample, ServiceReport
from edgekit.services import CAMERAS, Samples
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector

Keep = Callable[[Decision, bytes], None]


class Assembly:
    """The running services of a worker. Belongs to one event loop; nothing in it runs before the worker says so."""

    def __init__(
        self,
        configure: Configure,
        channel: ControlChannel,
        collaboration: Collaboration,
        engine: Engine,
        offloader: Offloader,
        loaded: list[LoadedService],
    ) -> None:
        """`loaded` are the services of `configure`, in its order."""
        self._configure, self._channel = configure, channel
        self._collaboration, self._engine, self._offloader = collaboration, engine, offloader
        self._loaded = loaded
        self.services: dict[str, ServiceRuntime] = {}
        self.sources: list[FolderSource | CameraSource] = []
        """Whatever brings pictures by itself."""
        self.shadows: dict[str, Shadow] = {}
        self.keeper = self._keep_samples()
        self.galleries = self._galleries()
        queues = Path(configure.state_dir, "queues")
        self.outputs = Outputs(queues, configure.device_id, channel.notify, collaboration.release_ballast)

    async def add_all(self) -> None:
        """Make every service, in order."""
        if self.galleries is not None:
            await self.galleries.follow()
        for entry, definition in zip(self._loaded, self._configure.services, strict=True):
            self.services[entry.service.name] = await self._runtime(entry, definition)

    def reports(self) -> list[ServiceReport]:
        """How each service gets on."""
        return [service.report() for service in self.services.values()]

    def compared(self, service: str, agrees: bool) -> None:
        """An audit or a late answer arrived; `settle` never saw it."""
        if service in self.services:
            self.services[service].statistics.compared(agrees)

    def late(self, header: HardSample, answer: Answer) -> None:
        """An answer came after its sample's decision."""
        self.keeper.answered(header, answer)
        if header.service in self.shadows:
            self.shadows[header.service].answered(header, answer)

    def _galleries(self) -> Galleries | None:
        """Those of the services that tell identities apart, if there are any."""
        found = Galleries(Path(self._configure.state_dir), self._configure.device_id, self._channel.notify)
        for entry in self._loaded:
            if isinstance(entry.inspect, Identifying) and entry.model is not None:
                package, name = entry.model.package, entry.service.name
                found.add(name, f"{package.ref} {package.digest}", entry.inspect.embedder.spec, entry.service.gallery)
                entry.inspect.recognise = partial(found.recognise, name)
                entry.inspect.sentence = partial(found.sentence, name)
        return found if any(isinstance(entry.inspect, Identifying) for entry in self._loaded) else None

    def _keep_samples(self) -> SampleKeeper:
        """Pictures of the services with `[samples]` stay for learning."""
        configure, loop = self._configure, get_running_loop()
        policies = {entry.service.name: entry.service.samples for entry in self._loaded}

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
                loop.call_soon_threadsafe(self._channel.send, event)

        def opener() -> SampleStore:
            return open_store(
                Path(configure.state_dir),
                configure.device_id,
                lambda name: policies.get(name, Samples()),
                configure.spool_reserve,
                tell,
                time.time,
            )

        return SampleKeeper(opener, policies, random.random, self._channel.send, time.time)

    async def _runtime(self, entry: LoadedService, definition: str) -> ServiceRuntime:
        service = entry.service
        heads = EngineHeads(entry.heads, self._engine, service) if entry.heads is not None else None
        if entry.why_no_heads:
            text = f"{service.name} runs without a split: {entry.why_no_heads}."
            self._channel.notify("warning", f"split:{service.name}", text)
        collaborator = (
            await self._collaboration.add(service, entry.model.ref, heads, entry.why_no_heads) if entry.model else None
        )
        outputs = self.outputs.of(service)  # of a failed service too: what waits in a queue still goes out
        shadow = self._shadow(entry, definition, collaborator) if collaborator is not None else None
        runtime = ServiceRuntime(
            service,
            entry.model,
            entry.inspect,
            entry.failure,
            self._engine,
            collaborator,
            outputs,
            self._channel.notify,
            run_settings.Watch(service.name, entry.setting, self._channel.send),
            offloader=self._offloader,
            keep=self.keeper.offer if shadow is None else _both(self.keeper.offer, shadow.offer),
            shadow=shadow,
        )
        if entry.model is not None and service.source.kind == "folder":
            self.sources.append(
                FolderSource(
                    service.name,
                    service.source,
                    list(outputs.values()),
                    runtime.inspect_file,
                    runtime.record,
                    self._channel.notify,
                    Path(self._configure.state_dir, "kept-files.db"),
                    self._collaboration.release_ballast,
                )
            )
        elif entry.model is not None and service.source.kind in CAMERAS:
            locks = Path(self._configure.state_dir, "run", "cameras")
            camera = CameraSource(service.name, service.source, runtime.inspect_frame, self._channel.notify, locks)
            self.sources.append(camera)
        return runtime

    def _shadow(self, entry: LoadedService, definition: str, collaborator: AnyCollaborator) -> Shadow | None:
        """The candidate that looks at this service's pictures, if there is one."""
        service, model = entry.service, entry.model
        ref = self._configure.shadows.get(service.name)
        if ref is None or model is None:
            return None
        directory = self._configure.packages.get(ref, "")
        failure = "" if directory else "it is not installed"
        if not isinstance(model.vision, Classifier | Detector):
            failure = "only candidates that classify or detect can be tried on live pictures so far"
        order = Order(
            definition=definition,
            candidate=ref,
            directory=directory,
            known=[*model.vision.labels, *([NOTHING_FOUND] if isinstance(model.vision, Detector) else [])],
            # An answer about some regions says nothing of what the candidate found in the others.
            asks=service.hard_samples.asks and service.regions is None and not collaborator.reticence,
        )
        share = SHARE / len(self._configure.shadows)
        shadow = self.shadows[service.name] = Shadow(service.name, order, self._channel.notify, share, failure)
        return shadow


def _both(first: Keep, second: Keep) -> Keep:
    def keep(decision: Decision, picture: bytes) -> None:
        first(decision, picture)
        second(decision, picture)

    return keep
