"""A classifier's candidate beside the present model on the pictures that judge, both through the service's pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edged.train.costs import TIMED, cost_of
from edged.train.lessons import Lessons, S, Taught
from edged.train.pace import Workplace
from edgekit.datasets.dataset import digest
from edgekit.gates.paired import Answers
from edgekit.gates.scores import hardness
from edgekit.learning.judging import HeldOut, judge
from edgekit.learning.limits import JudgingLimits
from edgekit.learning.trial import Verdict
from edgekit.packages import Package, ProofSample
from edgekit.runtimes import ModelError
from edgekit.services import Service
from edgekit.vision.classification import Classified, Classifier
from edgekit.vision.images import ImageError
from edgekit.vision.pipeline import Pipelined

_SURE = 0.1  # margin of a proof sample: one nearer to another label says nothing about damage
_TOLERANCE = 0.05

A = TypeVar("A")


def examine(
    service: Service,
    lessons: Lessons,
    limits: JudgingLimits,
    earlier_before: float | None,
    present: Classifier,
    candidate: Classifier,
    at: Workplace,
) -> Verdict:
    """The judgement on `candidate`. Raises DatasetError for a picture that is gone, Halted."""
    part = lessons.judge
    looks = [_look(model, service) for model in (present, candidate)]
    tensors: list[NDArray[Any]] = []

    def ask(data: bytes) -> list[tuple[int, float]]:
        said = [_ask(look, data) for look in looks]
        if len(tensors) < TIMED:
            tensors.append(present.tensor(data))
        return said

    answers, kept = asked(lessons, part, ask, at)
    before = -math.inf if earlier_before is None else earlier_before
    held = HeldOut(
        dataset=digest(part.pictures),
        truth=part.labels[kept],
        classes=lessons.classes,
        old=lessons.known,
        earlier=part.labelled_at[kept] < before,
    )
    cost = cost_of((present, candidate), (present.classify_tensor, candidate.classify_tensor), tensors, at)
    mine, theirs = (_answers([one[row] for one in answers]) for row in (0, 1))
    return judge(held, mine, theirs, limits, cost)


def asked(
    lessons: Taught[S], part: S, ask: Callable[[bytes], A], at: Workplace, what: str = ""
) -> tuple[list[A], list[int]]:
    """What `ask` says of the pictures of `part`, and which of them it could look at; `what` it is done for, for people.

    Raises DatasetError for a picture that is gone, Halted, and as `ask`: but a picture that no model can look at is
    left out.
    """
    answers: list[A] = []
    kept: list[int] = []
    read = lessons.reader(part)
    for place in range(len(part.pictures)):
        data = read(place)
        with suppress(ImageError):
            answers.append(ask(data))
            kept.append(place)
        at.pace.turn("judging", place + 1, len(part.pictures), what)
    return answers, kept


def pinned(base: Package, candidate: Classifier, root: Path) -> list[ProofSample]:
    """The base's proof samples about which the candidate is sure, each with what it says; their files go to `root`."""
    samples: list[ProofSample] = []
    for file in dict.fromkeys(one.file for one in base.manifest.samples):
        data = base.path(file).read_bytes()
        try:
            said = candidate.classify(data)
        except (ImageError, ModelError):
            continue
        if said.margin < _SURE or not keep(root, file, data):
            continue
        score = min(1.0, round(said.score, 3))
        samples.append(ProofSample(file=file, label=said.label, score=score, tolerance=_TOLERANCE))
    return samples


def keep(root: Path, file: str, data: bytes) -> bool:
    """Write a proof sample, unless something of the candidate has its name."""
    target = root / file
    if target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return True


def _look(model: Classifier, service: Service) -> Callable[[bytes], Classified]:
    return model.classify if service.pipeline is None else Pipelined(model, service.pipeline).classify


def _ask(look: Callable[[bytes], Classified], data: bytes) -> tuple[int, float]:
    try:
        said = look(data)
    except ModelError:
        return -1, 1.0
    return said.index, hardness(said.margin)


def _answers(said: Sequence[tuple[int, float]]) -> Answers:
    return Answers(np.array([index for index, _ in said], np.int64), np.array([hard for _, hard in said], np.float64))
