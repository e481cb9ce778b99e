"""Decides frames that are many answers: region by region, or the whole frame of a detector."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_fate
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edged.collab.asking import Asked, reserve_s
from edged.collab.collaborator import Pictures, Settler
from edged.collab.mosaics import MosaicError, Packed, Wanted
from edged.collab.plan.service_plan import ServicePlan
from edged.collab.region_keeper import FrameKeeper, RegionKeeper, found_regions
from edged.collab.regions import (
    LocalRegions,
    decided_regions,
    frame_rule,
    is_defect,
    local_regions,
    local_verdict,
    verdict_of,
)
from edgekit.gates.classwise import ClasswiseStatus
from edgekit.gates.filters import Seen
from edgekit.gates.policy import GateDecision, GateStatus
from edgekit.messages import Decision, HardSample, SendReason
from edgekit.regions.answers import FrameDecision, FrameRegion, decide, merge
from edgekit.regions.cutouts import EXACT, LONGEST, Context, region
from edgekit.regions.header import MAX_MOSAIC, NOTHING, IntBox, Region
from edgekit.regions.mosaic import LIMIT
from edgekit.regions.select import SURE, select
from edgekit.regions.silent import SilentRules, audit, questions
from edgekit.services import Service

if TYPE_CHECKING:
    from edged.collab.collaboration import Collaboration

log = logging.getLogger("edged.collab")

_WAITS: tuple[SendReason, ...] = ("calibrating", "safe-mode", "hard")
"""Why somebody waits for a region. A frame has the first of these that one of its regions has, so that a sample which
is found without its row in the spool gets the value that it had (see spool.sample_value)."""
_SILENT_VALUE = 1.0  # as an audit


class RegionCollaborator(Settler):
    """A frame with nothing to send touches neither network nor disk nor a thread."""

    keeper: RegionKeeper

    def __init__(
        self,
        hub: Collaboration,
        service: Service,
        keeper: RegionKeeper,
        *,
        clock: Callable[[], float],
        rng: Callable[[], float],
        plan: ServicePlan | None = None,
    ) -> None:
        super().__init__(hub, service, keeper, clock=clock, rng=rng, plan=plan)
        assert service.regions is not None, "a service without regions sends whole pictures"
        self._most, self._quality = service.regions.most, service.regions.quality
        self._rule = frame_rule(service)
        tiles = service.pipeline.tiles if service.task == "classification" and service.pipeline is not None else None
        self._tiles = tiles is not None
        if tiles is not None:  # the cloud is to see each as the edge did
            self._context, self._limit = EXACT, MAX_MOSAIC
            self._longest = max(LONGEST, tiles.width, tiles.height)
            rate = 0.0  # every tile has an answer, so no frame is silent
        else:
            self._context, self._limit = Context(service.regions.context), LIMIT
            self._longest = LONGEST
            rate = service.regions.silent if plan is not None else 0.0
        self._silent = SilentRules(rate=rate)

    def status(self) -> GateStatus | ClasswiseStatus:
        """Where the gate stands; its samples are regions."""
        return self.keeper.status()

    async def settle(
        self, local: LocalRegions, picture: bytes, sample_id: str, captured_at: float, serial: str, deadline: float
    ) -> Decision:
        """See regions.SettlesRegions. An audited region's answer counts if it comes in time, else the local one does.

        Only the regions are sent. If none of them is worth waiting for (audits, looks at silent frames), they are
        sent in the background.
        """
        gate = self.keeper.decide(local.candidates, select(local.candidates, self._most).asked, self._rng, sample_id)
        sent = {index: decision for index, decision in gate.items() if decision.send}
        looks = [] if local.candidates else audit(self._silent, local.width, local.height, self._rng())
        regions = merge(local.candidates, gate).regions  # unless the cloud answers
        frame = decide(regions, self._rule)
        edge = verdict_of(frame, self.keeper.edge_model)
        decision = self._here(edge, sample_id, captured_at, serial)
        decision = _decided(decision, frame, regions, self._rule.clean)
        if self.plan is not None:
            self.plan.came(picture)
        if not sent and not looks:
            return decision
        if self.plan is None:
            self.keeper.lost(sample_id)
            regions = local_regions(local)
            return _decided(
                replace(decision, reason=self.reticence), decide(regions, self._rule), regions, self._rule.clean
            )
        reason = _reason(sent)
        decision = replace(decision, sent=reason)
        packing = self._hub.mosaics.pack(picture, self._wanted(local, sent, looks))
        header = replace(self._header(decision, reason), clean=self.keeper.clean)  # the mosaic is being made
        value = max((one.value for one in sent.values()), default=_SILENT_VALUE)
        if header.reason == "audit":  # nobody waits for it: the local answers count
            self._hub.in_background(self._later(packing, header, value, self._hub.send_later))
            return decision
        asked = await self._ask(packing, header, value, deadline)
        decision = replace(decision, reason=asked.reason, spooled=asked.spooled, timings_ms=asked.timings_ms)
        if asked.answer is None:
            return decision
        merged = merge(local.candidates, gate, packing.result().header, asked.answer.mosaic, self.keeper.clean)
        frame = decide(merged.regions, self._rule)
        cloud = verdict_of(frame, asked.answer.verdict.model)
        decision = replace(
            decision, label=cloud.label, score=cloud.score, model=cloud.model, cloud=cloud, route="regions"
        )
        return _decided(decision, frame, merged.regions, self._rule.clean)

    # --- sending -----------------------------------------------------------------------------------------------------

    def _wanted(self, local: LocalRegions, sent: Mapping[int, GateDecision], looks: Sequence[IntBox]) -> Wanted:
        return Wanted(
            questions=partial(questions, looks, NOTHING) if looks else partial(self._questions, local, sent),
            quality=self._quality,
            limit=self._limit,
            longest=LIMIT if looks else self._longest,
            frame=self._tiles,
            webp=self._hub.takes_webp,
        )

    def _questions(self, local: LocalRegions, sent: Mapping[int, GateDecision]) -> list[Region]:
        """Raises RegionError for a candidate outside of the frame."""
        found = []
        for index, decision in sent.items():
            assert decision.reason is not None, "what is sent has a reason"
            candidate = local.candidates[index]
            found.append(region(index, candidate, decision.reason, self._context, local.width, local.height))
        return found

    async def _ask(self, packing: asyncio.Task[Packed], header: HardSample, value: float, deadline: float) -> Asked:
        """Ask about the packed regions. What is not packed in time is stored when it is; so is what the plan keeps."""
        assert self.plan is not None, "somebody can be asked"
        left = deadline - self._clock()
        if self.plan.route().kind == "edge" and self.plan.up and self.plan.chance(left) is None:
            self._hub.in_background(self._later(packing, header, value, self._hub.store))
            return Asked(reason=f"the plan keeps it here ({self.plan.why_here}); the sample is being stored")
        done, _ = await asyncio.wait([packing], timeout=max(0.0, left - reserve_s(left)))
        if not done:
            self._hub.in_background(self._later(packing, header, value, self._hub.store))
            return Asked(reason="no time was left to ask the cloud; the sample is being stored")
        try:
            packed = packing.result()
        except MosaicError as error:
            self._unpacked(header, error)
            return Asked(reason=str(error))
        self.plan.packed(packed.took_ms, len(packed.picture))
        return await self._asker.ask(packed.of(header), packed.picture, value, deadline)

    async def _later(
        self,
        packing: asyncio.Task[Packed],
        header: HardSample,
        value: float,
        send: Callable[[HardSample, bytes, float], object],
    ) -> None:
        """Send or store the regions once they are packed."""
        try:
            packed = await packing
        except MosaicError as error:
            self._unpacked(header, error)
            return
        send(packed.of(header), packed.picture, value)

    def _unpacked(self, header: HardSample, error: MosaicError) -> None:
        log.warning("Sample %s of %s was not sent: %s", header.sample_id, header.service, error)
        self.keeper.lost(header.sample_id)


class FrameCollaborator(Pictures):
    """The whole frames of a detector. A frame is as doubtful as the most doubtful of its boxes, found or not.

    A frame without any box has the margin SURE. It is a sample like every other: in a calibration set all frames are
    sent, silent ones too, so a certificate speaks of them as well, and audits look at their share of them.
    """

    keeper: FrameKeeper

    def __init__(
        self,
        hub: Collaboration,
        service: Service,
        keeper: FrameKeeper,
        *,
        clock: Callable[[], float],
        rng: Callable[[], float],
        plan: ServicePlan | None = None,
    ) -> None:
        super().__init__(hub, service, keeper, clock=clock, rng=rng, plan=plan)
        self._rule = frame_rule(service)

    async def settle(
        self, local: LocalRegions, picture: bytes, sample_id: str, captured_at: float, serial: str, deadline: float
    ) -> Decision:
        """See regions.SettlesRegions. If the cloud answers in time, its boxes are the regions.

        A filter sees the scores of the boxes that count.
        """
        edge = local_verdict(local, self._rule, self.keeper.edge_model)
        margin = min((candidate.margin for candidate in local.candidates), default=SURE)
        seen = Seen([candidate.score for candidate in local.candidates if candidate.label != NOTHING])
        decision, answer = await self._settle(edge, margin, seen, picture, sample_id, captured_at, serial, deadline)
        found = found_regions(answer) if answer is not None else None
        if found is not None:
            assert decision.cloud is not None, "it is the cloud's answer"
            frame = verdict_of(decide(found, self._rule), decision.cloud.model)
            decision = replace(decision, label=frame.label, score=frame.score, cloud=frame)
        regions = found if found is not None else self._local(local, decision)
        return replace(
            decision,
            defects=sum(is_defect(region, NOTHING) for region in regions),
            regions=decided_regions([region for region in regions if is_defect(region, NOTHING)], NOTHING),
        )

    def _local(self, local: LocalRegions, decision: Decision) -> list[FrameRegion]:
        """The edge's boxes, which share the frame's fate; but a cloud that knows labels only did not decide them."""
        place = "edge" if decision.decided == "cloud" else decision.decided
        return [with_fate(one, decided=place, certified=decision.certified) for one in local_regions(local)]


def _reason(sent: Mapping[int, GateDecision]) -> SendReason:
    reasons = {decision.reason for decision in sent.values()}
    return next((reason for reason in _WAITS if reason in reasons), "audit")


def _decided(decision: Decision, frame: FrameDecision, regions: Sequence[FrameRegion], clean: str) -> Decision:
    """The decision with what else is said about a frame of these regions."""
    return replace(
        decision,
        decided=frame.decided,
        certified=frame.certified,
        defects=frame.defects,
        regions=decided_regions(regions, clean),
    )
