"""A detector's candidate beside the present model on the pictures that judge, both as the service looks at them.

What is reported is what serving reports: after the service's tiles and with its own thresholds. A labelled box is found
where a reported box of its label overlaps it by OVERLAP; every reported box that finds none is a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.collab.regions import LocalRegions
from edged.serve.inspecting import Inspect, inspector
from edged.train.box_lessons import BoxLessons
from edged.train.costs import TIMED, cost_of
from edged.train.examining import asked, keep
from edged.train.pace import Workplace
from edgekit.datasets.dataset import digest
from edgekit.learning.box_judging import Found, HeldOutBoxes, judge_boxes
from edgekit.learning.limits import JudgingLimits
from edgekit.learning.trial import Verdict
from edgekit.packages import DetectionSpec, Package, ProofSample
from edgekit.regions.header import NOTHING
from edgekit.runtimes import ModelError
from edgekit.services import Service
from edgekit.training import TrainingError
from edgekit.vision.detection.boxes import Detections, iou, ranked
from edgekit.vision.detection.detector import Detector
from edgekit.vision.detection.metrics import Truth, count, match
from edgekit.vision.detection.tiling import TiledDetector
from edgekit.vision.images import ImageError

OVERLAP = 0.5
"""IoU from which a box counts as found, as in `cloudd train`."""
FEWEST = 20
"""Boxes from which the score is chosen."""
_SURE = 0.1
"""Margin of a proof sample: a box nearer to the threshold says nothing about damage."""
_SAME = 0.6  # IoU of the candidate's own box with that of the base's sample


def reporting(
    service: Service, lessons: BoxLessons, present: Detector, candidate: Detector, at: Workplace
) -> DetectionSpec:
    """The candidate's `[detection]` with the score from which it reports, as the pictures that choose say.

    See `score_of`. By fewer than FEWEST boxes it would be luck, and the present one stays. Raises DatasetError, Halted.
    """
    part, spec = lessons.choose, candidate.spec
    if part.boxes < FEWEST:
        return spec
    looks = [
        model.detect if service.pipeline is None else TiledDetector(model, service.pipeline).detect
        for model in (present, candidate)
    ]

    def ask(data: bytes) -> list[Detections] | None:
        with suppress(ModelError):
            return [look(data).detections for look in looks]
        return None

    answers, kept = asked(lessons, part, ask, at, "where to report from")
    found = [(one, part.truths[place]) for one, place in zip(answers, kept, strict=True) if one is not None]
    before, after = ([one[row] for one, _ in found] for row in (0, 1))
    truths = [truth for _, truth in found]
    score = score_of(before, after, truths, lessons.known, present.report, spec)
    return msgspec.structs.replace(spec, report=score)


def score_of(
    before: Sequence[Detections],
    after: Sequence[Detections],
    truths: Sequence[Truth],
    known: int,
    present: float,
    spec: DetectionSpec,
) -> float:
    """From which score a model that finds `after` should report, so that it is no worse than one that finds `before`.

    Of the scores with which it raises no more false alarms than the other, which reports from `present` on, those with
    which it finds as many boxes of the first `known` classes, or else the most, because the judge asks for that; of
    these the one with the best F1, and the nearest to that of `spec` of several. That of `spec` where none is left.
    """
    allowed = count(before, truths, present, OVERLAP).false
    old = [Truth(one.boxes[one.labels < known], one.labels[one.labels < known]) for one in truths]
    wanted = count(before, old, present, OVERLAP).found
    chosen, best = spec.report, (-1, 0.0, 0.0)
    for score in (step / 20 for step in range(2, 19)):
        counts = count(after, truths, score, OVERLAP)
        kept = min(wanted, count(after, old, score, OVERLAP).found)
        quality = (kept, counts.f1 or 0.0, -abs(score - spec.report))
        if score >= spec.score_floor and counts.false <= allowed and quality > best:
            chosen, best = score, quality
    return chosen


def examine_boxes(
    service: Service,
    lessons: BoxLessons,
    limits: JudgingLimits,
    earlier_before: float | None,
    present: Detector,
    candidate: Detector,
    at: Workplace,
) -> Verdict:
    """The judgement on `candidate`. Raises DatasetError for a picture that is gone, ModelError, Halted."""
    part = lessons.judge
    looks = [inspector(service, model) for model in (present, candidate)]
    answers, kept = asked(lessons, part, lambda data: [_reported(look, data, lessons.classes) for look in looks], at)
    truths = [part.truths[place] for place in kept]
    before = -math.inf if earlier_before is None else earlier_before
    held = HeldOutBoxes(
        dataset=digest(part.pictures),
        classes=lessons.classes,
        old=lessons.known,
        truth=np.concatenate([np.zeros(0, np.int64), *(one.labels for one in truths)]),
        picture=np.repeat(np.arange(len(truths)), [len(one) for one in truths]).astype(np.int64),
        earlier=part.labelled_at[kept] < before,
    )
    runs = present.detect_image, candidate.detect_image
    cost = cost_of((present, candidate), runs, _views(lessons, candidate.package, kept), at)
    mine, theirs = (_found([one[row] for one in answers], truths) for row in (0, 1))
    return judge_boxes(held, mine, theirs, limits, cost)


def pinned_boxes(base: Package, candidate: Detector, root: Path) -> list[ProofSample]:
    """The base's proof samples that hold of the candidate, too, with its own boxes; their files go to `root`."""
    samples: list[ProofSample] = []
    for file in dict.fromkeys(one.file for one in base.manifest.samples):
        data = base.path(file).read_bytes()
        try:
            found = candidate.detect(data)
        except (ImageError, ModelError):
            continue
        mine = [one for one in base.manifest.samples if one.file == file]
        held = [said for one in mine if (said := _holds(one, found.detections, found.report, candidate.labels))]
        own = [tuple(one.box) for one in held if one.box is not None]
        # One reported box must not stand for two of the sample.
        if held and len(set(own)) == len(own) and keep(root, file, data):
            samples += held
    return samples


