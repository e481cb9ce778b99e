"""Trained weights become a package: proof samples, the judgement of the test part, the record, the seal.

The judge is what a device runs: the sealed package, loaded as edged loads it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cloudd.derived import Progress, tools
from cloudd.train.figures import Figures, best_report, judge_answers, judge_boxes
from cloudd.train.job import PLAN_FOLDER
from cloudd.train.lineage import LINEAGE, Lineage, data_record
from cloudd.train.training import Training, truth_of
from edgekit import packages, toml
from edgekit.architectures import detection_spec
from edgekit.datasets.dataset import DatasetError, Picture
from edgekit.packages import Manifest, ProofSample, Variant
from edgekit.packages.records import record_bytes
from edgekit.training import MODEL_FILE, WEIGHTS_FILE, replace_weights
from edgekit.vision.classification import Classified, Classifier
from edgekit.vision.detection.boxes import iou
from edgekit.vision.detection.detector import Detected, Detector
from edgekit.vision.images import ImageError

LABELS_FILE = "labels.txt"
_SAMPLES = 2
"""Of each label."""
_SURE = 0.8
"""Score of a proof sample: a variant in 8 bits must still get it right."""
_TOLERANCE = 0.15
_SAMPLE_BYTES = 4 << 20


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    model: str  # name@version
    package: str  # its directory, "" if the model was refused
    bytes: int  # of the model and its weights
    samples: int
    lineage: Lineage


def finish(training: Training, out: Path, progress: Progress = lambda step, done, total: None) -> Outcome:
    """Judge what was trained, and put the package into `out` unless it is refused.

    Raises TrainError before the training has ended, DatasetError for a picture that cannot be used, PackageError
    (another package of this name and version is there), ModelError, OSError.
    """
    weights = training.weights()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".trained-", dir=out) as name:
        root = Path(name) / "package"
        root.mkdir()
        for file in (MODEL_FILE, WEIGHTS_FILE):
            shutil.copyfile(training.folder / PLAN_FOLDER / file, root / file)
        replace_weights(root / WEIGHTS_FILE, weights)
        (root / LABELS_FILE).write_text("".join(f"{label}\n" for label in training.job.recipe.labels), "utf-8")
        judged = (_judge_detector if training.job.recipe.detection else _judge_classifier)(training, root, progress)
        manifest, figures = judged
        lineage = Lineage(
            data=data_record(training.job.digest, training.job.merge, training.parts),
            recipe=training.job.recipe,
            tools=tools(),
            epoch=training.best_epoch,
            score=training.score,
            ended=training.why_ended,
            report=manifest.detection.report if manifest.detection is not None else None,
            figures=figures,
        )
        size = sum((root / file).stat().st_size for file in (MODEL_FILE, WEIGHTS_FILE))
        sealed = ""
        if not figures.reason:
            (root / LINEAGE).parent.mkdir()
            (root / LINEAGE).write_bytes(record_bytes(lineage))
            package = packages.seal_package(root, manifest)
            kind = Detector if training.job.recipe.detection else Classifier
            with closing(kind.load(package)) as proved:
                proved.prove()
            sealed = str(packages.adopt(root, out).root)
    return Outcome(model=training.job.ref, package=sealed, bytes=size, samples=len(manifest.samples), lineage=lineage)


def _draft(training: Training) -> Manifest:
    job = training.job
    network = job.recipe.network
    spec = detection_spec() if job.recipe.detection else None
    return Manifest(
        name=job.name,
        version=job.version,
        task="detection" if spec is not None else "classification",
        description=f"{network.architecture}, {network.input_width}x{network.input_height} pixels, trained by cloudd",
        labels=LABELS_FILE,
        input=training.input,
        detection=spec,
        variants=[Variant(file=MODEL_FILE)],
    )


def _opened(root: Path, draft: Manifest, kind: Any) -> Any:
    """The draft's model as a device loads it; the folder is left unsealed."""
    package = packages.seal_package(root, draft)
    (root / packages.MANIFEST_NAME).unlink()
    return kind.load(package)


