"""Makes the demo's models fit other pictures: the backbone stays frozen, only the last layer is replaced.

The new head is linear discriminant analysis with one shrunk covariance for all classes, computed from sums in one pass
over a few hundred labelled pictures: no framework, no gradient, a second of CPU. It is what a plant can do on the first
day; a model trained on its own pictures will be better, and the numbers that the demo prints say by how much.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgekit.packages import Manifest, Package, open_package
from edgekit.runtimes import open_session
from edgekit.vision.images import decode
from edgekit.vision.preprocess import prepare
from examples.packaging import seal_with_proofs

Features = npt.NDArray[np.float64]
FEATURES = "features"


def adapt(
    source: Path, target: Path, name: str, pictures: Sequence[bytes], labels: Sequence[str], *, side: int, stages: bool
) -> Package:
    """Write to `target` the package `source` with a head for `labels`, learned from `pictures` (JPEG or PNG bytes).

    The model looks at `side` x `side` pixels. Its features are the mean of the last layer's maps or, with `stages`,
    mean and maximum of the maps of every layer: more to compute, and less bound to what the backbone was trained for.
    Raises ValueError with fewer than two classes, ImageError for a bad picture.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError("the labels name fewer than two classes; there is nothing to tell apart")
    package = open_package(source)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    model = backbone(onnx.load(str(package.path(package.manifest.variants[0].file))), side, stages)
    draft = msgspec.structs.replace(
        package.manifest,
        name=name,
        description=f"{name}: head fitted to new pictures",
        input=msgspec.structs.replace(package.manifest.input, width=side, height=side),
    )
    features = _features(model, draft, target / "backbone.onnx", pictures)
    weights, bias = discriminant(features, np.array([classes.index(label) for label in labels]), len(classes))

    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), "head_weights"))
    graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), "head_bias"))
    graph.node.append(helper.make_node("Gemm", [FEATURES, "head_weights", "head_bias"], ["logits"], transB=1))
    _set_output(model, "logits", [1, len(classes)])
    onnx.save(model, str(target / "model.onnx"))
    (target / "labels.txt").write_text("".join(f"{label}\n" for label in classes))
    return seal_with_proofs(target, draft, zip(pictures, labels, strict=True))


def backbone(model: onnx.ModelProto, side: int, stages: bool) -> onnx.ModelProto:
    """The model up to its last activation, for another picture size, with one output: the features (1, d)."""
    graph = model.graph
    for axis in (2, 3):
        graph.input[0].type.tensor_type.shape.dim[axis].dim_value = side
    del graph.value_info[:]
    while graph.node[-1].op_type != "Relu":
        graph.node.pop()
    maps = [node.output[0] for node in graph.node if node.op_type == "Relu"]
    pools = ["GlobalAveragePool", "GlobalMaxPool"] if stages else ["GlobalAveragePool"]
    flat = []
    for tensor in maps if stages else maps[-1:]:
        for pool in pools:
            graph.node.append(helper.make_node(pool, [tensor], [f"{tensor}_{pool}"]))
            graph.node.append(helper.make_node("Flatten", [f"{tensor}_{pool}"], [f"{tensor}_{pool}_flat"]))
            flat.append(f"{tensor}_{pool}_flat")
    graph.node.append(helper.make_node("Concat", flat, [FEATURES], axis=1))
    _set_output(model, FEATURES, None)
    return model


def discriminant(features: Features, labels: npt.NDArray[np.int64], classes: int) -> tuple[Features, Features]:
    """Linear discriminant analysis: weights (classes, d) and bias (classes,) whose softmax is the class posterior.

    The covariance within classes is shrunk towards its own diagonal by min(1, 3 / k), with k the size of the smallest
    class. Class shares enter as their square root, so that a rare defect is not drowned by good parts.
    """
    counts = np.bincount(labels, minlength=classes)
    means = np.stack([features[labels == index].mean(axis=0) for index in range(classes)])
    centred = features - means[labels]
    covariance = centred.T @ centred / max(1, len(labels) - classes)
    shrink = min(1.0, 3.0 / counts.min())
    diagonal = np.diag(np.diag(covariance))
    covariance = (1 - shrink) * covariance + shrink * diagonal
    covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weights = np.linalg.solve(covariance, means.T).T
    prior = 0.5 * np.log(counts / counts.sum())
    return weights, prior - 0.5 * np.einsum("cd,cd->c", weights, means)


def _set_output(model: onnx.ModelProto, name: str, shape: list[int] | None) -> None:
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))


def _features(model: onnx.ModelProto, manifest: Manifest, path: Path, pictures: Sequence[bytes]) -> Features:
    """The backbone's output (n, d) for every picture; `path` holds the model meanwhile."""
    onnx.save(model, str(path))
    session = open_session(path, "onnxruntime")
    (tensor,) = session.inputs
    try:
        batches = (prepare(decode(data, manifest.input.colour), manifest.input, tensor) for data in pictures)
        return np.concatenate([session.run({tensor.name: batch})[0] for batch in batches]).astype(np.float64)
    finally:
        session.close()
        path.unlink()
