"""From a service and its model to the one function that looks at a picture, whatever the model's task.

A classifier gives one answer for the picture, and so do an anomaly detector (good or not) and an embedder with its
gallery (who it is, or unknown). A detector, and a classifier whose service sends parts of the picture (`[regions]`),
give an answer for each region, from which the collaborator makes one decision of the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.collab.regions import (
    LocalRegions,
    clean_label,
    decided_regions,
    frame_rule,
    is_defect,
    local_regions,
    local_verdict,
)
from edgekit.messages import DecidedRegion, Decision, Verdict
from edgekit.packages import Package, Variant
from edgekit.regions.header import NOTHING
from edgekit.regions.select import FLOOR, Candidate, from_detections, from_tiles
from edgekit.runtimes import SessionOptions
from edgekit.services import DecisionRules, Service, VerdictWord
from edgekit.vision.anomaly import AnomalyDetector, Examined
from edgekit.vision.classification import Classified, Classifier
from edgekit.vision.detection.boxes import Detections
from edgekit.vision.detection.detector import Detected, Detector
from edgekit.vision.detection.tiling import TiledDetector
from edgekit.vision.embedding import KNOWN, UNKNOWN, Embedder, Embedding, stranger
from edgekit.vision.pipeline import Pipelined

Vision = Classifier | Detector | AnomalyDetector | Embedder
"""A loaded model that looks at pictures."""
_KINDS: dict[str, type[Classifier] | type[Detector] | type[AnomalyDetector] | type[Embedder]] = {
    "detection": Detector,
    "anomaly": AnomalyDetector,
    "embedding": Embedder,
}
Local = Classified | LocalRegions
"""What it says about one of them."""
Inspect = Callable[[bytes], Local]
"""Look at a JPEG or PNG. Raises ImageError for a bad picture and ModelError for a failing model; for any thread."""


def load_vision(package: Package, options: SessionOptions | None = None, variant: Variant | None = None) -> Vision:
    """Load the model of a package by its task; see Classifier.load and its likes. Raises ModelError."""
    return _KINDS.get(package.manifest.task, Classifier).load(package, options, variant)


def inspector(service: Service, vision: Vision) -> Inspect:
    """What the service does with each picture. Raises ModelError for a model that cannot do that."""
    pipeline = service.pipeline
    if isinstance(vision, Detector):
        return _Detecting(service, vision)
    if isinstance(vision, Embedder):
        return Identifying(vision)
    if isinstance(vision, AnomalyDetector):
        return vision.classify
    if pipeline is None:
        return vision.classify
    pipelined = Pipelined(vision, pipeline)
    return pipelined.classify if service.regions is None else _Tiling(pipelined)


def local_decision(service: Service, local: Local, model: str, sample_id: str) -> Decision:
    """What the edge alone makes of a picture, as if nobody could be asked. `model` is name@version."""
    if isinstance(local, Classified):
        edge = Verdict(label=local.label, score=local.score, margin=local.margin, model=model)
    else:
        edge = local_verdict(local, frame_rule(service), model)
    decision = Decision(
        sample_id=sample_id,
        service=service.name,
        label=edge.label,
        score=edge.score,
        decided="edge",
        model=model,
        edge=edge,
    )
    if isinstance(local, Classified):
        return decision
    regions, clean = local_regions(local), clean_label(service)
    return msgspec.structs.replace(
        decision,
        defects=sum(is_defect(region, clean) for region in regions),
        regions=decided_regions(regions, clean),
    )


def verdict(rules: DecisionRules, decision: Decision, clean: str) -> VerdictWord:
    """What the rules make of a decision, wherever it was made. `clean` is the label of a region without a defect.

    With regions every defect is judged by itself: the frame fails if one of them does, and else is for review if one
    is. So one doubtful defect beside a sure one does not make the frame doubtful. Without a defect the frame's own
    label is judged, which is "nothing" for a detector's.
    """
    found = [region for region in decision.regions if region.label not in (NOTHING, clean)]
    if found:
        words = {rules.verdict(region.label, region.score, region.margin) for region in found}
        return "fail" if "fail" in words else "review" if "review" in words else "pass"
    final = decision.cloud or decision.edge
    return rules.verdict(final.label, final.score, final.margin)


def identity_verdict(rules: DecisionRules, decision: Decision) -> VerdictWord:
    """What the rules make of an identity: they may name it, or say KNOWN for everybody whom they do not name."""
    label = decision.label
    named = label == UNKNOWN or label in rules.passes or label in rules.fail
    return rules.verdict(label if named else KNOWN, decision.edge.score, decision.edge.margin)


def located(decision: Decision, local: Local | None) -> Decision:
    """The decision with the places of an anomaly that the edge found, where that is what was decided.

    They say where to look and have no verdict of their own: a part is judged as a whole.
    """
    if not isinstance(local, Examined) or not local.areas or decision.label != local.label or decision.regions:
        return decision
    places = [
        DecidedRegion(box=one.box, label=local.label, score=one.score, margin=2 * one.score - 1, decided="edge")
        for one in local.areas
    ]
    return msgspec.structs.replace(decision, regions=places, defects=len(places))


class Identifying:
    """An embedder, and whoever tells whom an embedding shows: nobody until a gallery is attached."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.recognise: Callable[[Embedding], Classified] = lambda embedding: stranger()
        """May be called from several threads."""
        self.sentence: Callable[[], str] = lambda: ""
        """Where the gallery stands, for people."""

    def __call__(self, data: bytes) -> Classified:
        embedding, timings = self.embedder.embed(data)
        answer = self.recognise(embedding)
        answer.timings_ms.update(timings)
        return answer


