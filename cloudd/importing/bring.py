"""The roads into a package: each kind of foreign file becomes an ONNX or TFLite file in the package's folder."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cloudd.importing.archives import ArchiveTooLarge, open_archive
from cloudd.importing.brought import Answers, Brought
from cloudd.importing.kinds import Kind
from cloudd.importing.onnx_file import MODEL_FILE, external_files, read_model, take
from cloudd.importing.programs import SIDES, Program
from edgekit.runtimes import SessionOptions, TensorInfo, open_session
from edgekit.runtimes.onnx_reader import read_references

OPTIONS = SessionOptions(interpreter=sys.executable)
"""Every session of an import runs in a process of its own: a file that crashes its runtime ends no more than that."""
TFLITE_FILE = "model.tflite"
_MAX_LABELS = 1 << 20
"""Bytes of the labels in a TFLite file."""

Choose = Callable[[Sequence[TensorInfo]], str]
"""The output of these whose Softmax may go; "" for none."""


@dataclass(frozen=True)
class Wanted:
    """What the user says that a road needs: the input where the file leaves it open, and who reads the file."""

    size: tuple[int, int] | None  # width, height
    channels: int
    python: str
    choose: Choose
    labels: int = 0  # how many there are, as far as the user says
    logit: bool = False  # one value for two labels is the logit of the second


def values_of(tensor: TensorInfo) -> int | None:
    """How many values an output has for one picture; None if that is open, -1 if it is no row of values."""
    sizes = [size for size in tensor.shape[1:] if size != 1]
    return 1 if not sizes else sizes[0] if len(sizes) == 1 else -1


def bring(source: Path, kind: Kind, wanted: Wanted, root: Path, scratch: Path) -> Brought:
    """Put the model at `source` into `root`; `scratch` is an empty folder to work in.

    Raises ImportRefused; ModelError for a file that cannot be loaded: damaged, operators that are not built in,
    external data outside of its folder; OSError.
    """
    if kind == "onnx":
        return _onnx(source.resolve(), wanted, root)
    if kind == "tflite":
        return _tflite(source.resolve(), root)
    program = Program(source, kind, wanted.python, scratch)
    if SIDES[kind][0] == "TensorFlow":
        written, told = program.export(None)
        return _converted(_tflite(written, root), program, told)
    shape = None if wanted.size is None else [1, wanted.channels, wanted.size[1], wanted.size[0]]
    written, told = program.export(shape)
    return _converted(_onnx(written, wanted, root), program, told)


def _converted(brought: Brought, program: Program, told: dict[str, Any]) -> Brought:
    """What the program says of its work, and that it is what the package is compared with."""
    versions = {str(name)[:40]: str(value)[:40] for name, value in told["versions"].items()}
    return replace(brought, road=str(told.get("road", ""))[:200], ask=program.ask, tools=versions)


def _onnx(source: Path, wanted: Wanted, root: Path) -> Brought:
    references = read_references(source)
    files = external_files(references)
    model = read_model(source)
    with closing(open_session(source, "onnxruntime", OPTIONS, files)) as session:
        logits_of = wanted.choose(session.outputs)
        single = wanted.labels == 2 and any(one.name == logits_of and values_of(one) == 1 for one in session.outputs)
    taken = take(source, model, references, root, wanted.size, logits_of, single, wanted.logit)

    def ask(tensors: Sequence[NDArray[Any]]) -> Answers:
        with closing(open_session(source, "onnxruntime", OPTIONS, files)) as foreign:
            name = foreign.inputs[0].name
            return [foreign.run({name: tensor}) for tensor in tensors]

    return Brought(
        file=MODEL_FILE,
        runtime="onnxruntime",
        precision=taken.precision,
        road="as it is" if not taken.changes else "the graph was changed as listed",
        ask=ask if taken.changes else None,
        files=taken.files,
        labels=taken.labels,
        onnx=taken,
    )


def _tflite(source: Path, root: Path) -> Brought:
    with closing(open_session(source, "litert", OPTIONS)) as session:
        tensors = [*session.inputs, *session.outputs]
    shutil.copyfile(source, root / TFLITE_FILE)
    return Brought(
        file=TFLITE_FILE,
        runtime="litert",
        precision="int8" if any(one.dtype in ("int8", "uint8") for one in tensors) else "fp32",
        road="as it is",
        ask=None,
        labels=_packed_labels(source),
    )


def _packed_labels(source: Path) -> tuple[str, ...]:
    """The labels that TFLite's metadata tools put behind the model, as a text file in a ZIP archive."""
    try:
        with open_archive(source) as archive:
            texts = [one for one in archive.infolist() if one.filename.endswith(".txt")]
            if len(texts) != 1 or texts[0].file_size > _MAX_LABELS:
                return ()
            lines = archive.read(texts[0]).decode("utf-8").splitlines()
    except (ArchiveTooLarge, zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, RuntimeError, OSError):
        return ()
    return tuple(line.strip() for line in lines) if all(line.strip() for line in lines) else ()
