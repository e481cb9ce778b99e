"""A job comes to the device: the job itself, its files by hash, the rosters of the plants that are trusted here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from edged.federation.book import Book
from edged.federation.cloud import Cloud
from edged.federation.files import JobFolder
from edged.federation.settings import Federation
from edged.link.download import check_room
from edgekit import atomic
from edgekit.federated.errors import FederatedError
from edgekit.federated.plan import Plan
from edgekit.federated.tiers import check_site_job
from edgekit.messages import FileEntry
from edgekit.messages.federation import FederatedJob
from edgekit.packages.manifest import PackageError, check_path
from edgekit.secagg.errors import Refusal
from edgekit.secagg.roster import MAX_ROSTER, Membership, open_rosters

MAX_JOB = 8 << 30
"""Bytes of all files of a job."""
ROSTERS_S = 600.0
"""Rosters are opened again after so long: they may have expired."""
_JOB = "job.json"


async def open_job(job: str, cloud: Cloud, folder: JobFolder) -> FederatedJob:
    """The job as cloudd gave it when this device first asked. Raises Rejected, LinkError, OSError."""
    path = folder.path / _JOB
    try:
        return msgspec.json.decode(path.read_bytes(), type=FederatedJob)
    except (OSError, msgspec.MsgspecError):
        found = await cloud.job(job)
        atomic.write_file(path, msgspec.json.encode(found))
        return found


def plan_of(job: FederatedJob) -> Plan:
    """What is computed. Raises Refusal."""
    try:
        return msgspec.json.decode(job.plan, type=Plan)
    except msgspec.MsgspecError as error:
        raise Refusal("malformed", f"the job's plan cannot be read: {error}") from None


def admit(job: FederatedJob, policy: Federation) -> None:
    """Raises Refusal for a job that the plant's policy does not allow, before anything is fetched or trained."""
    private = plan_of(job).privacy is not None
    try:
        check_site_job(job)
    except FederatedError as error:
        raise Refusal("malformed", f"the site's job is not what its upper job says: {error}") from None
    if not policy.enabled:
        raise Refusal("policy", "this device takes part in no federated job (federation.enabled)")
    if policy.services is not None and job.service not in policy.services:
        raise Refusal("policy", f"the service {job.service} may not learn with others (federation.services)")
    if not job.secure and not policy.plain:
        raise Refusal("policy", "the job would send unmasked updates to cloudd (federation.plain)")
    if not job.secure and private:
        raise Refusal("policy", "each device adds a part of the noise only: without masks it would hide nothing")
    policy.check_privacy(private)


async def fetch_files(job: FederatedJob, cloud: Cloud, folder: JobFolder) -> None:
    """Bring what is missing. Raises Refusal for names or sizes that cannot be, Rejected, LinkError, OSError."""
    wanted = {folder.files / entry.path: entry for entry in job.files}
    wanted |= {roster_path(folder, number): entry for number, entry in enumerate(job.rosters)}
    total = sum(entry.size for entry in wanted.values())
    for entry in job.files:
        try:
            check_path(entry.path)
        except PackageError as error:
            raise Refusal("malformed", f"the job names a file that cannot be: {error}") from None
    if not 0 <= total <= MAX_JOB or any(not 0 < entry.size <= MAX_ROSTER for entry in job.rosters):
        raise Refusal("malformed", f"the job's files have {total} bytes; {MAX_JOB} are allowed")
    missing = {path: entry for path, entry in wanted.items() if not is_there(entry, path)}
    await asyncio.to_thread(check_room, folder.path, sum(entry.size for entry in missing.values()))
    for path, entry in missing.items():
        await cloud.fetch(job.id, entry, path)


def is_there(entry: FileEntry, path: Path) -> bool:
    """Whether a file was fetched. It gets its name only when its hash is right, so the size tells."""
    return path.is_file() and path.stat().st_size == entry.size


def roster_path(folder: JobFolder, number: int) -> Path:
    """Where a roster of the job lies."""
    return folder.path / "rosters" / f"{number}.json"


class Rosters:
    """Who may be in a cohort of a job, as trusted plants have signed. `wall` gives seconds since the epoch."""

    def __init__(
        self,
        job: FederatedJob,
        folder: JobFolder,
        *,
        node: bytes,
        policy: Federation,
        book: Book,
        wall: Callable[[], float],
    ) -> None:
        self._job, self._folder, self._node = job, folder, node
        self._policy, self._book, self._wall = policy, book, wall
        self._opened: tuple[float, Membership] | None = None

    def membership(self) -> Membership:
        """Opened anew when the last time is ROSTERS_S ago. Raises Refusal, OSError."""
        if not self._job.secure:
            return Membership({}, bytes(32), {})
        now = self._wall()
        if self._opened is None or not 0 <= now - self._opened[0] < ROSTERS_S:
            files = [roster_path(self._folder, number).read_bytes() for number in range(len(self._job.rosters))]
            floors = self._book.floors(self._policy.plants)
            found = open_rosters(files, self._policy.trusted(), now=now, floors=floors)
            if self._node not in found:
                raise Refusal("identity", "this device is in no roster that it trusts itself")
            self._book.keep_floors(self._policy.plants, found.floors)
            self._opened = now, found
        return self._opened[1]
