"""What a loaded model says about a picture: the whole of it, each part that a mosaic shows, or just its features.

A classifier answers each region of a mosaic by its view, a detector each cell by the boxes in it. A detector that gets
a whole picture answers it as a mosaic of one cell, so that its boxes travel in the same form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudd.answers.looks import whole_frame
from cloudd.answers.tails import Tail
from edgekit.messages import NOTHING_FOUND, AskModel
from edgekit.packages import Package
from edgekit.regions.answers import MATCH, FrameRegion, FrameRule, compare, decide
from edgekit.regions.header import (
    MAX_FOUND,
    NOTHING,
    Found,
    MosaicAnswer,
    MosaicHeader,
    Region,
    RegionAnswer,
    RegionError,
    check_answer,
)
from edgekit.regions.mosaic import cells, to_frame, views
from edgekit.regions.select import FLOOR, from_detections
from edgekit.runtimes import ModelError, SessionOptions
from edgekit.services import Pipeline
from edgekit.vision.anomaly import AnomalyDetector
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.boxes import Detections, iou
from edgekit.vision.detection.detector import Detector
from edgekit.vision.detection.tiling import TiledDetector
from edgekit.vision.images import decode
from edgekit.vision.pipeline import Pipelined

_DIGITS = 6  # of scores and margins; more would only lengthen the answer

Model = Classifier | Detector | AnomalyDetector
Loaded = Model | Tail
_KINDS: dict[str, type[Classifier] | type[Detector] | type[AnomalyDetector]] = {
    "detection": Detector,
    "anomaly": AnomalyDetector,
}


@dataclass(frozen=True)
class Judgement:
    """The answer to the whole picture, or to the region of a mosaic of which the edge was least sure."""

    label: str  # NOTHING_FOUND: there is nothing
    score: float
    margin: float
    mosaic: MosaicAnswer | None = None
    differing: tuple[int, ...] = ()  # indices of the regions to which the answer is not the edge's


def load(package: Package, options: SessionOptions, cut: str = "") -> Loaded:
    """Open and prove the package's model; of a tail package, the tail of this cut. Raises ModelError."""
    model: Loaded
    if cut:
        model = Tail.load(package, cut, options)
    elif not package.manifest.variants:
        raise ModelError(f'{package.ref} has the task "{package.manifest.task}" and answers no pictures')
    elif package.manifest.task == "embedding":
        raise ModelError(f"{package.ref} makes embeddings, which only a device with its gallery can tell apart")
    else:
        model = _KINDS.get(package.manifest.task, Classifier).load(package, options)
    try:
        model.prove()
    except BaseException:
        model.close()
        raise
    return model


def judge(model: Loaded, ask: AskModel, payload: bytes) -> Judgement:
    """Answer a picture as `ask` wants it looked at, or features.

    Raises ImageError for a bad picture, RegionError if it does not fit its mosaic's header or the model cannot answer
    parts of a picture, FeatureError for features that are not what the tail takes, ModelError for a failing model.
    """
    if isinstance(model, Tail):
        said = model.answer(payload)
        return Judgement(said.label, said.score, said.margin)
    return _seen(model, ask, payload)


def _seen(model: Model, ask: AskModel, picture: bytes) -> Judgement:
    if ask.mosaic is not None:
        return _mosaic(model, picture, ask.mosaic, ask.clean)
    if isinstance(model, Detector):
        return _detected(model, picture, ask.pipeline)
    if isinstance(model, AnomalyDetector):
        if ask.pipeline is not None:
            raise RegionError(f"{model.package.ref} knows whole parts only: no region of interest, and no tiles")
        examined = model.classify(picture)
        return Judgement(examined.label, examined.score, examined.margin)
    answer = (Pipelined(model, ask.pipeline) if ask.pipeline is not None else model).classify(picture)
    return Judgement(answer.label, answer.score, answer.margin)


