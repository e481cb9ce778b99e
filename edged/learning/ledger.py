"""The places of all services: what is known of each, stored before it counts, and what follows from it for the plan."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from typing import get_args

from msgspec.structs import replace

from edged.api import ApiError
from edged.learning.bodies import JobOutcome
from edged.learning.book import Book
from edged.learning.course import Turn
from edged.learning.parts import SAVE_S, Parts
from edged.learning.place import Place
from edged.learning.workshop import Workshop
from edged.plan import Learned
from edged.store import StoreError
from edgekit.faults import crash_point
from edgekit.learning.records import Event, Record
from edgekit.messages import Level

log = logging.getLogger("edged.learning")

_ENDS: tuple[JobOutcome, ...] = get_args(JobOutcome)
_BAD: frozenset[Event] = frozenset(("failed", "refused", "rolled-back", "exhausted", "superseded"))
_TROUBLE = (sqlite3.Error, StoreError, OSError)


class Ledger:
    """Belongs to one event loop; every change is made under the desk's lock. Methods that store raise ApiError."""

    def __init__(self, parts: Parts, changed: Callable[[], None]) -> None:
        """`changed` is called when something happened that the next look should not wait for."""
        self._parts, self._changed = parts, changed
        self._book = Book(parts.state_dir / "learning")
        self._saved: dict[str, float] = {}
        self.places: dict[str, Place] = {}
        self.sentences: dict[str, str] = {}
        """Where the learning of each service stands."""
        self.last: dict[str, Record] = {}
        """The newest decision of each."""
        self.ended: dict[str, Counter[JobOutcome]] = {}
        """The jobs of each that ended since the start, by outcome."""
        self.usable = True

    def open(self) -> None:
        """Read what is stored. A device whose record of learning cannot be used inspects all the same."""
        try:
            self.places = self._book.load()
            self.last = {name: record for name in self.places for record in self._book.records(name, 1)}
        except _TROUBLE as error:
            self.usable, self.places = False, {}
            self._parts.health.report("learning.state", "error", f"Nothing is learned on this device: {error}.")
        if self._book.quarantined is not None:
            text = f"The record of learning was damaged and was moved to {self._book.quarantined}; it begins anew."
            self._parts.health.note("warning", "state.quarantined", text)

    def place(self, name: str) -> Place:
        """Where this service stands; a new place if nothing is known."""
        return self.places.get(name, Place(service=name))

    def learned(self) -> dict[str, Learned]:
        """For the plan: what runs in the place of what, and what looks on."""
        return {
            name: Learned(place.root, place.decides, place.looks_on)
            for name, place in self.places.items()
            if place.root and (place.decides or place.looks_on)
        }

    def holds(self) -> dict[str, list[str]]:
        """Packages (name@version) that must stay, and for which services: also what a rollback would bring back."""
        found: dict[str, list[str]] = {}
        for name, place in sorted(self.places.items()):
            refs = {place.kept, place.root if place.kept or place.busy else ""}
            refs |= {place.candidate.ref, place.candidate.before} if place.candidate is not None else set()
            for ref in refs - {""}:
                found.setdefault(ref, []).append(name)
        return found

    async def records(self, name: str, limit: int) -> list[Record]:
        """What was decided, the newest first."""
        try:
            return await asyncio.to_thread(self._book.records, name, limit)
        except _TROUBLE as error:
            raise ApiError(503, f"the record of learning cannot be read: {error}") from None

    async def act(self, turn: Turn) -> None:
        """Store a turn, tell people, let the plan follow. What cannot be stored does not count."""
        place, name, now = turn.place, turn.place.service, self._parts.wall()
        weighty = self.place(name).weight != place.weight
        due = not 0.0 <= now - self._saved.get(name, float("-inf")) < SAVE_S
        self.sentences[name] = turn.sentence
        if not (turn.records or weighty or due):
            self.places[name] = place
            return
        was = self.learned().get(name)
        await self.keep(place, turn.records)
        self._saved[name] = now
        for record in turn.records:
            self.last[name] = record
            level: Level = "warning" if record.event in _BAD else "ok"
            self._parts.health.note(level, f"learning:{name}", f"Service {name}: {record.sentence}")
        if turn.swap:
            self._parts.runs.swap()
        elif self.learned().get(name) != was:
            self._parts.runs.changed()
        if weighty:
            self._changed()

    async def keep(self, place: Place, records: Sequence[Record] = ()) -> None:
        """Store a place with what was decided."""
        try:
            await asyncio.to_thread(self._book.save, place.service, place, records)
        except _TROUBLE as error:
            raise ApiError(507, f"what is learned cannot be stored: {error}") from None
        self.places[place.service] = place
        for record in records:
            if (outcome := _outcome(record)) is not None:
                self.ended.setdefault(place.service, Counter())[outcome] += 1
            crash_point(f"learning.{record.event}")

    async def remove(self, name: str) -> None:
        """Forget a service."""
        try:
            await asyncio.to_thread(self._book.remove, name)
        except _TROUBLE as error:
            raise ApiError(507, f"what was learned cannot be forgotten: {error}") from None
        for table in (self.places, self.sentences, self.last, self._saved, self.ended):
            table.pop(name, None)

    async def tidy(self, workshop: Workshop) -> None:
        """Remove packages and dataset versions that nobody needs any more, and directories of jobs that are over."""
        for place in list(self.places.values()):
            leavings = [ref for ref in place.leavings if not await workshop.remove(ref)]
            datasets = [one for one in place.old_datasets if not await workshop.delete_dataset(one)]
            if (leavings, datasets) != (place.leavings, place.old_datasets):
                try:
                    await self.keep(replace(place, leavings=leavings, old_datasets=datasets))
                except ApiError as error:
                    log.warning("%s", error)
        if self.places:
            await workshop.sweep([place.work for place in self.places.values() if place.work is not None])

    async def close(self) -> None:
        """Close the database."""
        await asyncio.to_thread(self._book.close)


def _outcome(record: Record) -> JobOutcome | None:
    """How a job ended, if this ends one. Its trial says the same before, about the candidate: that is not counted."""
    if record.rung is None:  # what was kept was taken back, or gave way, long after its job
        return None
    if record.event == "superseded":
        return "superseded"
    if record.candidate:
        return None
    return next((one for one in _ENDS if one == record.event), None)
