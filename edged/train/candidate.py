"""From a network that has learned to a candidate: judged beside the present model, then sealed as a package.

Both models look at the pictures that judge through the service's own pipeline, each loaded as a device loads it. No new
picture gets into a package: samples are sealed at rest, and packages are not. The base's own proof samples stay, pinned
to what the candidate says about them.
"""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from time import thread_time
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.train.lessons import Lessons
from edged.train.lineage import FOLDER, LINEAGE, Base, Data, Lineage, Part, Recipe
from edged.train.network import float_variant
from edged.train.pace import Workplace
from edgekit import VERSION, packages
from edgekit.datasets.dataset import digest
from edgekit.faults import crash_point
from edgekit.gates.paired import Answers
from edgekit.gates.scores import hardness
from edgekit.learning.judging import Cost, HeldOut, judge
from edgekit.learning.limits import JudgingLimits
from edgekit.learning.records import NAMES, Rung
from edgekit.learning.trial import Verdict
from edgekit.packages import Manifest, OutputSpec, Package, ProofSample, Variant
from edgekit.runtimes import ModelError, SessionOptions
from edgekit.runtimes.onnx_reader import read_references
from edgekit.services import Service
from edgekit.training import MODEL_FILE
from edgekit.vision.classification import Classified, Classifier
from edgekit.vision.images import ImageError
from edgekit.vision.pipeline import Pipelined

LABELS_FILE = "labels.txt"
PACKAGE = "package"
"""Folder of the candidate."""
_SURE = 0.1  # margin of a proof sample: one nearer to another label says nothing about damage
_TOLERANCE = 0.05
_TIMED = 32  # pictures
_TURNS = 5  # of each model on each of them; the fastest counts, since only others lengthen it


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
    logits: str  # name of its output
    write: Callable[[Path], None]  # puts MODEL_FILE and WEIGHTS_FILE into a folder
    recipe: Recipe | None
    scene: int
    notes: Sequence[str]


def finish(
    made: Made, lessons: Lessons, limits: JudgingLimits, earlier_before: float | None, at: Workplace
) -> tuple[Package, Verdict]:
    """Judge and seal; a refused candidate is sealed, too, so that it can be looked at.

    Raises ModelError where the candidate cannot be loaded, DatasetError for a picture that is gone, PackageError,
    TrainingError, Halted, OSError.
    """
    root = at.folder / PACKAGE
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    made.write(root)
    (root / LABELS_FILE).write_text("".join(f"{label}\n" for label in lessons.classes), "utf-8")
    draft = packages.seal_package(root, _manifest(made))
    options = SessionOptions(threads=1)  # of one thread the processor time can be told
    with ExitStack() as opened:
        present = opened.enter_context(closing(Classifier.load(made.base, options)))
        candidate = opened.enter_context(closing(Classifier.load(draft, options)))
        verdict = _judge(made, lessons, limits, earlier_before, present, candidate, at)
        samples = _pinned(made.base, candidate, root)
    (root / packages.MANIFEST_NAME).unlink()
    (root / FOLDER).mkdir()
    (root / LINEAGE).write_bytes(
        msgspec.json.format(msgspec.json.encode(_lineage(made, lessons, verdict)), indent=1) + b"\n"
    )
    at.pace.turn("sealing", 0, 1)
    package = packages.seal_package(root, _manifest(made, samples))
    crash_point("train.sealed")
    with closing(Classifier.load(package, options)) as proved:
        proved.prove()
    at.pace.turn("sealing", 1, 1)
    return package, verdict


def _manifest(made: Made, samples: Sequence[ProofSample] = ()) -> Manifest:
    return Manifest(
        name=made.name,
        version=made.version,
        description=f"{made.base.ref} after {NAMES[made.rung]} on a device, for the service {made.service.name}",
        labels=LABELS_FILE,
        input=made.base.manifest.input,
        output=OutputSpec(kind="logits", name=made.logits),
        variants=[Variant(file=MODEL_FILE)],
        samples=list(samples),
    )


