"""Makes the variants of one float model, has them answer the held-out pictures beside it, and asks the gate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloudd.compress import judge, quantise
from cloudd.compress.dataset import Split
from cloudd.compress.errors import CompressError
from cloudd.compress.judge import Observed
from cloudd.compress.lineage import Made
from cloudd.compress.maker import Materials, Recipe, Training
from cloudd.compress.variants import Kind
from cloudd.derived import Progress, files_of
from edgekit.datasets.dataset import Dataset, DatasetError
from edgekit.gates.paired import Acceptance, accept
from edgekit.packages import Package, Variant
from edgekit.runtimes import ModelError, open_session
from edgekit.vision.classification import Classifier

_NO_REMEDY = frozenset(("items", "latency"))
"""Criteria that more careful bits cannot help."""


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of CPU time for one picture, one thread, on this host."""

    p50_ms: float
    p95_ms: float


@dataclass
class Trial:
    """Results of `run`: what was tried, where the files of the variants lie, and how fast everything was."""

    package: Package
    source: Variant
    dataset: Dataset
    sides: Split
    lessons: Dataset | None  # what kinds that are taught learn from
    seconds: float  # for each network that is taught
    folder: Path  # for the files that are made
    faster_here: bool
    progress: Progress
    made: dict[str, Made] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    speeds: dict[str, Speed] = field(default_factory=dict)  # by kind, "" for the float model

    @property
    def source_bytes(self) -> int:
        """Size of the float model, with its external data."""
        return sum(self.package.sizes[file] for file in files_of(self.package, self.source))

    def run(self, kinds: Sequence[Kind]) -> None:
        """Make every kind and judge them together; the refused ones that know a more careful way get it, once.

        Raises ModelError if the float model does not run or fails its own proof, CompressError if it cannot be
        compressed at all, DatasetError for a bad picture.
        """
        # Through the one road that checks what a model refers to, before any other library opens the file.
        with closing(Classifier.load(self.package, variant=self.source)) as model:
            entry = model.session.inputs[0]
            if entry.dtype != "float32":
                raise CompressError(f"the input of {self.source.file} is {entry.dtype}; float32 is needed to calibrate")
            model.prove()
            self._prove_checkpoint()
            self.progress("preparing", 0, 0)
            prepared = self.folder / "prepared.onnx"
            quantise.prepare(self.package.path(self.source.file), self.source_bytes, prepared)

            def pictures() -> Iterator[NDArray[np.float32]]:
                for number, picture in enumerate(self.sides.calibration):
                    self.progress("calibrating", number, len(self.sides.calibration))
                    yield judge.tensor_of(model, self.dataset, picture)

            materials = Materials(prepared, entry.name, pictures, self._training(model))
            self._round(model, materials, kinds, careful=False)
            self._round(model, materials, [kind for kind in kinds if self._may_improve(kind)], careful=True)

    def _prove_checkpoint(self) -> None:
        """Narrower networks are taught from it; what it refers to is checked here, too."""
        checkpoint = self.package.manifest.checkpoint
        if checkpoint is not None:
            with closing(Classifier.load(self.package, variant=Variant(file=checkpoint.file))) as unfolded:
                unfolded.prove()

    def _training(self, model: Classifier) -> Training | None:
        if self.lessons is None or not self.lessons.pictures:
            return None
        manifest, lessons = self.package.manifest, self.lessons
        source = manifest.checkpoint.file if manifest.checkpoint is not None else self.source.file
        return Training(
            source=self.package.path(source),
            output=manifest.output.name or model.session.outputs[0].name,
            spec=manifest.input,
            count=len(lessons.pictures),
            read=lambda number: lessons.read(lessons.pictures[number]),
            seconds=self.seconds,
            progress=self.progress,
        )

    def _may_improve(self, kind: Kind) -> bool:
        made = self.made[kind.name]
        criteria = made.gate.criteria if made.gate is not None else []
        hopeless = any(one.name in _NO_REMEDY and not one.passed for one in criteria)
        return kind.careful and not made.accepted and bool(made.sha256) and not hopeless

    def _round(self, model: Classifier, materials: Materials, kinds: Sequence[Kind], *, careful: bool) -> None:
        with ExitStack() as opened:
            candidates: dict[str, Classifier] = {}
            recipes: dict[str, Recipe] = {}
            for kind in kinds:
                self.progress(f"making {kind.name}", 0, 0)
                target = self.folder / f"{kind.name}{'-careful' if careful else ''}.onnx"
                try:
                    recipes[kind.name] = kind.make(materials, target, careful=careful)
                    self.files[kind.name] = target
                    candidate = Classifier(
                        self.package,
                        Variant(file=target.name, precision=kind.precision),
                        open_session(target, "onnxruntime"),
                    )
                    candidates[kind.name] = opened.enter_context(closing(candidate))
                    candidate.prove()
                except (CompressError, DatasetError, ModelError) as error:
                    candidates.pop(kind.name, None)
                    if not careful or kind.name in recipes:  # else the first verdict says more
                        self._note(kind, recipes.get(kind.name), f"refused: {error}", None)
            if candidates:
                self._judge(model, candidates, [kind for kind in kinds if kind.name in candidates], recipes)

    def _judge(
        self, model: Classifier, candidates: dict[str, Classifier], kinds: Sequence[Kind], recipes: dict[str, Recipe]
    ) -> None:
        found = judge.observe({"": model, **candidates}, self.dataset, self.sides.held_out, self.progress)
        base = found[""]
        if base.fault:
            raise CompressError(f"the float model itself gives no usable answer for some pictures: {base.fault}")
        truth = np.array([model.labels.index(picture.label) for picture in self.sides.held_out], np.int64)
        self.speeds.setdefault("", _speed(base))
        for kind in kinds:
            own = found[kind.name]
            self.speeds[kind.name] = _speed(own)
            gate = accept(
                truth,
                base.answers,
                own.answers,
                model.labels,
                p95_ms=(base.percentile_ms(95), own.percentile_ms(95)) if self.faster_here else None,
            )
            reason = f"{gate.reason}: {own.fault}" if own.fault else gate.reason
            self._note(kind, recipes[kind.name], reason, gate)

    def _note(self, kind: Kind, recipe: Recipe | None, reason: str, gate: Acceptance | None) -> None:
        data = self.files[kind.name].read_bytes() if recipe is not None else b""
        self.made[kind.name] = Made(
            kind=kind.name,
            precision=kind.precision,
            sha256=hashlib.sha256(data).hexdigest() if data else "",
            bytes=len(data),
            recipe=recipe,
            accepted=not reason,
            reason=reason,
            gate=gate,
        )


def _speed(observed: Observed) -> Speed:
    return Speed(p50_ms=observed.percentile_ms(50), p95_ms=observed.percentile_ms(95))
