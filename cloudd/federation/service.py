"""All federated jobs of this cloudd: started, taken up again after a restart, ended, packed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cloudd.federation import continuing, files, packing, sites
from cloudd.federation import definition as definitions
from cloudd.federation.child import prepared
from cloudd.federation.cohort import Bell
from cloudd.federation.definition import Definition
from cloudd.federation.errors import DiskError, FederationError, storage_text
from cloudd.federation.job import JobRun
from cloudd.federation.led import LedRun
from cloudd.federation.nodes import node_of
from cloudd.federation.store import FederationStore, JobRow, Status
from cloudd.registry import Registry
from cloudd.storage import references
from cloudd.web import STORAGE_ERRORS
from edgekit import packages
from edgekit.autodiff.errors import AutodiffError
from edgekit.faults import crash_point
from edgekit.federated.errors import FederatedError
from edgekit.federated.opening import open_rules
from edgekit.federated.plan import Plan
from edgekit.messages import FileEntry
from edgekit.messages.federation import FederatedJob, JobNotice, Over
from edgekit.packages import Package, PackageError
from edgekit.secagg.errors import Refusal
from edgekit.secagg.roster import MAX_ROSTER, Membership, open_rosters

log = logging.getLogger("cloudd.federation")

KEPT_S = 30 * 86_400.0
"""An ended job's files and sums stay so long, for devices that were away."""
_MOST_RUNNING = 64
_RETRY_S = 30.0
_STORAGE = (*STORAGE_ERRORS, OSError, DiskError)
_UNUSABLE = (FederationError, FederatedError, AutodiffError, Refusal)
_ENDED: tuple[Status, ...] = ("finished", "stopped", "failed")


MAX_START = 32 << 20
"""Bytes of a StartRequest."""

Prepare = Callable[[Path, str, Path], Awaitable[int]]
"""(the base's package, definition, folder that gets the train step) -> shared values. Raises FederationError."""


class StartRequest(msgspec.Struct, kw_only=True):
    """What `cloudd fl start` sends: the definition, and the contents of the roster files (base64)."""

    definition: str
    rosters: list[Annotated[bytes, Meta(max_length=MAX_ROSTER)]] = []


