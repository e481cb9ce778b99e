"""The supervisor's side: which federated jobs there are, which one this device takes part in now, what comes of it.

One long poll asks cloudd for jobs. A job that the policy allows, of a service that runs, gets a child process
(`python -m edged.federation`) with its own connection; at most one at a time. When a job is over, another child makes a
candidate of the shared model, and learning puts that on trial. Where everything stands is in the book, so a restart of
the supervisor goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from edged.api import ApiError, Done
from edged.federation import consent, leaving
from edged.federation.alarms import Alarms
from edged.federation.around import Around, Reserved
from edged.federation.bodies import AuditReply, FederationState
from edged.federation.book import AUDIT, FOLDER, Book
from edged.federation.child import Child
from edged.federation.consent import named
from edged.federation.descent import descends
from edged.federation.front import Subject
from edged.federation.notes import JobNote, JobView
from edged.federation.order import LOST_LINK, dataset_name
from edged.federation.settings import Federation, open_at
from edged.federation.upward import Upward
from edged.federation.views import audit, heard, listing, lost, node_hex
from edged.federation.watching import ask
from edged.link.errors import LinkError
from edgekit.identity import IdentityError
from edgekit.messages.federation import JobNotice
from edgekit.messages.learning import TrainDone, TrainStopped

log = logging.getLogger("edged.federation")

T = TypeVar("T")

FIRST_RETRY_S, LAST_RETRY_S = 10.0, 3600.0
STOP_S = 20.0
"""So long a child may take to save and end."""
_ACTIVE = ("waiting", "training", "round")
LEADER = Subject("", "", Path())
"""Of a job in which this device only leads its site: it runs no service for it."""
EVENTS = 200
"""The newest events, among which an alarm is looked for."""


class FederationDesk:
    """`open` (blocking), then `run` as a task; ask what you like in between, then `close`. Methods raise ApiError."""

    def __init__(self, around: Around) -> None:
        self._around, self._policy = around, around.policy
        self._book: Book | None = None
        self._listed: dict[str, JobNotice] | None = None  # None: cloudd was not asked yet
        self._notes: dict[str, JobNote] = {}
        self._why: dict[str, str] = {}
        self._retry: dict[str, tuple[int, float]] = {}  # job -> failures, not before (monotonic)
        self._child: tuple[str, Child] | None = None
        self._alarms, self._folder = Alarms(around.report), around.state_dir / FOLDER
        self._agreed: set[str] = set()  # jobs that somebody has agreed to
        self._leaving: dict[str, str] = {}  # services of whose heads this device is to be out -> why
        self._wake = asyncio.Event()
        self.upward = Upward(around.state_dir, around.policy.upper, around.wall)

    def open(self) -> None:
        """Read what is stored; a device that takes part in nothing makes nothing. Raises StoreError, OSError."""
        if self._policy.enabled or (self._around.state_dir / FOLDER).exists():
            self._book = Book(self._around.state_dir, self._around.wall)
            self._notes = {note.job: note for note in self._book.jobs()}
            self._leaving, self._agreed = self._book.all_leaving(), self._book.agreed()

    async def run(self) -> None:
        """Ask for jobs and take part in them, until cancelled."""
        if not self._policy.enabled:
            await asyncio.Event().wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._work())

    async def close(self) -> None:
        """End the child (the next start goes on with the job) and close the book."""
        if self._child is not None:
            await self._child[1].stop(STOP_S)
            self._child = None
        if self._book is not None:
            await asyncio.to_thread(self._book.close)

    # --- reading ------------------------------------------------------------------------------------------------------

    def jobs(self) -> list[JobView]:
        """As they were at the last look, those that go on first."""
        works = self._child[0] if self._child is not None else ""
        return listing(self._notes, self._listed or {}, self._why, works, self._policy.ask, self._agreed)

    async def state(self, limit: int = 20) -> FederationState:
        """Everything there is to show."""
        policy, book = self._policy, self._book
        identity = self._around.link.identity
        empty = FederationState(
            enabled=policy.enabled,
            device=self._around.link.device_id,
            node=await asyncio.to_thread(node_hex, identity) if identity is not None else "",
            jobs=self.jobs(),
            epsilon=policy.epsilon,
            delta=policy.delta,
        )
        if book is None:
            return empty

        def read() -> FederationState:
            return msgspec.structs.replace(
                empty, lost=lost(book), spent=book.spent(), leaving=book.all_leaving(), events=book.events(limit)
            )

        return await asyncio.to_thread(read)

    def policy(self) -> Federation:
        """The table in force."""
        return self._policy

    async def audit(self, limit: int) -> AuditReply:
        """The newest records of the chain, and whether all of it holds."""
        identity = self._around.link.identity
        if identity is None:
            raise ApiError(409, "this device has joined no cloudd yet, so it has no records")
        path = self._around.state_dir / FOLDER / AUDIT
        return await asyncio.to_thread(audit, path, identity, limit)

    # --- orders -------------------------------------------------------------------------------------------------------

    async def refuse(self, job: str, reason: str) -> Done:
        """Leave a job for ever."""
        book = self._opened()
        found = named(job, {*self._notes, *(self._listed or {})})
        await self._write(lambda: book.refuse(found, reason or "by an operator"))
        if self._child is not None and self._child[0] == found:
            await self._child[1].stop(STOP_S)
        await self._reread()
        note = self._notes.get(found) or heard((self._listed or {})[found])
        if note.stage != "done":
            await self._note(msgspec.structs.replace(note, stage="refused", text=f"refused here: {reason}"))
        self._wake.set()
        return Done(text=f"This device takes no part in the job {found[:12]} any more.")

    async def agree(self, job: str) -> Done:
        """Somebody lets this device take part in a job that waits for that."""
        book = self._opened()
        found = named(job, {*self._notes, *(self._listed or {})})
        consent.check(self._notes.get(found) or heard((self._listed or {})[found]), self._policy.ask)
        await self._write(lambda: book.agree(found))
        await self._reread()
        self._wake.set()
        return Done(text=f"This device takes part in the job {found[:12]} as far as its policy allows it.")

    async def leave(self, service: str, reason: str, stay: bool) -> Done:
        """Take this device's sums out of all heads of a service; `stay`: no, leave them there."""
        book, listed = self._opened(), self._listed or {}
        known = {one.service for one in self._notes.values()} | {one.service for one in listed.values()}
        leaving.check(service, known, self._leaving, stay)
        text = await self._write(lambda: leaving.order(book, service, reason, stay))
        await self._reread()
        if self._child is not None and service == getattr(self._notes.get(self._child[0]), "service", service):
            await self._child[1].stop(STOP_S)  # it begins again with what it is to do now
        self._wake.set()
        return Done(text=text)

    async def forgive(self) -> Done:
        """A person says that the jobs before the ledger was lost are over."""
        if not await self._write(self._opened().forgive):
            raise ApiError(409, "the ledger was not lost; there is nothing to forgive")
        self._wake.set()
        return Done(text="This device takes part in jobs again.")

    # --- asking cloudd ------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        revision, failures = "", 0
        while True:
            link, identity = self._around.link.link, self._around.link.identity
            if identity is None or not link.up:
                revision = ""
                await asyncio.sleep(self._around.look_s)
                continue
            try:
                found = await ask(identity, link.url, revision, self._around.wall())
                revision, failures = found.revision, 0
                self._listed = {one.id: one for one in found.jobs}
                self._wake.set()
                await asyncio.sleep(min(1.0, self._around.look_s))  # a cloudd that holds nothing is not hammered
            except (LinkError, IdentityError, OSError) as error:
                failures += 1
                log.debug("The list of federated jobs could not be fetched: %s", error)
                await asyncio.sleep(min(LAST_RETRY_S, self._around.look_s * 2.0 ** min(failures, 10)))

    # --- taking part --------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        if self._child is not None:  # of a run that ended with an error
            await self._child[1].stop(STOP_S)
            self._child = None
        while True:
            self._wake.clear()
            await self._tidy()
            job = await self._choose()
            if job is not None:
                await self._take_part(*job)
                await self._reread()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._around.look_s):
                    await self._wake.wait()

    async def _choose(self) -> tuple[str, Subject, bool] | None:
        """The first job that there is something to do in: to make its candidate, or to take part."""
        listed = self._listed or {}
        now = time.monotonic()
        for job in sorted({*self._notes, *listed}):
            note = self._notes.get(job) or heard(listed[job])
            finish = note.stage == "judging"
            why = await self._against(note, listed.get(job))
            if not why and not finish and job not in listed:
                if self._listed is None:
                    why = "cloudd was not asked yet"
                elif note.stage not in _ACTIVE:
                    why = "cloudd does not list the job any more"
            waits = self._retry.get(job, (0, 0.0))[1] - now
            if not why and waits > 0:
                why = self._why.get(job) or f"it is tried again in {waits:.0f} s"
            self._why[job] = why
            subject = LEADER if note.leads else self._around.subject(note.service)
            if not why and subject is not None:
                return job, subject, finish
        return None

    async def _against(self, note: JobNote, notice: JobNotice | None) -> str:
        """Why this device does nothing in a job now; "" if it does."""
        policy, around = self._policy, self._around
        if note.stage in ("refused", "stopped", "done"):
            return note.text or note.stage
        if not around.link.link.up or around.link.identity is None:
            return "the link to cloudd is down"
        if policy.services is not None and note.service not in policy.services:
            return "federation.services leaves the service out"
        if not note.secure and not policy.plain and not note.leads:
            return "the job is without masks, and federation.plain is false"
        if consent.waits(note, policy.ask, self._agreed):
            return f"somebody has to agree first: edged fl agree {note.job[:12]}, or on the page (federation.ask)"
        local = time.localtime(around.wall())
        if note.stage != "judging" and not open_at(policy.hours, 60 * local.tm_hour + local.tm_min):
            return f"federation.hours are {policy.hours}"
        if note.leads:
            return await self.upward.against()
        subject = around.subject(note.service)
        if subject is None:
            return f"the service {note.service} does not run here"
        heir = note.head and descends(subject.package, note.model)
        if subject.ref != note.model and not heir:
            return f"the job begins with {note.model}; the service {note.service} runs {subject.ref}"
        if note.stage == "judging" or notice is None or (note.head and note.service in self._leaving):
            return ""
        labelled = await around.labelled(note.service)
        if labelled < policy.min_samples:
            return f"{labelled} samples have a label; {policy.min_samples} are wanted (federation.min_samples)"
        return ""

    async def _take_part(self, job: str, subject: Subject, finish: bool) -> None:
        """One child from its start to its end."""
        try:
            order = self._around.order(job, subject)
            if subject is LEADER:
                order = await self.upward.leading(order)
            reserved: Reserved | None = None
            if finish:
                note = self._notes[job]
                reserved = await self._around.learning.reserve(note.service)
                scratch = self._around.state_dir / FOLDER / "jobs" / job / "candidate"
                order = msgspec.structs.replace(
                    order, finish=True, name=reserved.name, version=reserved.version, base=str(reserved.base),
                    scratch=str(scratch),
                )  # fmt: skip
            await asyncio.to_thread(self._alarms.tell, self._folder, self._around.health())
            child = await Child.start(order, self._around.empty, self._around.command())
        except (ApiError, OSError) as error:
            self._failed(job, f"it could not begin: {error}")
            return
        self._child = job, child
        await self._attend(job, child)
        self._child = None
        if reserved is not None:
            await self._candidate(job, reserved, child)
        elif child.outcome == LOST_LINK:
            self._failed(job, "cloudd could not be reached")
        elif child.outcome:
            known = self._notes.get(job)
            self._failed(job, known.text if known is not None else "the process failed; the daemon's log says why")
        else:
            self._retry.pop(job, None)

    async def _attend(self, job: str, child: Child) -> None:
        """Until the child has ended; end it when the policy does not allow it any more."""
        link = self._around.link.link
        while not child.ended.done():
            await asyncio.wait([child.ended], timeout=self._around.look_s)
            await asyncio.to_thread(self._alarms.tell, self._folder, self._around.health())
            await self._reread()
            now = self._around.link.link
            note = self._notes.get(job)
            local = time.localtime(self._around.wall())
            closed = (
                note is not None
                and note.stage in _ACTIVE
                and not open_at(self._policy.hours, 60 * local.tm_hour + local.tm_min)
            )
            other = (now.url, now.identity, now.generation) != (link.url, link.identity, link.generation)
            if closed or other or (note is not None and note.leads and await self.upward.renewed()):
                await child.stop(STOP_S)
        await self._reread()

    async def _candidate(self, job: str, reserved: Reserved, child: Child) -> None:
        """What learning makes of the shared model."""
        note, last = self._notes[job], child.last
        if isinstance(last, TrainStopped) and last.kind == "paused":
            return
        if not isinstance(last, TrainDone):
            reason = last.reason if isinstance(last, TrainStopped) else "the process failed; the daemon's log says why"
            await self._note(msgspec.structs.replace(note, stage="stopped", text=f"no candidate: {reason}"[:500]))
            return
        try:
            await self._around.learning.offer(note.service, reserved.base_ref, last)
        except ApiError as error:
            if error.status == 409:
                self._failed(job, f"its candidate waits: {error}")
                return
            await self._note(msgspec.structs.replace(note, stage="stopped", text=f"no trial: {error}"[:500]))
            return
        text = f"{last.ref} is on trial" if last.verdict.accepted else f"{last.ref} was {last.verdict.reason}"
        await self._note(msgspec.structs.replace(note, stage="done", text=text[:500]))

    def _failed(self, job: str, text: str) -> None:
        failures = self._retry.get(job, (0, 0.0))[0] + 1
        wait = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 16))
        self._retry[job] = failures, time.monotonic() + wait
        self._why[job] = text

    async def _note(self, note: JobNote) -> None:
        self._notes[note.job] = note
        await self._write(lambda: self._opened().note(note))

    async def _write(self, work: Callable[[], T]) -> T:
        """Change the book. Raises ApiError where the disk, or the child at a large model, does not let it for now."""
        try:
            return await asyncio.to_thread(work)
        except (OSError, sqlite3.Error) as error:
            raise ApiError(507, f"the book of federated learning cannot be written now: {error}") from None

    async def _reread(self) -> None:
        """What the child has written, and what people must know of it."""
        book = self._opened()
        notes, trouble, events = await asyncio.to_thread(lambda: (book.jobs(), lost(book), book.events(EVENTS)))
        self._notes, self._leaving = {note.job: note for note in notes}, await asyncio.to_thread(book.all_leaving)
        self._agreed = await asyncio.to_thread(book.agreed)
        self._alarms.say(trouble, events, self._listed or {})

    async def _tidy(self) -> None:
        """Remove the files of jobs in which there is nothing left to do."""
        folder = self._around.state_dir / FOLDER / "jobs"
        for note in list(self._notes.values()):
            path = folder / note.job
            if note.stage in ("refused", "stopped", "done") and await asyncio.to_thread(path.is_dir):
                with contextlib.suppress(ApiError):
                    await self._around.forget(dataset_name(note.job, note.service))
                await asyncio.to_thread(shutil.rmtree, path, True)

    def _opened(self) -> Book:
        if self._book is None:
            raise ApiError(409, "this device takes part in no federated job: [federation] enabled is false")
        return self._book