def _judge(
    made: Made,
    lessons: Lessons,
    limits: JudgingLimits,
    earlier_before: float | None,
    present: Classifier,
    candidate: Classifier,
    at: Workplace,
) -> Verdict:
    part = lessons.judge
    looks = [_look(model, made.service) for model in (present, candidate)]
    answers: list[list[tuple[int, float]]] = []
    tensors: list[NDArray[Any]] = []
    kept: list[int] = []
    read = lessons.reader(part)
    for place in range(len(part.pictures)):
        data = read(place)
        with suppress(ImageError):  # a picture that no model can look at judges none
            answers.append([_ask(look, data) for look in looks])
            kept.append(place)
            if len(tensors) < _TIMED:
                tensors.append(present.tensor(data))
        at.pace.turn("judging", place + 1, len(part.pictures))
    before = -math.inf if earlier_before is None else earlier_before
    held = HeldOut(
        dataset=digest(part.pictures),
        truth=part.labels[kept],
        classes=lessons.classes,
        old=lessons.known,
        earlier=part.labelled_at[kept] < before,
    )
    cost = Cost(p95_ms=_p95(present, candidate, tensors, at), bytes=_bytes(present, candidate)) if tensors else None
    mine, theirs = (_answers([one[row] for one in answers]) for row in (0, 1))
    return judge(held, mine, theirs, limits, cost)


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


def _p95(
    present: Classifier, candidate: Classifier, tensors: Sequence[NDArray[Any]], at: Workplace
) -> tuple[float, float]:
    """Milliseconds of processor time that each model takes for a picture, the 95th percentile over pictures."""
    best = np.full((2, len(tensors)), np.inf)
    for turn in range(_TURNS):
        for column, tensor in enumerate(tensors):
            order = ((0, present), (1, candidate)) if (turn + column) % 2 else ((1, candidate), (0, present))
            for row, model in order:
                started = thread_time()
                model.classify_tensor(tensor)
                best[row, column] = min(best[row, column], (thread_time() - started) * 1e3)
        at.pace.turn("judging", turn + 1, _TURNS, "run times")
    before, after = np.percentile(best, 95, axis=1)
    return float(before), float(after)


def _bytes(present: Classifier, candidate: Classifier) -> tuple[int, int]:
    return _size(present.package, present.variant), _size(candidate.package, candidate.variant)


def _size(package: Package, variant: Variant) -> int:
    """Bytes of the file and of those that it reads weights from."""
    files = {variant.file}
    if variant.runtime == "onnxruntime":
        place = PurePosixPath(variant.file).parent
        files |= {str(place / name) for name in read_references(package.path(variant.file)).external}
    return sum(package.sizes[file] for file in files)


def _pinned(base: Package, candidate: Classifier, root: Path) -> list[ProofSample]:
    """The base's proof samples about which the candidate is sure, each with what it says."""
    samples: list[ProofSample] = []
    for file in dict.fromkeys(one.file for one in base.manifest.samples):
        data = base.path(file).read_bytes()
        try:
            said = candidate.classify(data)
        except (ImageError, ModelError):
            continue
        if said.margin < _SURE:
            continue
        target = root / file
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        score = min(1.0, round(said.score, 3))
        samples.append(ProofSample(file=file, label=said.label, score=score, tolerance=_TOLERANCE))
    return samples


def _lineage(made: Made, lessons: Lessons, verdict: Verdict) -> Lineage:
    variant = float_variant(made.base)
    parts = {"learn": lessons.learn, "choose": lessons.choose, "judge": lessons.judge}
    return Lineage(
        base=Base(
            model=made.base.ref,
            digest=made.base.digest,
            file=variant.file,
            sha256=made.base.manifest.files[variant.file],
        ),
        service=made.service.name,
        job=made.job,
        rung=made.rung,
        data=Data(
            name=made.dataset,
            digest=lessons.digest,
            parts={
                name: Part(
                    pictures=len(part.pictures), labels=part.counts(lessons.classes), digest=digest(part.pictures)
                )
                for name, part in parts.items()
            },
            scene=made.scene,
        ),
        classes=list(lessons.new),
        recipe=made.recipe,
        tools=_tools(),
        notes=list(made.notes),
        verdict=verdict,
    )


def _tools() -> dict[str, str]:
    """Programs that shape what is made, and the kind of processor."""
    found = {"edged": VERSION, "machine": platform.machine()}
    for name in ("onnx", "onnxruntime", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a vendor's build under another name
            found[name] = "unknown"
    return found
