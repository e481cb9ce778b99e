"""What serving and collaboration say to each other about a frame: the edge's regions in, one decision out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgekit.messages import NOTHING_FOUND, DecidedRegion, Decision, Verdict
from edgekit.regions.answers import FrameDecision, FrameRegion, FrameRule, decide, merge
from edgekit.regions.header import MAX_REGIONS, NOTHING
from edgekit.regions.select import Candidate
from edgekit.services import Service


@dataclass(frozen=True)
class LocalRegions:
    """What the edge model said about one frame, region by region."""

    width: int  # pixels of the full frame
    height: int
    candidates: list[Candidate]  # boxes in pixels of the full frame; of a detector all from the floor on
    timings_ms: dict[str, float] = field(default_factory=dict)  # decode, infer


class SettlesRegions(Protocol):
    """Decides which local answers stand, and about which regions (or frames) the cloud is asked.

    `Collaboration.add` returns one if `takes_regions(service)`.
    """

    async def settle(
        self, local: LocalRegions, picture: bytes, sample_id: str, captured_at: float, serial: str, deadline: float
    ) -> Decision:
        """The decision for one frame, before `deadline` (monotonic seconds) whatever network and disk do.

        `picture` is the JPEG or PNG as it came, `captured_at` wall-clock seconds. Call it once a frame, in order of
        arrival. `regions` and `defects` of the result are set; `edge` is the frame's local answer, and `cloud` the
        frame's answer with the cloud's in it. `timings_ms` holds `cloud` if the cloud was asked; the caller adds those
        of `local` and its own. Never raises.
        """
        ...

    def sentence(self) -> str:
        """Where the gate stands, for people."""
        ...


def takes_regions(service: Service) -> bool:
    """Whether this service's collaborator takes LocalRegions (also where it sends whole frames of a detector), and not
    a classifier's one answer."""
    return service.task == "detection" or service.regions is not None


def clean_label(service: Service) -> str:
    """The label of a region without a defect; NOTHING for a detector."""
    return service.regions.clean if service.regions is not None else NOTHING


def frame_rule(service: Service) -> FrameRule:
    """How the answers of the regions become one of the frame: the worst label, by the order of `pipeline.tiles.worst`.

    Without tiles, the labels of `decision.fail` are the worst, in their order.
    """
    tiles = service.pipeline.tiles if service.pipeline is not None else None
    failing = service.decision.fail if service.decision is not None else []
    worst = tiles.worst if tiles is not None else failing
    return FrameRule(clean=clean_label(service), worst=[label for label in worst if label != NOTHING_FOUND])


def local_regions(local: LocalRegions) -> list[FrameRegion]:
    """The candidates with the edge's answers, as if no gate had been asked."""
    return merge(local.candidates, {}).regions


def verdict_of(frame: FrameDecision, model: str) -> Verdict:
    """The frame's answer, as messages spell it; `model` is name@version."""
    return Verdict(label=frame.label or NOTHING_FOUND, score=frame.score, margin=frame.margin, model=model)


def local_verdict(local: LocalRegions, rule: FrameRule, model: str) -> Verdict:
    """The edge's one answer for the frame."""
    return verdict_of(decide(local_regions(local), rule), model)


def is_defect(region: FrameRegion, clean: str) -> bool:
    """Whether the region has a label that is neither `clean` nor NOTHING."""
    return region.label not in (clean, NOTHING)


def decided_regions(regions: Sequence[FrameRegion], clean: str) -> list[DecidedRegion]:
    """What a decision shows of the regions, in their order: those with a defect, and those that the cloud answered.

    Of more than MAX_REGIONS, those with a defect come first.
    """
    shown = [i for i, region in enumerate(regions) if is_defect(region, clean) or region.decided == "cloud"]
    if len(shown) > MAX_REGIONS:
        shown = sorted(sorted(shown, key=lambda i: not is_defect(regions[i], clean))[:MAX_REGIONS])
    return [
        DecidedRegion(
            box=regions[i].box,
            label=regions[i].label,
            score=regions[i].score,
            margin=regions[i].margin,
            decided=regions[i].decided,
            certified=regions[i].certified,
        )
        for i in shown
    ]
