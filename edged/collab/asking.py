"""Asks the cloud about one sample while there is time, and keeps the sample for later if that gave no answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edged.collab.courier import RecordError
from edged.collab.uplink import UplinkError
from edgekit.messages import Answer, HardSample
from edgekit.services import Service

if TYPE_CHECKING:
    from edged.collab.collaboration import Collaboration
    from edged.collab.gate_keeper import Keeper

SHORTEST_ASK_S = 0.005
"""With less time than this no network answers, so the sample is stored at once."""
MAX_LIVE = 16
"""Live samples on their way at a time; more would only wait for each other."""

_REPLY_S = 0.005  # kept for the reply itself


def reserve_s(left_s: float) -> float:
    """Seconds of the remaining time that are kept to store the sample if the cloud does not answer.

    A fifth of what is left, 10 ms at least (an fsync on a good disk) and 50 ms at most (on an SD card).
    """
    return min(0.050, max(0.010, left_s / 5))


@dataclass(frozen=True)
class Asked:
    """An answer in time, or why there is none."""

    answer: Answer | None = None
    reason: str = ""
    spooled: bool = False  # the sample is durable on the disk
    cloud_ms: float | None = None  # spent on the network; None: it was not asked
    head_ms: float | None = None  # spent on the head, or on the whole model here; None: on neither
    route: str = ""  # by which the answer came

    @property
    def timings_ms(self) -> dict[str, float]:
        """For the decision."""
        spent = {"head": self.head_ms, "cloud": self.cloud_ms}
        return {stage: took for stage, took in spent.items() if took is not None}


class Asker:
    """Belongs to one event loop and one service."""

    def __init__(self, hub: Collaboration, service: Service, keeper: Keeper, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds."""
        self._hub = hub
        self._keeper = keeper
        self._clock = clock
        wait_ms = service.hard_samples.wait_ms
        self._longest_wait = math.inf if wait_ms is None else wait_ms / 1000

    async def ask(self, header: HardSample, picture: bytes, value: float, deadline: float) -> Asked:
        """Ask, before `deadline` whatever network and disk do. `value`: of the sample in the spool. Never raises."""
        asked_at = self._clock()
        try:
            answer = await self._deliver(header, picture, deadline)
        except (UplinkError, RecordError) as error:
            spent = None
            if isinstance(error, UplinkError) and (error.sent or error.kind == "timeout"):
                spent = (self._clock() - asked_at) * 1000
            if isinstance(error, UplinkError) and error.kind == "rejected" and error.status != 404:
                self._hub.rejected(header, error)
                self._keeper.lost(header.sample_id)
                return Asked(reason=str(error), cloud_ms=spent)
            return await self.keep(Asked(reason=str(error), cloud_ms=spent), header, picture, value, deadline)
        return Asked(answer, cloud_ms=(self._clock() - asked_at) * 1000)

    async def _deliver(self, header: HardSample, picture: bytes, deadline: float) -> Answer:
        """Ask the cloud in the time there is. Raises UplinkError or RecordError, at once if asking makes no sense."""
        left = deadline - self._clock()
        wait = min(self._longest_wait, left - reserve_s(left))
        if wait < SHORTEST_ASK_S:
            raise UplinkError("timeout", "no time was left to ask the cloud")
        if self._hub.drain.live_count >= MAX_LIVE:
            raise UplinkError("busy", f"{MAX_LIVE} samples are on their way to the cloud already")
        ticket = self._hub.breaker.admit()
        if ticket is None:
            raise UplinkError("down", self._hub.why_closed())
        with self._hub.drain.live():
            answer = await self._hub.courier.deliver(header, picture, wait, ticket, slow_s=wait)
        self._hub.learn_later(header, answer)
        return answer

    async def keep(self, asked: Asked, header: HardSample, picture: bytes, value: float, deadline: float) -> Asked:
        """Keep the sample for later. The answer says `spooled` only if the sample is durable by then."""
        storing = self._hub.store(header, picture, value)
        left = deadline - self._clock() - _REPLY_S
        done, _ = await asyncio.wait([storing], timeout=max(0.0, left))
        if not done:
            return replace(asked, reason=f"{asked.reason}; the sample is being stored")
        lost = storing.result()
        if lost:
            return replace(asked, reason=f"{asked.reason}; the sample was not stored, because {lost}")
        return replace(asked, spooled=True)