def _holds(sample: ProofSample, found: Detections, report: float, labels: Sequence[str]) -> ProofSample | None:
    """What the candidate surely says of what the sample is about; None where it does not say the same."""
    if sample.label not in labels:
        return None
    mine = found.take(found.labels == labels.index(sample.label))
    if sample.box is None:
        sure = bool((mine.margins >= _SURE).all())
        return sample if sure and int((mine.scores >= report).sum()) == sample.count else None
    mine = mine.take((mine.scores >= report) & (mine.margins >= _SURE))
    overlaps = iou(np.array([sample.box]), mine.boxes)[0]
    if not len(mine) or overlaps.max() < _SAME:
        return None
    box = [round(float(side), 1) for side in mine.boxes[int(overlaps.argmax())]]
    return ProofSample(file=sample.file, label=sample.label, box=box)


def _reported(look: Inspect, data: bytes, classes: Sequence[str]) -> Detections | None:
    """What is reported of a picture, None where there is no usable answer. Raises ImageError."""
    try:
        said = look(data)
    except ModelError:
        return None
    assert isinstance(said, LocalRegions), "a detector answers with regions"
    told = [one for one in said.candidates if one.label != NOTHING]
    boxes = np.array([one.box for one in told], np.float32).reshape(-1, 4)
    labels = np.array([classes.index(one.label) for one in told], np.int32)
    scores = np.array([one.score for one in told], np.float32)
    return ranked(boxes, scores, labels, np.ones(len(told), np.float32))


def _found(answers: Sequence[Detections | None], truths: Sequence[Truth]) -> Found:
    found: list[NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
    false: list[int] = []
    for answer, truth in zip(answers, truths, strict=True):
        hit = np.zeros(len(truth), np.bool_)
        wrong = 0
        if answer is not None:
            taken = match(answer, truth, np.array([OVERLAP]))[0]
            hit[taken[taken >= 0]] = True
            wrong = int((taken < 0).sum())
        found.append(hit)
        false.append(wrong)
    return Found(np.concatenate(found), np.array(false, np.int64), sum(one is None for one in answers))


def _views(lessons: BoxLessons, package: Package, kept: Sequence[int]) -> list[NDArray[np.uint8]]:
    """What the model sees at once of some of the pictures, at the size of its input."""
    pictures = lessons.each(lessons.judge, package.manifest.input)
    found = []
    for place in kept[:TIMED]:
        with suppress(TrainingError):
            found.append(pictures.fitted(place).image)
    return found
