"""One import: from a foreign file to a checked package, or a refusal that says what is missing."""

from __future__ import annotations

import hashlib
import platform
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

import edgekit
from cloudd.derived import Progress, record_bytes, tools
from cloudd.importing import child, learnable
from cloudd.importing.bring import OPTIONS, Wanted, bring
from cloudd.importing.brought import Brought
from cloudd.importing.description import Described, Wishes, describe, detection_spec, output_spec
from cloudd.importing.errors import ImportRefused
from cloudd.importing.judging import Judged, ask_for_convention, judge_classifier, judge_detector, try_conventions
from cloudd.importing.kinds import Kind, recognise
from cloudd.importing.learnable import Learning
from cloudd.importing.lineage import FOLDER, LINEAGE, Foreign, Lineage, Sameness
from cloudd.importing.pictures import Album, check_labels, read_album
from cloudd.importing.sameness import NOISE, answers_of, compare, noise
from edgekit import packages
from edgekit.packages import InputSpec, Manifest, OutputSpec, Package, Variant, tree
from edgekit.packages.manifest import MAX_SIDE, check_manifest
from edgekit.runtimes import Session, TensorInfo, open_session
from edgekit.runtimes.base import dequantise, shape_text
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector
from edgekit.vision.images import decode
from edgekit.vision.preprocess import prepare

