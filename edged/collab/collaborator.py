"""Decides one sample of one service: trust the edge, ask the cloud if there is time, or keep the sample for later."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from edged.collab.asking import Asker
from edged.collab.gate_keeper import GateKeeper
from edgekit.gates.filters import Seen
from edgekit.gates.policy import GateStatus
from edgekit.messages import Answer, Decision, HardSample, Verdict
from edgekit.services import Service

if TYPE_CHECKING:
    from edged.collab.collaboration import Collaboration
    from edged.collab.gate_keeper import Keeper

NOTHING_LEAVES = "nothing may leave the site, so the cloud was not asked"


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


class Settler:
    """What the collaborators of all kinds of services have in common. Belongs to one event loop."""

    def __init__(
        self,
        hub: Collaboration,
        service: Service,
        keeper: Keeper,
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
        self._asker = Asker(hub, service, keeper, clock)

    @property
    def may_leave(self) -> bool:
        """Whether this service's policy lets pictures leave the device."""
        return self.service.may_leave == "raw"

    def sentence(self) -> str:
        """The gate's state in one sentence for people."""
        if not self.may_leave and self.service.hard_samples.asks:
            return "Nothing may leave the site, so the cloud is never asked and no risk is certified."
        return self.keeper.sentence()


class Pictures(Settler):
    """Whole pictures, whoever looked at them here. A trusted local answer touches neither network nor disk."""

    keeper: GateKeeper

    def status(self) -> GateStatus:
        """Where the gate stands."""
        return self.keeper.gate.status()

    async def _settle(
        self,
        edge: Verdict,
        margin: float,
        seen: Seen,
        picture: bytes,
        sample_id: str,
        captured_at: float,
        serial: str,
        deadline: float,
    ) -> tuple[Decision, Answer | None]:
        """The decision for one picture, and the cloud's answer if that decided. `margin`: what the gate judges by."""
        gate = self.keeper.decide(margin, self._rng(), sample_id, seen)
        decision = Decision(
            sample_id=sample_id,
            service=self.service.name,
            label=edge.label,
            score=edge.score,
            decided="edge",
            model=edge.model,
            edge=edge,
            sent=gate.reason,
            certified=gate.certified,
            serial=serial,
            captured_at=captured_at,
        )
        if gate.reason is None:
            return decision, None
        if not self.may_leave:
            self.keeper.lost(sample_id)
            return replace(decision, sent=None, reason=NOTHING_LEAVES), None
        header = HardSample(
            sample_id=sample_id,
            service=decision.service,
            answer_model=self.service.hard_samples.answer_model,
            edge=replace(edge, margin=margin),
            reason=gate.reason,
            captured_at=captured_at,
            serial=serial,
            pipeline=self.service.pipeline,
        )
        if gate.reason == "audit":  # nobody waits for it: the local answer counts
            self._hub.send_later(header, picture, gate.value)
            return decision, None
        asked = await self._asker.ask(header, picture, gate.value, deadline)
        if asked.answer is None:
            decision = replace(
                decision,
                decided="edge-degraded",
                reason=asked.reason,
                spooled=asked.spooled,
                timings_ms=asked.timings_ms,
            )
            return decision, None
        verdict = asked.answer.verdict
        decision = replace(
            decision,
            label=verdict.label,
            score=verdict.score,
            decided="cloud",
            model=verdict.model,
            cloud=verdict,
            timings_ms=asked.timings_ms,
        )
        return decision, asked.answer


class Collaborator(Pictures):
    """The pictures of a classifier."""

    async def settle(
        self, local: LocalAnswer, picture: bytes, sample_id: str, captured_at: float, serial: str, deadline: float
    ) -> Decision:
        """The decision for one sample, before `deadline` (monotonic seconds) whatever network and disk do.

        `picture` is the JPEG or PNG as it came, `captured_at` wall-clock seconds. Call it once a sample, in order of
        arrival. `timings_ms` of the result holds `cloud` if the cloud was asked; the caller adds its own. Never raises.

        A filter sees the answer as one box around the whole picture.
        """
        edge = Verdict(label=local.label, score=local.score, margin=local.margin, model=self.keeper.edge_model)
        seen = Seen([local.score], local.probabilities)
        decision, _ = await self._settle(edge, local.margin, seen, picture, sample_id, captured_at, serial, deadline)
        return decision
