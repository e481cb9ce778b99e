"""The device: services, models, worker and link brought together, and everything that people can ask of it.

No sockets and no signals here (see `edged.supervisor`). All methods belong to one event loop; what blocks runs in a
thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from socket import socket
from typing import TYPE_CHECKING

import msgspec
import psutil

from edged.adaptation import Adaptation
from edged.api import AdaptProgress, ApiError, Done, Finding, JoinReply, ServiceText
from edged.collab import spool_view
from edged.collab.spool_files import Ballast
from edged.collab.spool_view import LeftRecord, SpooledSample
from edged.config import Settings
from edged.desired import MIGRATIONS, DesiredStore, is_model
from edged.federation.front import FederationFront, Subject
from edged.fetcher import Fetcher
from edged.follower import Follower
from edged.gallery.desk import GalleryDesk
from edged.health import Health
from edged.learning.door import LearningDoor
from edged.learning.parts import Parts
from edged.link import LinkError
from edged.link.service import LinkService
from edged.model_desk import ModelDesk, used_models
from edged.models import ModelStore
from edged.plan import Plan, service_of
from edged.runner import Runner
from edged.samples.desk import SampleDesk
from edged.served import ServedModels
from edged.service_desk import ServiceDesk
from edged.spawn import Spawned, empty_directory
from edged.status import doctor
from edged.status.hardware import HardwareReport
from edged.status.history import SAMPLE_S, History, Sample
from edged.status.machine import MachineSampler
from edged.status.preview import fetch_preview
from edged.status.review import Classes, classes_of
from edged.status.state import (
    Addresses,
    ModelState,
    ServedState,
    ServiceState,
    StatusState,
)
from edged.status.views import cloud_state, observe_services, service_state, worker_state
from edged.store import Database
from edged.subjects import Outside
from edged.tokens import MANAGEMENT_TOKEN, secret_token
from edgekit import VERSION, atomic
from edgekit.dispatch.policy import DispatchPolicy
from edgekit.messages import Configure, DispatchChanged, Event, Held, Link, LinkChanged, Report, RunSetting
from edgekit.packages import find
from edgekit.services import Samples, dump_service, parse_service

if TYPE_CHECKING:
    from edged.federation.around import Around
    from edged.federation.settings import Federation

log = logging.getLogger("edged.device")

RESTART_LOOP_S = 5.0
OBSERVE_S = 5.0
"""How often the services' state is looked at for the health list."""


