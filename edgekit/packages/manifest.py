"""`package.toml`: its Structs, its strict reader and its writer. Touches no file system."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit import toml
from edgekit.packages.anomaly import AnomalySpec, anomaly_fault
from edgekit.packages.checkpoint import CheckpointSpec, checkpoint_fault
from edgekit.packages.detection import DetectionSpec, TemplateSpec, box_fault, fault
from edgekit.packages.embedding import EmbeddingSpec, embedding_fault
from edgekit.packages.heads import HeadSpec, TailSpec, head_fault, tail_fault

MANIFEST_NAME = "package.toml"
MAX_MANIFEST = 4 << 20
"""Bytes of package.toml; 10,000 files with long names and their hashes fit."""
MAX_FILES = 10_000
MAX_PATH = 255
MAX_SIDE = 16_384

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TARGET = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_COMPILED_ONLY = ("rknnlite", "hailort")
_DIGITS = re.compile(r"([0-9]+)")


class PackageError(ValueError):
    """A model package that must not be used; the message says which file or key, and why."""


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every table in package.toml."""


class InputSpec(_Table, frozen=True, kw_only=True):
    """How a picture becomes the model's input tensor: value = (pixel - mean) * scale, pixel 0..255.

    `mean` and `scale` have one entry for all channels or one per channel (in the order of `colour`). With dtype uint8
    or int8 the model's own quantisation is applied afterwards when the runtime reports one.

    `decode`: "full" decodes every pixel; "reduced" lets a JPEG be decoded at 1/2, 1/4 or 1/8 as long as no side falls
    below the model's. None: reduced where `interpolation` is "area", which averages as well; full elsewhere. `crop` is
    the part of the picture that is used (left, top, right, bottom as fractions of its sides), cut out before `resize`.

    `interpolation` should be what the model was trained with: "antialias" is the bilinear resize of Pillow and
    torchvision, "linear" that of OpenCV; "area" averages and is the fastest for large pictures.
    """

    width: Annotated[int, Meta(ge=1, le=MAX_SIDE)]  # pixels
    height: Annotated[int, Meta(ge=1, le=MAX_SIDE)]  # pixels
    colour: Literal["grey", "rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    dtype: Literal["float32", "uint8", "int8"] = "float32"
    resize: Literal["stretch", "crop", "letterbox"] = "stretch"
    interpolation: Literal["linear", "area", "antialias"] = "area"
    mean: list[float] = msgspec.field(default_factory=lambda: [0.0])
    scale: list[float] = msgspec.field(default_factory=lambda: [1.0])
    name: str = ""  # input tensor, "" for the only one
    # None is left out of a written manifest, so that releases before these keys read it.
    decode: Literal["full", "reduced"] | None = None
    crop: list[float] | None = None

    @property
    def reduced(self) -> bool:
        """Whether a JPEG may be decoded at a fraction of its size."""
        return self.interpolation == "area" if self.decode is None else self.decode == "reduced"


class OutputSpec(_Table, frozen=True, kw_only=True):
    """What the model's output means: one value per label as logits or probabilities, or none of these."""

    kind: Literal["logits", "probabilities", "none"] = "logits"
    name: str = ""  # output tensor, "" for the first one


Runtime = Literal["onnxruntime", "litert", "rknnlite", "hailort", "template"]
"""What opens a model file: .onnx, .tflite, .rknn, .hef, and the picture (JPEG or PNG) of a perfect board."""

Precision = Literal["fp32", "fp16", "int8"]


class Variant(_Table, frozen=True, kw_only=True):
    """One file for one runtime and precision. Variants stand in the author's order of preference.

    `target` names the chip that a file was compiled for off the device ("rk3588", "hailo8", "edgetpu"); a file without
    it runs wherever its runtime does. Files of rknnlite and hailort always have one.

    `network` names the network in the file where it is not the model itself, such as a narrower student of it: values
    of files of one network are equal but for rounding, those of two are not and are never compared.
    """

    file: str
    runtime: Runtime = "onnxruntime"
    precision: Precision = "fp32"
    target: str | None = None
    network: str | None = None


class ProofSample(_Table, frozen=True, kw_only=True):
    """A picture in the package and what the model must say about it before it may serve.

    For detection a sample says one thing about its picture, and several samples may name the same file: either `box`,
    where the model must report a box of this label with at least `min_iou` (each sample a box of its own), or `count`,
    how many boxes of this label it must report. A picture without defects has count = 0.

    For embedding `label` names what the picture shows: pictures of one label must be nearer to each other than to those
    of another, and `score` is the cosine to the nearest one of the same label.
    """

    file: str
    label: str
    score: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    tolerance: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05
    # Detection only. None is left out of a written manifest, so that releases before these keys read it.
    box: list[float] | None = None  # left, top, right, bottom in pixels of the picture
    min_iou: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None  # None: 0.5
    count: Annotated[int, Meta(ge=0, le=10_000)] | None = None


class Manifest(_Table, frozen=True, kw_only=True):
    """The content of package.toml. Paths are relative to it, with forward slashes; `files` lists every one of them."""

    schema: Literal[1] = 1
    name: str
    version: str
    task: str = "classification"
    description: str = ""
    labels: str = ""  # file with one label per line; needed for classification and detection
    input: InputSpec
    output: OutputSpec = OutputSpec()
    detection: DetectionSpec | None = None  # how the output becomes boxes
    template: TemplateSpec | None = None  # None: its defaults
    head: HeadSpec | None = None  # task "head": the edge's half of a split model
    tail: TailSpec | None = None  # task "tail": cloudd's half
    anomaly: AnomalySpec | None = None  # task "anomaly": how a map becomes an answer
    embedding: EmbeddingSpec | None = None  # task "embedding": what the vectors are
    checkpoint: CheckpointSpec | None = None  # the same network un-folded, for learning
    variants: list[Variant] = []  # none for the halves of a split model, else at least one
    samples: list[ProofSample] = []
    files: dict[str, str] = {}  # path -> SHA-256, lower-case hex

    @property
    def ref(self) -> str:
        """name@version"""
        return f"{self.name}@{self.version}"


def parse_manifest(data: bytes) -> Manifest:
    """Read package.toml from its bytes and check all that needs no file system. Raises PackageError."""
    try:
        manifest = toml.convert(toml.read(data, MAX_MANIFEST), Manifest)
    except toml.TomlError as error:
        raise PackageError(error.at(MANIFEST_NAME)) from None
    check_manifest(manifest)
    if not manifest.files:
        raise PackageError(f"{MANIFEST_NAME}: [files] is empty; every file must be listed with its SHA-256")
    check_file_table(manifest.files)
    for key, path in _references(manifest):
        if path not in manifest.files:
            raise PackageError(f'{MANIFEST_NAME}: "{key}" names {toml.show(path)}, which [files] does not list')
    return manifest


def manifest_text(manifest: Manifest) -> str:
    """package.toml for `manifest`; equal manifests give equal text."""
    ordered = msgspec.structs.replace(manifest, files=dict(sorted(manifest.files.items())))
    return toml.dump(ordered)


def check_manifest(manifest: Manifest) -> None:
    """Check names, references and numbers, but not the table of files. Raises PackageError."""
    check_name(manifest.name, key="name")
    check_version(manifest.version)
    channels = 1 if manifest.input.colour == "grey" else 3
    for key, values in (("mean", manifest.input.mean), ("scale", manifest.input.scale)):
        if len(values) not in (1, channels):
            raise PackageError(
                f'{MANIFEST_NAME}: "input.{key}" has {len(values)} values; '
                f"{'1 is' if channels == 1 else '1 or 3 are'} allowed for {manifest.input.colour}"
            )
    crop = manifest.input.crop
    if crop is not None and not (len(crop) == 4 and 0 <= crop[0] < crop[2] <= 1 and 0 <= crop[1] < crop[3] <= 1):
        raise PackageError(
            f'{MANIFEST_NAME}: "input.crop" is {crop}; left, top, right and bottom belong there, '
            "as fractions from 0 to 1, with left < right and top < bottom"
        )
    halves = _check_halves(manifest)
    if not manifest.variants and not halves:
        raise PackageError(f"{MANIFEST_NAME}: [[variants]] is missing; name at least one model file")
    for index, variant in enumerate(manifest.variants):
        _check_target(variant, f"variants[{index}].target")
    if manifest.task == "classification" and not manifest.labels:
        raise PackageError(f'{MANIFEST_NAME}: "labels" is missing; a classification model needs a file of labels')
    _check_detection(manifest)
    task, labels, kind = manifest.task, manifest.labels, manifest.output.kind
    if found := anomaly_fault(task, manifest.anomaly, labels, kind) or embedding_fault(
        task, manifest.embedding, labels, kind
    ):
        raise PackageError(f"{MANIFEST_NAME}: {found}")
    references = _references(manifest)
    for _, path in references:
        check_path(path)
    others = [path for key, path in references if key != "checkpoint.file"]
    if found := checkpoint_fault(manifest.checkpoint, task, others):
        raise PackageError(f"{MANIFEST_NAME}: {found}")


def _check_halves(manifest: Manifest) -> bool:
    """Whether it is the head or the tail of a split model, which must then be right."""
    head, tail = manifest.head, manifest.tail
    for table, spec in (("head", head), ("tail", tail)):
        if (spec is not None) != (manifest.task == table):
            raise PackageError(
                f'{MANIFEST_NAME}: the task is "{manifest.task}" and [{table}] is '
                f'{"there" if spec is not None else "missing"}; task = "{table}" and [{table}] belong together'
            )
    found = head_fault(head) if head is not None else tail_fault(tail) if tail is not None else ""
    half = head or tail
    if half is None:
        return False
    refs = {f"{manifest.task}.of": half.of} | ({"head.tail": head.tail} if head is not None else {})
    if manifest.variants:
        found = f"[[variants]] is there; the files of a {manifest.task} are those of [[{manifest.task}.cuts]]"
    elif not manifest.labels:
        found = f'"labels" is missing; a {manifest.task} has the labels of the whole model'
    elif tail is not None and manifest.samples:
        found = "[[samples]] is there; a tail never sees a picture"
    for key, ref in refs.items():
        if split_ref(ref, key=key)[1] is None:
            found = f'"{key}" is {toml.show(ref)}; name@version belongs there'
    if found:
        raise PackageError(f"{MANIFEST_NAME}: {found}")
    return True


def _check_detection(manifest: Manifest) -> None:
    """A manifest of this task without the table is one of a release before it: a model that is served as it is."""
    spec = manifest.detection
    if spec is None:
        if manifest.template is not None or any(variant.runtime == "template" for variant in manifest.variants):
            raise PackageError(
                f'{MANIFEST_NAME}: [detection] is missing; a golden picture needs it, with head = "template"'
            )
    elif manifest.task != "detection":
        raise PackageError(f'{MANIFEST_NAME}: [detection] belongs to task = "detection", not to "{manifest.task}"')
    elif not manifest.labels:
        raise PackageError(f'{MANIFEST_NAME}: "labels" is missing; a detection model needs a file of labels')
    elif found := fault(spec, manifest.template, manifest.input.colour, [v.runtime for v in manifest.variants]):
        raise PackageError(f"{MANIFEST_NAME}: {found}")
    for index, sample in enumerate(manifest.samples):
        if found := _sample_fault(sample, spec is not None):
            raise PackageError(f'{MANIFEST_NAME}: "samples[{index}].{found}')


def _sample_fault(sample: ProofSample, boxes: bool) -> str:
    """The key and what is wrong with it, "" if nothing is. `boxes`: whether there is a [detection]."""
    if not boxes:
        given = next((key for key in ("box", "min_iou", "count") if getattr(sample, key) is not None), "")
        return f'{given}" belongs to a package with [detection]' if given else ""
    if (sample.box is None) == (sample.count is None):
        return 'box" or "count" is needed, one of the two: where a box must be, or how many there are'
    if sample.box is None:
        given = next((key for key in ("min_iou", "score") if getattr(sample, key) is not None), "")
        return f'{given}" belongs to a sample with a box' if given else ""
    found = box_fault(sample.box)
    return f'box" {found}' if found else ""


def _check_target(variant: Variant, key: str) -> None:
    if variant.target is None:
        if variant.runtime in _COMPILED_ONLY:
            raise PackageError(
                f'{MANIFEST_NAME}: "{key}" is missing; a file for {variant.runtime} is compiled for one chip, '
                'which must be named, for example "rk3588" or "hailo8"'
            )
    elif not _TARGET.fullmatch(variant.target):
        raise PackageError(
            f'{MANIFEST_NAME}: "{key}" is {toml.show(variant.target)}; use 1 to 32 of a-z 0-9 . _ - '
            "and begin with a letter or digit"
        )


def check_file_table(files: dict[str, str]) -> None:
    """Check paths and hashes of a [files] table. Raises PackageError."""
    if len(files) > MAX_FILES:
        raise PackageError(f"{MANIFEST_NAME}: {len(files)} files are listed; {MAX_FILES} are allowed")
    for path, digest in files.items():
        check_path(path)
        if not _SHA256.fullmatch(digest):
            raise PackageError(
                f"{MANIFEST_NAME}: the hash of {toml.show(path)} is no SHA-256 in 64 lower-case hex digits"
            )


def check_path(path: str) -> str:
    """Return `path` if it names a file inside a package and nothing outside. Raises PackageError."""
    fault = ""
    if not path or len(path.encode("utf-8", "replace")) > MAX_PATH:
        fault = f"must have 1 to {MAX_PATH} bytes"
    elif not path.isprintable() or "\\" in path:
        fault = "must not contain control characters or backslashes"
    elif path.startswith("/"):
        fault = "must be relative to the package"
    elif any(part in ("", ".", "..") for part in path.split("/")):
        fault = 'must name a file inside the package, without "..", "." or empty parts'
    elif PurePosixPath(path).parts[0].lower() == MANIFEST_NAME:
        fault = f"must not be {MANIFEST_NAME} itself, which cannot carry its own hash"
    if fault:
        raise PackageError(f"{MANIFEST_NAME}: the path {toml.show(path)} {fault}")
    return path


def check_name(name: str, *, key: str = "name") -> str:
    """Return `name` if it can name a model. Raises PackageError."""
    if not _NAME.fullmatch(name):
        raise PackageError(
            f'"{key}": {toml.show(name)} is no model name; use 1 to 64 of a-z 0-9 . _ - '
            "and begin with a letter or digit"
        )
    return name


def check_version(version: str) -> str:
    """Return `version` if it can be a model version. Raises PackageError."""
    if not _VERSION.fullmatch(version):
        raise PackageError(
            f"{toml.show(version)} is no model version; use 1 to 32 of A-Z a-z 0-9 . _ - "
            "and begin with a letter or digit"
        )
    return version


def split_ref(ref: str, *, key: str = "model") -> tuple[str, str | None]:
    """Split "name@version" or "name" into (name, version or None). Raises PackageError naming `key`."""
    name, at, version = ref.partition("@")
    check_name(name, key=key)
    return name, check_version(version) if at else None


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which 1.10 is newer than 1.9: runs of digits compare as numbers, everything else as text."""
    parts = _DIGITS.split(version)
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts if part)


def _references(manifest: Manifest) -> list[tuple[str, str]]:
    named = [(f"variants[{i}].file", variant.file) for i, variant in enumerate(manifest.variants)]
    named += [(f"samples[{i}].file", sample.file) for i, sample in enumerate(manifest.samples)]
    if manifest.labels:
        named.append(("labels", manifest.labels))
    if manifest.detection is not None and manifest.detection.priors:
        named.append(("detection.priors", manifest.detection.priors))
    if manifest.anomaly is not None and manifest.anomaly.reference:
        named.append(("anomaly.reference", manifest.anomaly.reference))
    if manifest.checkpoint is not None:
        named.append(("checkpoint.file", manifest.checkpoint.file))
    if manifest.head is not None:
        named += [(f"head.cuts[{i}].file", cut.file) for i, cut in enumerate(manifest.head.cuts)]
    if manifest.tail is not None:
        named += [(f"tail.cuts[{i}].file", cut.file) for i, cut in enumerate(manifest.tail.cuts)]
    return named
