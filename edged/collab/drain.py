"""Delivers what nobody waits for: audits from memory and waiting samples from the spool, politely and one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass

import msgspec

from edged.collab.courier import Courier, RecordError
from edged.collab.depot import Depot
from edged.collab.sealing import SealError
from edged.collab.spool import Spool
from edged.collab.uplink import UplinkError
from edgekit.faults import crash_point
from edgekit.messages import Answer, HardSample

log = logging.getLogger("edged.collab")

MAX_AUDITS = 32
MAX_AUDIT_BYTES = 16 << 20
LATE_TIMEOUT_S = 20.0
UNKNOWN_MODEL_REST_S = 600.0
"""A model that cloudd does not have yet may be imported any day; until then its samples wait and others go first."""

SAMPLE_REST = 10
"""Times the rest of the breaker. So one sample that cloudd can never answer costs the others a tenth of the time."""

_CHECK_TIMEOUT_S = 5.0
_NOTHING_TO_DO_S = 5.0
_DISK_REST_S = 5.0


@dataclass(frozen=True)
class _Parcel:
    """A sample to deliver; `spooled` if it is on the disk, else it is an audit in memory."""

    header: HardSample
    picture: bytes
    value: float
    spooled: bool


class Drain:
    """One task. It works only while the breaker is closed (or allows a probe) and no live sample is on its way.

    After each sample it rests at least as long as the sample took, so it takes half of the link at most. All probes of
    the breaker are made here, so that no live sample ever waits to find out whether cloudd is back.
    """

    def __init__(
        self,
        courier: Courier,
        depot: Depot,
        *,
        clock: Callable[[], float],
        may_leave: Callable[[], Collection[str]],
        on_answer: Callable[[HardSample, Answer], Awaitable[None]],
        on_rejected: Callable[[HardSample, UplinkError], None],
        on_lost: Callable[[str], None],
        permits: Callable[[HardSample], bool] = lambda header: True,
        per_second: float = 20.0,
    ) -> None:
        """`may_leave`: names of the services whose samples may leave now (see also `wanted`).

        `on_answer` stores an answer durably before the sample is removed; `on_rejected` hears of samples that cloudd
        does not take, `on_lost` of audits among them. `permits` has the last word on each sample by itself: a picture
        that its service's policy keeps here by now is held.
        """
        self._courier = courier
        self._breaker = courier.breaker
        self._depot = depot
        self._clock = clock
        self._may_leave = may_leave
        self._on_answer = on_answer
        self._on_rejected = on_rejected
        self._on_lost = on_lost
        self._permits = permits
        self._least_rest = 1.0 / per_second
        self._audits: deque[_Parcel] = deque()
        self._audit_bytes = 0
        self._resting_models: dict[str, float] = {}
        self._resting_samples: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._current: asyncio.Task[Answer] | None = None
        self.live_count = 0
        self.wanted: frozenset[str] | None = None
        """Names of every service there is, when all have been added: then those of removed ones may leave too."""

    # --- what others tell it -----------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something is new: a sample, a link, a breaker that moved."""
        self._wake.set()

    def breaker_moved(self) -> None:
        """Stop at once if the breaker opened under a delivery; one that opened it itself has its result already."""
        if self._breaker.state == "open" and self._current not in (None, asyncio.current_task()):
            self._current.cancel()
        self._wake.set()

    def link_is_new(self) -> None:
        """What failed on the link of before may be tried again now."""
        self._resting_samples.clear()

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """A live sample is on its way; nothing late starts meanwhile."""
        self.live_count += 1
        try:
            yield
        finally:
            self.live_count -= 1
            self._wake.set()

    def offer_audit(self, header: HardSample, picture: bytes, value: float) -> bool:
        """Take an audit into memory; False if there is no room."""
        if len(self._audits) >= MAX_AUDITS or self._audit_bytes + len(picture) > MAX_AUDIT_BYTES:
            return False
        self._audits.append(_Parcel(header, picture, value, spooled=False))
        self._audit_bytes += len(picture)
        self._wake.set()
        return True

    def shelve_audits(self) -> None:
        """Move the audits from memory to the spool: the link is down, or the process ends."""
        while self._audits:
            self._shelve(self._audits.popleft())
        self._audit_bytes = 0

    # --- the task ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver for ever. Cancel it to stop; what was under way is then still in the spool."""
        while True:
            self._wake.clear()
            try:
                seconds = await self._step()
            except Exception:  # a fault of ours must not end the deliveries for good
                log.exception("A delivery failed in a way it should not")
                await asyncio.sleep(_DISK_REST_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()

    async def _step(self) -> float:
        """Deliver one sample if that is possible now; seconds until it is worth looking again."""
        ticket = self._breaker.admit()
        probing = ticket is None
        if ticket is None:
            self.shelve_audits()
            if not self._courier.uplink.link.url:
                return 60.0
            ticket = self._breaker.probe()
            if ticket is None:
                return max(0.01, self._breaker.retry_in)
        elif self.live_count:
            return 1.0
        try:
            parcel = await self._next()
        except BaseException:
            self._breaker.abandon(ticket)
            raise
        if parcel is None:
            if not probing:
                return _NOTHING_TO_DO_S
            with contextlib.suppress(UplinkError):
                await self._courier.check(_CHECK_TIMEOUT_S, ticket)
            return 0.0
        if self.live_count and not probing:
            self._put_back(parcel)
            return 1.0
        started = self._clock()
        disk_is_well = await self._deliver(parcel, ticket)
        await asyncio.sleep(max(self._least_rest, self._clock() - started) if disk_is_well else _DISK_REST_S)
        return 0.0

    async def _next(self) -> _Parcel | None:
        services, wanted = frozenset(self._may_leave()), self.wanted
        if self._audits:
            parcel = self._audits.popleft()
            self._audit_bytes -= len(parcel.picture)
            return parcel
        models, samples = self._resting(self._resting_models), self._resting(self._resting_samples)

        def fetch(spool: Spool) -> _Parcel | None:
            while (sample_id := spool.next(services, models, samples, wanted)) is not None:
                try:
                    header, picture = spool.read(sample_id)
                except (SealError, FileNotFoundError) as error:
                    log.warning("A spooled sample cannot be delivered: %s", error)
                    spool.set_aside(sample_id, error)
                    continue
                if not self._permits(header):
                    spool.hold(header.service, "pictures" if header.features is None else "all")
                    continue
                return _Parcel(msgspec.structs.replace(header, late=True), picture, 0.0, spooled=True)
            return None

        return await self._depot.run(fetch)

    def _resting(self, until: dict[str, float]) -> frozenset[str]:
        now = self._clock()
        for name in [name for name, end in until.items() if end <= now]:
            del until[name]
        return frozenset(until)

    async def _deliver(self, parcel: _Parcel, ticket: int) -> bool:
        """Send one parcel and keep the books; False if the disk kept it from being sent or removed."""
        header = parcel.header
        current = asyncio.create_task(self._courier.deliver(header, parcel.picture, LATE_TIMEOUT_S, ticket))
        self._current = current
        try:
            await asyncio.wait([current])
        except asyncio.CancelledError:  # the drain itself is being stopped
            current.cancel()
            await asyncio.wait([current])
            self._put_back(parcel)  # even if an answer came just now: cloudd gives it again
            raise
        finally:
            self._current = None
        if current.cancelled():
            self._put_back(parcel)
            return True
        error = current.exception()
        if error is None:
            await self._on_answer(header, current.result())
            crash_point("spool.answered")
            return not parcel.spooled or await self._remove(header.sample_id, Spool.done)
        if isinstance(error, UplinkError):
            return await self._failed(parcel, error)
        self._put_back(parcel)
        if not isinstance(error, RecordError):
            raise error
        log.warning("A sample stays here for now: %s", error)
        return False

    async def _failed(self, parcel: _Parcel, error: UplinkError) -> bool:
        header = parcel.header
        if error.kind != "rejected":
            if error.sent:  # perhaps this very sample is what cloudd fails on: let the others go first
                self._resting_samples[header.sample_id] = self._clock() + SAMPLE_REST * self._breaker.retry_in
            self._put_back(parcel)
            return True
        self._on_rejected(header, error)
        if error.status == 404:
            # An unknown tail says nothing about the model of which it is a part.
            resting, name = (
                (self._resting_models, header.answer_model)
                if header.features is None
                else (self._resting_samples, header.sample_id)
            )
            resting[name] = self._clock() + UNKNOWN_MODEL_REST_S
            if not parcel.spooled:
                self._shelve(parcel)
            return True
        if not parcel.spooled:
            self._on_lost(header.sample_id)
            return True
        return await self._remove(header.sample_id, Spool.drop)

    async def _remove(self, sample_id: str, how: Callable[[Spool, str], None]) -> bool:
        def work(spool: Spool) -> bool:
            how(spool, sample_id)
            return True

        return await self._depot.run(work) is not None

    def _put_back(self, parcel: _Parcel) -> None:
        """A spooled sample never left the spool; an audit goes to the disk now, which is the surer place."""
        if not parcel.spooled:
            self._shelve(parcel)

    def _shelve(self, parcel: _Parcel) -> None:
        self._depot.store(parcel.header, parcel.picture, parcel.value)