class Device:
    """One edge device at work. `open` (blocking), then `start`, then ask what you like, then `stop`."""

    def __init__(
        self,
        settings: Settings,
        http: socket,
        addresses: Addresses,
        outside: Outside | None = None,
        first: Spawned | None = None,
    ) -> None:
        """`http` is the listening inference socket, `first` a worker spawned ahead for it.

        Raises StoreError, IdentityError, LinkError or OSError.
        """
        state = settings.state_dir
        self._settings, self._addresses = settings, addresses
        self._dispatch = settings.dispatch
        self.health = Health()
        self._started_at = time.time()
        ballast = Ballast(state / "spool" / "ballast")  # a disk that is full at the start must not stop the daemon
        self._database = Database(state / "edged.db", MIGRATIONS, make_room=ballast.release, alone=True)
        self._desired = DesiredStore(self._database, state / "services")
        self._models = ModelStore(state / "models")
        self._machine = MachineSampler(state)
        self._history = History()
        self._process = psutil.Process()
        self._changing = asyncio.Lock()  # one change of the wanted services at a time
        self._link_was_up, self._link_since = False, time.time()
        self._adaptation = Adaptation(settings, self.health, self._models.installed, outside or Outside())
        self._runner = Runner(
            http,
            empty_directory(settings.state_dir),
            self._desired,
            self._models.installed,
            self._configure,
            self.health,
            self._planned,
            prepare=self._adaptation.prepare,
            on_setting_failed=self._adaptation.setting_failed,
            on_death=self._worker_died,
            on_model_wanted=lambda message, worker: self._served.wanted(message, worker),
            first=first,
            learned=lambda: self.learning.learned(),
        )
        self._served = ServedModels(self._desired, self._models, self._runner, self._changing)
        self._management_token = ""
        self._adaptation.attach(self._runner)
        self._link = LinkService(
            state,
            version=VERSION,
            name=settings.name,
            name_is_given=settings.name_is_given,
            on_link=self._link_changed,
            on_desired=lambda desired: self._follower.arrived(desired),
            state=self.report,
            report=lambda level, code, text: self.health.report(code, level, text),
            url=settings.cloud_url,
            machine=f"{self._machine.sample().architecture} {self._machine.sample().model}".strip(),
            discover=settings.discover,
        )
        self._desk = ModelDesk(self._desired, self._models, self._link.fetch_model, self.models, self._model_came)
        self._fetcher = Fetcher(self._link, self._models, lambda: self._runner.missing, self._model_came)
        self._service_desk = ServiceDesk(
            self._desired,
            self._runner,
            self._changing,
            came=self._fetcher.wait,
            changed=self._link.nudge,
            put=lambda: self._follower.look_again(),
        )
        self._follower = Follower(
            self._desired, self._service_desk.change, self.health, settings.allow_paths, hosts=settings.allow_hosts
        )
        self.samples = SampleDesk(
            state,
            lambda: self._link.device_id,
            settings.spool_reserve,
            self._samples_policy,
            self._samples_say,
        )
        self.galleries = GalleryDesk(
            state,
            lambda: self._link.device_id,
            self._task_of,
            self._gate_of,
            lambda: (self._addresses.inference, self._management_token),
        )
        self.learning = LearningDoor(
            Parts(
                state_dir=state,
                empty=empty_directory(state),
                entries=self._desired.entries,
                models=self._models,
                samples=self.samples,
                runs=self._runner,
                health=self.health,
                device_id=lambda: self._link.device_id,
                link_up=lambda: self._link.link.up,
                settling=self._adaptation.settling,
                served=lambda: frozenset(one.model for one in self._served.states()),
                threads=max(1, len(os.sched_getaffinity(0)) - 1),
            )
        )
        self.federation = FederationFront(settings.federation, self._federation_around)
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Bring table, files and packages into order after whatever happened. Raises sqlite3.Error or OSError."""
        if self._database.quarantined is not None:
            text = f"The database was damaged and was moved to {self._database.quarantined}."
            self.health.note("warning", "state.quarantined", f"{text} Services come from their files.")
        state = self._settings.state_dir
        atomic.sweep(state, state / "keys", state / "services")
        self._management_token = secret_token(state / MANAGEMENT_TOKEN)
        self._models.open()
        self._take_file_problems(self._desired.open())
        self._desired.forgive(hopeless_only=True)
        self.learning.open()
        self.federation.open()
        self._follower.open()

    async def start(self) -> None:
        """Start the worker and the link; returns at once."""
        await self._link.start()
        loops = {
            "runner": self._runner.run,
            "fetcher": self._fetcher.run,
            "follower": self._follower.run,
            "observer": self._observe,
            "history": self._remember,
            "adaptation": self._adaptation.run,
            "samples": self.samples.run,
            "learning": self.learning.run,
            "federation": self.federation.run,
        }
        self._tasks = [asyncio.create_task(self._keep_running(name, loop)) for name, loop in loops.items()]

    async def stop(self) -> None:
        """Drain the worker, close the link and the database."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._served.stop()
        # Together: each may take a part of the time that the service manager allows.
        await asyncio.gather(self.federation.close(), self.learning.close(), self._runner.stop())
        await self._link.stop()
        await self.samples.close()
        self._database.close()

    async def reload(self) -> None:
        """Look at the services' files and the installed packages again, and retry what was refused."""
        async with self._changing:
            self._take_file_problems(await asyncio.to_thread(self._desired.read_files))
            await asyncio.to_thread(self._desired.forgive)
            await asyncio.to_thread(self._models.refresh)
        self._adaptation.reload()
        self._runner.changed(by_hand=True)
        self._follower.look_again()

    def set_dispatch(self, policy: DispatchPolicy | None) -> None:
        """Where requests go when more comes than can be done, from the next request on."""
        if policy != self._dispatch:
            self._dispatch = policy
            self._runner.send(DispatchChanged(policy=policy))

    # --- reading ------------------------------------------------------------------------------------------------------

    def status(self) -> StatusState:
        """Everything there is to show."""
        worker = self._runner.worker
        report = worker.report if worker is not None else None
        return StatusState(
            version=VERSION,
            name=self._link.name,
            device_id=self._link.device_id,
            state_dir=str(self._settings.state_dir),
            started_at=self._started_at,
            now=time.time(),
            supervisor_rss=self._process.memory_info().rss,
            health=self.health.state(),
            machine=self._machine.sample(),
            addresses=self._addresses,
            cloud=cloud_state(self._link, self.health, self._link_since),
            worker=worker_state(self._runner),
            services=self.services(),
            models=self.models(),
            served=self._served.states(),
            spool=report.spool if report is not None else None,
            hardware=self._adaptation.state(),
            inference=self._runner.model_statistics(),
            learning=self.learning.states(),
            federation=self.federation.jobs(),
        )

    def history(self) -> tuple[Mapping[str, Sequence[Sample]], float]:
        """The last ten minutes of each service, and the present time of that clock."""
        now = time.monotonic()
        return self._history.lately(now), now

    async def preview(self, name: str) -> bytes:
        """The newest picture of a service, as a JPEG. Raises ApiError."""
        return await fetch_preview(self._addresses.inference, self._management_token, name)

    def report(self) -> Report:
        """The reported state, for cloudd."""
        worker = self._runner.worker
        return Report(
            services=[service.report for service in self.services()],
            spool=worker.report.spool if worker is not None and worker.report is not None else None,
            health=self.health.level(),
            problems=[item.text for item in self.health.items()],
            revision=self._follower.revision,
            at=time.time(),
        )

    def services(self) -> list[ServiceState]:
        """Every wanted service with its newest report."""
        reports = {report.name: report for report in self._runner.reports()}
        packages = self._models.installed()
        return [
            service_state(
                entry,
                reports.get(name),
                self._runner.running(name),
                packages,
                self._fetcher.detail,
                self._runner.comparisons.get(name),
            )
            for name, entry in sorted(self._runner.entries.items())
        ]

    async def classes(self) -> Mapping[str, Classes]:
        """What people may call the pictures of each service."""
        packages = self._models.installed()
        known = [
            (name, service_of(entry), packages.get(running.ref) if (running := self._runner.running(name)) else None)
            for name, entry in sorted(self._runner.entries.items())
        ]
        return await asyncio.to_thread(lambda: {name: classes_of(service, path) for name, service, path in known})

    def service_text(self, name: str) -> ServiceText:
        """The newest definition of one service. Raises ApiError."""
        return self._service_desk.text(name)

    def models(self) -> list[ModelState]:
        """Every installed package and who uses it."""
        used = used_models(self._runner, self.learning.holds())
        return self._models.states(used, {state.model for state in self._served.states()})

    async def doctor(self) -> list[Finding]:
        """Run every check."""
        examination = doctor.Examination(state_dir=self._settings.state_dir, status=self.status())
        return await asyncio.to_thread(doctor.examine, examination)

    def hardware(self) -> HardwareReport:
        """From the facts about the device to how each model runs."""
        return self._adaptation.report()

    async def adapt(self, service: str, again: bool, say: Callable[[AdaptProgress], None]) -> None:
        """Measure now how models run best here. Raises ApiError."""
        await self._adaptation.adapt_now(service, again, say)

    async def spool(self, service: str, limit: int) -> list[SpooledSample]:
        """Hard samples that wait, the most valuable first."""
        return await asyncio.to_thread(spool_view.spooled, self._settings.state_dir, service, limit)

    async def left(self, service: str, limit: int) -> list[LeftRecord]:
        """The record of the pictures that left this device, the newest first."""
        return await asyncio.to_thread(spool_view.left, self._settings.state_dir, service, limit)

    # --- changing -----------------------------------------------------------------------------------------------------

    async def join(self, token: str, url: str, name: str) -> JoinReply:
        """Join a cloudd. Raises ApiError."""
        try:
            link = await self._link.join(token, url, name)
        except LinkError as error:
            raise ApiError(409, str(error)) from None
        return JoinReply(device_id=self._link.device_id, url=link.url, name=self._link.cloud_name)

    async def add_service(self, text: str, wait_s: float) -> ServiceState:
        """Add or replace a service and wait until it runs, failed, or cannot be waited for. Raises ApiError."""
        name = await self._service_desk.add(text, wait_s)
        return next(state for state in self.services() if state.name == name)

    async def remove_service(self, name: str) -> Done:
        """Remove a service; samples of it that wait in the spool are still delivered. Raises ApiError."""
        return await self._service_desk.remove(name)

    def recalibrate(self, name: str) -> Done:
        """Let a service's gate calibrate anew. Raises ApiError."""
        return self._service_desk.recalibrate(name)

    def purge_spool(self, service: str) -> Done:
        """Remove waiting samples. Raises ApiError."""
        return self._service_desk.purge_spool(service)

    async def add_model(self, path: str) -> str:
        """Install the package in a directory of this machine; its name@version. Raises ApiError."""
        return await self._desk.add(path)

    async def pull_model(self, ref: str, progress: Callable[[int, int], None]) -> str:
        """Fetch a model from cloudd; its name@version. Raises ApiError."""
        return await self._desk.pull(ref, progress)

    async def remove_model(self, ref: str) -> Done:
        """Remove an installed package that no service runs. Raises ApiError."""
        return await self._desk.remove(ref)

    async def serve_model(self, ref: str, wait_s: float) -> ServedState:
        """Serve a model without a service. Raises ApiError."""
        return await self._served.serve(ref, wait_s)

    async def unserve_model(self, ref: str) -> Done:
        """The other way round. Raises ApiError."""
        return await self._served.unserve(ref)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _samples_say(self, event: Event) -> None:
        if event.passing:
            self.health.note(event.level, event.code, event.text)
        else:
            self.health.report(event.code, event.level, event.text)

    def _task_of(self, name: str) -> str | None:
        """The task of a wanted service."""
        entry = self._runner.entries.get(name)
        service = service_of(entry) if entry is not None else None
        return service.task if service is not None else None

    def _gate_of(self, name: str) -> str:
        """What a running service says of its gate or gallery."""
        return next((report.gate for report in self._runner.reports() if report.name == name), "")

    def _federation_around(self, policy: Federation) -> Around:
        from edged.federation.around import Around

        return Around(
            state_dir=self._settings.state_dir,
            empty=empty_directory(self._settings.state_dir),
            policy=policy,
            link=self._link,
            subject=self._subject_of,
            labelled=self._labelled,
            forget=self.samples.delete_version,
            learning=self.learning,
            report=self.health.report,
            threads=max(1, len(os.sched_getaffinity(0)) - 1),
        )

    def _subject_of(self, name: str) -> Subject | None:
        """A service that runs, with the package that its definition means: what a federated job would begin with."""
        entry, packages = self._runner.entries.get(name), self._models.installed()
        service = service_of(entry) if entry is not None else None
        ref = find(service.model, packages) if service is not None else None
        if entry is None or ref is None or self._runner.running(name) is None:
            return None
        return Subject(entry.text, ref, packages[ref])

    async def _labelled(self, name: str) -> int:
        return sum((await self.samples.stats(name)).labels.values())

    def _samples_policy(self, name: str) -> Samples:
        entry = self._runner.entries.get(name)
        service = service_of(entry) if entry is not None else None
        return service.samples if service is not None else Samples()

    def _configure(self, plan: Plan) -> Configure:
        packages = self._models.installed()
        return Configure(
            state_dir=str(self._settings.state_dir),
            # With the exact model: a last good service may run an older version of what another one means by its name.
            services=[_pinned(choice.text, choice.ref, choice.head) for choice in plan.services],
            packages={ref: str(packages[ref]) for ref in sorted(plan.packages)},
            link=self._link.link,
            spool_quota=self._settings.spool_quota,
            spool_reserve=self._settings.spool_reserve,
            threads=self._settings.threads,
            device_id=self._link.device_id,
            held=sorted(name for name in plan.held if not is_model(name)),
            settings=self._adaptation.settings(plan.services),
            models=list(plan.models),
            management_token=self._management_token,
            dispatch=self._dispatch,
            shadows={choice.name: choice.shadow for choice in plan.services if choice.shadow},
        )

    def _planned(self) -> None:
        self._runner.send(Held(services=self._runner.held))
        self._fetcher.wake()

    def _worker_died(self, settings: Mapping[str, RunSetting], ready: bool, how: str) -> None:
        self._adaptation.worker_died(settings, ready, how)
        self.learning.worker_died()

    def _model_came(self) -> None:
        self._runner.changed(by_hand=True)
        self._link.nudge()

    def _link_changed(self, link: Link) -> None:
        if link.up != self._link_was_up:
            self._link_was_up, self._link_since = link.up, time.time()
        self._runner.send(LinkChanged(link=link))
        self._fetcher.wake()

    async def _keep_running(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run one of the device's loops; an error nobody foresaw is shown and costs a few seconds, not the daemon."""
        while True:
            try:
                await loop()
            except Exception as error:
                log.exception("The %s met an error that it does not know; it starts again.", name)
                text = f"The {name} met an unexpected error and was started again: {type(error).__name__}: {error}."
                self.health.report(f"internal.{name}", "error", f"{text} Please report it with the daemon's log.")
                await asyncio.sleep(RESTART_LOOP_S)

    async def _observe(self) -> None:
        """Turn the services' states into health items."""
        while True:
            await asyncio.sleep(OBSERVE_S)
            observe_services(self.services(), self._runner.missing, self.health)

    async def _remember(self) -> None:
        """Keep what the page draws over time."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            self._history.take(self._runner.reports(), time.monotonic())

    def _take_file_problems(self, problems: list[str]) -> None:
        if problems:
            self.health.report("services.files", "error", f"A service's file cannot be used: {'; '.join(problems)}")
        else:
            self.health.clear("services.files")


def _pinned(text: str, ref: str, head: str = "") -> str:
    service = msgspec.structs.replace(parse_service(text, "stored definition"), model=ref)
    if service.split is not None and head:
        service = msgspec.structs.replace(service, split=msgspec.structs.replace(service.split, heads=head))
    return dump_service(service)
