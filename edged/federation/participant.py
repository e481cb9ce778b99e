"""One device in one job, from its first round to its last: train, take a seat, apply what is published, begin again.

Everything is kept before it matters: `run` may be cancelled, and the process killed, at any instruction, and a later
`run` goes on in the same round, or sits it out. It never contributes twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from edged.federation import sums
from edged.federation.book import Book
from edged.federation.chain import Chain
from edged.federation.cloud import Cloud, Rejected, RoundOver
from edged.federation.files import JobFolder
from edged.federation.machine import Told, has_aes
from edged.federation.notes import JobNote, Level, Stage
from edged.federation.opening import Rosters, admit, fetch_files, is_there, open_job, plan_of
from edged.federation.settings import Federation
from edged.federation.shared import Shared
from edged.federation.sitting import Seat, Signing, Sitting
from edged.federation.updates import Source, SourceError, Updates
from edgekit.faults import crash_point
from edgekit.federated.head_jobs import OneRoundHead
from edgekit.federated.rounds import read_words
from edgekit.messages import FileEntry
from edgekit.messages.federation import (
    DeviceRefusal,
    FederatedJob,
    Invitation,
    Later,
    Over,
    Publication,
    PublishedRound,
    PublishedSum,
    RoundKind,
    Standing,
    Turn,
)
from edgekit.secagg.audit import Outcome
from edgekit.secagg.errors import Refusal
from edgekit.secagg.masks import Words
from edgekit.secagg.messages import RoundConfig, from_cloud

SETTLE_S = 2.0
"""Seconds before the next question where cloudd has nothing for this device, or the same that it has left already."""
_SHORTEST_S, _LONGEST_S = 0.1, 60.0
"""Seconds before the next question, whatever cloudd asks for: it holds questions itself."""
_SUMS = "sums"


@dataclass(frozen=True)
class Places:
    """What a participant keeps things in."""

    folder: JobFolder
    book: Book
    chain: Chain


class Participant:
    """`say` is told of every change, for people; `wall` gives seconds since the epoch."""

    def __init__(
        self,
        job: str,
        cloud: Cloud,
        source: Callable[[FederatedJob, JobFolder, Shared], Source],
        *,
        identity: Signing,
        policy: Federation,
        places: Places,
        say: Callable[[JobNote], None] = lambda note: None,
        wall: Callable[[], float] = time.time,
        settle_s: float = SETTLE_S,
        tell: Callable[[], Told] = Told,
        leads: bool = False,
    ) -> None:
        """`source` is called once (in a thread), when the job's files are there.

        `leads`: this device speaks for its site (`edged.federation.site`). What it contributes is the site's sum, so
        it counts apart from its own updates for the same weights, and whoever runs it says what comes of the end.
        """
        self._id, self._cloud, self._make_source = job, cloud, source
        self._identity, self._policy, self._wall, self._say = identity, policy, wall, say
        self._folder, self._book, self._chain = places.folder, places.book, places.chain
        self._settle, self._leads, self._tell = settle_s, leads, tell
        self._note = self._book.job(job)
        self._sitting: Sitting | None = None
        self._leaves = False  # of a head: this device takes its sums out
        self._said_all = -1  # number of the round in which this device has said its last word
        self._told: set[int] = set()  # numbers of rounds that cloudd knows this device has left
        self._unwritten: Callable[[], Awaitable[None]] | None = None  # writes what the last sum has changed
        self._job: FederatedJob
        self._rosters: Rosters
        self._updates: Updates
        self.shared: Shared
        """The job's rules and state, once `run` has opened them."""

    async def run(self) -> Over:
        """Take part until the job is over.

        Raises Refusal if this device wants no part in it, SourceError if it has nothing to learn from, Rejected if
        cloudd wants it no more, LinkError without a cloudd, OSError for a full disk.
        """
        try:
            await self._open()
            try:
                return await self._take_part()
            finally:
                await self._updates.end()
        except Refusal as refusal:
            await self._cloud.refuse(self._id, _courtesy(refusal, None))
            self._change("refused", f"this device takes no part: {refusal}", _level(refusal))
            raise
        except SourceError as error:
            await self._cloud.refuse(self._id, DeviceRefusal(rule="samples", text=str(error)[:500]))
            self._change("failed", str(error), "refused")
            raise

    async def _open(self) -> None:
        self._book.check()
        self._job = job = await open_job(self._id, self._cloud, self._folder)
        plan = plan_of(job)
        if self._note is None:
            self._note = JobNote(
                job=self._id, service=job.service, model=job.model, secure=job.secure,
                private=plan.privacy is not None, head=isinstance(plan.strategy, OneRoundHead),
                rounds=job.rounds, leads=self._leads,
            )  # fmt: skip
        reason = self._book.refusal(self._id)
        if reason:
            raise Refusal("policy", f"refused by the people here: {reason}")
        admit(job, self._policy)
        await fetch_files(job, self._cloud, self._folder)
        self._rosters = Rosters(
            job, self._folder, node=self._identity.node, policy=self._policy, book=self._book, wall=self._wall
        )
        self._rosters.membership()
        self._kept_seat()  # one that does not open any more is given up before cloudd asks for it
        self.shared = await asyncio.to_thread(Shared, job, self._folder)
        seat = self._kept_seat()
        masked = seat is not None and bool(seat.sha256)
        if self.shared.rules.head is not None:
            self._leaves = await asyncio.to_thread(
                lambda: sums.open_head(self.shared, self._folder, self._book, masked=masked)
            )
        source = await asyncio.to_thread(self._make_source, job, self._folder, self.shared)
        self._updates = Updates(self.shared, source, self._folder, self._book, self._policy)
        if self._leaves and not masked:
            self._updates.forget()  # what was computed before somebody wanted it out
        self._change("waiting", "it has what it needs", version=self.shared.state.version, samples=source.samples)

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def _take_part(self) -> Over:
        while True:
            if self.shared.rules.plan.max_age:  # asynchronous: the update comes first, the round when enough have one
                await self._written()
                await self._updates.result()
            turn = await self._asked()
            if isinstance(turn, Invitation):
                await self._sit(turn)
            elif isinstance(turn, Publication):
                await self._take(turn)
            elif isinstance(turn, Later):
                self._change("waiting", turn.reason)
                await asyncio.sleep(max(min(self._settle, _SHORTEST_S), min(_LONGEST_S, turn.retry_after_s)))
            else:
                self._give_up_seat()
                whole = turn.outcome == "finished" or self.shared.state.version >= self._job.rounds
                if self._leads:
                    return turn
                if whole and self._leaves and not sums.present(self.shared.memory):
                    self._change("done", "nothing of this device is in the head any more", version=turn.version)
                else:
                    self._change("judging" if whole else "stopped", turn.reason)
                return turn

    async def _asked(self) -> Turn:
        """What cloudd wants of this device; what the last sum left to be written is written meanwhile."""
        writing = asyncio.ensure_future(self._written())
        try:
            turn = await self._cloud.next(self._id, self._standing())
        finally:  # a thread does not end when its task is cancelled
            await asyncio.wait([writing])
        writing.result()
        return turn

    async def _written(self) -> None:
        """All that the last sum changed is on the disk. Raises OSError."""
        work, self._unwritten = self._unwritten, None
        if work is not None:
            await work()

    def _standing(self) -> Standing:
        samples, told = self._updates.samples, self._tell()
        return Standing(
            version=self.shared.state.version,
            state=self.shared.digest().hex(),
            samples=1 << (samples.bit_length() - 1) if samples else 0,  # no more of it than cloudd needs to know
            trained=self._updates.ready() if self.shared.rules.plan.max_age else None,
            aes=has_aes(),
            health="error" if self._updates.spent else told.health,  # spent: it follows, and contributes nothing more
            power=told.power,
            battery=told.battery,
            celsius=told.celsius,
        )

    # --- rounds -----------------------------------------------------------------------------------------------------

    async def _sit(self, invitation: Invitation) -> None:
        """One round, or the rest of it."""
        number = invitation.number
        if self._book.round_ended(self._id, number) is not None:
            if number not in self._told:  # else cloudd would wait for this device
                self._told.add(number)
                text = "this device has no part in this round any more"
                await self._cloud.refuse(self._id, DeviceRefusal(number=number, rule="left", text=text))
            await asyncio.sleep(self._settle)
            return
        if number == self._said_all:
            await asyncio.sleep(self._settle)
            return
        sitting: Sitting | None = None
        try:
            sitting = seat = self._seat(invitation)
            seat.check()
            if invitation.kind == "learn":
                self._updates.begin()  # while keys and shares are exchanged
            self._change("round", f"round {number} ({invitation.kind})", round=number)
            await seat.run(lambda cohort: self._updates.vector(invitation.kind, seat.config, cohort))
            self._said_all = number
            self._change("waiting", f"round {number}: waiting for the sum")
        except Refusal as refusal:
            self._told.add(number)
            await self._cloud.refuse(self._id, _courtesy(refusal, number))
            self._end_seat(sitting, number, "refused", refusal)
            self._change("waiting", f"round {number} refused ({refusal.rule}): {refusal}", _level(refusal))
        except RoundOver:
            self._change("waiting", f"round {number} is over")
            await asyncio.sleep(self._settle)
        except Rejected as error:
            self._told.add(number)
            await self._cloud.refuse(self._id, DeviceRefusal(number=number, rule="left", text=str(error)[:500]))
            self._end_seat(sitting, number, "left")
            self._change("waiting", f"round {number}: cloudd refused a message ({error.rule}): {error}", "refused")
            await asyncio.sleep(self._settle)

    def _seat(self, invitation: Invitation) -> Sitting:
        """The seat in this round: the one that is kept, or a new one. Raises Refusal."""
        config = self.shared.check_invitation(invitation)
        if invitation.kind == "evaluate":
            self._policy.check_privacy(False)
        kept = self._kept_seat()
        if kept is not None and kept.number != invitation.number:
            self._give_up_seat()
            kept = None
        if kept is not None and kept.config != invitation.config:
            raise Refusal("once", "the round was begun with another configuration")
        if self._sitting is None:
            self._sitting = self._opened(kept or Sitting.begin(invitation, self._job.secure), config)
        return self._sitting

    def _opened(self, seat: Seat, config: RoundConfig) -> Sitting:
        return Sitting(
            seat,
            config,
            job=self._id,
            cloud=self._cloud,
            folder=self._folder,
            book=self._book,
            identity=self._identity,
            membership=self._rosters.membership(),
            policy=self._policy,
            weights=partial(self._weights, seat.kind),
        )

    def _weights(self, kind: RoundKind) -> bytes:
        digest = self.shared.weights_digest(kind)
        return hashlib.sha256(b"edged/federation/1/site\0" + digest).digest() if self._leads else digest

    def _kept_seat(self) -> Seat | None:
        if self._sitting is not None:
            return self._sitting.seat
        return Sitting.kept(self._id, self._book, self._folder)

    def _kept_sitting(self) -> Sitting | None:
        seat = self._kept_seat()
        if seat is None or self._sitting is not None:
            return self._sitting
        config = from_cloud(seat.config)
        return self._opened(seat, config) if isinstance(config, RoundConfig) else None

    def _give_up_seat(self) -> None:
        """cloudd speaks of something else: the round of the seat is void, or went on without this device."""
        sitting = self._kept_sitting()
        if sitting is not None:
            judged = sitting.seat.kind == "evaluate" and sitting.counted
            self._end_seat(sitting, sitting.seat.number, "summed" if judged else "void")

    def _end_seat(self, sitting: Sitting | None, number: int, outcome: Outcome, refusal: Refusal | None = None) -> None:
        self._sitting = None
        if sitting is None:
            self._book.end_round(self._id, number, outcome)
        else:
            sitting.end(outcome, self._chain, self._wall(), refusal)

    # --- sums -------------------------------------------------------------------------------------------------------

    async def _take(self, publication: Publication) -> None:
        """Apply published sums in their order."""
        fresh = [one for one in publication.rounds if one.version > self.shared.state.version]
        if not fresh:
            await asyncio.sleep(self._settle)
        for published in fresh:
            await self._updates.end()  # a training for a round that closed without this device
            await self._apply(published)

    async def _apply(self, published: PublishedRound) -> None:
        await self._written()
        words_of = await self._fetch(published)
        sitting = self._kept_sitting()
        own: PublishedSum | None = None
        learned = sitting is not None and sitting.seat.kind == "learn"
        # Of a site's job: the vector is in the site's sum, and whether that is in the published one the leader knows.
        handed_on = learned and self._job.upper is not None and sitting is not None and sitting.counted
        if sitting is not None and learned and self._job.upper is None:
            own = next((one for one in published.sums if one.number == sitting.seat.number), None)
        if own is not None and sitting is not None:
            sitting.seat.check_sum(own)
        counted = handed_on or (own is not None and sitting is not None and sitting.counted)
        if own is not None and self.shared.rules.head is not None:  # it says who is in it, for those who did not vote
            counted = counted or self._identity.node in own.nodes
        memory = self.shared.memory
        result = self._updates.newest() if counted and self.shared.remembers else None
        if result is not None:
            memory = self.shared.contribution(result).memory

        def write() -> None:
            asynchronous = self.shared.rules.plan.max_age > 0
            if sitting is not None:  # on record before the state moves: afterwards nothing tells how the round ended
                sitting.record(outcome, self._chain, self._wall())
            if counted and asynchronous:  # before the state moves: an update that stayed could be contributed once more
                self._updates.forget()
            crash_point("fl.apply")
            if self.shared.rules.head is not None and (result is not None or not counted):
                sums.keep(self.shared, self._folder, memory)  # else it cannot know any more
            self.shared.keep(memory)
            crash_point("fl.applied")
            if sitting is not None:
                self._end_seat(sitting, sitting.seat.number, outcome)
            if not asynchronous:
                self._updates.forget(durable=False)
            shutil.rmtree(self._folder.path / _SUMS, ignore_errors=True)

        async def written() -> None:
            await asyncio.to_thread(write)
            done = (self._note.contributed if self._note is not None else 0) + counted
            self._change("waiting", f"version {published.version}", version=published.version, contributed=done)

        outcome: Outcome = "summed" if own is not None or handed_on else "void"
        await asyncio.to_thread(self.shared.apply, published, words_of)
        self._unwritten = written

    async def _fetch(self, published: PublishedRound) -> Callable[[PublishedSum, RoundConfig], Words]:
        size = self.shared.sum_size
        files = {one.sha256: self._folder.path / _SUMS / one.sha256 for one in published.sums}
        for one in published.sums:
            if one.size != size:
                raise Refusal("malformed", f"a published sum of {one.size} bytes; this job's have {size}")
            entry = FileEntry(path=one.sha256, sha256=one.sha256, size=one.size)
            if not is_there(entry, files[one.sha256]):
                await self._cloud.fetch(self._id, entry, files[one.sha256], durable=False)
        return lambda one, config: read_words(files[one.sha256].read_bytes(), config)

    def _change(self, stage: Stage, text: str, level: Level = "info", **changes: int) -> None:
        if self._note is None:
            return
        note = msgspec.structs.replace(self._note, stage=stage, text=text[:500], **changes)
        if note != self._note or level != "info":
            self._note = note
            self._book.note(note, (level, text) if level != "info" or changes else None)
            self._say(note)


def _courtesy(refusal: Refusal, number: int | None) -> DeviceRefusal:
    return DeviceRefusal(number=number, rule=refusal.rule, text=str(refusal)[:500])


def _level(refusal: Refusal) -> Level:
    return "alarm" if refusal.rule == "once" else "refused"
