"""A registered classifier becomes the files of a head of one round: its features, their scales, a layer to fill in.

features.onnx       the model up to the input of its last layer, as a vector
model.onnx          the whole model, whose last layer has one row for each label of the job
weights.safetensors the weights of both
head.safetensors    the last layer as it was, and the scale of each feature

Needs the package onnx.
"""

from __future__ import annotations

from contextlib import closing
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
from edgekit.graphs.editing import copied, drop_unused
from edgekit.graphs.logits import Floats, LastLayer, last_layer
from edgekit.heads.statistics import MAX_FEATURES
from edgekit.packages import Package
from edgekit.runtimes import SessionOptions, open_session
from edgekit.training import MODEL_FILE, WEIGHTS_FILE, write_model
from edgekit.vision.classification import Classifier
from edgekit.vision.images import ImageError

_FEATURES = "federated.features"
_RARE = 8.0
"""A feature that the proof pictures hardly show is scaled as if it had this share of the others' size."""
_MODE = 0o644


def prepare_head(package: Package, model: onnx.ModelProto, labels: tuple[str, ...], folder: Path) -> int:
    """Write the files into `folder`, which is made; returns the number of features.

    `model`: the package's float32 classifier with its logits as only output; `labels`: the package's, then new ones.
    Raises NetworkError for a model whose last layer cannot be replaced, FederationError for one whose features have no
    scale; ModelError, TrainingError, OSError.
    """
    last = last_layer(model.graph, model.graph.output[0].name)
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


def _with_head(model: onnx.ModelProto, last: LastLayer, rows: NDArray[Any], bias: NDArray[Any]) -> onnx.ModelProto:
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
    copy = copied(model)
    drop_unused(copy, [end])
    del copy.graph.output[:], copy.graph.value_info[:]
    return copy


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