LABELS_FILE = "labels.txt"
COMPARED = 16
"""Pictures on which the package is compared with the file."""
LEARN_TIMEOUT_S = 300.0
_ROOT = str(Path(edgekit.__file__).resolve().parent.parent)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is imported, and what the user says of it. `input`, `output` and `detection` are keys of package.toml."""

    source: Path
    name: str
    version: str = "1"
    out: Path
    labels: tuple[str, ...] = ()  # in the order of the outputs; (): as the file says
    pictures: Path | None = None  # None: nothing proves the package
    group: str = ""
    normalise: str = ""
    input: Wishes = field(default_factory=dict)
    output: Wishes = field(default_factory=dict)
    detection: Wishes | None = None  # None: a classifier
    python: str = ""  # interpreter with PyTorch or TensorFlow


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    model: str  # name@version
    package: str  # its directory
    bytes: int  # of the model and what lies beside it
    labels: int
    samples: int
    input: InputSpec
    lineage: Lineage


def import_model(request: Request, progress: Progress = lambda step, done, total: None) -> Outcome:
    """Carry it out: the package lies in `request.out` when this returns, and nothing else.

    Raises ImportRefused, DatasetError for pictures, PackageError (another package of this name and version is there),
    ModelError for a model that cannot be loaded or run, OSError.
    """
    packages.check_name(request.name, key="--model")
    packages.check_version(request.version)
    kind = recognise(request.source)
    foreign = _foreign(request.source, kind)
    album = None if request.pictures is None else read_album(request.pictures, request.group)
    request.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".importing-", dir=request.out) as name:
        root, scratch = Path(name) / "package", Path(name) / "scratch"
        root.mkdir()
        scratch.mkdir()
        progress("reading", 0, 0)
        brought = bring(request.source, kind, _wanted(request), root, scratch)
        with closing(open_session(root / brought.file, brought.runtime, OPTIONS, brought.files)) as session:
            work = _Work(request, foreign, brought, session, root, scratch, progress)
            manifest, lineage = work.run(album)
        (root / FOLDER).mkdir()
        (root / LINEAGE).write_bytes(record_bytes(lineage))
        package = packages.seal_package(root, manifest)
        model = (Detector if manifest.detection is not None else Classifier).load(package, OPTIONS)
        with closing(model):
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
        judged = Judged([], None)
        if album is not None and self._detector:
            judged = judge_detector(self._detector_of(draft), album, self._root, self._progress)
        elif album is not None:
            judged = judge_classifier(self._classifier(draft), album, self._root, self._progress)
        self._progress("deriving", 0, 0)
        lineage = Lineage(
            source=self._foreign,
            road=self._brought.road,
            changes=list(self._brought.onnx.changes) if self._brought.onnx else [],
            tools={**tools(), **self._brought.tools, "machine": platform.machine()},
            input=dict(described.origin),
            sameness=sameness,
            pictures=album.dataset.digest if album is not None else "",
            pinned="" if not judged.samples or album is None else "labels" if album.said else "answers",
            figures=judged.figures,
            learning=self._learning(draft, output),
        )
        return msgspec.structs.replace(draft.manifest, samples=judged.samples), lineage

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
        fitting = [one for one in outputs if _values(one) in (len(labels), None)]
        if len(fitting) > 1:
            raise ImportRefused(f"several outputs could be the answer; say --output name=NAME, one of {have}")
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
            cut = brought.onnx is not None and brought.onnx.cut
            kind = "logits" if cut else request.output.get("kind") or self._kind(output, described.spec)
            answer = output_spec({"name": name, **request.output, "kind": kind})
        manifest = Manifest(
            name=request.name,
            version=request.version,
            task="classification" if detection is None else "detection",
            description=f"imported from {self._foreign.file}"[:200],
            labels=LABELS_FILE,
            input=described.spec,
            output=answer,
            detection=detection,
            variants=[Variant(file=brought.file, runtime=brought.runtime, precision=brought.precision)],
        )
        check_manifest(manifest)
        return Package(self._root, manifest, "", list(labels), {})

    def _kind(self, output: TensorInfo, spec: InputSpec) -> str:
        """Whether the values are logits or probabilities, as they show on noise."""
        tensor = _sized(self._session.inputs[0], spec)
        place = [one.name for one in self._session.outputs].index(output.name)
        rows = np.stack([
            dequantise(row[place], output).reshape(-1) for row in answers_of(self._session, noise(tensor))
        ])  # fmt: skip
        if output.quantisation is not None:
            scale, zero = output.quantisation
            limits = np.iinfo(np.dtype(output.dtype))
            low, high = (limits.min - zero) * scale, (limits.max - zero) * scale
            return "probabilities" if low >= -0.01 and 0.9 <= high <= 1.01 else "logits"
        if not np.isfinite(rows).all() or rows.min() < -1e-4 or rows.max() > 1 + 1e-4:
            return "logits"
        if np.abs(rows.sum(axis=1) - 1).max() < 1e-2:
            return "probabilities"
        raise ImportRefused(
            "each label seems to have a yes or no of its own (values from 0 to 1 that do not sum to 1, as of a "
            "Sigmoid); a classifier says one of its labels. Export the model with a softmax or without a last "
            "activation; if these are logits, say --output kind=logits"
        )

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
        spec = draft.manifest.input
        tensor = _sized(self._session.inputs[0], spec)
        pictures = () if album is None else album.pictures[:COMPARED]
        tensors = [prepare(decode(album.read(one), spec.colour), spec, tensor) for one in pictures if album is not None]
        cut = None
        if self._brought.onnx is not None and self._brought.onnx.cut and output is not None:
            cut = self._session.outputs.index(output)
        return compare(self._brought.ask, self._session, [*tensors, *noise(tensor, tensors)], NOISE, cut)

    def _learning(self, draft: Package, output: TensorInfo | None) -> Learning:
        brought = self._brought
        if brought.runtime != "onnxruntime":
            return learnable.never(
                "gradients are derived of ONNX, and this is TFLite; import the model as ONNX, or from PyTorch"
            )
        if not self._detector and draft.manifest.output.kind != "logits":
            return learnable.never(
                "it gives probabilities, and learning needs logits; export it without what follows its last layer"
            )
        name = output.name if output is not None else self._session.outputs[0].name
        order = {"model": str((self._root / brought.file).absolute()), "output": name, "classifier": not self._detector}
        try:
            answer = child.run(
                sys.executable, Path(learnable.__file__), self._scratch / "learning", order, LEARN_TIMEOUT_S, _ROOT
            )
            return msgspec.convert(answer, Learning)
        except (ImportRefused, msgspec.ValidationError) as error:
            return learnable.never(f"deriving its train step failed: {str(error)[:500]}")


def _wanted(request: Request) -> Wanted:
    """What the user says that a road needs."""
    width, height = (request.input.get(key) for key in ("width", "height"))
    size = (width, height) if isinstance(width, int) and isinstance(height, int) else None
    if size is not None and not all(0 < side <= MAX_SIDE for side in size):
        raise ImportRefused(f"--input width={width} height={height}: 1 to {MAX_SIDE} pixels are allowed")

    def choose(outputs: Sequence[TensorInfo]) -> str:
        """The output whose Softmax may go: the one that the user names, the only one, or the only one that fits."""
        if request.detection is not None:
            return ""
        if name := request.output.get("name"):
            return str(name)
        fitting = [one for one in outputs if len(outputs) == 1 or _values(one) == len(request.labels)]
        return fitting[0].name if len(fitting) == 1 else ""

    return Wanted(size, 1 if request.input.get("colour") == "grey" else 3, request.python, choose)


def _sized(tensor: TensorInfo, spec: InputSpec) -> TensorInfo:
    """The input with a batch of one and the package's size."""
    planar = spec.layout == "nchw"
    wanted = (1, None, spec.height, spec.width) if planar else (1, spec.height, spec.width, None)
    shape = tuple(size if size is not None else have for size, have in zip(wanted, tensor.shape, strict=True))
    return replace(tensor, shape=shape)


def _values(tensor: TensorInfo) -> int | None:
    """How many values an output has for one picture; None if that is open, -1 if it is no row of values."""
    sizes = [size for size in tensor.shape[1:] if size != 1]
    return 1 if not sizes else sizes[0] if len(sizes) == 1 else -1


def _foreign(source: Path, kind: Kind) -> Foreign:
    """The record of a file; of a directory, over the names and hashes of its files."""
    if kind != "saved_model":
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Foreign(file=source.name, kind=kind, sha256=digest, bytes=source.stat().st_size)
    total, size = hashlib.sha256(), 0
    with tree.open_root(source) as root:
        for path in tree.list_files(root):
            with tree.open_file(root, path) as (descriptor, count):
                total.update(f"{path}\0{tree.digest_file(descriptor)[0]}\n".encode())
            size += count
    return Foreign(file=source.name, kind=kind, sha256=total.hexdigest(), bytes=size)
