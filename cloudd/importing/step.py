"""One import: from a foreign file to a checked package, or a refusal that says what is missing."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import edgekit
from cloudd.derived import Progress, tools
from cloudd.importing import child, learnable
from cloudd.importing.anomaly import PROVISIONAL, anomaly_labels, anomaly_output, judge_parts
from cloudd.importing.bring import OPTIONS, bring, values_of
from cloudd.importing.brought import Brought
from cloudd.importing.description import Described, answer_kind, describe, detection_spec, output_spec
from cloudd.importing.embedding import embedding_output, judge_embedder
from cloudd.importing.errors import ImportRefused
from cloudd.importing.judging import Judged, ask_for_convention, judge_classifier, judge_detector, try_conventions
from cloudd.importing.kinds import recognise
from cloudd.importing.learnable import Learning
from cloudd.importing.lineage import FOLDER, LINEAGE, Checkpoint, Foreign, Lineage, Sameness
from cloudd.importing.one_value import WHY_NOT
from cloudd.importing.pictures import Album, check_labels, read_album
from cloudd.importing.request import Outcome, Request, check_request, foreign_of, sized, wanted_of
from cloudd.importing.sameness import NOISE, Cut, answers_of, compare, noise
from cloudd.importing.unfolded import add_checkpoint
from edgekit import packages
from edgekit.packages import (
    AnomalySpec,
    CheckpointSpec,
    EmbeddingSpec,
    InputSpec,
    Manifest,
    OutputSpec,
    Package,
    Variant,
)
from edgekit.packages.manifest import check_manifest
from edgekit.packages.records import record_bytes
from edgekit.runtimes import Session, TensorInfo, open_session
from edgekit.runtimes.base import dequantise, shape_text
from edgekit.vision.anomaly import AnomalyDetector
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector
from edgekit.vision.embedding import Embedder
from edgekit.vision.images import decode
from edgekit.vision.preprocess import prepare

LABELS_FILE = "labels.txt"
COMPARED = 16
"""Pictures on which the package is compared with the file."""
LEARN_TIMEOUT_S = 300.0
_ROOT = str(Path(edgekit.__file__).resolve().parent.parent)
_LOADERS: dict[str, Any] = {
    "embedding": Embedder,
    "anomaly": AnomalyDetector,
    "detection": Detector,
    "classification": Classifier,
}


def import_model(request: Request, progress: Progress = lambda step, done, total: None) -> Outcome:
    """Carry it out: the package lies in `request.out` when this returns, and nothing else.

    Raises ImportRefused, DatasetError for pictures, PackageError (another package of this name and version is there),
    ModelError for a model that cannot be loaded or run, OSError.
    """
    packages.check_name(request.name, key="--model")
    packages.check_version(request.version)
    check_request(request)
    kind = recognise(request.source)
    foreign = foreign_of(request.source, kind)
    album = None if request.pictures is None else read_album(request.pictures, request.group)
    request.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".importing-", dir=request.out) as name:
        root, scratch = Path(name) / "package", Path(name) / "scratch"
        root.mkdir()
        scratch.mkdir()
        progress("reading", 0, 0)
        brought = bring(request.source, kind, wanted_of(request), root, scratch)
        with closing(open_session(root / brought.file, brought.runtime, OPTIONS, brought.files)) as session:
            work = _Work(request, foreign, brought, session, root, scratch, progress)
            manifest, lineage = work.run(album)
        (root / FOLDER).mkdir()
        (root / LINEAGE).write_bytes(record_bytes(lineage))
        package = packages.seal_package(root, manifest)
        with closing(_LOADERS[manifest.task].load(package, OPTIONS)) as model:
            model.prove()
        sealed = packages.adopt(root, request.out)
    return Outcome(
        model=package.ref,
        package=str(sealed.root),
        bytes=sum(package.sizes[file] for file in (brought.file, *brought.files)),
        labels=len(package.labels),
        samples=len(manifest.samples),
        input=manifest.input,
        lineage=lineage,
    )


class _Work:
    """The steps between a session and a manifest."""

    def __init__(
        self,
        request: Request,
        foreign: Foreign,
        brought: Brought,
        session: Session,
        root: Path,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self._request, self._foreign, self._brought, self._session = request, foreign, brought, session
        self._root, self._scratch, self._progress = root, scratch, progress
        self._detector = request.detection is not None

    def run(self, album: Album | None) -> tuple[Manifest, Lineage]:
        tensor = self._input()
        described = describe(tensor, self._request.input, self._request.normalise)
        if self._request.task:
            return self._run_other(described, album)
        labels = self._labels()
        output = None if self._detector else self._output(labels)
        draft = self._draft(described, labels, output)
        if album is not None:
            check_labels(album, labels, self._detector)
        if not described.normalised:
            trials = ""
            if album is not None and album.said == "labels" and not self._detector:
                trials = try_conventions(lambda spec: self._classifier(draft, spec), draft.manifest.input, album)
            raise ask_for_convention(described.spec, trials)
        sameness = self._sameness(draft, output, album)
        draft, checkpoint = self._checkpoint(draft, output, album)
        judged = Judged([], None)
        if album is not None and self._detector:
            judged = judge_detector(self._detector_of(draft), album, self._root, self._progress)
        elif album is not None:
            judged = judge_classifier(self._classifier(draft), album, self._root, self._progress)
        self._progress("deriving", 0, 0)
        learning = self._learning(draft, output)
        lineage = self._record(described, sameness, album, judged, learning, checkpoint)
        return msgspec.structs.replace(draft.manifest, samples=judged.samples), lineage

    def _run_other(self, described: Described, album: Album | None) -> tuple[Manifest, Lineage]:
        """Of a model whose output is no answer yet: an embedding, or a map of how far a part is from what is good."""
        request, session = self._request, self._session
        if not described.normalised:
            raise ask_for_convention(described.spec, "")
        tensor = sized(session.inputs[0], described.spec)
        arrays = session.run({tensor.name: noise(tensor)[0]})
        name = str(request.output.get("name") or "")
        embedding = anomaly = None
        if request.task == "embedding":
            output, width = embedding_output(session, arrays, name)
            embedding = EmbeddingSpec(width=width)
        else:
            output, anomaly = anomaly_output(session, arrays, name), PROVISIONAL
        labels: tuple[str, ...] = ()
        if album is not None and anomaly is not None:
            labels = anomaly_labels(album, request.good, request.labels)
            (self._root / LABELS_FILE).write_text("".join(f"{label}\n" for label in labels), "utf-8")
        elif album is not None and album.said == "boxes":
            raise ImportRefused("the pictures have boxes; an embedding model sees whole pictures, a folder an identity")
        manifest = self._manifest(
            task=request.task,
            labels=LABELS_FILE if labels else "",
            input=described.spec,
            output=OutputSpec(kind="none", name=output.name if len(session.outputs) > 1 else ""),
            embedding=embedding,
            anomaly=anomaly,
        )
        draft = Package(self._root, manifest, "", list(labels), {})
        sameness = self._sameness(draft, output, album)
        judged, likeness, parts = Judged([], None), None, None
        if album is not None and embedding is not None:
            samples, likeness = judge_embedder(
                Embedder(draft, manifest.variants[0], session), album, self._root, self._progress
            )
            judged = Judged(samples, None)
            if likeness is not None:
                table = msgspec.structs.replace(embedding, threshold=likeness.threshold)
                manifest = msgspec.structs.replace(manifest, embedding=table)
        elif album is not None:

            def detector(spec: AnomalySpec) -> AnomalyDetector:
                told = msgspec.structs.replace(manifest, anomaly=spec)
                return AnomalyDetector(Package(self._root, told, "", list(labels), {}), told.variants[0], session)

            spec, samples, parts = judge_parts(
                detector, album, request.good, request.false_alarms, self._root, self._progress
            )
            judged = Judged(samples, None)
            manifest = msgspec.structs.replace(manifest, anomaly=spec)
        learning = learnable.never(f"devices learn classifiers and detectors, and this is an {request.task} model")
        lineage = self._record(described, sameness, album, judged, learning, None)
        lineage = msgspec.structs.replace(lineage, likeness=likeness, parts=parts)
        return msgspec.structs.replace(manifest, samples=judged.samples), lineage

    def _record(
        self,
        described: Described,
        sameness: Sameness,
        album: Album | None,
        judged: Judged,
        learning: Learning,
        checkpoint: Checkpoint | None,
    ) -> Lineage:
        return Lineage(
            source=self._foreign,
            road=self._brought.road,
            changes=list(self._brought.onnx.changes) if self._brought.onnx else [],
            tools={**tools(), **self._brought.tools, "machine": platform.machine()},
            input=dict(described.origin),
            sameness=sameness,
            pictures=album.dataset.digest if album is not None else "",
            pinned="" if not judged.samples or album is None else "labels" if album.said else "answers",
            figures=judged.figures,
            learning=learning,
            checkpoint=checkpoint,
        )

    def _manifest(self, **tables: Any) -> Manifest:
        brought = self._brought
        manifest = Manifest(
            name=self._request.name,
            version=self._request.version,
            description=f"imported from {self._foreign.file}"[:200],
            variants=[Variant(file=brought.file, runtime=brought.runtime, precision=brought.precision)],
            **tables,
        )
        check_manifest(manifest)
        return manifest

    def _input(self) -> TensorInfo:
        if len(self._session.inputs) != 1:
            have = ", ".join(f'"{one.name}" {shape_text(one.shape)}' for one in self._session.inputs[:8])
            raise ImportRefused(
                f"the model has {len(self._session.inputs)} inputs ({have}); a package takes one picture"
            )
        return self._session.inputs[0]

    def _labels(self) -> tuple[str, ...]:
        labels = self._request.labels or self._brought.labels
        if not labels:
            counts = ", ".join(f'"{one.name}" {shape_text(one.shape)}' for one in self._session.outputs[:8])
            raise ImportRefused(
                "the file does not name its labels; say --labels FILE, one label a line in the order of the outputs "
                f"({counts})"
            )
        return labels

    def _output(self, labels: Sequence[str]) -> TensorInfo:
        """The one output that has a value for each label."""
        outputs = self._session.outputs
        have = ", ".join(f'"{one.name}" {shape_text(one.shape)}' for one in outputs[:8])
        if wanted := self._request.output.get("name"):
            found = [one for one in outputs if one.name == wanted]
            if not found:
                raise ImportRefused(f'the model has no output "{wanted}"; it has {have}')
            return found[0]
        fitting = [one for one in outputs if values_of(one) in (len(labels), None)]
        if len(fitting) > 1:
            raise ImportRefused(f"several outputs could be the answer; say --output name=NAME, one of {have}")
        if not fitting and len(labels) == 2 and any(values_of(one) == 1 for one in outputs):
            raise ImportRefused(WHY_NOT[self._brought.runtime])
        if not fitting:
            raise ImportRefused(
                f"there are {len(labels)} labels, but no output has as many values: {have}. Is it a detector? Then say "
                "--detection head=NAME"
            )
        return fitting[0]

    def _draft(self, described: Described, labels: Sequence[str], output: TensorInfo | None) -> Package:
        """The package as far as it is known, unsealed."""
        request, brought = self._request, self._brought
        (self._root / LABELS_FILE).write_text("".join(f"{label}\n" for label in labels), "utf-8")
        detection, answer = None, OutputSpec()
        if request.detection is not None:
            metadata = brought.onnx.metadata if brought.onnx else {}
            detection = detection_spec(request.detection, metadata)
        elif output is not None:
            name = output.name if len(self._session.outputs) > 1 else ""
            kind = "logits" if brought.ending else request.output.get("kind") or self._kind(output, described.spec)
            answer = output_spec({"name": name, **request.output, "kind": kind})
        manifest = self._manifest(
            task="classification" if detection is None else "detection",
            labels=LABELS_FILE,
            input=described.spec,
            output=answer,
            detection=detection,
        )
        return Package(self._root, manifest, "", list(labels), {})

    def _kind(self, output: TensorInfo, spec: InputSpec) -> str:
        """Whether the values are logits or probabilities, as they show on noise."""
        tensor = sized(self._session.inputs[0], spec)
        place = [one.name for one in self._session.outputs].index(output.name)
        rows = np.stack([
            dequantise(row[place], output).reshape(-1) for row in answers_of(self._session, noise(tensor))
        ])  # fmt: skip
        return answer_kind(rows, output)

    def _classifier(self, draft: Package, spec: InputSpec | None = None) -> Classifier:
        manifest = draft.manifest if spec is None else msgspec.structs.replace(draft.manifest, input=spec)
        package = Package(draft.root, manifest, "", draft.labels, {})
        return Classifier(package, manifest.variants[0], self._session)

    def _detector_of(self, draft: Package) -> Detector:
        return Detector(draft, draft.manifest.variants[0], self._session)

    def _sameness(self, draft: Package, output: TensorInfo | None, album: Album | None) -> Sameness:
        if self._brought.ask is None:
            return Sameness(how="bytes")
        self._progress("comparing", 0, 0)
        tensors = self._tensors(draft.manifest.input, album)
        cut = None
        if self._brought.ending and output is not None:
            cut = Cut(self._session.outputs.index(output), self._brought.ending)
        return compare(self._brought.ask, self._session, tensors, NOISE, cut)

    def _tensors(self, spec: InputSpec, album: Album | None) -> list[NDArray[Any]]:
        """Some of the pictures as the model gets them, and behind them noise."""
        tensor = sized(self._session.inputs[0], spec)
        pictures = () if album is None else album.pictures[:COMPARED]
        tensors = [prepare(decode(album.read(one), spec.colour), spec, tensor) for one in pictures if album is not None]
        return [*tensors, *noise(tensor, tensors)]

    def _checkpoint(
        self, draft: Package, output: TensorInfo | None, album: Album | None
    ) -> tuple[Package, Checkpoint | None]:
        """The package with its un-folded checkpoint, where there is one."""
        source, brought = self._request.checkpoint, self._brought
        if source is None:
            return draft, None
        self._progress("comparing", 0, 0)
        spec, served = draft.manifest.input, self._session.outputs

        def same(outputs: Sequence[TensorInfo]) -> str:
            """The output whose ending must go as it went in the model itself."""
            if output is None or not brought.ending or len(outputs) != len(served):
                return ""
            return outputs[served.index(output)].name

        wanted = replace(wanted_of(self._request), size=(spec.width, spec.height), choose=same)
        kind, scratch = recognise(source), self._scratch / "checkpoint"
        scratch.mkdir()
        file, record = add_checkpoint(
            source,
            kind,
            foreign_of(source, kind),
            wanted,
            (brought, self._session),
            self._tensors(spec, album),
            self._root,
            scratch,
        )
        manifest = msgspec.structs.replace(draft.manifest, checkpoint=CheckpointSpec(file=file))
        check_manifest(manifest)
        return Package(draft.root, manifest, "", draft.labels, {}), record

    def _learning(self, draft: Package, output: TensorInfo | None) -> Learning:
        brought = self._brought
        checkpoint = draft.manifest.checkpoint
        if checkpoint is None and brought.runtime != "onnxruntime":
            return learnable.never(
                "gradients are derived of ONNX, and this is TFLite; import the model as ONNX, or from PyTorch"
            )
        if not self._detector and draft.manifest.output.kind != "logits":
            return learnable.never(
                "it gives probabilities, and learning needs logits; export it without what follows its last layer"
            )
        name = output.name if output is not None else self._session.outputs[0].name
        file = brought.file if checkpoint is None else checkpoint.file
        spec = draft.manifest.detection
        order = {
            "model": str((self._root / file).absolute()),
            "output": name,
            "classifier": not self._detector,
            "centre_point": spec is not None and spec.head == "centernet" and spec.scores != "probabilities",
        }
        try:
            answer = child.run(
                sys.executable, Path(learnable.__file__), self._scratch / "learning", order, LEARN_TIMEOUT_S, _ROOT
            )
            return msgspec.convert(answer, Learning)
        except (ImportRefused, msgspec.ValidationError) as error:
            return learnable.never(f"deriving its train step failed: {str(error)[:500]}")
