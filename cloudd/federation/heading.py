"""A registered classifier becomes the files of a head of one round: its features, their scales, a layer to fill in.

features.onnx       the model up to the input of its last layer, as a vector
model.onnx          the whole model, whose last layer has one row for each label of the job
weights.safetensors the weights of both
head.safetensors    the last layer as it was, and the scale of each feature

Needs the package onnx.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray

from cloudd.federation.errors import FederationError
from edgekit import atomic, tensors
from edgekit.federated.head_jobs import BIAS, FEATURES_FILE, HEAD_FILE, OLD_BIAS, OLD_WEIGHT, SCALE, WEIGHT
from edgekit.heads.statistics import MAX_FEATURES
from edgekit.packages import Package
from edgekit.runtimes import SessionOptions, open_session
from edgekit.training import MODEL_FILE, WEIGHTS_FILE, write_model
from edgekit.vision.classification import Classifier
from edgekit.vision.images import ImageError

_FEATURES = "federated.features"
_THROUGH = frozenset(("Flatten", "Identity", "Dropout", "Squeeze", "Reshape"))
"""What moves values and changes none of them."""
_RARE = 8.0
"""A feature that the proof pictures hardly show is scaled as if it had this share of the others' size."""
_MODE = 0o644

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Last:
    features: str  # name of its input
    weight: Floats  # [classes, features]
    bias: Floats  # [classes]


def prepare_head(package: Package, model: onnx.ModelProto, labels: tuple[str, ...], folder: Path) -> int:
    """Write the files into `folder`, which is made; returns the number of features.

    `model`: the package's float32 classifier with its logits as only output; `labels`: the package's, then new ones.
    Raises FederationError for a model whose last layer cannot be replaced, or whose features have no scale; ModelError,
    TrainingError, OSError.
    """
    last = _last_layer(model, package.ref)
    classes, features = len(package.labels), int(last.weight.shape[1])
    if last.weight.shape[0] != classes:
        raise FederationError(
            f"the last layer of {package.ref} makes {len(last.weight)} values and the model has {classes} labels"
        )
    if features > MAX_FEATURES:
        raise FederationError(f"the last layer of {package.ref} reads {features} features; {MAX_FEATURES} are the most")
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.zeros((len(labels), features), np.float32)
    rows[:classes] = last.weight
    bias = np.zeros(len(labels), np.float32)
    bias[:classes] = last.bias
    write_model(_with_head(model, last, rows, bias), folder)
    written = onnx.load(str(folder / MODEL_FILE), load_external_data=False)
    atomic.write_file(folder / FEATURES_FILE, _without_head(written).SerializeToString(deterministic=True), _MODE)
    head = {SCALE: _scale(package, folder, features), OLD_WEIGHT: last.weight, OLD_BIAS: last.bias}
    data = tensors.save({name: np.asarray(array, np.float32) for name, array in head.items()})
    atomic.write_file(folder / HEAD_FILE, data, _MODE)
    return features


# --- the graph --------------------------------------------------------------------------------------------------------


def _with_head(model: onnx.ModelProto, last: _Last, rows: NDArray[Any], bias: NDArray[Any]) -> onnx.ModelProto:
    """The graph up to the features, then a Flatten and a Gemm with these values."""
    output = model.graph.output[0].name
    graph = _cut(model, last.features)
    names = {name for node in graph.graph.node for name in (*node.input, *node.output)}
    if names & {_FEATURES, WEIGHT, BIAS}:
        raise FederationError(f"the model has a value named {sorted(names & {_FEATURES, WEIGHT, BIAS})[0]!r} already")
    graph.graph.node.append(onnx.helper.make_node("Flatten", [last.features], [_FEATURES], name=_FEATURES, axis=1))
    graph.graph.node.append(
        onnx.helper.make_node("Gemm", [_FEATURES, WEIGHT, BIAS], [output], name="federated.head", transB=1)
    )
    for name, values in ((WEIGHT, rows), (BIAS, bias)):
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["N", len(rows)]))
    return graph


def _without_head(model: onnx.ModelProto) -> onnx.ModelProto:
    """What `_with_head` made, with the features as its output."""
    graph = _cut(model, _FEATURES)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(_FEATURES, onnx.TensorProto.FLOAT, None))
    return graph


