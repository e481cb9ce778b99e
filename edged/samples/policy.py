"""Which decided pictures a service keeps for learning, and what is noted of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from edged.samples.records import NewSample, Opinion, ScoredBox, Source
from edged.samples.store import Limits
from edgekit.messages import UNSEEN, Answer, DecidedRegion, Decision, HardSample, Verdict
from edgekit.regions.header import NOTHING
from edgekit.services.definition import Samples


def source_of(policy: Samples, decision: Decision, draw: float) -> Source | None:
    """Why this picture is kept, None if it is not. `draw` is uniform in [0, 1).

    With `keep = "asked"`: those about which the cloud was asked, those about which it differs, those that the service's
    rules leave to a person, and a share `random` of all others; with "all" every other one, too.
    """
    if policy.keep == "none":
        return None
    edge, cloud = opinions(decision)
    if edge is not None and cloud is not None and edge.label != cloud.label:
        return "disputed"
    if decision.sent is not None:
        return "audit" if decision.sent == "audit" else "asked"
    if decision.verdict == "review":
        return "doubtful"
    return "random" if policy.keep == "all" or draw < policy.random else None


def opinions(decision: Decision) -> tuple[Opinion | None, Opinion | None]:
    """What edge and cloud said. A picture at which the device had no time to look has no opinion of the edge."""
    edge = _opinion(decision.edge, [one for one in decision.regions if one.decided != "cloud"], bool(decision.regions))
    cloud = (
        _opinion(decision.cloud, [one for one in decision.regions if one.decided == "cloud"], bool(decision.regions))
        if decision.cloud is not None
        else None
    )
    return (None if decision.edge.label == UNSEEN else edge), cloud


def noted(decision: Decision, source: Source, difference_hash: int | None) -> NewSample:
    """The facts that are kept beside the picture. Its group is its serial unless a person gives another one."""
    edge, cloud = opinions(decision)
    return NewSample(
        service=decision.service,
        source=source,
        captured_at=decision.captured_at,
        sample_id=decision.sample_id,
        serial=decision.serial,
        edge=edge,
        cloud=cloud,
        difference_hash=difference_hash,
    )


def late_opinion(header: HardSample, answer: Answer) -> Opinion | None:
    """What the cloud said about a picture after its decision had been made; None if it saw only parts of it."""
    return _opinion(answer.verdict, (), False) if header.mosaic is None else None


def limits_of(policy: Samples) -> Limits:
    """The bounds of a service's samples."""
    return Limits(bytes=policy.quota_mb << 20, count=policy.count, days=policy.days)


def _opinion(verdict: Verdict, regions: Sequence[DecidedRegion], boxed: bool) -> Opinion:
    boxes = tuple(
        ScoredBox(
            label=one.label, score=one.score, left=one.box[0], top=one.box[1], right=one.box[2], bottom=one.box[3]
        )
        for one in regions
        if one.label != NOTHING
    )
    return Opinion(
        label=verdict.label,
        score=verdict.score,
        margin=verdict.margin,
        model=verdict.model,
        boxes=boxes if boxed else None,
    )
