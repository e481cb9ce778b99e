"""Everything the services of one worker share: link, breaker, record, spool, drain. Made once in each worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edged.collab.breaker import Breaker, BreakerSettings, State
from edged.collab.collaborator import Collaborator
from edged.collab.courier import Courier
from edged.collab.depot import Depot
from edged.collab.drain import Drain
from edged.collab.gate_keeper import GateKeeper, Keeper
from edged.collab.gate_memory import GateMemory
from edged.collab.ledger import Ledger
from edged.collab.mosaics import Mosaics
from edged.collab.plan.heads import Heads
from edged.collab.plan.link import LinkWatch
from edged.collab.plan.service_plan import ServicePlan
from edged.collab.region_collaborator import FrameCollaborator, RegionCollaborator
from edged.collab.region_keeper import FrameKeeper, RegionKeeper
from edged.collab.sealing import Kek, SealError
from edged.collab.spool import Spool
from edged.collab.spool_index import Held
from edged.collab.uplink import Uplink, UplinkError
from edgekit.messages import UNSEEN, Answer, Event, HardSample, Level, Link, SpoolReport
from edgekit.services import Retention, Service

log = logging.getLogger("edged.collab")

AnyCollaborator = Collaborator | FrameCollaborator | RegionCollaborator
"""Which of them a service has, `regions.takes_regions` and its `[regions]` say."""

SAVE_EVERY_S = 10.0
UPKEEP_EVERY_S = 60.0
PLAN_EVERY_S = 1.0


class Collaboration:
    """Belongs to one event loop.

    async with Collaboration(...) as hub:
        collaborator = await hub.add(service, "small@1.0")
        decision = await collaborator.settle(...)
    """

    def __init__(
        self,
        state_dir: Path,
        device_id: str,
        link: Link,
        *,
        quota: int,
        reserve: int,
        on_event: Callable[[Event], None] = lambda event: None,
        on_compared: Callable[[str, bool], None] = lambda service, agrees: None,
        on_late: Callable[[HardSample, Answer], None] = lambda header, answer: None,
        credentials: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: Callable[[], float] = random.random,
        breaker: BreakerSettings | None = None,
        drain_per_second: float = 20.0,
    ) -> None:
        """`quota` and `reserve` are bytes, see Spool. Opens nothing yet.

        `on_compared(service, agrees)` hears of each cloud answer that `settle` did not return itself: audits and late
        ones. `credentials` is systemd's credential directory, default $CREDENTIALS_DIRECTORY. All callbacks come
        in the event loop.
        `on_late(header, answer)` hears of each answer that came after its sample's decision.
        """
        self._state_dir = state_dir
        self._device_id = device_id
        self._quota = quota
        self._reserve = reserve
        self._on_event = on_event
        self._on_compared, self._on_late = on_compared, on_late
        environment = os.environ.get("CREDENTIALS_DIRECTORY")
        self._kek_path = state_dir / "keys" / "kek"
        self._credentials = credentials or (Path(environment) if environment else None)
        self._clock = clock
        self._wall = wall
        self._rng = rng
        self._services: dict[str, AnyCollaborator] = {}
        self._raised: set[str] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="edged-disk")
        self.mosaics = Mosaics()
        self._uplink = Uplink(link)
        self._depot = Depot(self._open_spool, self._executor, quota, self._lost, on_event, wall)
        make_room = self._depot.release_ballast
        self._ledger = Ledger(state_dir / "spool" / "left.db", self._executor, wall=wall, make_room=make_room)
        self._memory = GateMemory(state_dir / "gate.db", self._executor, wall=wall, make_room=make_room)
        self.breaker = Breaker(clock, rng, breaker, self._breaker_moved)
        self.courier = Courier(self._uplink, self._ledger, self.breaker, clock)
        self._watch = LinkWatch(self.courier, clock)
        self.drain = Drain(
            self.courier,
            self._depot,
            clock=clock,
            may_leave=lambda: [name for name, service in self._services.items() if service.may_leave],
            on_answer=self._late_answer,
            on_rejected=self.rejected,
            on_lost=self._lost,
            permits=self._permits,
            per_second=drain_per_second,
        )

    async def __aenter__(self) -> Collaboration:
        """Open spool and record, and begin to deliver. A disk that does not play along is a health event, no error."""
        await self._depot.open()
        self._tasks = [asyncio.create_task(work) for work in (self.drain.run(), self._upkeep(), self._plan())]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop delivering; store what is still in memory; save what the gates know; close."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._background:  # what is being packed ends as an audit in memory, or in the spool
            await asyncio.wait(self._background)
        self.drain.shelve_audits()
        await asyncio.gather(*(service.keeper.save() for service in self._services.values()))
        await self._uplink.close()
        await self._ledger.close()
        await self._memory.close()
        await self._depot.close()
        self.mosaics.close()
        self._executor.shutdown(wait=False)

    async def add(
        self, service: Service, edge_model: str, heads: Heads | None = None, why_no_heads: str = ""
    ) -> AnyCollaborator:
        """The collaborator of one service, its gate restored. `edge_model` is name@version of the loaded package.

        A RegionCollaborator for a service with regions, a FrameCollaborator for one that sends the whole frames of a
        detector; both take LocalRegions. Else a Collaborator, which takes a classifier's answer; `heads` are what its
        `[split]` names, or `why_no_heads` says what is wrong with them.
        """
        collaborator = self._collaborator(service, edge_model, heads, why_no_heads)
        await collaborator.keeper.restore(await self._depot.run(lambda spool: spool.waiting(service.name)) or ())
        await self._depot.run(lambda spool: spool.hold(service.name, _held(service)))
        self._services[service.name] = collaborator
        self.drain.wake()
        return collaborator

    def _collaborator(
        self, service: Service, edge_model: str, heads: Heads | None, why_no_heads: str
    ) -> AnyCollaborator:
        clock, rng = self._clock, self._rng
        if service.regions is not None:
            keeper = RegionKeeper(service, edge_model, self._memory)
            plan = self._plan_of(service, keeper)
            return RegionCollaborator(self, service, keeper, clock=clock, rng=rng, plan=plan)
        if service.task == "detection":
            frames = FrameKeeper(service, edge_model, self._memory)
            plan = self._plan_of(service, frames)
            return FrameCollaborator(self, service, frames, clock=clock, rng=rng, plan=plan)
        pictures = GateKeeper(service, edge_model, self._memory)
        pictures.heads = heads.info if heads is not None else None
        return Collaborator(
            self,
            service,
            pictures,
            clock=clock,
            rng=rng,
            plan=self._plan_of(service, pictures, heads),
            heads=heads,
            why_no_heads=why_no_heads,
        )

    def _plan_of(self, service: Service, keeper: Keeper, heads: Heads | None = None) -> ServicePlan | None:
        """None where nobody can be asked."""
        possible = service.may_leave == "raw" or (service.may_leave == "features" and heads is not None)
        if not service.hard_samples.asks or not possible:
            return None
        info = heads.info if heads is not None else None
        return ServicePlan(service, self._watch, self._clock, info, lambda: keeper.answered_by)

    def set_wanted(self, services: Collection[str]) -> None:
        """Name every service there is, running or not, once those that run have been added.

        A sample of any other was stored for a service that was removed since: it is delivered like the others (its
        header names everything), unless that service's policy let nothing leave at last, and expires in default time.
        """
        self.drain.wanted = frozenset(services)
        self.drain.wake()

    # --- control -----------------------------------------------------------------------------------------------------

    def set_link(self, link: Link) -> None:
        """The supervisor says where cloudd is and whether its heartbeat arrives."""
        was = self._uplink.link
        self._uplink.set_link(link)
        if not link.up or not link.url:
            self.breaker.link_down()
        elif not was.up or (was.url, was.generation) != (link.url, link.generation):
            self.breaker.link_up()
            self.drain.link_is_new()
            self._watch.link_is_new()
        self.drain.wake()

    async def purge(self, service: str = "") -> int:
        """Remove the waiting samples of one service, or of all; the number removed."""
        return await self._depot.run(lambda spool: spool.purge(service)) or 0

    def recalibrate(self, service: str) -> None:
        """Let the service's gate begin anew; an unknown service is ignored."""
        if service in self._services:
            self._services[service].keeper.recalibrate()

    @property
    def uplink_bytes(self) -> int:
        """Bytes exchanged with cloudd since the worker started."""
        return self._uplink.bytes

    @property
    def takes_webp(self) -> bool:
        """Whether cloudd takes a mosaic as WebP, as far as it has said."""
        return self._uplink.takes_webp

    @property
    def breaker_state(self) -> State:
        return self.breaker.state

    def spool_report(self) -> SpoolReport:
        """Totals of the spool, without touching the disk."""
        return self._depot.stats()

    def release_ballast(self) -> bool:
        """Make room on a full disk for another database; may be called from any thread."""
        return self._depot.release_ballast()

    # --- for the collaborators ---------------------------------------------------------------------------------------

    def why_closed(self) -> str:
        """Why no live sample may ask now, for people."""
        if not self._uplink.link.url:
            return "this device has not joined a cloudd"
        return "cloudd cannot be reached or is too slow" if self._uplink.link.up else "the link to cloudd is down"

    def store(self, header: HardSample, picture: bytes, value: float) -> asyncio.Task[str]:
        """See Depot.store; the drain hears of it."""
        task = self._depot.store(header, picture, value)
        task.add_done_callback(lambda _: self.drain.wake())
        return task

    def send_later(self, header: HardSample, picture: bytes, value: float) -> None:
        """Nobody waits for this one: send it soon from memory if the link is up, else store it."""
        if self.breaker.admit() is None or not self.drain.offer_audit(header, picture, value):
            self.store(header, picture, value)

    def learn_later(self, header: HardSample, answer: Answer) -> None:
        """Let the gate learn from a live answer without making that answer wait for the disk."""
        self.in_background(self._learn(header, answer, compare=False))

    def in_background(self, work: Coroutine[None, None, None]) -> None:
        """Do it while nobody waits; the end of the worker does."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def rejected(self, header: HardSample, error: UplinkError) -> None:
        """cloudd does not take this sample: a health item until it takes one of this service again."""
        if error.status == 404:
            wanted = header.features.tail if header.features is not None else header.answer_model
            text = (
                f'{error.text}. The samples of service "{header.service}" wait here; '
                f'import the model "{wanted}" on cloudd.'
            )
            self._raise(f"answers.unknown-model.{header.service}", header.service, text)
        else:
            text = f'{error.text}. Sample {header.sample_id} of service "{header.service}" was dropped.'
            self._raise(f"answers.rejected.{header.service}", header.service, text)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _late_answer(self, header: HardSample, answer: Answer) -> None:
        self._on_late(header, answer)
        await self._learn(header, answer, compare=True)

    async def _learn(self, header: HardSample, answer: Answer, compare: bool) -> None:
        for code in (f"answers.unknown-model.{header.service}", f"answers.rejected.{header.service}"):
            if code in self._raised:
                self._raised.discard(code)
                self._say("ok", code, f'cloudd answers for service "{header.service}" again.')
        collaborator = self._services.get(header.service)
        if collaborator is None or header.edge.label == UNSEEN:
            return
        if collaborator.plan is not None:
            collaborator.plan.answered(header, answer)
        agrees = await collaborator.keeper.learn(header, answer)
        if compare and agrees is not None:
            self._on_compared(header.service, agrees)

    def _permits(self, header: HardSample) -> bool:
        """Whether the present policy of a sample's service lets it leave as it is."""
        collaborator = self._services.get(header.service)
        return collaborator is None or collaborator.permits(header)

    async def _plan(self) -> None:
        """Measure the link as far as somebody needs it, and let every service look at its plan."""
        while True:
            await asyncio.sleep(PLAN_EVERY_S)
            try:
                plans = [service.plan for service in self._services.values() if service.plan is not None]
                if plans:
                    await self._watch.probe()
                for plan in plans:
                    plan.look()
            except Exception:  # a fault of ours must not end the planning for good
                log.exception("The plans could not be looked at")

    async def _upkeep(self) -> None:
        due = self._clock() + UPKEEP_EVERY_S
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            try:
                for collaborator in list(self._services.values()):
                    await collaborator.keeper.save()
                # A spool that could not be opened (a full disk at start) is tried each time.
                if await self._depot.open() and self._clock() >= due:
                    due = self._clock() + UPKEEP_EVERY_S
                    await self._maintain()
            except Exception:  # a fault of ours must not end the upkeep for good
                log.exception("The upkeep of the spool failed in a way it should not")

    async def _maintain(self) -> None:
        await self._depot.run(self._look_at_key)
        await self._depot.run(Spool.maintain)
        for name, collaborator in list(self._services.items()):
            days = collaborator.service.retention.spool_days
            await self._depot.run(lambda spool, name=name, days=days: spool.expire(name, days))  # type: ignore[misc]
        wanted = self.drain.wanted
        if wanted is not None:
            await self._depot.run(lambda spool: spool.expire_others(wanted, Retention().spool_days))

    def _look_at_key(self, spool: Spool) -> None:
        """Somebody may have put another key-encryption key in place, or the right one back."""
        with contextlib.suppress(SealError, OSError):  # an unusable one shows at the next start
            kek = Kek.find(self._kek_path, self._credentials)
            if kek is not None:
                spool.use_key(kek)

    def _open_spool(self) -> Spool:
        kek = Kek.open(self._kek_path, self._credentials)
        return Spool(
            self._state_dir / "spool",
            kek,
            self._device_id,
            quota=self._quota,
            reserve=self._reserve,
            wall=self._wall,
            on_event=lambda event: self._from_thread(lambda: self._on_event(event)),
            on_lost=lambda ids: self._from_thread(lambda: self._lost(*ids)),
        )

    def _from_thread(self, work: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
            self._loop.call_soon_threadsafe(work)

    def _lost(self, *ids: str) -> None:
        """Sample ids are unique, so a gate that does not know one ignores it."""
        for collaborator in self._services.values():
            for sample_id in ids:
                collaborator.keeper.lost(sample_id)

    def _breaker_moved(self, state: State) -> None:
        log.debug("The circuit breaker is %s", state)
        self.drain.breaker_moved()

    def _raise(self, code: str, service: str, text: str) -> None:
        """Once. Of a service that was removed nothing lasting is said: it has left the list."""
        if code not in self._raised:
            self._raised.add(code)
            self._say("warning", code, text, passing=service not in self._services)

    def _say(self, level: Level, code: str, text: str, *, passing: bool = False) -> None:
        self._on_event(Event(level=level, code=code, text=text, at=self._wall(), passing=passing))


def _held(service: Service) -> Held:
    """What of a service's waiting samples its policy keeps on the device."""
    kept: dict[str, Held] = {"raw": "none", "features": "pictures", "nothing": "all"}
    return kept[service.may_leave]
