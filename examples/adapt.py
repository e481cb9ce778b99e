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
from onnx import numpy_helper

from edgekit.packages import Package, open_package
from edgekit.runtimes import open_session
from edgekit.vision.classification import Classifier
from examples.packaging import seal_with_proofs

Features = npt.NDArray[np.float64]


def adapt(source: Path, target: Path, name: str, pictures: Sequence[bytes], labels: Sequence[str]) -> Package:
    """Write to `target` the package `source` with a head for `labels`, learned from `pictures` (JPEG or PNG bytes).

    Raises ValueError with fewer than two classes, ImageError for a bad picture.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError("the labels name fewer than two classes; there is nothing to tell apart")
    package = open_package(source)
    model = onnx.load(str(package.path(package.manifest.variants[0].file)))
    head = next(node for node in reversed(model.graph.node) if node.op_type == "Gemm")

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    features = _features(package, model, head.input[0], target / "backbone.onnx", pictures)
    indices = np.array([classes.index(label) for label in labels])
    weights, bias = discriminant(features, indices, len(classes))

    for initializer in model.graph.initializer:
        if initializer.name == head.input[1]:
            initializer.CopyFrom(numpy_helper.from_array(weights.astype(np.float32), initializer.name))
        elif initializer.name == head.input[2]:
            initializer.CopyFrom(numpy_helper.from_array(bias.astype(np.float32), initializer.name))
    model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = len(classes)
    del model.graph.value_info[:]
    onnx.save(model, str(target / "model.onnx"))
    (target / "labels.txt").write_text("".join(f"{label}\n" for label in classes))

    draft = msgspec.structs.replace(package.manifest, name=name, description=f"{name}: head fitted to new pictures")
    return seal_with_proofs(target, draft, zip(pictures, labels, strict=True))


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


def _features(package: Package, model: onnx.ModelProto, tensor: str, path: Path, pictures: Sequence[bytes]) -> Features:
    """The backbone's output (n, d) for every picture; `path` holds the cut model meanwhile."""
    backbone = onnx.ModelProto()
    backbone.CopyFrom(model)
    last = next(at for at, node in enumerate(backbone.graph.node) if tensor in node.output)
    del backbone.graph.node[last + 1 :]
    del backbone.graph.output[:]
    backbone.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    onnx.save(backbone, str(path))
    session = open_session(path, "onnxruntime")
    classifier = Classifier.load(package)
    try:
        name = session.inputs[0].name
        return np.concatenate([session.run({name: classifier.tensor(data)})[0] for data in pictures]).astype(np.float64)
    finally:
        classifier.close()
        session.close()
        path.unlink()
