"""The device: services, models, worker and link brought together, and everything that people can ask of it.

No sockets and no signals here (see `edged.supervisor`). All methods belong to one event loop; what blocks runs in a
thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from socket import socket
from typing import TYPE_CHECKING

from edged.adaptation import Adaptation
from edged.api import AdaptProgress, ApiError, Done, Finding, JoinReply, ServiceText
from edged.briefing import Briefing
from edged.collab import spool_view
from edged.collab.spool_files import Ballast
from edged.collab.spool_view import LeftRecord, SpooledSample
from edged.config import Settings
from edged.desired import MIGRATIONS, DesiredStore
from edged.federation.front import FederationFront
from edged.fetcher import Fetcher
from edged.follower import Follower
from edged.gallery.desk import GalleryDesk
from edged.health import Health
from edged.learning.door import LearningDoor
from edged.learning.parts import Cloudd, Parts
from edged.link import LinkError
from edged.link.service import LinkService
from edged.loops import Loops
from edged.model_desk import ModelDesk
from edged.models import ModelStore
from edged.overview import Overview
from edged.runner import Runner
from edged.samples.desk import SampleDesk
from edged.served import ServedModels
from edged.service_desk import ServiceDesk
from edged.spawn import Spawned, empty_directory
from edged.status import doctor
from edged.status.hardware import HardwareReport
from edged.status.history import Sample
from edged.status.machine import MachineSampler
from edged.status.preview import fetch_preview
from edged.status.review import Classes
from edged.status.state import Addresses, ModelState, ServedState, ServiceState, StatusState
from edged.store import Database
from edged.subjects import Outside
from edged.tokens import MANAGEMENT_TOKEN, secret_token
from edged.wanted import Wanted
from edgekit import VERSION, atomic
from edgekit.dispatch.policy import DispatchPolicy
from edgekit.messages import DispatchChanged, Held, Link, LinkChanged, RunSetting

if TYPE_CHECKING:
    from edged.federation.around import Around
    from edged.federation.settings import Federation


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
        self.health = Health()
        ballast = Ballast(state / "spool" / "ballast")  # a disk that is full at the start must not stop the daemon
        self._database = Database(state / "edged.db", MIGRATIONS, make_room=ballast.release, alone=True)
        self._desired = DesiredStore(self._database, state / "services")
        self._models = ModelStore(state / "models")
        self._empty = empty_directory(state)
        self._changing = asyncio.Lock()  # one change of the wanted services at a time
        machine = MachineSampler(state)
        self._link = LinkService(
            state,
            version=VERSION,
            name=settings.name,
            name_is_given=settings.name_is_given,
            on_link=self._link_changed,
            on_desired=lambda desired: self._follower.arrived(desired),
            state=lambda: self._overview.report(),
            report=lambda level, code, text: self.health.report(code, level, text),
            url=settings.cloud_url,
            machine=f"{machine.sample().architecture} {machine.sample().model}".strip(),
            discover=settings.discover,
        )
        self._adaptation = Adaptation(settings, self.health, self._models.installed, outside or Outside())
        self._briefing = Briefing(settings, self._models.installed, self._link, self._adaptation.settings)
        self._runner = Runner(
            http,
            self._empty,
            self._desired,
            self._models.installed,
            self._briefing.configure,
            self.health,
            self._planned,
            prepare=self._adaptation.prepare,
            on_setting_failed=self._adaptation.setting_failed,
            on_death=self._worker_died,
            on_model_wanted=lambda message, worker: self._served.wanted(message, worker),
            first=first,
            learned=lambda: self.learning.learned(),
        )
        self._adaptation.attach(self._runner)
        self._wanted = Wanted(self._runner.standing, self._models.installed)
        self._served = ServedModels(self._desired, self._models, self._runner, self._changing)
        self._desk = ModelDesk(self._desired, self._models, self._link.fetch_model, self.models, self._model_came)
        self._fetcher = Fetcher(self._link, self._models, lambda: self._runner.standing.missing, self._model_came)
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
            state, lambda: self._link.device_id, settings.spool_reserve, self._wanted.samples, self.health.take
        )
        self.galleries = GalleryDesk(
            state,
            lambda: self._link.device_id,
            self._wanted.task,
            self._wanted.gate,
            lambda: (self._addresses.inference, self._briefing.management_token),
        )
        self.learning = LearningDoor(self._learning_parts())
        self.federation = FederationFront(settings.federation, self._federation_around)
        self._overview = Overview(
            state_dir=state,
            addresses=addresses,
            health=self.health,
            machine=machine,
            link=self._link,
            runner=self._runner,
            models=self._models,
            served=self._served,
            fetcher=self._fetcher,
            follower=self._follower,
            adaptation=self._adaptation,
            learning=self.learning,
            federation=self.federation,
        )
        self._loops = Loops(self.health)

    def open(self) -> None:
        """Bring table, files and packages into order after whatever happened. Raises sqlite3.Error or OSError."""
        if self._database.quarantined is not None:
            text = f"The database was damaged and was moved to {self._database.quarantined}."
            self.health.note("warning", "state.quarantined", f"{text} Services come from their files.")
        state = self._settings.state_dir
        atomic.sweep(state, state / "keys", state / "services")
        self._briefing.management_token = secret_token(state / MANAGEMENT_TOKEN)
        self._models.open()
        self._take_file_problems(self._desired.open())
        self._desired.forgive(hopeless_only=True)
        self.learning.open()
        self.federation.open()
        self._follower.open()

    async def start(self) -> None:
        """Start the worker and the link; returns at once."""
        await self._link.start()
        self._loops.start(
            {
                "runner": self._runner.run,
                "fetcher": self._fetcher.run,
                "follower": self._follower.run,
                "observer": self._overview.observe,
                "history": self._overview.remember,
                "adaptation": self._adaptation.run,
                "samples": self.samples.run,
                "learning": self.learning.run,
                "federation": self.federation.run,
            }
        )

    async def stop(self) -> None:
        """Drain the worker, close the link and the database."""
        await self._loops.stop()
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
        if policy != self._briefing.dispatch:
            self._briefing.dispatch = policy
            self._runner.send(DispatchChanged(policy=policy))

    # --- reading ------------------------------------------------------------------------------------------------------

    def status(self) -> StatusState:
        """Everything there is to show."""
        return self._overview.status()

    def history(self) -> tuple[Mapping[str, Sequence[Sample]], float]:
        """The last ten minutes of each service, and the present time of that clock."""
        return self._overview.history()

    async def preview(self, name: str) -> bytes:
        """The newest picture of a service, as a JPEG. Raises ApiError."""
        return await fetch_preview(self._addresses.inference, self._briefing.management_token, name)

    def services(self) -> list[ServiceState]:
        """Every wanted service with its newest report."""
        return self._overview.services()

    async def classes(self) -> Mapping[str, Classes]:
        """What people may call the pictures of each service."""
        return await self._overview.classes()

    def service_text(self, name: str) -> ServiceText:
        """The newest definition of one service. Raises ApiError."""
        return self._service_desk.text(name)

    def models(self) -> list[ModelState]:
        """Every installed package and who uses it."""
        return self._overview.models()

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

    def _learning_parts(self) -> Parts:
        return Parts(
            state_dir=self._settings.state_dir,
            empty=self._empty,
            entries=self._desired.entries,
            models=self._models,
            samples=self.samples,
            runs=self._runner,
            standing=self._runner.standing,
            health=self.health,
            device_id=lambda: self._link.device_id,
            link_up=lambda: self._link.link.up,
            cloudd=self._cloudd,
            settling=self._adaptation.settling,
            served=lambda: frozenset(one.model for one in self._served.states()),
            threads=_spare_cpus(),
        )

    def _cloudd(self) -> Cloudd:
        identity = self._link.identity
        return Cloudd(self._link.link.url, str(identity.directory) if identity is not None else "")

    def _federation_around(self, policy: Federation) -> Around:
        from edged.federation.around import Around

        return Around(
            state_dir=self._settings.state_dir,
            empty=self._empty,
            policy=policy,
            link=self._link,
            subject=self._wanted.subject,
            labelled=self.samples.labelled,
            forget=self.samples.delete_version,
            learning=self.learning,
            report=self.health.report,
            health=self.health.level,
            threads=_spare_cpus(),
        )

    def _planned(self) -> None:
        self._runner.send(Held(services=self._runner.standing.held))
        self._fetcher.wake()

    def _worker_died(self, settings: Mapping[str, RunSetting], ready: bool, how: str) -> None:
        self._adaptation.worker_died(settings, ready, how)
        self.learning.worker_died()

    def _model_came(self) -> None:
        self._runner.changed(by_hand=True)
        self._link.nudge()

    def _link_changed(self, link: Link) -> None:
        self._overview.link_changed(link)
        self._runner.send(LinkChanged(link=link))
        self._fetcher.wake()

    def _take_file_problems(self, problems: list[str]) -> None:
        if problems:
            self.health.report("services.files", "error", f"A service's file cannot be used: {'; '.join(problems)}")
        else:
            self.health.clear("services.files")


def _spare_cpus() -> int:
    """Threads of a training process: one CPU stays for everything else."""
    return max(1, len(os.sched_getaffinity(0)) - 1)