def _judge_classifier(training: Training, root: Path, progress: Progress) -> tuple[Manifest, Figures]:
    draft, labels, parts = _draft(training), training.job.recipe.labels, training.parts
    with closing(_opened(root, draft, Classifier)) as model:
        samples = _labelled_samples(training, root, model)
        answers = _ask(training, parts.test, model.classify, progress)
    frequent = Counter(one.label for one in parts.train).most_common(1)[0][0]
    figures = judge_answers(
        np.array([one.index for one in answers]),
        np.array([labels.index(one.label) for one in parts.test]),
        labels,
        labels.index(frequent),
    )
    return msgspec.structs.replace(draft, samples=samples), figures


def _judge_detector(training: Training, root: Path, progress: Progress) -> tuple[Manifest, Figures]:
    draft, labels, parts = _draft(training), training.job.recipe.labels, training.parts
    with closing(_opened(root, draft, Detector)) as model:
        chosen = _ask(training, parts.val, model.detect, progress)
        truths = [truth_of(one, labels) for one in parts.val]
        report = best_report([one.detections for one in chosen], truths)
        samples = _boxed_samples(training, root, chosen, report)
        found = _ask(training, parts.test, model.detect, progress)
    figures = judge_boxes(
        [one.detections for one in found], [truth_of(one, labels) for one in parts.test], labels, report
    )
    assert draft.detection is not None
    spec = msgspec.structs.replace(draft.detection, report=report)
    return msgspec.structs.replace(draft, detection=spec, samples=samples), figures


def _ask(training: Training, pictures: Sequence[Picture], ask: Callable[[bytes], Any], progress: Progress) -> list[Any]:
    answers = []
    for place, picture in enumerate(pictures):
        try:
            answers.append(ask(training.dataset.read(picture)))
        except ImageError as error:
            raise DatasetError(f"{toml.show(picture.file)} cannot be used: {error}") from None
        progress("judging", place + 1, len(pictures))
    return answers


def _labelled_samples(training: Training, root: Path, model: Classifier) -> list[ProofSample]:
    """The first pictures of val of each label that the model is sure about."""
    samples: list[ProofSample] = []
    for label in training.job.recipe.labels:
        taken = 0
        for picture in (one for one in training.parts.val if one.label == label):
            data = training.dataset.read(picture)
            if taken == _SAMPLES or len(data) > _SAMPLE_BYTES:
                continue
            answer: Classified = model.classify(data)
            if answer.label == label and answer.score >= _SURE:
                file = _keep(root, len(samples), data)
                samples.append(ProofSample(file=file, label=label, score=round(answer.score, 3), tolerance=_TOLERANCE))
                taken += 1
    return samples


def _boxed_samples(training: Training, root: Path, found: Sequence[Detected], report: float) -> list[ProofSample]:
    """Boxes of val that are found well above `report`, and pictures in which rightly nothing is; few of each label."""
    labels = training.job.recipe.labels
    samples: list[ProofSample] = []
    had: Counter[str] = Counter()
    kept = 0
    for picture, answer in zip(training.parts.val, found, strict=True):
        wanted = [box for box in picture.boxes or () if had[box.label] < _SAMPLES]
        sure = answer.detections.above(min(0.95, report + 0.1))
        proofs: list[ProofSample] = []
        for box in wanted:
            sides = [max(0.0, box.left), max(0.0, box.top), box.right, box.bottom]
            mine = sure.boxes[sure.labels == labels.index(box.label)]
            alone = sum(one.label == box.label for one in picture.boxes or ()) == 1
            if alone and len(mine) == 1 and float(iou(np.array([sides]), mine)[0, 0]) > 0.6:
                proofs.append(ProofSample(file="", label=box.label, box=sides))
        if picture.boxes == () and had[""] < _SAMPLES and not len(answer.detections.above(max(0.05, report - 0.1))):
            proofs = [ProofSample(file="", label=label, count=0) for label in labels]
            had[""] += 1
        if proofs:
            data = training.dataset.read(picture)
            if len(data) <= _SAMPLE_BYTES:
                file = _keep(root, kept, data)
                kept += 1
                samples += [msgspec.structs.replace(proof, file=file) for proof in proofs]
                had.update(proof.label for proof in proofs if proof.box is not None)
    return samples


def _keep(root: Path, number: int, data: bytes) -> str:
    file = f"samples/{number}.{'png' if data.startswith(bytes.fromhex('89504e47')) else 'jpg'}"
    (root / "samples").mkdir(exist_ok=True)
    (root / file).write_bytes(data)
    return file