def _detected(model: Detector, picture: bytes, pipeline: Pipeline | None) -> Judgement:
    seen = (TiledDetector(model, pipeline) if pipeline is not None else model).detect(picture)
    header = whole_frame((seen.width, seen.height))
    found = _found(model, seen.detections, 0, header)
    worst = pipeline.tiles.worst if pipeline is not None and pipeline.tiles is not None else []
    parts = [FrameRegion(None, one.box, one.label, one.score, one.margin, "cloud", False) for one in found]
    frame = decide(parts, FrameRule(clean=NOTHING_FOUND, worst=worst))
    answer = _checked(header, MosaicAnswer(task="detection", found=_most(_answering(found, []))))
    return Judgement(frame.label, frame.score, frame.margin, answer)


def _mosaic(model: Model, picture: bytes, header: MosaicHeader, clean: str) -> Judgement:
    if isinstance(model, AnomalyDetector):
        raise RegionError(f"{model.package.ref} knows whole parts only and cannot answer parts of a picture")
    image = decode(picture, model.colour, webp=True)
    if isinstance(model, Detector):
        if model.compares_whole:
            raise RegionError(
                f"{model.package.ref} compares whole pictures with a golden one and cannot answer parts of a picture"
            )
        found = []
        for number, (cell, pixels) in enumerate(zip(header.cells, cells(image, header), strict=True)):
            seen = model.detect_image(pixels)
            candidates = _found(model, seen.placed(to_frame(cell, seen.boxes)), number, header)
            found += _answering(candidates, cell.regions)
        answer = MosaicAnswer(task="detection", found=_most(found))
    else:
        answer = MosaicAnswer(
            task="classification", regions=[_classified(model, one.index, part) for one, part in views(image, header)]
        )
    outcomes, _ = compare(header, _checked(header, answer), clean)
    asked = min(outcomes, key=lambda outcome: outcome.region.margin)
    differing = tuple(outcome.region.index for outcome in outcomes if outcome.differs)
    return Judgement(asked.label or NOTHING_FOUND, asked.score, asked.margin, answer, differing)


def _classified(model: Classifier, index: int, pixels: NDArray[np.uint8]) -> RegionAnswer:
    answer = model.classify_image(pixels)
    return RegionAnswer(
        index=index, label=answer.label, score=round(answer.score, _DIGITS), margin=round(answer.margin, _DIGITS)
    )


def _found(model: Detector, seen: Detections, cell: int, header: MosaicHeader) -> list[Found]:
    """What was seen in a cell, with boxes in pixels of the frame already; also what is under the score that counts."""
    candidates = from_detections(seen, model.labels, model.report, *header.frame, floor=min(FLOOR, model.report))
    return [
        Found(
            cell=cell,
            box=one.box,
            label=one.label,
            score=round(one.score, _DIGITS),
            margin=round(one.margin, _DIGITS),
        )
        for one in candidates
    ]


def _answering(found: Sequence[Found], regions: Sequence[Region]) -> list[Found]:
    """What counts as found, and of what does not the candidate that fits each region best; the others would only make
    an answer long, and a model without suppression has hundreds of them in every cell."""
    weak = [i for i, one in enumerate(found) if one.label == NOTHING]
    best: set[int] = set()
    if weak and regions:
        shared = iou(np.array([one.box for one in regions]), np.array([found[i].box for i in weak]))
        best = {weak[int(row.argmax())] for row in shared if row.max() >= MATCH}
    return [one for i, one in enumerate(found) if one.label != NOTHING or i in best]


def _most(found: Sequence[Found]) -> list[Found]:
    """As many as an answer may hold, in their order; the weakest candidates go first."""

    def strength(i: int) -> float:
        return found[i].score if found[i].label != NOTHING else -found[i].score

    return [found[i] for i in sorted(sorted(range(len(found)), key=strength, reverse=True)[:MAX_FOUND])]


def _checked(header: MosaicHeader, answer: MosaicAnswer) -> MosaicAnswer:
    try:
        check_answer(header, answer)
    except RegionError as error:
        raise ModelError(f"the model's answer cannot be used: {error}") from error
    return answer
