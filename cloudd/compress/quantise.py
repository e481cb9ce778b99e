"""8-bit variants by onnxruntime's static quantisation: QDQ format, one scale a channel, ranges from real pictures.

Measured on one thread of a CPU with VNNI: 3.3 times as fast for a ResNet-18, 2.05 times for a MobileNetV2, 0.25 to 0.27
of the size, against 0.5 to 1.0 times with dynamic quantisation (research/algorithms.md 3.2). The package `onnx` is only
imported here, in `half` and in `pruned`, when a variant is made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloudd.compress.errors import CompressError
from cloudd.compress.maker import Materials, Recipe
from edgekit.runtimes.onnx_reader import read_references

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

MAX_MODEL_BYTES = 1 << 30
"""A protobuf message ends at 2 GiB, and every step holds the model a few times."""

_OPSET = 13  # the first with one scale a channel
_WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


def prepare(source: Path, size: int, target: Path) -> None:
    """Write the model at `source` as makers want it: batch normalisation and constants folded, shapes inferred, opset
    13 or newer, every node named, in one file. `size`: bytes of the model with its external data.

    The model must have passed `open_session`, which checks what it refers to. Raises CompressError.
    """
    if size > MAX_MODEL_BYTES:
        raise CompressError(f"{source.name} has {size} bytes; {MAX_MODEL_BYTES} are allowed for compression")
    operators = {name for _, name in read_references(source).operators}
    if done := sorted(name for name in operators if name in _QUANTISED or name.startswith("QLinear")):
        raise CompressError(f"{source.name} is quantised already: it has the operator {done[0]}")
    onnx, _ = libraries()
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        model = onnx.load(str(source))
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        if opset < _OPSET:
            model = onnx.version_converter.convert_version(model, _OPSET)
        quant_pre_process(model, str(target), skip_symbolic_shape=True)  # symbolic inference would need sympy
        model = onnx.load(str(target))
        for number, node in enumerate(model.graph.node):
            node.name = node.name or f"node-{number}"
        onnx.save(model, str(target))
    except Exception as error:  # the libraries' own exceptions have no common base
        raise CompressError(f"{source.name} cannot be prepared for compression: {first_line(error)}") from error


def u8s8(materials: Materials, target: Path, *, careful: bool) -> Recipe:
    """Unsigned activations, signed weights: what x86 multiplies fastest. See maker.Maker."""
    return _quantise(materials, target, "QUInt8", careful)


def s8s8(materials: Materials, target: Path, *, careful: bool) -> Recipe:
    """Signed throughout: what the dot product of Arm wants. See maker.Maker."""
    return _quantise(materials, target, "QInt8", careful)


def libraries() -> tuple[Any, Any]:
    """(onnx, onnxruntime.quantization). Raises CompressError if one is not installed."""
    try:
        import onnx
        import onnx.version_converter
        import onnxruntime.quantization as quantization
    except ImportError as error:
        raise CompressError(
            f'compression needs the package {error.name}; install it with: pip install "edged-cloudd[cloud,serve]"'
        ) from None
    return onnx, quantization


def first_line(error: Exception) -> str:
    """What an exception says, short enough for one sentence."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _quantise(materials: Materials, target: Path, activations: str, careful: bool) -> Recipe:
    onnx, quantization = libraries()
    graph = onnx.load(str(materials.model)).graph
    kept = _answers(graph) + (_ends(graph) if careful else [])
    types = quantization.QuantType
    try:
        quantization.quantize_static(
            str(materials.model),
            str(target),
            _Reader(materials),
            quant_format=quantization.QuantFormat.QDQ,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            per_channel=True,
            activation_type=types[activations],
            weight_type=types.QInt8,
            nodes_to_exclude=kept,
        )
    except CompressError:
        raise
    except Exception as error:
        raise CompressError(f"onnxruntime cannot quantise the model: {first_line(error)}") from error
    model = onnx.load(str(target))
    _share_constants(model.graph)
    onnx.save(model, str(target))
    return Recipe(
        method=f"static QDQ, {activations} activations, QInt8 weights per channel, MinMax", kept_in_float=kept
    )


def _share_constants(graph: Any) -> None:
    """Keep one of several equal constants: every layer brings its own zero points, one for each of its channels and all
    of them 0, which are 2 % of a small network.
    """
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return  # an inner graph may name them as well
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    outputs = {output.name for output in graph.output}
    for tensor in graph.initializer:
        name, tensor.name = tensor.name, ""
        content = tensor.SerializeToString(deterministic=True)
        tensor.name = name
        if name not in outputs:
            same[name] = first.setdefault(content, name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
    kept = [tensor for tensor in graph.initializer if same.get(tensor.name, tensor.name) == tensor.name]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _answers(graph: Any) -> list[str]:
    """Nodes that turn logits into probabilities: 256 steps would be too coarse for the margin between two labels."""
    outputs = {output.name for output in graph.output}
    return [node.name for node in graph.node if node.op_type in ("Softmax", "Sigmoid") and outputs & set(node.output)]


def _ends(graph: Any) -> list[str]:
    """The first and the last layer with weights, which suffer most from few bits."""
    weights = {tensor.name for tensor in graph.initializer}
    layers = [node.name for node in graph.node if node.op_type in _WEIGHTED and weights & set(node.input)]
    return list(dict.fromkeys([*layers[:1], *layers[-1:]]))


class _Reader:
    """onnxruntime's CalibrationDataReader: one feed after the other, then None."""

    def __init__(self, materials: Materials) -> None:
        self._feeds: Iterator[dict[str, Any]] = ({materials.input: one} for one in materials.pictures())

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)
