"""What an operator can see and do, once: the admin socket and the dashboard are two thin fronts of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from cloudd.answers.pool import PoolLoad
from cloudd.answers.store import AnswerStore, StoredAnswer
from cloudd.config import DEFAULT_TTL_S, MAX_NAME, MAX_TTL_S
from cloudd.dashboard.state import DashboardState, DeviceView, ModelView, SampleDetail, SampleView, Totals
from cloudd.devices.control import ControlHub
from cloudd.devices.enrol import clean_name
from cloudd.devices.fleet import Device, Fleet
from cloudd.devices.invites import Invites
from cloudd.registry import ModelSummary, Registry, RegistryError
from cloudd.retraining.service import Retraining
from cloudd.retraining.view import RetrainingView
from cloudd.storage import StorageError
from cloudd.web import HttpProblem
from edgekit import VERSION
from edgekit.identity import short_id
from edgekit.messages import Level, ModelEntry
from edgekit.packages import PackageError

_SHOWN = 50  # answers on the dashboard
_CERTIFICATE_WARNING_S = 5 * 86_400.0  # devices renew ten days before the end
_DISK_WARNING = 500_000_000  # bytes


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while this process lives."""

    name: str
    version: str = VERSION
    pid: int
    started_at: float
    state_dir: str
    device_url: str  # https://host:port that people give to devices
    dashboard_url: str
    fingerprint: str  # of the authority
    advertised: bool


class InviteRequest(msgspec.Struct, kw_only=True):
    """Wish for a join token: its life in seconds and what the device shall be called ("": it decides)."""

    ttl_s: Annotated[float, Meta(gt=0.0, le=MAX_TTL_S)] = DEFAULT_TTL_S
    name: Annotated[str, Meta(max_length=MAX_NAME)] = ""


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """A fresh token, and the command to type on the device. The token is shown once and cannot be shown again."""

    token: str
    token_id: str
    expires_at: float
    command: str
    url: str


class DeviceDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One device with the definitions that it should run (None: nobody has set any)."""

    device: DeviceView
    desired: list[str] | None


class ModelDirectory(msgspec.Struct, frozen=True, kw_only=True):
    """Reply of GET /models/REF/directory."""

    path: str  # absolute, on the daemon's host


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation on a device did."""

    device_id: str
    name: str
    revision: str = ""
    delivered: bool = False  # the device is connected and was told


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Reply of GET /status."""

    about: About
    health: Level
    problems: list[str]
    totals: Totals


class Operations:
    """Every operation. Methods raise HttpProblem with a fitting status and a sentence."""

    def __init__(
        self,
        about: About,
        fleet: Fleet,
        invites: Invites,
        hub: ControlHub,
        registry: Registry,
        store: AnswerStore,
        pool_load: Callable[[], PoolLoad],
        wall: Callable[[], float] = time.time,
        on_model: Callable[[ModelEntry], None] = lambda entry: None,
        retraining: Retraining | None = None,
    ) -> None:
        """`pool_load` tells how busy the answer workers are, `on_model` hears of every model that was registered."""
        self.about = about
        self._fleet, self._invites, self._hub = fleet, invites, hub
        self._registry, self._store, self._pool_load = registry, store, pool_load
        self._wall, self._on_model, self._retraining = wall, on_model, retraining

    async def status(self) -> Status:
        """Addresses, health and totals."""
        now = self._wall()
        views = [_view(one, now) for one in await self._fleet.all()]
        problems = self._problems(views, now)
        return Status(
            about=self.about,
            health="warning" if problems else "ok",
            problems=problems,
            totals=await self._totals(views),
        )

    async def dashboard(self, logged_in: bool = False) -> DashboardState:
        """Everything the page shows."""
        now, fleet = self._wall(), await self._fleet.all()
        views = [_view(one, now) for one in fleet]
        problems = self._problems(views, now)
        return DashboardState(
            name=self.about.name,
            version=self.about.version,
            now=now,
            started_at=self.about.started_at,
            device_url=self.about.device_url,
            fingerprint=self.about.fingerprint,
            advertised=self.about.advertised,
            health="warning" if problems else "ok",
            problems=problems,
            totals=await self._totals(views),
            devices=views,
            samples=_samples(await self._store.recent(_SHOWN), fleet),
            models=[_model(one) for one in await self._registry.all()],
            answering=self._pool_load(),
            retraining=await self.retraining(),
            logged_in=logged_in,
        )

    async def invite(self, wish: InviteRequest) -> Invitation:
        """Make a join token."""
        now = self._wall()
        name = clean_name(wish.name) if wish.name else ""
        token = await self._invites.create(now, wish.ttl_s, name)
        return Invitation(
            token=token.text(),
            token_id=token.token_id,
            expires_at=now + wish.ttl_s,
            command=f"edged join {token.text()} --url {self.about.device_url}",
            url=self.about.device_url,
        )

    async def devices(self) -> list[DeviceView]:
        """The fleet, by name."""
        return [_view(one, self._wall()) for one in await self._fleet.all()]

    async def device(self, text: str) -> DeviceDetail:
        """One device by id, first group of the id, or name."""
        found = await self._fleet.find(text)
        return DeviceDetail(device=_view(found, self._wall()), desired=found.desired)

    async def revoke(self, text: str, reason: str = "") -> Change:
        """Lock a device out, now: its next request is refused and its control channel is closed.

        What it brought to be retrained is removed with it.
        """
        device = await self._fleet.find(text)
        await self._fleet.revoke(device.id, self._wall(), reason)
        self._hub.lock_out(device.id)
        if self._retraining is not None:
            await self._retraining.lock_out(device.id)
        return Change(device_id=device.id, name=device.name)

    async def restore(self, text: str) -> Change:
        """Take a revocation back. The device connects again by itself while its certificate is valid."""
        device = await self._fleet.find(text)
        await self._fleet.restore(device.id, self._wall())
        if self._retraining is not None:
            self._retraining.admit(device.id)
        return Change(device_id=device.id, name=device.name)

    async def set_desired(self, text: str, services: list[str]) -> Change:
        """Set what a device should run and tell it, if it is connected."""
        device = await self._fleet.find(text)
        revision = await self._fleet.set_desired(device.id, services, self._wall())
        delivered = await self._hub.push_desired(device.id)
        return Change(device_id=device.id, name=device.name, revision=revision, delivered=delivered)

    async def retraining(self, device: str = "") -> list[RetrainingView]:
        """Jobs of retraining, the newest first; of one device, if it is named."""
        jobs = self._retraining.jobs() if self._retraining is not None else []
        if not device:
            return jobs
        wanted = (await self._fleet.find(device)).id
        return [one for one in jobs if one.device_id == wanted]

    async def retraining_job(self, text: str) -> RetrainingView:
        """One job by its name, or by as much of it as no other has."""
        found = [one for one in await self.retraining() if one.job.startswith(text)] if len(text) >= 4 else []
        if len(found) != 1:
            how = f"{len(found)} jobs begin so" if found else "none begins so; 4 characters at least are needed"
            raise HttpProblem(404, f"{text!r} names no job of retraining: {how} (`cloudd retraining list`)")
        return found[0]

    async def remove_retraining(self, text: str) -> RetrainingView:
        """End a job of retraining and remove its pictures."""
        job = await self.retraining_job(text)
        assert self._retraining is not None, "it has found the job"
        try:
            return await self._retraining.remove(job.device_id, job.job)
        except OSError as error:
            raise HttpProblem(503, f"it cannot be removed at the moment: {error.strerror or error}") from None

    async def models(self) -> list[ModelSummary]:
        """Every registered model version."""
        return await self._registry.all()

    async def model(self, ref: str) -> ModelEntry:
        """One model by "name" or "name@version"."""
        try:
            entry = await self._registry.resolve(ref)
        except PackageError as error:
            raise HttpProblem(400, str(error)) from None
        if entry is None:
            raise HttpProblem(404, f"no model {ref!r} is registered; `cloudd models list` shows them all")
        return entry

    async def model_directory(self, ref: str) -> ModelDirectory:
        """A registered model as a verified directory on this host, for commands that read its files."""
        entry = await self.model(ref)
        try:
            return ModelDirectory(path=str(await self._registry.materialise(entry)))
        except StorageError as error:
            raise HttpProblem(503, str(error)) from None

    async def add_model(self, directory: str) -> ModelEntry:
        """Register the package in a directory of this host."""
        path = Path(directory)
        if not path.is_absolute():
            raise HttpProblem(400, f"{directory!r} is not an absolute path")
        try:
            entry = await self._registry.add(path)
        except PackageError as error:
            raise HttpProblem(422, str(error)) from None
        except RegistryError as error:
            raise HttpProblem(409, str(error)) from None
        self._on_model(entry)
        return entry

    async def answers(self, limit: int, before: int | None = None) -> list[SampleView]:
        """The newest answers, newest first; `before` (an id) continues a list."""
        return _samples(await self._store.recent(limit, before), await self._fleet.all())

    async def answer(self, number: int) -> SampleDetail:
        """One answer, with its parts."""
        found = await self._store.recent(1, number + 1)
        if not found or found[0].id != number:
            raise HttpProblem(404, f"there is no answer {number}; `cloudd answers list` shows the newest")
        (view,) = _samples(found, await self._fleet.all())
        mosaic, mosaic_answer = await self._store.mosaic(number)
        return SampleDetail(
            **msgspec.structs.asdict(view),
            differing=found[0].differing,
            mosaic=mosaic,
            mosaic_answer=mosaic_answer,
        )

    async def picture(self, number: int, thumbnail: bool = False) -> bytes:
        """The picture as the device sent it (hostile bytes), or our own JPEG thumbnail of it."""
        data = await self._store.picture(number, thumbnail)
        if data is None:
            raise HttpProblem(404, f"the picture of answer {number} is not kept (any more)")
        return data

    def _problems(self, views: list[DeviceView], now: float) -> list[str]:
        """The health list: what needs a person."""
        found = [
            f"the certificate of device {one.name} ({one.short_id}) was not renewed and ends within "
            f"{max(0.0, (one.certificate_until - now) / 86_400):.0f} days"
            for one in views
            if not one.revoked and one.certificate_until - now < _CERTIFICATE_WARNING_S
        ]
        disk = shutil.disk_usage(self.about.state_dir)
        if disk.free < _DISK_WARNING:
            found.append(f"only {disk.free / 1e6:.0f} MB are free on the disk of {self.about.state_dir}")
        return found

    async def _totals(self, views: list[DeviceView]) -> Totals:
        counts = await self._store.counts()
        admitted = [one for one in views if not one.revoked]
        services = [service for one in admitted for service in one.services]
        return Totals(
            devices=len(admitted),
            online=sum(one.online for one in admitted),
            revoked=len(views) - len(admitted),
            services=len(services),
            inspected=sum(one.inspected for one in services),
            decided_edge=sum(one.edge for one in services),
            decided_cloud=sum(one.cloud for one in services),
            decided_degraded=sum(one.degraded for one in services),
            spooled=sum(one.spool.items for one in admitted if one.spool is not None),
            answered=counts.answered,
            compared=counts.compared,
            agreed=counts.agreed,
        )


def _model(one: ModelSummary) -> ModelView:
    return ModelView(name=one.name, version=one.version, digest=one.digest, files=one.files, size=one.bytes)


def _samples(stored: list[StoredAnswer], fleet: list[Device]) -> list[SampleView]:
    names = {device.id: device.name for device in fleet}
    return [
        SampleView(
            id=str(one.id),
            sample_id=one.sample_id,
            device_id=one.device_id,
            device=names.get(one.device_id, short_id(one.device_id)),
            service=one.service,
            serial=one.serial,
            reason=one.reason,
            late=one.late,
            captured_at=one.captured_at,
            answered_at=one.answered_at,
            edge=one.edge,
            cloud=one.cloud,
            agree=one.agrees,
            compute_ms=one.compute_ms,
            thumbnail=f"/samples/{one.id}.jpg" if one.thumbnail is not None else "",
            regions=one.regions,
            differ=len(one.differing),
            tail=one.tail,
            cut=one.cut,
        )
        for one in stored
    ]


def _view(device: Device, now: float) -> DeviceView:
    report = device.report
    reported_revision = report.revision if report is not None else ""
    return DeviceView(
        device_id=device.id,
        short_id=short_id(device.id),
        name=device.name,
        online=device.online(now),
        revoked=device.revoked_at is not None,
        enrolled_at=device.enrolled_at,
        seen_at=device.seen_at,
        certificate_until=device.not_after,
        version=device.version,
        machine=device.machine,
        health=report.health if report is not None else None,
        problems=report.problems if report is not None else [],
        services=report.services if report is not None else [],
        spool=report.spool if report is not None else None,
        reported_at=device.reported_at,
        desired_revision=device.revision,
        reported_revision=reported_revision,
        in_sync=device.desired is None or reported_revision == device.revision,
    )
