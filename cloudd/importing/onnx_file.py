"""Takes an ONNX file into a package: what is read from it, and the few changes that make it serve and learn better.

A file that needs none of the changes is taken byte for byte. The others are recorded, and proved by comparing outputs
with those of the file as it came:

- Weights that old exporters list among the inputs are taken off that list. A runtime must expect other values for what
  is an input, so it folds no BatchNormalization into a convolution and no constant at all.
- Open heights and widths get the size that the package has: a train step needs it.
- A classifier's last Softmax is taken off, so that it gives logits. Probabilities are the same (edgekit applies the
  softmax), and cross entropy needs logits to train with. For one value of two labels see `cloudd.importing.one_value`.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import onnx

from cloudd.importing.errors import ImportRefused
from cloudd.importing.one_value import Ending, split_value
from edgekit.graphs.editing import makers, nested
from edgekit.packages import CHECKPOINT_FOLDER, PackageError
from edgekit.packages.manifest import Precision, check_path
from edgekit.runtimes.onnx_reader import OnnxReferences

MODEL_FILE = "model.onnx"
MAX_BYTES = (2 << 30) - 1
"""Of the file without external data: protobuf's own limit."""
_MAX_NAMES = 1 << 20
"""Characters of the labels in a file's metadata."""
_QUANTISED = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
)
_ENDINGS: dict[Ending, str] = {
    "softmax": 'the last Softmax is gone: "{}" gives logits',
    "sigmoid": 'the last Sigmoid is gone: "{}" gives two logits, whose softmax has what it gave as its second value',
    "value": '"{}" gives two logits instead of one',
}
_OURS = frozenset(("package.toml", "labels.txt", "samples", "imported", CHECKPOINT_FOLDER, MODEL_FILE))


@dataclass(frozen=True)
class OnnxTaken:
    """What lies in the package's folder now."""

    precision: Precision
    files: tuple[str, ...]  # external data beside the model
    changes: tuple[str, ...]  # sentences; none: the file as it came
    ending: Ending = ""  # what was taken off
    labels: tuple[str, ...] = ()  # from the file's metadata, in the order of the outputs
    metadata: Mapping[str, str] = field(default_factory=dict)


def external_files(references: OnnxReferences) -> tuple[str, ...]:
    """The external data that a model names, as paths below its folder. Nothing is checked but the form."""
    return tuple(sorted(str(PurePosixPath(one)) for one in references.external))