class Federation:
    """`folder` is this room's own on the disk. Methods raise FederationError, StorageError."""

    def __init__(
        self,
        store: FederationStore,
        registry: Registry,
        folder: Path,
        *,
        wall: Callable[[], float] = time.time,
        prepare: Prepare = prepared,
    ) -> None:
        self._prepare = prepare
        self.store, self.registry, self.folder, self._wall = store, registry, folder, wall
        self.runs: dict[str, JobRun] = {}
        self.changed = Bell()
        """Rings when the set of running jobs has changed."""
        self.waiting: dict[str, str] = {}
        """Jobs that wait for storage to be taken up, or to end, and what it says."""
        self.stopping = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._members: dict[str, Membership | None] = {}

    async def open(self) -> None:
        """Take up what was running when the last process ended. A job that cannot go on is failed, not cloudd.

        One that the disk has no room for at the moment is taken up as soon as it has.
        """
        await asyncio.to_thread(self.folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        await self._forget_old()
        for row in await self.store.jobs("running", "packing"):
            try:
                await self._take_up(row)
            except _STORAGE as error:
                self._work_on(row, self._take_up_later(row, error))
            except _UNUSABLE as error:
                await self._end(row, "failed", str(error))

    async def close(self) -> None:
        """Stop working on jobs; they go on when cloudd is started again."""
        self.stopping = True
        for run in self.runs.values():
            run.pause()
        self.changed.ring()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    # --- for people -------------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest) -> JobRow:
        """Begin a job."""
        definition, plan = definitions.read(request.definition)
        running = await self.store.jobs("running")
        if len(running) >= _MOST_RUNNING:
            raise FederationError(f"{len(running)} jobs are running; stop one first")
        if any(row.name == definition.name for row in await self.store.jobs()):
            raise FederationError(f'there was a job "{definition.name}" already; take another name')
        try:
            entry = await self.registry.resolve(definition.model)
        except PackageError as error:
            raise FederationError(str(error)) from None
        if entry is None:
            raise FederationError(f"no model {definition.model!r} is registered; `cloudd models list` shows them all")
        base = packages.open_package(await self.registry.materialise(entry), verify=False)
        staged = self.folder / f".staged-{secrets.token_hex(8)}"
        try:
            labels = (*base.labels, *definition.new_labels)
            if definition.continues:
                earlier = await self.find(definition.continues)
                plan = await continuing.continued(earlier, definition.service, plan, base, self.store, staged)
                labels = earlier.job.labels
            else:
                await self._prepare(base.root, request.definition, staged)
            row = await self._add(request, definition, plan, base, staged, labels)
        except (FederatedError, AutodiffError) as error:
            raise FederationError(str(error)) from None
        except OSError as error:
            raise FederationError(f"the job cannot begin: {storage_text(error)}") from None
        finally:
            await asyncio.to_thread(shutil.rmtree, staged, ignore_errors=True)
        crash_point("federation.started")
        try:
            await self.store.note(row.id, f"started on {base.ref}, {definition.rounds} rounds")
            await self._take_up(row)
        except _STORAGE as error:  # it is on record: it begins when there is room
            self._work_on(row, self._take_up_later(row, error))
        except (FederatedError, AutodiffError) as error:
            await self._end(row, "failed", str(error))
            raise FederationError(f"the job cannot begin: {error}") from None
        return row

    async def _add(
        self,
        request: StartRequest,
        definition: Definition,
        plan: Plan,
        base: Package,
        directory: Path,
        labels: tuple[str, ...],
    ) -> JobRow:
        """The job on record, with its files."""
        listed = await asyncio.to_thread(files.plan_files, directory)
        rosters = request.rosters
        job = FederatedJob(
            id=secrets.token_hex(16),
            service=definition.service,
            model=base.ref,
            package=base.digest,
            task="detection" if base.manifest.task == "detection" else "classification",
            labels=labels,
            plan=msgspec.json.encode(plan).decode(),
            local=definition.local,
            rounds=definition.rounds,
            evaluate_every=definition.evaluate_every,
            secure=definition.secure,
            least=definition.least,
            most=definition.most,
            bits=definition.bits,
            deadlines=definition.deadlines,
            rosters=tuple(
                FileEntry(path=f"rosters/{i}.json", sha256=hashlib.sha256(data).hexdigest(), size=len(data))
                for i, data in enumerate(rosters)
            ),
            files=tuple(listed),
            upper=definition.between(),
            leader=definition.leader,
        )
        sites.check_start(job)
        await self._check(job, definition, rosters, directory)
        streams = {one.path: files.stream(directory / one.path) for one in job.files}
        streams |= {one.path: files.one(data) for one, data in zip(job.rosters, rosters, strict=True)}
        try:
            await self.store.add_job(job, definition.name, request.definition, streams)
        except ValueError as error:
            raise FederationError(f"a file of the train step changed while it was read: {error}") from None
        row = await self.store.job(job.id)
        assert row is not None
        return row

    async def find(self, text: str) -> JobRow:
        """A job by its name, or the beginning of its id."""
        rows = await self.store.jobs()
        found = [row for row in rows if row.name == text] or [
            row for row in rows if len(text) >= 4 and row.id.startswith(text)
        ]
        if len(found) != 1:
            which = "no job" if not found else f"{len(found)} jobs"
            raise FederationError(f"{which} {text[:80]!r} here; `cloudd fl status` shows them all")
        return found[0]

    async def stop(self, text: str) -> JobRow:
        """End a job now. Its open round is void; what was published stays."""
        row = await self.find(text)
        if row.status in _ENDED:
            raise FederationError(f"the job {row.name} has ended already ({row.status})")
        await self._cancel(row.id)
        try:
            await self._end(row, "stopped", "stopped by a person")
        except STORAGE_ERRORS as error:  # it goes on until it can be stopped
            run = self.runs.get(row.id)
            self._work_on(row, self._live(run) if run is not None else self._take_up_later(row, error))
            raise
        return await self.find(row.id)

    # --- for devices ------------------------------------------------------------------------------------------------

    async def listed(self, node: bytes) -> list[JobNotice]:
        """The running jobs that a device may take part in."""
        return [
            JobNotice(
                id=run.row.id,
                service=run.row.job.service,
                model=run.row.job.model,
                secure=run.row.job.secure,
                rounds=run.row.job.rounds,
                version=run.progress.version,
                head=run.progress.rules.head is not None,
                leads=isinstance(run, LedRun) and run.leader == node,
            )
            for run in self.runs.values()
            if run.over is None and run.admits(node)
        ]

    async def admitted(self, job_id: str, node: bytes) -> JobRow | None:
        """A job that this device may see, also one that has ended; None if there is none."""
        run = self.runs.get(job_id)
        if run is not None:
            return run.row if run.admits(node) else None
        row = await self.store.job(job_id)
        if row is None:
            return None
        if job_id not in self._members:
            self._members[job_id] = await self._membership(row, row.created_at)
        members = self._members[job_id]
        return row if members is None or node in members else None

    # --- a job's life -----------------------------------------------------------------------------------------------

    async def _check(self, job: FederatedJob, definition: Definition, rosters: list[bytes], directory: Path) -> None:
        """What would make the job fail at once is told now."""
        try:
            rules, _ = open_rules(job, directory)
            rules.numbers("learn")
            if job.evaluate_every:
                rules.numbers("evaluate")
            if job.secure:
                members = open_rosters(rosters, definition.trusted(), now=self._wall(), floors={})
                if len(members) < job.least:
                    raise FederationError(f"the rosters have {len(members)} devices; least is {job.least}")
        except (AutodiffError, FederatedError, Refusal) as error:
            raise FederationError(str(error)) from None

    async def _take_up(self, row: JobRow) -> None:
        folder = self.folder / row.id
        definition, _ = definitions.read(row.definition)
        membership = await self._membership(row, self._wall() if row.status == "running" else row.created_at)
        progress = await continuing.caught_up(row, self.store, folder)
        parts = (row, definition, membership, progress, self.store, folder)
        run = (
            JobRun(*parts, wall=self._wall)
            if row.job.upper is None
            else LedRun(*parts, wall=self._wall, leader=node_of(row.job.leader))
        )
        self.runs[row.id] = run
        self.waiting.pop(row.id, None)
        self._work_on(row, self._live(run))
        self.changed.ring()

    def _work_on(self, row: JobRow, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[row.id] = asyncio.create_task(work, name=f"job {row.name}")

    async def _take_up_later(self, row: JobRow, error: Exception) -> None:
        """Try again until the disk has room."""
        while True:
            log.error("job %s waits for storage: %s", row.name, error)
            self.waiting[row.id] = storage_text(error)
            await asyncio.sleep(_RETRY_S)
            try:
                await self._take_up(row)
            except _STORAGE as again:
                error = again
            except _UNUSABLE as unusable:
                await self._insist(row, "failed", str(unusable))
                return
            else:
                return

    async def _live(self, run: JobRun) -> None:
        """One job to its end. A bug in it ends this job, no other and not cloudd."""
        try:
            if run.row.status == "running":
                await run.run()
                run.finish(Over(outcome="finished", version=run.progress.version))
                await self._insist(run.row, "packing")
                crash_point("federation.packing")
            else:
                run.finish(Over(outcome="finished", version=run.progress.version))
            await self._insist(run.row, "finished", "", await self._packed(run))
        except asyncio.CancelledError:
            raise
        except FederationError as error:
            await self._insist(run.row, "failed", str(error))
        except Exception as error:
            log.exception("job %s", run.row.name)
            await self._insist(run.row, "failed", f"an internal error: {type(error).__name__}; the log says more")

    async def _packed(self, run: JobRun) -> str:
        """The merged model, name@version, however long the disk has no room for it. Raises FederationError."""
        while True:
            try:
                return await packing.pack(run, self.registry)
            except _STORAGE as error:
                log.error("job %s waits for storage: %s", run.row.name, error)
                run.waits = storage_text(error)
                await asyncio.sleep(_RETRY_S)

    async def _insist(self, row: JobRow, status: Status, reason: str = "", result: str = "") -> None:
        while True:
            try:
                if status == "packing":
                    return await self.store.set_status(row.id, status)
                return await self._end(row, status, reason, result)
            except STORAGE_ERRORS as error:
                log.error("job %s waits for storage: %s", row.name, error)
                self.waiting[row.id] = storage_text(error)
                await asyncio.sleep(_RETRY_S)

    async def _end(self, row: JobRow, status: Status, reason: str, result: str = "") -> None:
        for one in await self.store.rounds(row.id, open_only=True):
            why = reason or "the job has ended"
            closed = msgspec.structs.replace(one, closed_at=self._wall(), outcome="void", reason=why)
            await self.store.close_round(closed)
        await self.store.set_status(row.id, status, reason, result)
        await self.store.note(row.id, f"{status}{f': {reason}' if reason else ''}{f', {result}' if result else ''}")
        run = self.runs.pop(row.id, None)
        self.waiting.pop(row.id, None)
        self._tasks.pop(row.id, None)
        self._members.pop(row.id, None)
        if run is not None:
            assert status in ("finished", "stopped", "failed")
            run.finish(Over(outcome=status, reason=reason, version=run.progress.version))
        await asyncio.to_thread(shutil.rmtree, self.folder / row.id, ignore_errors=True)
        self.changed.ring()

    async def _cancel(self, job_id: str) -> None:
        task = self._tasks.pop(job_id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _membership(self, row: JobRow, now: float) -> Membership | None:
        """The devices of a secure job. Raises FederationError if a roster has expired."""
        if not row.job.secure:
            return None
        definition, _ = definitions.read(row.definition)
        rosters = [await self.store.blobs.get(one.sha256) for one in row.job.rosters]
        try:
            return await asyncio.to_thread(open_rosters, rosters, definition.trusted(), now=now, floors={})
        except Refusal as error:
            raise FederationError(str(error)) from None

    async def _forget_old(self) -> None:
        kept = continuing.lasting(await self.store.jobs())
        for entry in await self.store.forget(self._wall() - KEPT_S, kept):
            await self.store.blobs.remove(entry.sha256, lambda sha256: references.is_used(self.store.rows, sha256))
        known = {row.id for row in await self.store.jobs("running", "packing")}
        for path in self.folder.iterdir():
            if path.name not in known:
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
