"""From a network that has learned to a candidate: judged beside the present model, then sealed as a package.

Both models look at the pictures that judge through the service's own pipeline, each loaded as a device loads it. No new
picture gets into a package: samples are sealed at rest, and packages are not. The base's own proof samples stay, pinned
to what the candidate says about them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from edged.train.box_examining import examine_boxes, pinned_boxes, reporting
from edged.train.box_lessons import BoxLessons, BoxPart
from edged.train.examining import examine, pinned
from edged.train.folding import check_folded, write_folded
from edged.train.graph import file_to_learn
from edged.train.lessons import Lessons
from edged.train.lessons import Part as LearnedPart
from edged.train.lineage import FOLDER, LINEAGE, Base, Data, Lineage, Part, Recipe
from edged.train.pace import Workplace
from edgekit import packages
from edgekit.datasets.dataset import digest
from edgekit.faults import crash_point
from edgekit.learning.limits import JudgingLimits
from edgekit.learning.records import NAMES, Rung
from edgekit.learning.trial import Verdict
from edgekit.packages import CheckpointSpec, DetectionSpec, Manifest, OutputSpec, Package, ProofSample, Variant
from edgekit.packages.records import record_bytes, tools
from edgekit.runtimes import SessionOptions
from edgekit.services import Service
from edgekit.training import MODEL_FILE
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector

LABELS_FILE = "labels.txt"
PACKAGE = "package"
"""Folder of the candidate."""
_KINDS: dict[str, type[Classifier] | type[Detector]] = {"classification": Classifier, "detection": Detector}


@dataclass(frozen=True)
class Made:
    """A candidate in the making: what was done to whom."""

    base: Package
    service: Service
    name: str
    version: str
    job: int
    rung: Rung
    dataset: str
    logits: str  # name of a classifier's output
    write: Callable[[Path], None]  # puts MODEL_FILE and WEIGHTS_FILE into a folder
    recipe: Recipe | None
    scene: int
    notes: Sequence[str]
    detection: DetectionSpec | None = None  # of a detector, where it is not that of its base


def finish(
    made: Made, lessons: Lessons | BoxLessons, limits: JudgingLimits, earlier_before: float | None, at: Workplace
) -> tuple[Package, Verdict]:
    """Judge and seal; a refused candidate is sealed, too, so that it can be looked at.

    Raises ModelError where the candidate cannot be loaded, DatasetError for a picture that is gone, PackageError,
    TrainingError, Halted, OSError.
    """
    root = at.folder / PACKAGE
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    checkpoint = write_folded(made.base, made.write, root)
    (root / LABELS_FILE).write_text("".join(f"{label}\n" for label in lessons.classes), "utf-8")
    draft = packages.seal_package(root, _manifest(made, checkpoint))
    if isinstance(lessons, BoxLessons):
        with ExitStack() as opened:
            load = (Detector.load(one, SessionOptions(threads=1)) for one in (made.base, draft))
            present, candidate = (opened.enter_context(closing(one)) for one in load)
            made = replace(made, detection=reporting(made.service, lessons, present, candidate, at))
        (root / packages.MANIFEST_NAME).unlink()
        draft = packages.seal_package(root, _manifest(made, checkpoint))
    verdict, samples = _examined(made, lessons, limits, earlier_before, draft, at)
    (root / packages.MANIFEST_NAME).unlink()
    (root / FOLDER).mkdir()
    (root / LINEAGE).write_bytes(record_bytes(_lineage(made, lessons, verdict)))
    at.pace.turn("sealing", 0, 1)
    package = packages.seal_package(root, _manifest(made, checkpoint, samples))
    crash_point("train.sealed")
    with closing(_KINDS[made.base.manifest.task].load(package, SessionOptions(threads=1))) as proved:
        proved.prove()
    at.pace.turn("sealing", 1, 1)
    return package, verdict


def _examined(
    made: Made,
    lessons: Lessons | BoxLessons,
    limits: JudgingLimits,
    earlier_before: float | None,
    draft: Package,
    at: Workplace,
) -> tuple[Verdict, list[ProofSample]]:
    """The judgement on the draft, and its proof samples."""
    kind = _KINDS[made.base.manifest.task]
    options = SessionOptions(threads=1)  # of one thread the processor time can be told
    with ExitStack() as opened:
        present, candidate = (opened.enter_context(closing(kind.load(one, options))) for one in (made.base, draft))
        assert candidate.session is not None, "only a template has none"
        check_folded(made.base, draft, candidate.session)
        if isinstance(present, Detector) and isinstance(candidate, Detector):
            assert isinstance(lessons, BoxLessons), "a detector learns boxes"
            verdict = examine_boxes(made.service, lessons, limits, earlier_before, present, candidate, at)
            return verdict, pinned_boxes(made.base, candidate, draft.root)
        assert isinstance(lessons, Lessons) and isinstance(present, Classifier) and isinstance(candidate, Classifier)
        verdict = examine(made.service, lessons, limits, earlier_before, present, candidate, at)
        return verdict, pinned(made.base, candidate, draft.root)


def _manifest(made: Made, checkpoint: CheckpointSpec | None, samples: Sequence[ProofSample] = ()) -> Manifest:
    base = made.base.manifest
    return Manifest(
        name=made.name,
        version=made.version,
        task=base.task,
        description=f"{made.base.ref} after {NAMES[made.rung]} on a device, for the service {made.service.name}",
        labels=LABELS_FILE,
        input=base.input,
        output=OutputSpec(kind="logits", name=made.logits) if base.task == "classification" else base.output,
        detection=made.detection or base.detection,
        variants=[Variant(file=MODEL_FILE)],
        samples=list(samples),
        checkpoint=checkpoint,
    )


def _lineage(made: Made, lessons: Lessons | BoxLessons, verdict: Verdict) -> Lineage:
    file = file_to_learn(made.base)
    parts = {"learn": lessons.learn, "choose": lessons.choose, "judge": lessons.judge}
    return Lineage(
        base=Base(
            model=made.base.ref,
            digest=made.base.digest,
            file=file,
            sha256=made.base.manifest.files[file],
        ),
        service=made.service.name,
        job=made.job,
        rung=made.rung,
        data=Data(
            name=made.dataset,
            digest=lessons.digest,
            parts={name: _part(part, lessons.classes) for name, part in parts.items()},
            scene=made.scene,
        ),
        classes=list(lessons.new),
        recipe=made.recipe,
        tools=tools("edged"),
        notes=list(made.notes),
        verdict=verdict,
    )


def _part(side: LearnedPart | BoxPart, classes: Sequence[str]) -> Part:
    """The record of some of the pictures, however many parts of them taught."""
    pictures = {one.file: one for one in side.pictures}.values()
    return Part(pictures=len(pictures), labels=side.counts(classes), digest=digest(pictures))
