"""One look at one service: what is seen of the world, what has to be done about it, and the turn that comes of it."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edged.desired import Entry, combination_key
from edged.learning import course, facts
from edged.learning.bodies import Stock
from edged.learning.course import Turn
from edged.learning.facts import Outside
from edged.learning.ledger import Ledger
from edged.learning.parts import Parts
from edged.learning.place import Place
from edged.learning.process import Died
from edged.learning.settings import learner_settings, never_asks
from edged.learning.workshop import Workshop
from edged.plan import Choice, service_of
from edgekit.faults import crash_point
from edgekit.learning.learner import Settings
from edgekit.messages import Recalibrate, ServiceReport
from edgekit.messages.learning import TrainDone, TrainStopped
from edgekit.packages import PackageError, find
from edgekit.services import Learning, Service

if TYPE_CHECKING:
    from edged.samples.records import SampleStats


def settings_of(service: Service) -> Settings:
    """How the service learns; by the defaults where its definition has no [learning]."""
    return learner_settings(service, service.learning or Learning())


class Looking:
    """Belongs to the event loop of the desk. Methods raise ApiError when the disk or the sample store fail."""

    def __init__(self, parts: Parts, ledger: Ledger, workshop: Workshop) -> None:
        self._parts, self._ledger, self._workshop = parts, ledger, workshop
        self._run = secrets.token_hex(8)
        self._deaths: Counter[str] = Counter()
        self._counted: dict[str, tuple[float, SampleStats]] = {}
        self.stocks: dict[str, Stock] = {}
        """What each service could learn from, as last counted."""

    def worker_died(self) -> None:
        """A worker failed: a candidate that decides in it is a suspect. One that looks on has a process of its own."""
        planned = self._parts.standing.planned
        for name, place in self._ledger.places.items():
            choice, candidate = planned.get(name), place.candidate
            if choice is not None and candidate is not None and candidate.ref == choice.ref:
                self._deaths[name] += 1

    def count_anew(self, name: str) -> None:
        """Labels may have come since they were counted."""
        self._counted.pop(name, None)

    async def look(self, entry: Entry) -> None:
        """Look at a wanted service, and act."""
        name, ledger = entry.name, self._ledger
        service, choice = service_of(entry), self._parts.standing.running(name)
        if service is None or choice is None or (service.learning is None and name not in ledger.places):
            return
        if (turn := await self._overtaken(ledger.place(name), entry, service, choice)) is not None:
            await ledger.act(turn)
        place = ledger.place(name)
        if choice.last_good and not place.busy:
            ledger.sentences[name] = "The last good definition runs; learning waits until the newest one does."
            return
        if not (place.busy or place.kept):
            place = replace(place, root=choice.ref)
        if service.learning is None:
            ledger.sentences[name] = "The definition has no [learning]; what was learned before goes on."
            return
        await ledger.act(await self._turn(place, entry, service, service.learning))

    async def _turn(self, place: Place, entry: Entry, service: Service, learning: Learning) -> Turn:
        settings, outside = settings_of(service), await self.outside(place)
        if place.candidate is not None:
            fault = self._fault(entry, place.candidate.ref, outside.report)
            stage = course.shadow if place.looks_on else course.probation
            return stage(settings, place, outside, fault)
        if place.work is not None:
            return await self._work(settings, place, entry, learning, outside)
        found = facts.evidence(place, outside)
        means = facts.means(service, learning, outside, settings.ladder, place, found)
        return course.consider(settings, place, found, means, self._parts.models.installed())

    async def outside(self, place: Place) -> Outside:
        """What there is to see."""
        name, now, decides = place.service, self._parts.wall(), place.decides or place.root
        busy = self._workshop.occupied_by
        stats = None if place.busy else await self._count(name, now)
        labels = (await self._workshop.facts(decides)).labels
        if stats is not None:
            self.stocks[name] = facts.stock(stats, labels)
        return Outside(
            now=now,
            run=self._run,
            report=self._report(name),
            stats=stats,
            labels=labels,
            link_up=self._parts.link_up(),
            settling=self._parts.settling(decides),
            busy=f"{busy} learns now; one job at a time" if busy and busy != name else "",
            deaths=self._deaths.pop(name, 0),
        )

    # --- what ends things ---------------------------------------------------------------------------------------------

    async def _overtaken(self, place: Place, entry: Entry, service: Service, choice: Choice) -> Turn | None:
        """Does something end what is under way, or what was kept? Nothing of it is asked then."""
        if not (place.busy or place.kept):
            return None
        settings, now, name = settings_of(service), self._parts.wall(), place.service
        wanted = _find(service.model, self._parts.models.installed())
        if wanted is not None and wanted != place.root and choice.ref == wanted and not choice.last_good:
            await self._workshop.stop(name)
            return course.superseded(settings, place, wanted, f"{wanted} decides in {name} now", now)
        if place.kept and place.decides == place.kept and (why := self._fault(entry, place.kept, self._report(name))):
            await self._workshop.stop(name)
            return (
                course.superseded(settings, place, place.root, why, now)
                if place.busy
                else course.taken_back(place, why, now)
            )
        if service.learning is None and place.busy:
            await self._workshop.stop(name)
            return course.abandoned(settings, place, "the definition has no [learning] any more", now)
        return None

    def _fault(self, entry: Entry, ref: str, report: ServiceReport | None) -> str:
        """Why a model that should decide or look on cannot, "" if it can."""
        if ref not in self._parts.models.installed():
            return f"the package {ref} is gone"
        if entry.refused_key == combination_key(entry.text, ref):
            return f"it does not start: {entry.refused_why.rstrip('.')}"
        if report is not None and report.model == ref and report.state == "failed":
            return f"it does not run: {report.detail.rstrip('.')}"
        return ""

    # --- the job ------------------------------------------------------------------------------------------------------

    async def _work(self, settings: Settings, place: Place, entry: Entry, learning: Learning, outside: Outside) -> Turn:
        """Go on with the job."""
        work, name, shop = place.work, place.service, self._workshop
        assert work is not None
        if work.rung == "recalibrate":
            if work.sent is not None:
                return course.recalibrating(settings, place, outside)
            return self._recalibrate(place, outside)
        if work.rung == "cloud" and (why := _forbidden(entry)):
            await shop.stop(name)
            await shop.leave_cloudd(work, forget=True)
            refused = TrainStopped(kind="refused", reason=why, resumable=False)
            return course.stopped(settings, place, refused, outside.now)
        word = work.done or shop.outcome(name)
        if isinstance(word, TrainDone):
            if work.done is None:
                place = replace(place, work=replace(work, done=word))
                await self._ledger.keep(place)
                crash_point("learning.made")
            return await self._made(settings, place, word, outside)
        if word is not None:
            shop.clear(name)
        if isinstance(word, TrainStopped) and word.kind == "waiting":
            return course.at_cloud(settings, place, word, outside.now)
        if isinstance(word, TrainStopped) and word.kind != "paused":
            return course.stopped(settings, place, word, outside.now)
        if isinstance(word, Died):
            return course.died(settings, place, word.how, outside.now)
        if shop.occupied_by != name and (turn := course.waiting(place, outside.now)) is not None:
            return turn
        if not shop.occupied_by and (stopped := await shop.begin(work, entry, learning)) is not None:
            return course.stopped(settings, place, stopped, outside.now)
        if shop.occupied_by != name:
            return Turn(place, [], f"The job waits: {shop.occupied_by} learns now; one job at a time.")
        job = place.state.ladder.running
        return Turn(place, [], job.sentence if job is not None else "")

    def _recalibrate(self, place: Place, outside: Outside) -> Turn:
        """Tell the worker, unless its gate calibrates anew already."""
        work, report = place.work, outside.report
        assert work is not None
        gate = report.gate_facts if report is not None and report.state == "ready" else None
        if gate is None:
            return Turn(place, [], "The job waits: the service is not ready.")
        under_way = gate.calibrated is None and not gate.looks
        if not under_way and not self._parts.runs.send(Recalibrate(service=place.service)):
            return Turn(place, [], "The job waits: the worker is not running.")
        return Turn(replace(place, work=replace(work, sent=outside.now)), [], "The gate calibrates anew.")

    async def _made(self, settings: Settings, place: Place, done: TrainDone, outside: Outside) -> Turn:
        """The process has said its last word: install what it made, then put it on trial."""
        work = place.work
        assert work is not None
        self._workshop.clear(place.service)
        try:
            if done.ref != work.ref:
                raise PackageError(f"it is {done.ref}, {work.ref} was asked for")
            if done.verdict.accepted:
                await self._workshop.install(done, self._workshop.scratch(work))
                crash_point("learning.installed")
        except (PackageError, OSError) as error:
            reason = f"the candidate cannot be installed: {error}"
            stopped = TrainStopped(kind="failed", reason=reason, resumable=False, seconds=done.seconds)
            return course.stopped(settings, place, stopped, outside.now)
        before = (await self._workshop.facts(work.base)).digest
        return course.made(settings, place, done, before, outside)

    # --- small questions ----------------------------------------------------------------------------------------------

    async def _count(self, name: str, now: float) -> SampleStats:
        """The samples in numbers, counted anew from time to time."""
        counted = self._counted.get(name)
        if counted is None or not counted[0] <= now < counted[0] + self._parts.labels_s:
            counted = self._counted[name] = (now, await self._parts.samples.stats(name))
        return counted[1]

    def _report(self, name: str) -> ServiceReport | None:
        return next((report for report in self._parts.standing.reports() if report.name == name), None)


def _forbidden(entry: Entry) -> str:
    """Why a job of this service may not be at cloudd any more, "" if it may."""
    service = service_of(entry)
    return never_asks(service) if service is not None else "the service is gone"


def _find(model: str, installed: Mapping[str, object]) -> str | None:
    try:
        return find(model, installed)
    except PackageError:
        return None
