"""The device in one look: what all its parts say of themselves, put together for people, for metrics and for cloudd."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from edged.adaptation import Adaptation
from edged.federation.front import FederationFront
from edged.fetcher import Fetcher
from edged.follower import Follower
from edged.health import Health
from edged.learning.door import LearningDoor
from edged.link.service import LinkService
from edged.model_desk import used_models
from edged.models import ModelStore
from edged.plan import service_of
from edged.runner import Runner
from edged.served import ServedModels
from edged.status.history import SAMPLE_S, History, Sample
from edged.status.machine import MachineSampler
from edged.status.review import Classes, classes_of
from edged.status.state import Addresses, ModelState, ServiceState, StatusState
from edged.status.views import cloud_state, observe_services, service_state, worker_state
from edgekit import VERSION
from edgekit.messages import Link, Report, SpoolReport

OBSERVE_S = 5.0
"""How often the services' state is looked at for the health list."""


class Overview:
    """Changes nothing but the health list. `observe` and `remember` are its loops. Belongs to one event loop."""

    def __init__(
        self,
        *,
        state_dir: Path,
        addresses: Addresses,
        health: Health,
        machine: MachineSampler,
        link: LinkService,
        runner: Runner,
        models: ModelStore,
        served: ServedModels,
        fetcher: Fetcher,
        follower: Follower,
        adaptation: Adaptation,
        learning: LearningDoor,
        federation: FederationFront,
    ) -> None:
        self._state_dir, self._addresses, self._machine = state_dir, addresses, machine
        self._health, self._link, self._runner, self._models = health, link, runner, models
        self._served, self._fetcher, self._follower, self._adaptation = served, fetcher, follower, adaptation
        self._learning, self._federation = learning, federation
        self._history = History()
        self._process = psutil.Process()
        self._started_at = self._link_since = time.time()
        self._link_was_up = False

    def link_changed(self, link: Link) -> None:
        """Note since when the link is up or down."""
        if link.up != self._link_was_up:
            self._link_was_up, self._link_since = link.up, time.time()

    # --- now ----------------------------------------------------------------------------------------------------------

    def status(self) -> StatusState:
        """Everything there is to show."""
        return StatusState(
            version=VERSION,
            name=self._link.name,
            device_id=self._link.device_id,
            state_dir=str(self._state_dir),
            started_at=self._started_at,
            now=time.time(),
            supervisor_rss=self._process.memory_info().rss,
            health=self._health.state(),
            machine=self._machine.sample(),
            addresses=self._addresses,
            cloud=cloud_state(self._link, self._health, self._link_since),
            worker=worker_state(self._runner),
            services=self.services(),
            models=self.models(),
            served=self._served.states(),
            spool=self._spool(),
            hardware=self._adaptation.state(),
            inference=self._runner.standing.model_statistics(),
            learning=self._learning.states(),
            federation=self._federation.jobs(),
        )

    def report(self) -> Report:
        """The reported state, for cloudd."""
        return Report(
            services=[service.report for service in self.services()],
            spool=self._spool(),
            health=self._health.level(),
            problems=[item.text for item in self._health.items()],
            revision=self._follower.revision,
            at=time.time(),
        )

    def services(self) -> list[ServiceState]:
        """Every wanted service with its newest report."""
        standing = self._runner.standing
        reports = {report.name: report for report in standing.reports()}
        packages = self._models.installed()
        return [
            service_state(
                entry,
                reports.get(name),
                standing.running(name),
                packages,
                self._fetcher.detail,
                standing.comparisons.get(name),
            )
            for name, entry in sorted(standing.entries.items())
        ]

    def models(self) -> list[ModelState]:
        """Every installed package and who uses it."""
        used = used_models(self._runner.standing, self._learning.holds())
        return self._models.states(used, {state.model for state in self._served.states()})

    async def classes(self) -> Mapping[str, Classes]:
        """What people may call the pictures of each service."""
        packages, standing = self._models.installed(), self._runner.standing
        known = [
            (name, service_of(entry), packages.get(running.ref) if (running := standing.running(name)) else None)
            for name, entry in sorted(standing.entries.items())
        ]
        return await asyncio.to_thread(lambda: {name: classes_of(service, path) for name, service, path in known})

    def _spool(self) -> SpoolReport | None:
        worker = self._runner.worker
        return worker.report.spool if worker is not None and worker.report is not None else None

    # --- over time ----------------------------------------------------------------------------------------------------

    def history(self) -> tuple[Mapping[str, Sequence[Sample]], float]:
        """The last ten minutes of each service, and the present time of that clock."""
        now = time.monotonic()
        return self._history.lately(now), now

    async def observe(self) -> None:
        """Turn the services' states into health items, until cancelled."""
        while True:
            await asyncio.sleep(OBSERVE_S)
            observe_services(self.services(), self._runner.standing.missing, self._health)

    async def remember(self) -> None:
        """Keep what the page draws over time, until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            self._history.take(self._runner.standing.reports(), time.monotonic())
