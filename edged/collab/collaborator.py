"""Decides one sample of one service: trust the edge, ask the cloud if there is time, or keep the sample for later."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from edged.collab.asking import Asker
from edged.collab.gate_keeper import GateKeeper
from edged.collab.plan.heads import Heads
from edged.collab.plan.service_plan import ServicePlan
from edged.collab.ways import Ways
from edgekit.gates.filters import Seen
from edgekit.gates.policy import GateStatus
from edgekit.messages import Answer, Decision, GateFacts, HardSample, PlanReport, SendReason, Verdict
from edgekit.planning.routes import Demand
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
        plan: ServicePlan | None = None,
    ) -> None:
        """Made by Collaboration.add. `clock`: monotonic seconds; `rng`: uniform in [0, 1).

        `plan` is None where nobody can be asked.
        """
        self.service = service
        self.keeper = keeper
        self.plan = plan
        self._hub = hub
        self._clock = clock
        self._rng = rng
        self._asker = Asker(hub, service, keeper, clock)

    @property
    def may_leave(self) -> bool:
        """Whether this service's policy lets pictures, or what is made of them, leave the device."""
        return self.service.may_leave != "nothing"

    def permits(self, header: HardSample) -> bool:
        """Whether the policy lets this sample leave as it is; a picture may have been kept under another one."""
        return self.service.may_leave == "raw" or (self.may_leave and header.features is not None)

    @property
    def reticence(self) -> str:
        """Why nothing of this service is sent, "" if hard samples are."""
        return "" if self.may_leave else NOTHING_LEAVES

    def sentence(self) -> str:
        """The gate's state in one sentence for people."""
        if self.reticence and self.service.hard_samples.asks:
            if not self.may_leave:
                return "Nothing may leave the site, so the cloud is never asked and no risk is certified."
            return f"No risk is certified: {self.reticence}."
        return self.keeper.sentence()

    def facts(self) -> GateFacts | None:
        """What the gate knows, for the triggers of learning; None where it can know nothing."""
        return None if self.reticence else self.keeper.facts()

    def audited(self) -> tuple[int, int]:
        """Audits of answers given here that the cloud has answered since the worker started, and those that differ."""
        return self.keeper.audited, self.keeper.differing

    def plan_report(self) -> PlanReport | None:
        """How asked samples reach the answer model now; None where nobody can be asked."""
        return self.plan.report() if self.plan is not None else None

    def measure(self, demand: Callable[[], Demand]) -> None:
        """What the line brings, for the plan: asked once a second."""
        if self.plan is not None:
            self.plan.demand = demand

    def _here(self, edge: Verdict, sample_id: str, captured_at: float, serial: str) -> Decision:
        """What is decided if nobody is asked."""
        return Decision(
            sample_id=sample_id,
            service=self.service.name,
            label=edge.label,
            score=edge.score,
            decided="edge",
            model=edge.model,
            edge=edge,
            serial=serial,
            captured_at=captured_at,
        )

    def _header(self, decision: Decision, reason: SendReason) -> HardSample:
        """Of what is sent to be asked about, but for what it is."""
        return HardSample(
            sample_id=decision.sample_id,
            service=decision.service,
            answer_model=self.service.hard_samples.answer_model,
            edge=decision.edge,
            reason=reason,
            captured_at=decision.captured_at,
            serial=decision.serial,
            priority=self.service.priority,
        )


class Pictures(Settler):
    """Whole pictures, whoever looked at them here. A trusted local answer touches neither network nor disk."""

    keeper: GateKeeper

    def __init__(
        self,
        hub: Collaboration,
        service: Service,
        keeper: GateKeeper,
        *,
        clock: Callable[[], float],
        rng: Callable[[], float],
        plan: ServicePlan | None = None,
        heads: Heads | None = None,
        why_no_heads: str = "",
    ) -> None:
        """`heads` are those of `[split]`; None without, and where they cannot be used, for which there is a reason."""
        super().__init__(hub, service, keeper, clock=clock, rng=rng, plan=plan)
        self._has_heads, self._why_no_heads = heads is not None, why_no_heads
        self._ways = Ways(hub, plan, self._asker, keeper, heads, clock) if plan is not None else None

    @property
    def reticence(self) -> str:
        if self.service.may_leave == "features" and not self._has_heads:
            return f"only features may leave the site, and none can be made ({self._why_no_heads})"
        return super().reticence

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
        decision = self._here(edge, sample_id, captured_at, serial)
        decision = replace(decision, sent=gate.reason, certified=gate.certified)
        if self.plan is not None:
            self.plan.came(picture)
        if gate.reason is None:
            return decision, None
        if self._ways is None:
            self.keeper.lost(sample_id)
            return replace(decision, sent=None, reason=self.reticence), None
        header = self._header(decision, gate.reason)
        header = replace(header, edge=replace(edge, margin=margin), pipeline=self.service.pipeline)
        if gate.reason == "audit":  # nobody waits for it: the local answer counts
            self._ways.later(header, picture, gate.value)
            return decision, None
        asked = await self._ways.ask(header, picture, gate.value, deadline)
        decision = replace(decision, timings_ms=asked.timings_ms)
        if asked.answer is None:
            return replace(decision, decided="edge-degraded", reason=asked.reason, spooled=asked.spooled), None
        verdict = asked.answer.verdict
        decision = replace(
            decision,
            label=verdict.label,
            score=verdict.score,
            decided="edge" if asked.cloud_ms is None else "cloud",
            model=verdict.model,
            cloud=verdict,
            route=asked.route,
        )
        return decision, asked.answer


class Collaborator(Pictures):
    """The pictures of a classifier."""

    async def settle(
        self, local: LocalAnswer, picture: bytes, sample_id: str, captured_at: float, serial: str, deadline: float
    ) -> Decision:
        """The decision for one sample, before `deadline` (monotonic seconds) whatever network and disk do.

        `picture` is the JPEG or PNG as it came, `captured_at` wall-clock seconds. Call it once a sample, in order of
        arrival. `timings_ms` of the result holds `cloud` if the cloud was asked, and `head` if a head ran for it or the
        whole answer model here; the caller adds its own. Never raises.

        A filter sees the answer as one box around the whole picture.
        """
        edge = Verdict(label=local.label, score=local.score, margin=local.margin, model=self.keeper.edge_model)
        seen = Seen([local.score], local.probabilities)
        decision, _ = await self._settle(edge, local.margin, seen, picture, sample_id, captured_at, serial, deadline)
        return decision
