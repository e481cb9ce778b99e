"""The model's answers to the pictures: how good they are where labels say so, and which of them prove the package."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cloudd.derived import Progress
from cloudd.importing.description import CONVENTIONS, conventions_text
from cloudd.importing.errors import ImportRefused
from cloudd.importing.pictures import Album
from cloudd.train.figures import Figures, judge_answers, judge_boxes
from cloudd.train.training import truth_of
from edgekit import toml
from edgekit.datasets.dataset import DatasetError, Picture
from edgekit.packages import InputSpec, ProofSample
from edgekit.vision.classification import Classified, Classifier
from edgekit.vision.detection.boxes import iou
from edgekit.vision.detection.detector import Detected, Detector
from edgekit.vision.images import ImageError

_EACH = 2
"""Proof samples of one label."""
_MOST = 40
"""Proof samples of a package."""
_MARGIN = 0.1
"""Between the first and the second label: what is closer may turn with the last digit on another processor."""
_TOLERANCE = 0.15
SAMPLE_BYTES = 4 << 20
"""A larger picture does not become a proof sample."""
ENOUGH = 20
"""Pictures from which on a model may be refused for what it says to them."""
_TRIALS = 100
"""Pictures on which conventions are tried."""


@dataclass(frozen=True)
class Judged:
    """What came of the pictures."""

    samples: list[ProofSample]
    figures: Figures | None


def judge_classifier(model: Classifier, album: Album, root: Path, progress: Progress) -> Judged:
    """Ask all pictures and keep proof samples in `root`/samples.

    Raises ImportRefused for a model that is no better than always saying one label, DatasetError for a picture that
    cannot be used, ModelError.
    """
    answers: list[Classified] = ask_all(album, album.pictures, model.classify, progress)
    labels = model.labels
    right = [not album.said or one.label == said.label for one, said in zip(answers, album.pictures, strict=True)]
    figures = None
    if album.said:
        truth = np.array([labels.index(one.label) for one in album.pictures])
        frequent = Counter(truth.tolist()).most_common(1)[0][0]
        figures = judge_answers(np.array([one.index for one in answers]), truth, labels, frequent)
        hits, trials, rival = figures.right.hits, figures.pictures, figures.rival_right or 0
        if trials >= ENOUGH and len(set(truth.tolist())) > 1 and hits <= rival:
            raise ImportRefused(
                f"the model gets {hits} of {trials} pictures right, and always saying {labels[frequent]!r} gets "
                f"{rival}: see whether the labels stand in the order of the outputs, and whether --normalise and "
                "--input colour=, resize= and interpolation= are those of the training"
            )
    by_label: defaultdict[str, list[int]] = defaultdict(list)
    surest = sorted(range(len(answers)), key=lambda i: (-answers[i].margin, album.pictures[i].sha256))
    for place in surest:
        if right[place] and answers[place].margin >= _MARGIN and len(by_label[answers[place].label]) < _EACH:
            by_label[answers[place].label].append(place)
    chosen = [place for rank in range(_EACH) for places in by_label.values() for place in places[rank : rank + 1]]
    samples: list[ProofSample] = []
    for place in chosen[:_MOST]:
        data = album.read(album.pictures[place])
        if len(data) <= SAMPLE_BYTES:
            file, one = keep_sample(root, len(samples), data), answers[place]
            sample = ProofSample(file=file, label=one.label, score=round(one.score, 3), tolerance=_TOLERANCE)
            samples.append(sample)
    return Judged(samples, None if figures is None else _of_import(figures))


def judge_detector(model: Detector, album: Album, root: Path, progress: Progress) -> Judged:
    """As `judge_classifier`. Refused is a detector that finds none of the boxes."""
    answers: list[Detected] = ask_all(album, album.pictures, model.detect, progress)
    labels, report = model.labels, model.report
    figures = None
    if album.said:
        truths = [truth_of(one, labels) for one in album.pictures]
        figures = judge_boxes([one.detections for one in answers], truths, labels, report)
        wanted = sum(one.recall.trials for one in figures.labels)
        if wanted >= ENOUGH and not figures.right.hits:
            raise ImportRefused(
                f"the model finds none of the {wanted} boxes: see whether --normalise, --input colour=, resize= and "
                "--detection head=, scores= and unit= are right"
            )
    samples: list[ProofSample] = []
    had: Counter[str] = Counter()
    kept = 0
    for picture, answer in zip(album.pictures, answers, strict=True):
        proofs = _proofs(picture, answer, labels, bool(album.said), had)
        if not proofs or len(samples) + len(proofs) > _MOST:
            continue
        data = album.read(picture)
        if len(data) <= SAMPLE_BYTES:
            file = keep_sample(root, kept, data)
            kept += 1
            samples += [msgspec.structs.replace(proof, file=file) for proof in proofs]
            had.update(proof.label if proof.box is not None else "" for proof in proofs)
    return Judged(samples, None if figures is None else _of_import(figures))


def try_conventions(make: Callable[[InputSpec], Classifier], spec: InputSpec, album: Album) -> str:
    """How many labelled pictures each usual normalisation gets right, the best first, as lines of text."""
    colours = ("grey",) if spec.colour == "grey" else ("rgb", "bgr")
    rows = []
    pictures = album.pictures[:_TRIALS]
    for name, one in CONVENTIONS.items():
        for colour in (one.colour,) if one.colour else colours:
            if one.colour and spec.colour == "grey":
                continue
            changed = {"mean": list(one.mean), "scale": list(one.scale), "colour": colour}
            model = make(msgspec.structs.replace(spec, **changed))
            answers = ask_all(album, pictures, model.classify, lambda step, done, total: None)
            right = sum(answer.label == said.label for answer, said in zip(answers, pictures, strict=True))
            usual = one.colour or colours[0]
            rows.append((right, f"--normalise {name}" + ("" if colour == usual else f" --input colour={colour}")))
    rows.sort(key=lambda row: -row[0])
    return "\n".join(f"  {right} of {len(pictures)} right with {text}" for right, text in rows)


def ask_for_convention(spec: InputSpec, trials: str) -> ImportRefused:
    """The question that remains where a file does not say how pixels become values."""
    channels = 1 if spec.colour == "grey" else 3
    text = "the file does not say how pixels become values; say --normalise NAME as it was trained:\n"
    text += conventions_text(channels)
    text += "\nor --input mean=M scale=S, with which value = (pixel - mean) * scale."
    return ImportRefused(text + (f"\nOf the labelled pictures it gets\n{trials}" if trials else ""))


def ask_all(album: Album, pictures: Sequence[Picture], ask: Callable[[bytes], Any], progress: Progress) -> list[Any]:
    """What `ask` says about each picture. Raises DatasetError for one that cannot be used, ModelError."""
    answers = []
    for place, picture in enumerate(pictures):
        try:
            answers.append(ask(album.read(picture)))
        except ImageError as error:
            raise DatasetError(f"{toml.show(picture.file)} cannot be used: {error}") from None
        progress("answering", place + 1, len(pictures))
    return answers


def _proofs(
    picture: Picture, answer: Detected, labels: Sequence[str], truth: bool, had: Counter[str]
) -> list[ProofSample]:
    """What one picture proves: boxes well above the score that reports, or that there is nothing."""
    report = answer.report
    sure = answer.detections.above(min(0.95, report + 0.1))
    close = answer.detections.above(max(0.05, report - 0.1))
    if not len(close):
        empty = picture.boxes == () if truth else True
        return [ProofSample(file="", label=one, count=0) for one in labels[:3]] if empty and not had[""] else []
    proofs = []
    if truth:
        for box in picture.boxes or ():
            mine = sure.boxes[sure.labels == labels.index(box.label)]
            sides = [max(0.0, box.left), max(0.0, box.top), box.right, box.bottom]
            if had[box.label] < _EACH and len(mine) and float(iou(np.array([sides]), mine)[0].max()) > 0.6:
                proofs.append(ProofSample(file="", label=box.label, box=sides))
        return proofs[:_EACH]
    for index, sides in zip(sure.labels.tolist(), sure.boxes.tolist(), strict=True):
        left, top, right, bottom = (round(max(0.0, side), 1) for side in sides)
        if had[labels[index]] < 2 * _EACH and left < right and top < bottom:
            proofs.append(ProofSample(file="", label=labels[index], box=[left, top, right, bottom]))
    return proofs[: 2 * _EACH]


def _of_import(figures: Figures) -> Figures:
    """Without labels that no picture has or gets, and without the advice that is for a training."""
    seen = [one for one in figures.labels if one.recall.trials or one.precision.trials]
    return msgspec.structs.replace(figures, labels=seen, reason="")


def keep_sample(root: Path, number: int, data: bytes) -> str:
    """Put an encoded picture into the package; its path there."""
    file = f"samples/{number}.{'png' if data.startswith(bytes.fromhex('89504e47')) else 'jpg'}"
    (root / "samples").mkdir(exist_ok=True)
    (root / file).write_bytes(data)
    return file
