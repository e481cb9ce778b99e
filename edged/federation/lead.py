"""A site's leader in a process of its own: a participant of the upper job whose updates are its site's sums."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import ssl
import time
from pathlib import Path

import msgspec

from edged.federation.cloud import Cloud, HttpCloud, Rejected, RoundOver
from edged.federation.files import JobFolder
from edged.federation.notes import JobNote
from edged.federation.order import FederationOrder
from edged.federation.participant import SETTLE_S, Participant, Places
from edged.federation.settings import Federation
from edged.federation.shared import Shared
from edged.federation.site import Site, SiteCloud, SiteSource, UpperCloud
from edged.federation.sitting import Signing
from edged.federation.work import signing, unless
from edged.link.errors import LinkError
from edged.link.http import open_session
from edgekit import atomic
from edgekit.federated.errors import FederatedError
from edgekit.federated.tiers import alike, check_site_job
from edgekit.identity import client_context
from edgekit.messages.federation import FederatedJob, Over
from edgekit.secagg.errors import Refusal

log = logging.getLogger("edged.federation")

_SITE_JOB = "site.json"
_HANDED = "handed-down"


async def lead(order: FederationOrder, at: Places, stop: asyncio.Event) -> Over | None:
    """The upper job until it is over and the site knows, or (None) until `stop` is set.

    Raises as `Participant.run` does.
    """
    near, far = Path(order.identity), Path(order.upper_identity)
    async with open_session(_context(near)) as home, open_session(_context(far)) as abroad:
        clouds = SiteCloud(home, order.url), HttpCloud(abroad, order.upper)
        return await unless(stop, speak(order.job, *clouds, signing(far, order.device_id), order.policy, at))


async def speak(
    job: str,
    site_cloud: SiteCloud,
    upper_cloud: Cloud,
    identity: Signing,
    policy: Federation,
    at: Places,
    settle_s: float = SETTLE_S,
) -> Over:
    """The upper job from here on, for the site whose job this is. `identity`: as the upper cloudd knows this device."""
    told = await _site_job(job, site_cloud, at.folder)
    assert told.upper is not None
    above = UpperCloud(upper_cloud, told.upper)
    site = Site(told, site_cloud, above, at.folder.path / _HANDED)
    samples, loop, handing = await _samples(site), asyncio.get_running_loop(), _Handing(site)

    def source(_: FederatedJob, folder: JobFolder, shared: Shared) -> SiteSource:
        return SiteSource(site, alike(shared.rules, told), shared.rules, samples, loop)

    participant = Participant(
        job, above, source, identity=identity, policy=policy, places=at, say=handing.heard, settle_s=settle_s,
        leads=True,
    )  # fmt: skip
    try:
        over = await participant.run()
    finally:
        await handing.end()
    await site.over(over)
    _conclude(job, at, over)
    return over


async def _samples(site: Site) -> int:
    try:
        return await site.bring(0)
    except (RoundOver, Rejected):  # the site's job is over; the upper one says so too, or hears it
        return 0


async def _site_job(job: str, cloud: SiteCloud, folder: JobFolder) -> FederatedJob:
    """The site's job as its cloudd gave it when this device first asked.

    Raises Refusal for one that names no upper job, or is not what that says; Rejected, LinkError, OSError.
    """
    path = folder.path / _SITE_JOB
    try:
        found = msgspec.json.decode(path.read_bytes(), type=FederatedJob)
    except (OSError, msgspec.MsgspecError):
        found = await cloud.job(job)
        atomic.write_file(path, msgspec.json.encode(found))
    try:
        check_site_job(found)
    except FederatedError as error:
        raise Refusal("malformed", f"the site's job is not what its upper job says: {error}") from None
    if found.upper is None:
        raise Refusal("malformed", "the job names no upper job that this device could take part in for its site")
    return found


class _Handing:
    """Hands down what the upper job publishes as soon as the leader holds it, so that the site need not wait."""

    def __init__(self, site: Site) -> None:
        self._site, self._version = site, 0
        self._task: asyncio.Task[None] | None = None

    def heard(self, note: JobNote) -> None:
        """Where the leader stands now."""
        if note.version > self._version and (self._task is None or self._task.done()):
            self._version = note.version
            self._task = asyncio.create_task(self._hand_down(note.version))

    async def end(self) -> None:
        """What is not handed down is, when the next sum is asked for or the job is over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _hand_down(self, version: int) -> None:
        try:
            await self._site.bring(version)
        except (LinkError, Rejected, RoundOver, OSError) as error:
            log.info("The site does not hold the state %d yet: %s.", version, error)


def _conclude(job: str, at: Places, over: Over) -> None:
    note = at.book.job(job)
    with contextlib.suppress(OSError, sqlite3.Error):
        if note is not None:
            text = f"the upper job is {over.outcome}" + (f": {over.reason}" if over.reason else "")
            stage = "done" if over.outcome == "finished" else "stopped"
            at.book.note(msgspec.structs.replace(note, stage=stage, text=text[:500]))


def _context(identity: Path) -> ssl.SSLContext:
    return client_context(identity / "authority.pem", identity / "certificate.pem", identity / "key.pem", time.time())
