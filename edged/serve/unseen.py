"""Samples that the device had no time to look at: what the cloud is told of them, and the decision its answer makes."""

from __future__ import annotations

from msgspec.structs import replace

from edged.collab.region_keeper import found_regions
from edged.collab.regions import decided_regions, frame_rule, is_defect, verdict_of
from edgekit.messages import UNSEEN, Answer, Decision, HardSample, Verdict
from edgekit.regions.answers import decide
from edgekit.regions.header import NOTHING
from edgekit.services import Service

REASON = "this device had more to do than it could, so the cloud was asked at once"


def may_leave(service: Service) -> bool:
    """Whether the cloud can be asked about this service's whole pictures without a look at them here.

    Services whose regions leave are asked about in the edge's own words, so they need the edge's look.
    """
    return service.may_leave == "raw" and service.regions is None and bool(service.hard_samples.answer_model)


def unseen(
    service: Service, model: str, sample_id: str, captured_at: float, serial: str, left_s: float | None
) -> HardSample:
    """What goes before the picture. `model`: name@version of the one here; `left_s`: None if nobody waits."""
    return HardSample(
        sample_id=sample_id,
        service=service.name,
        answer_model=service.hard_samples.answer_model,
        edge=Verdict(label=UNSEEN, score=0.0, margin=0.0, model=model),
        reason="hard",
        captured_at=captured_at,
        serial=serial,
        pipeline=service.pipeline,
        priority=service.priority,
        left_ms=None if left_s is None else round(max(0.0, left_s) * 1e3, 1),
    )


def cloud_decision(service: Service, header: HardSample, answer: Answer, cloud_ms: float) -> Decision:
    """The decision that is the cloud's alone. `cloud_ms`: from asking to the answer."""
    verdict = answer.verdict
    decision = Decision(
        sample_id=header.sample_id,
        service=service.name,
        label=verdict.label,
        score=verdict.score,
        decided="cloud",
        model=verdict.model,
        edge=header.edge,
        cloud=verdict,
        reason=REASON,
        route="frame",
        serial=header.serial,
        captured_at=header.captured_at,
        timings_ms={"cloud": cloud_ms},
    )
    found = found_regions(answer) if service.task == "detection" else None
    if found is None:
        return decision
    frame = verdict_of(decide(found, frame_rule(service)), verdict.model)
    defects = [region for region in found if is_defect(region, NOTHING)]
    return replace(
        decision,
        label=frame.label,
        score=frame.score,
        cloud=frame,
        defects=len(defects),
        regions=decided_regions(defects, NOTHING),
    )
