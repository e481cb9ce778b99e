"""The learning of all services: one loop that looks at each, and what people ask of it.

What a look decides is stored before it counts, and every step can be done again: after a crash at any instruction the
next start goes on from the newest stored place. One training process runs on the device at most. All methods belong to
the supervisor's event loop; what blocks runs in threads.
"""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from edged.api import ApiError, Done
from edged.desired import Entry
from edged.learning import course
from edged.learning.bodies import LearningState
from edged.learning.ledger import Ledger
from edged.learning.looking import Looking, settings_of
from edged.learning.parts import Parts, Reserved
from edged.learning.place import Place
from edged.learning.settings import candidate_name, next_number
from edged.learning.views import learning_state
from edged.learning.workshop import Workshop
from edged.plan import Learned, service_of
from edgekit.learning.learner import Settings
from edgekit.learning.records import Record, Rung
from edgekit.learning.triggers import Request
from edgekit.messages.learning import TrainDone
from edgekit.packages import PackageError
from edgekit.services import Service


class LearningDesk:
    """`open` (blocking), then `run` as a task; ask what you like in between, then `close`. Methods raise ApiError."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._wake = asyncio.Event()
        self._ledger = Ledger(parts, self._wake.set)
        self._workshop = Workshop(parts)
        self._looking = Looking(parts, self._ledger, self._workshop)
        self._entries: dict[str, Entry] = {}
        self._lock = asyncio.Lock()  # one look or order at a time

    def open(self) -> None:
        """Read what is stored."""
        self._ledger.open()
        self._entries = {entry.name: entry for entry in self._parts.entries()}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        if not self._ledger.usable:
            await asyncio.get_running_loop().create_future()
        while True:
            self._wake.clear()
            await self.look()
            await self._pause()

    async def look(self) -> None:
        """Look once at every service, and tidy up."""
        await self._read_entries()
        problem = ""
        for name in sorted(self._entries.keys() | self._ledger.places.keys()):
            async with self._lock:
                problem = await self._look(name) or problem
        async with self._lock:
            await self._ledger.tidy(self._workshop)
        if problem:
            self._parts.health.report("learning.waits", "error", f"Learning waits: {problem}.")
        else:
            self._parts.health.clear("learning.waits", "Learning goes on.")

    async def close(self) -> None:
        """End the job that is being done (the next start goes on with it) and close the database."""
        async with self._lock:
            await self._workshop.close()
        await self._ledger.close()

    # --- what the runner and the device ask and tell ------------------------------------------------------------------

    def learned(self) -> dict[str, Learned]:
        """For the plan: what runs in the place of what, and what looks on."""
        return self._ledger.learned()

    def holds(self) -> dict[str, list[str]]:
        """Packages (name@version) that must stay, and for which services: also what a rollback would bring back."""
        return self._ledger.holds()

    def worker_died(self) -> None:
        """A worker failed: a candidate that decides in it is a suspect."""
        self._looking.worker_died()
        self._wake.set()

    # --- reading ------------------------------------------------------------------------------------------------------

    def states(self) -> list[LearningState]:
        """Every service that learns, or has learned something."""
        found: list[LearningState] = []
        for name, entry in sorted(self._entries.items()):
            service, place = service_of(entry), self._ledger.place(name)
            if service is not None and (service.learning is not None or place.kept or place.busy):
                sentence = self._ledger.sentences.get(name, "It waits until the service runs.")
                last, progress = self._ledger.last.get(name), self._workshop.progress(name)
                stock, jobs = self._looking.stocks.get(name), self._ledger.ended.get(name)
                found.append(learning_state(place, service, sentence, progress, last, stock, jobs))
        return found

    def state(self, name: str) -> LearningState:
        """One of them; also of a service that does not learn."""
        self._service(name)
        off = "It does not learn; a table [learning] in its definition lets it."
        none = LearningState(service=name, start="off", stage="waiting", sentence=off)
        return next((state for state in self.states() if state.service == name), none)

    async def log(self, name: str, limit: int) -> list[Record]:
        """What was decided, the newest first."""
        self._service(name)
        return await self._ledger.records(name, limit)

    # --- orders -------------------------------------------------------------------------------------------------------

    async def start(self, name: str, rung: Rung | None, by: str) -> Done:
        """Ask for learning now."""
        async with self._lock:
            await self._read_entries()
            self._learning(name)
            place = self._ledger.place(name)
            if place.busy:
                raise ApiError(409, f"{name} is at it already. {self._ledger.sentences.get(name, '')}".strip())
            if self._parts.standing.running(name) is None:
                raise ApiError(409, f"the service {name} does not run yet; try again when it does")
            number = place.request.number + 1 if place.request is not None else 1
            await self._ledger.keep(replace(place, request=Request(number=number, by=by, rung=rung)))
            self._looking.count_anew(name)
            await self._looking.look(self._entries[name])
        self._wake.set()
        return Done(text=self._ledger.sentences[name])

    async def go(self, name: str, by: str) -> Done:
        """End the present stage of a candidate: on to the next one."""
        return await self._order(name, True, by)

    async def stop(self, name: str, by: str) -> Done:
        """End a job, or send a candidate away."""
        async with self._lock:
            settings = self._settings(name)
            place = self._ledger.place(name)
            if place.work is not None:
                await self._workshop.stop(name)
                await self._workshop.leave_cloudd(place.work)
                turn = course.stop_work(settings, place, by, self._parts.wall())
                await self._ledger.act(turn)
                return Done(text=turn.sentence)
        return await self._order(name, False, by)

    async def revert(self, name: str, by: str) -> Done:
        """Let the definition's own model decide again."""
        async with self._lock:
            self._settings(name)
            place = self._ledger.place(name)
            if place.busy:
                raise ApiError(409, f"{name} has a job or a candidate under way; first: edged learning stop {name}")
            if not place.kept:
                raise ApiError(409, f"{name} runs the model of its definition; there is nothing to take back")
            turn = course.taken_back(place, f"{by} wants it so", self._parts.wall())
            await self._ledger.act(turn)
            return Done(text=turn.sentence)

    async def reserve(self, name: str) -> Reserved:
        """Name for a candidate that is made elsewhere, and what decides now."""
        async with self._lock:
            self._learning(name)
            place, installed = self._ledger.place(name), self._parts.models.installed()
            base = place.decides or place.root
            if base not in installed:
                raise ApiError(409, f"the model of {name} is not ready yet; try again later")
            place = replace(place, made=next_number(place.root, name, place.made, installed))
            await self._ledger.keep(place)
            return Reserved(*candidate_name(place.root, name, place.made), base, installed[base])

    async def offer(self, name: str, base_ref: str, done: TrainDone, by: str = "a federated job") -> None:
        """A candidate that no job of the ladder made: its trial begins at once.

        Raises ApiError 409: something is under way (try again later), or `base_ref` decides no longer. 422: it cannot
        be used.
        """
        async with self._lock:
            settings = settings_of(self._learning(name))
            place = self._ledger.place(name)
            if place.busy:
                raise ApiError(409, f"{name} has a job or a candidate under way; try again later")
            if base_ref != (place.decides or place.root):
                raise ApiError(409, f"{base_ref} decides no longer in {name}, so what was learned from it is void")
            await self._install(done)
            before = (await self._workshop.facts(base_ref)).digest
            outside = await self._looking.outside(place)
            await self._ledger.act(course.offered(settings, place, done, by, before, outside))

    async def _install(self, done: TrainDone) -> None:
        try:
            if done.verdict.accepted:
                await self._workshop.install(done, None)
        except PackageError as error:
            raise ApiError(422, f"the candidate cannot be used: {error}") from None
        except OSError as error:
            raise ApiError(507, f"the candidate cannot be installed: {error}") from None

    async def _order(self, name: str, go: bool, by: str) -> Done:
        async with self._lock:
            settings = self._settings(name)
            place = self._ledger.place(name)
            if place.candidate is None:
                raise ApiError(409, f"{name} has no candidate on trial; see: edged learning show {name}")
            try:
                turn = course.order(settings, place, go, by, self._parts.wall())
            except ValueError as error:
                raise ApiError(409, str(error)) from None
            await self._ledger.act(turn)
            return Done(text=turn.sentence)

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _read_entries(self) -> None:
        self._entries = {entry.name: entry for entry in await asyncio.to_thread(self._parts.entries)}

    async def _look(self, name: str) -> str:
        """What cannot be stored does not count; it is looked at again. Why not, "" if it can."""
        try:
            if name in self._entries:
                await self._looking.look(self._entries[name])
            else:
                await self._forget(self._ledger.place(name))
        except ApiError as error:
            return str(error)
        return ""

    async def _forget(self, place: Place) -> None:
        """The service is gone: its job too, and, once that is tidied up, what it learned."""
        if place.busy or place.kept:
            await self._workshop.stop(place.service)
            why = "the service was removed"
            await self._ledger.act(course.superseded(Settings(), place, "", why, self._parts.wall()))
        elif not (place.leavings or place.old_datasets):
            await self._ledger.remove(place.service)

    async def _pause(self) -> None:
        """Until the next look: some seconds, or until something happens."""
        ended = self._workshop.ended()
        woken = asyncio.create_task(self._wake.wait())
        others = [ended] if ended is not None and not ended.done() else []
        try:
            await asyncio.wait([woken, *others], timeout=self._parts.look_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()

    def _service(self, name: str) -> Service:
        entry = self._entries.get(name)
        service = service_of(entry) if entry is not None else None
        if service is None:
            known = ", ".join(sorted(self._entries)) or "none"
            raise ApiError(404, f"there is no service {name[:64]!r} (services: {known})")
        return service

    def _settings(self, name: str) -> Settings:
        """How the service learns, or learned."""
        service = self._service(name)
        if not self._ledger.usable:
            raise ApiError(503, "nothing is learned on this device: its record of learning cannot be used")
        return settings_of(service)

    def _learning(self, name: str) -> Service:
        """A service that learns."""
        self._settings(name)
        service = self._service(name)
        if service.learning is None:
            raise ApiError(409, f"{name} does not learn; a table [learning] in its definition lets it")
        return service