def read_model(source: Path) -> onnx.ModelProto:
    """The file without its external data. Raises ImportRefused for one that was exported in training mode, too."""
    if source.stat().st_size > MAX_BYTES:
        raise ImportRefused(f"{source.name} has more than {MAX_BYTES} bytes; export it with external data")
    try:
        model = onnx.load(source, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions
        raise ImportRefused(f"{source.name} is not an ONNX model: {str(error)[:300]}") from None
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and any(
            one.name == "training_mode" and one.i for one in node.attribute
        ):
            name = (node.name or " ".join(node.output))[:200]
            raise ImportRefused(
                f"node {name} (BatchNormalization) is in training mode; export it again after model.eval()"
            )
    return model


def take(
    source: Path,
    model: onnx.ModelProto,
    references: OnnxReferences,
    root: Path,
    size: tuple[int, int] | None,
    logits_of: str,
    single: bool = False,
    logit: bool = False,
) -> OnnxTaken:
    """Write `model`, which was read from `source`, into the folder `root` as MODEL_FILE, with its external data.

    `size`: width and height for open sides. `logits_of`: the output whose Softmax may go, "" for none. `single`: it
    gives one value for two labels; `logit`: which is a logit. `source` must have been opened as a session before, which
    checks where its external data lies. Raises ImportRefused, OSError.
    """
    changes = []
    if listed := _unlist_weights(model):
        changes.append(f"{listed} weights are no longer listed among the inputs")
    if closed := _close_sides(model, size):
        changes.append(closed)
    ending: Ending = ""
    if single:
        ending = split_value(model, source, logits_of, logit)
    elif logits_of and _cut_softmax(model, logits_of):
        ending = "softmax"
    if ending:
        changes.append(_ENDINGS[ending].format(logits_of))
    files = external_files(references)
    _copy_beside(source, files, root)
    if changes:
        (root / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
    else:
        shutil.copyfile(source, root / MODEL_FILE)
    metadata = {one.key: one.value for one in model.metadata_props[:256]}
    return OnnxTaken(
        precision=_precision(model, references),
        files=files,
        changes=tuple(changes),
        ending=ending,
        labels=_labels(metadata.get("names", "")),
        metadata=metadata,
    )


def _unlist_weights(model: onnx.ModelProto) -> int:
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [info for info in model.graph.input if info.name not in weights]
    count = len(model.graph.input) - len(kept)
    if count:
        del model.graph.input[:]
        model.graph.input.extend(kept)
        model.ir_version = max(model.ir_version, 4)  # before 4, every weight had to be an input
    return count


def _close_sides(model: onnx.ModelProto, size: tuple[int, int] | None) -> str:
    """Fix open heights and widths of a picture's input; a sentence if there were any."""
    if len(model.graph.input) != 1:
        return ""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if len(dims) != 4:
        return ""
    planar = dims[1].dim_value in (1, 3) or dims[3].dim_value not in (1, 3)
    sides = (dims[2], dims[3]) if planar else (dims[1], dims[2])
    if all(one.dim_value > 0 for one in sides):
        return ""
    if size is None:
        raise ImportRefused("the model takes pictures of several sizes; say --input width=W height=H")
    for one, value in zip(sides, (size[1], size[0]), strict=True):
        if one.dim_value not in (0, value):
            raise ImportRefused(f"the model's input is {one.dim_value} pixels on a side, not {value}")
        one.ClearField("dim_param")
        one.dim_value = value
    del model.graph.value_info[:]  # they speak of the open sizes
    return f"the input is {size[0]}x{size[1]} pixels, where the file leaves the size open"


def _cut_softmax(model: onnx.ModelProto, output: str) -> bool:
    """Let an output that is a Softmax over one row of classes give what went into it, under its own name."""
    graph = model.graph
    info = next((one for one in graph.output if one.name == output), None)
    made_by = makers(graph)
    node = made_by.get(output)
    if (
        info is None
        or node is None
        or node.op_type != "Softmax"
        or len(node.input) != 1
        or node.domain not in ("", "ai.onnx")
    ):
        return False
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    axis = next((one.i for one in node.attribute if one.name == "axis"), -1 if opset >= 13 else 1)
    before = node.input[0]
    used = any(output in one.input for one in graph.node) or before in {one.name for one in graph.output}
    if (
        len(info.type.tensor_type.shape.dim) != 2
        or axis not in (1, -1)
        or before not in made_by
        or used
        or nested(graph)
    ):
        return False
    graph.node.remove(node)
    for one in graph.node:
        for names in (one.input, one.output):
            for place, name in enumerate(names):
                if name == before:
                    names[place] = output
    kept = [one for one in graph.value_info if one.name not in (before, output)]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return True


def _copy_beside(source: Path, files: tuple[str, ...], root: Path) -> None:
    for file in files:
        parts = PurePosixPath(file).parts
        if parts[0].lower() in _OURS:
            raise ImportRefused(
                f"the model keeps weights in {file!r}, a name that the package needs itself; export it under another"
            )
        try:
            check_path(file)
        except PackageError as error:
            raise ImportRefused(str(error)) from None
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / file, root / file)


def _precision(model: onnx.ModelProto, references: OnnxReferences) -> Precision:
    if _QUANTISED & {operator for _, operator in references.operators}:
        return "int8"
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 and tensor.dims for tensor in model.graph.initializer)
    return "fp16" if half else "fp32"


def _labels(text: str) -> tuple[str, ...]:
    """Ultralytics writes its classes as a Python dictionary of numbers and names; anything else gives none."""
    if not text or len(text) > _MAX_NAMES:
        return ()
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    if isinstance(found, dict) and sorted(map(str, found)) == sorted(map(str, range(len(found)))):
        found = [found[key] for key in sorted(found, key=int)]
    if isinstance(found, list | tuple) and all(isinstance(one, str) for one in found):
        return tuple(found)
    return ()