class _Tiling:
    """A classifier's answer to each tile."""

    def __init__(self, pipelined: Pipelined) -> None:
        self._pipelined = pipelined

    def __call__(self, data: bytes) -> LocalRegions:
        tiled = self._pipelined.regions(data)
        return LocalRegions(tiled.width, tiled.height, from_tiles(tiled.answers), tiled.timings_ms)


class _Detecting:
    """A detector's boxes under the service's own thresholds."""

    def __init__(self, service: Service, detector: Detector) -> None:
        self._labels = detector.labels
        self._reports = _reports(service, detector)
        view = _reporting_from(detector, float(self._reports.min()))
        tiled = TiledDetector(view, service.pipeline) if service.pipeline is not None else None
        self._detect: Callable[[bytes], Detected] = view.detect if tiled is None else tiled.detect

    def __call__(self, data: bytes) -> LocalRegions:
        found = self._detect(data)
        candidates = judged(found.detections, self._labels, self._reports, found.width, found.height)
        return LocalRegions(found.width, found.height, candidates, found.timings_ms)


def _reports(service: Service, detector: Detector) -> NDArray[np.float64]:
    """The score from which a box counts, for each label."""
    rules = service.detection
    usual = detector.report if rules is None or rules.threshold is None else rules.threshold
    own = rules.thresholds if rules is not None else {}
    return np.array([own.get(label, usual) for label in detector.labels])


def _reporting_from(detector: Detector, report: float) -> Detector:
    """The detector, or one on the same session whose margins tell of boxes from a lower score on.

    From a margin that was made with a lower threshold the one for a higher follows, but not the other way round.
    """
    if report >= detector.report:
        return detector
    manifest = detector.package.manifest
    spec = msgspec.structs.replace(detector.spec, report=report, score_floor=min(detector.spec.score_floor, report))
    package = replace(detector.package, manifest=msgspec.structs.replace(manifest, detection=spec))
    return Detector(package, detector.variant, detector.session)


def judged(
    found: Detections, labels: Sequence[str], reports: NDArray[np.float64], width: int, height: int
) -> list[Candidate]:
    """The detections in a frame of this size as candidates, by each label's own threshold, the highest score first.

    `reports` [labels] are the scores from which a box of each label counts; `found` has margins that were made with a
    threshold that none of them is below. With `boxes.margins_of`: let g be the distance to the runner-up and r <= t.
    For a score v >= t, min((v - t) / (1 - t), min((v - r) / (1 - r), g)) = min((v - t) / (1 - t), g), because
    (v - x) / (1 - x) falls in x; below t, the margin (t - v) / t does not depend on g.
    """
    limits, scores = reports[found.labels], np.asarray(found.scores, np.float64)
    over = np.minimum((scores - limits) / (1 - limits), found.margins)
    margins = np.where(scores >= limits, over, (limits - scores) / limits)
    found = replace(found, margins=np.asarray(np.clip(margins, 0, 1), np.float32))
    candidates = [
        candidate
        for limit in np.unique(limits).tolist()
        for candidate in from_detections(found.take(limits == limit), labels, limit, width, height, min(FLOOR, limit))
    ]
    return sorted(candidates, key=lambda one: one.score - 1 if one.label == NOTHING else -one.score)
