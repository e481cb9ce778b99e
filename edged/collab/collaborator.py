"""Decides one sample of one service: trust the edge, ask the cloud if there is time, or keep the sample for later."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from edged.collab.courier import RecordError
from edged.collab.uplink import UplinkError
from edgekit.gates.policy import GateStatus
from edgekit.messages import Answer, Decision, HardSample, Verdict
from edgekit.services import Service

if TYPE_CHECKING:
    from edged.collab.collaboration import Collaboration
    from edged.collab.gate_keeper import GateKeeper

SHORTEST_ASK_S = 0.005
"""With less time than this no network answers, so the sample is stored at once."""
MAX_LIVE = 16
"""Live samples on their way at a time; more would only wait for each other."""
NOTHING_LEAVES = "nothing may leave the site, so the cloud was not asked"

_REPLY_S = 0.005  # kept for the reply itself


class LocalAnswer(Protocol):
    """What the edge model said, as edgekit.vision's classifier returns it."""

    @property
    def label(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def margin(self) -> float: ...
    @property
    def probabilities(self) -> Collection[float]: ...  # one for each class


def reserve_s(left_s: float) -> float:
    """Seconds of the remaining time that are kept to store the sample if the cloud does not answer.

    A fifth of what is left, 10 ms at least (an fsync on a good disk) and 50 ms at most (on an SD card).
    """
    return min(0.050, max(0.010, left_s / 5))


class Collaborator:
    """Belongs to one event loop. A trusted local answer touches neither network nor disk."""

    def __init__(
        self,
        hub: Collaboration,
        service: Service,
        keeper: GateKeeper,
        *,
        clock: Callable[[], float],
        rng: Callable[[], float],
    ) -> None:
        """Made by Collaboration.add. `clock`: monotonic seconds; `rng`: uniform in [0, 1)."""
        self.service = service
        self.keeper = keeper
        self._hub = hub
        self._clock = clock
        self._rng = rng
        wait_ms = service.hard_samples.wait_ms
        self._longest_wait = math.inf if wait_ms is None else wait_ms / 1000

    @property
    def may_leave(self) -> bool:
        """Whether this service's policy lets pictures leave the device."""
        return self.service.may_leave == "raw"

    def status(self) -> GateStatus:
        """Where the gate stands."""
        return self.keeper.gate.status()

    def sentence(self) -> str:
        """The gate's state in one sentence for people."""
        if not self.may_leave and self.service.hard_samples.asks:
            return "Nothing may leave the site, so the cloud is never asked and no risk is certified."
        return self.status().sentence

    async def settle(
        self, local: LocalAnswer, picture: bytes, sample_id: str, captured_at: float, serial: str, deadline: float
    ) -> Decision:
        """The decision for one sample, before `deadline` (monotonic seconds) whatever network and disk do.

        `picture` is the JPEG or PNG as it came, `captured_at` wall-clock seconds. Call it once a sample, in order of
        arrival. `timings_ms` of the result holds `cloud` if the cloud was asked; the caller adds its own. Never raises.
        """
        gate = self.keeper.decide(local, self._rng(), sample_id)
        decision = Decision(
            sample_id=sample_id,
            service=self.service.name,
            label=local.label,
            score=local.score,
            decided="edge",
            model=self.keeper.edge_model,
            edge=Verdict(label=local.label, score=local.score, margin=local.margin, model=self.keeper.edge_model),
            sent=gate.reason,
            certified=gate.certified,
            serial=serial,
            captured_at=captured_at,
        )
        if gate.reason is None:
            return decision
        if not self.may_leave:
            self.keeper.lost(sample_id)
            return replace(decision, sent=None, reason=NOTHING_LEAVES)
        header = HardSample(
            sample_id=sample_id,
            service=decision.service,
            answer_model=self.service.hard_samples.answer_model,
            edge=decision.edge,
            reason=gate.reason,
            captured_at=captured_at,
            serial=serial,
            pipeline=self.service.pipeline,
        )
        if gate.reason == "audit":  # nobody waits for it: the local answer counts
            self._hub.send_later(header, picture, gate.value)
            return decision
        asked_at = self._clock()
        try:
            answer = await self._ask(header, picture, deadline)
        except (UplinkError, RecordError) as error:
            decision = replace(decision, decided="edge-degraded", reason=str(error))
            if isinstance(error, UplinkError) and (error.sent or error.kind == "timeout"):
                decision = replace(decision, timings_ms={"cloud": (self._clock() - asked_at) * 1000})
            if isinstance(error, UplinkError) and error.kind == "rejected" and error.status != 404:
                self._hub.rejected(header, error)
                self.keeper.lost(sample_id)
                return decision
            return await self._store(decision, header, picture, gate.value, deadline)
        verdict = answer.verdict
        return replace(
            decision,
            label=verdict.label,
            score=verdict.score,
            decided="cloud",
            model=verdict.model,
            cloud=verdict,
            timings_ms={"cloud": (self._clock() - asked_at) * 1000},
        )

    async def _ask(self, header: HardSample, picture: bytes, deadline: float) -> Answer:
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

    async def _store(
        self, decision: Decision, header: HardSample, picture: bytes, value: float, deadline: float
    ) -> Decision:
        """Keep the sample for later. The answer says `spooled` only if the sample is durable by then."""
        storing = self._hub.store(header, picture, value)
        left = deadline - self._clock() - _REPLY_S
        done, _ = await asyncio.wait([storing], timeout=max(0.0, left))
        if not done:
            return replace(decision, reason=f"{decision.reason}; the sample is being stored")
        lost = storing.result()
        if lost:
            return replace(decision, reason=f"{decision.reason}; the sample was not stored, because {lost}")
        return replace(decision, spooled=True)
