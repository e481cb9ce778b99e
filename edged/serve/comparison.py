"""A new model's answers to the samples that its predecessor's package pins, before it takes over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edged.serve.inspecting import Vision
from edgekit.messages import Comparison
from edgekit.packages import Package, PackageError, ProofSample, open_package
from edgekit.runtimes import ModelError
from edgekit.vision.anomaly import AnomalyDetector
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.boxes import Detections, iou
from edgekit.vision.detection.detector import Detector
from edgekit.vision.embedding import Embedder
from edgekit.vision.images import ImageError
from edgekit.vision.model import sample_bytes

MAX_SAMPLES = 200
MAX_S = 10.0
"""Longest time for one service: the swap waits for it."""
MAX_TOLD = 5
"""Differences that are put into words."""
SAME_BOX = 0.5
"""IoU from which a new model's box is the one that was pinned, where the sample says nothing."""


@dataclass(frozen=True)
class _Finding:
    """What became of one sample."""

    differing: str = ""  # a sentence, "" if the new model agrees
    change: float = 0.0  # of the score, where it agrees


def compare(
    service: str, vision: Vision, directory: Path, clock: Callable[[], float] = time.monotonic
) -> Comparison | None:
    """How far the new model agrees with what the package in `directory` promises; None if that says nothing about it.

    The new package's own samples are no part of this: they have been proved, or it would not be here.
    """
    try:
        previous = open_package(directory, verify=False)
    except (PackageError, OSError):
        return None  # it has been removed meanwhile, so there is nothing to compare with
    if previous.manifest.task != vision.package.manifest.task:
        return None
    until = clock() + MAX_S
    samples = previous.manifest.samples[:MAX_SAMPLES]
    findings: list[_Finding] = []
    for file in dict.fromkeys(sample.file for sample in samples):
        if clock() > until:
            break
        findings += _findings(vision, previous, file, [sample for sample in samples if sample.file == file])
    if not findings:
        return None
    differing = [finding.differing for finding in findings if finding.differing]
    return Comparison(
        service=service,
        model=vision.package.ref,
        previous=previous.ref,
        samples=len(findings),
        agreed=len(findings) - len(differing),
        differing=differing[:MAX_TOLD],
        score_change=round(max(finding.change for finding in findings), 4),
    )


def _findings(vision: Vision, previous: Package, file: str, samples: list[ProofSample]) -> list[_Finding]:
    """One for each of the samples, which are all about the same picture."""
    if isinstance(vision, Embedder):
        return []  # two embedders share no answer that could be compared; each is proved on its own samples
    try:
        data = sample_bytes(previous, file)
        if isinstance(vision, (Classifier, AnomalyDetector)):
            answer = vision.classify(data)
            return [_label(sample, answer.label, answer.score) for sample in samples]
        return list(_boxes(samples, vision, vision.detect(data).reported))
    except (ImageError, ModelError, PackageError, OSError) as error:
        return [_Finding(f"{file} cannot be answered: {error}")] * len(samples)


def _label(sample: ProofSample, label: str, score: float) -> _Finding:
    if label != sample.label:
        return _Finding(f'{sample.file} was "{sample.label}" and is now "{label}" ({score:.2f})')
    return _Finding(change=_change(sample, score))


def _boxes(samples: list[ProofSample], detector: Detector, found: Detections) -> Iterator[_Finding]:
    """Each pinned box takes the best one of its label, and no other may take that one again."""
    free = np.ones(len(found), bool)
    for sample in samples:
        label = detector.labels.index(sample.label) if sample.label in detector.labels else -1
        if sample.box is None:
            count = int((found.labels == label).sum())
            same = count == sample.count
            yield _Finding("" if same else f'{sample.file} had {sample.count} "{sample.label}" and has now {count}')
            continue
        overlaps = np.where(free & (found.labels == label), iou(np.array([sample.box]), found.boxes)[0], -1.0)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best < 0 or overlaps[best] < (sample.min_iou or SAME_BOX):
            place = ", ".join(f"{edge:g}" for edge in sample.box)
            yield _Finding(f'{sample.file} had "{sample.label}" at {place} and has it no more')
            continue
        free[best] = False
        yield _Finding(change=_change(sample, float(found.scores[best])))


def _change(sample: ProofSample, score: float) -> float:
    return abs(score - sample.score) if sample.score is not None else 0.0