def _cut(model: onnx.ModelProto, end: str) -> onnx.ModelProto:
    """A copy with only what the value `end` needs, and without outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, needed, kept = copy.graph, {end}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    weights = [onnx.TensorProto.FromString(one.SerializeToString()) for one in graph.initializer if one.name in needed]
    inputs = [onnx.ValueInfoProto.FromString(one.SerializeToString()) for one in graph.input if one.name in needed]
    for field, values in ((graph.node, kept[::-1]), (graph.initializer, weights), (graph.input, inputs)):
        del field[:]
        field.extend(values)
    del graph.output[:], graph.value_info[:]
    return copy


def _last_layer(model: onnx.ModelProto, ref: str) -> _Last:
    """The Gemm, MatMul or 1x1 Conv that makes the logits."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    arrays = {one.name: one for one in graph.initializer}
    node = makers.get(graph.output[0].name)
    while node is not None and node.op_type in _THROUGH:
        node = makers.get(node.input[0])
    product, bias_name = node, ""
    if node is not None and node.op_type == "Add":
        product = next((one for name in node.input if (one := makers.get(name)) and one.op_type == "MatMul"), None)
        bias_name = next((name for name in node.input if name in arrays), "")
    elif node is not None and len(node.input) > 2:
        bias_name = node.input[2]
    if product is None or product.op_type not in ("Gemm", "MatMul", "Conv") or product.input[1] not in arrays:
        found = "nothing" if node is None else f"{node.op_type} ({node.name or node.output[0]})"
        raise FederationError(
            f"the classes of {ref} are made by {found[:200]}; a last layer that can be made anew is a Gemm, a MatMul "
            "or a 1x1 Conv with weights of its own"
        )
    weight = _rows(product, np.asarray(onnx.numpy_helper.to_array(arrays[product.input[1]]), np.float64), ref)
    bias = np.zeros(len(weight))
    if bias_name in arrays:
        bias = np.asarray(onnx.numpy_helper.to_array(arrays[bias_name]), np.float64).reshape(-1)
    if bias_name and bias.shape != (len(weight),):
        raise FederationError(f"the bias {bias_name[:100]!r} of the last layer of {ref} is no list of a value a class")
    return _Last(product.input[0], weight, bias)


def _rows(node: onnx.NodeProto, weight: Floats, ref: str) -> Floats:
    """[classes, features]"""
    values = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    plain = values.get("alpha", 1.0) == values.get("beta", 1.0) == 1.0 and not values.get("transA", 0)
    if node.op_type == "Conv":
        plain = weight.ndim == 4 and weight.shape[2:] == (1, 1) and values.get("group", 1) == 1
        plain = plain and not any(values.get("pads", [0])) and set(values.get("strides", [1])) == {1}
        weight = weight.reshape(weight.shape[:2]) if plain else weight
    elif not values.get("transB", 0):
        weight = weight.T
    if not plain or weight.ndim != 2:
        name = node.name or node.output[0]
        raise FederationError(f"the last layer {name[:100]} of {ref} ({node.op_type}) is none that can be made anew")
    return weight


# --- the scale --------------------------------------------------------------------------------------------------------


def _scale(package: Package, folder: Path, features: int) -> Floats:
    """Powers of two that bring the features of the package's own proof pictures to a size of about 1, [features].

    It need not be right: sums have a grid far finer than a deviation, and room for features that are many times larger.
    """
    rows = []
    files = dict.fromkeys(one.file for one in package.manifest.samples)
    options = SessionOptions(threads=1)
    with (
        closing(Classifier.load(package, options)) as model,
        closing(open_session(folder / FEATURES_FILE, "onnxruntime", options, [WEIGHTS_FILE])) as session,
    ):
        for file in files:
            try:
                tensor = model.tensor(package.path(file).read_bytes())
            except ImageError as error:
                raise FederationError(f"the proof sample {file} of {package.ref} cannot be read: {error}") from None
            rows.append(np.asarray(session.run({session.inputs[0].name: tensor})[0], np.float64).reshape(-1))
    if not rows:
        raise FederationError(
            f"{package.ref} has no proof pictures, and by them the features are scaled: seal it with samples"
        )
    found = np.stack(rows)
    if found.shape[1] != features or not np.isfinite(found).all():
        raise FederationError(
            f"the last layer of {package.ref} works on maps that are pooled behind it, or its features are no numbers"
        )
    size = np.sqrt(np.square(found).mean(axis=0))
    whole = float(np.sqrt(np.square(size).mean()))
    if whole <= 0:
        raise FederationError(f"all features of {package.ref} are 0 on its proof pictures")
    scale: Floats = 2.0 ** -np.rint(np.log2(np.maximum(size, whole / _RARE)))
    return scale
