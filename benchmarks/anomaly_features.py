"""Feature maps for the anomaly benchmark without a foreign model: a built-in network's, trained or not, and OpenCV's.

Each extractor turns a picture [side, side, 3] (RGB) into a map [side / 8, side / 8, d].
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.solder import MERGE, joints
from cloudd.train import Job, Training, Wishes, begin, choose, divide
from cloudd.train.recipe import Symmetry
from edgekit.architectures import Spec, build
from edgekit.datasets.dataset import Dataset
from edgekit.runtimes import SessionOptions, open_session

STRIDE = 8  # pixels of a place
_SEED = 0
_HEAD = "head."  # its weights belong to the classes that were trained
_SCALES = (1.0, 2.0, 4.0)  # pixels, of the Gaussian that a picture is smoothed by
_TRAINED_SIDE = 64  # pixels of the pictures that the network learned from

Pixels = NDArray[np.uint8]
Maps = NDArray[np.float32]


class Extractor(Protocol):
    """What makes a map of a picture."""

    name: str

    def __call__(self, picture: Pixels) -> Maps: ...


class Statistics:
    """Colour, local contrast and, at three scales, the three products of gradients and the Laplacian: 18 values."""

    name = "statistics"

    def __call__(self, picture: Pixels) -> Maps:
        """Means over the pixels of a place; squares as their roots, so that contrast enters once."""
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        layers: list[NDArray[Any]] = [channel.astype(np.float32) / 255 for channel in cv2.split(picture)]
        squares = []
        for scale in _SCALES:
            smooth = cv2.GaussianBlur(grey, (0, 0), scale)
            across, down = (cv2.Sobel(smooth, cv2.CV_32F, dx, 1 - dx, scale=scale / 8) for dx in (1, 0))
            layers.append(np.abs(cv2.Laplacian(smooth, cv2.CV_32F, scale=scale * scale)))
            layers.append(across * down)
            squares += [across * across, down * down, (grey - smooth) ** 2]
        means = [_pooled(layer) for layer in layers] + [np.sqrt(_pooled(layer)) for layer in squares]
        return np.stack(means, axis=2)


class Network:
    """The last three stages of the built-in `tiny_cnn`, each brought to one grid: 192 values a place."""

    def __init__(self, name: str, weights: Mapping[str, NDArray[Any]], side: int) -> None:
        """`weights` by name; those that are not given keep their seeded initial value."""
        import onnx
        import onnx.numpy_helper

        self.name = name
        spec = Spec(architecture="tiny_cnn", classes=2, input_width=side, input_height=side, channels=1, seed=_SEED)
        model = build(spec).model
        for tensor in model.graph.initializer:
            if tensor.name in weights and not tensor.name.startswith(_HEAD):
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
        stages = [node.output[0] for node in model.graph.node if node.op_type == "Relu"][-3:]
        del model.graph.output[:]
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in stages)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "features.onnx"
            path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
            self._session = open_session(path, "onnxruntime", SessionOptions(threads=1))

    def __call__(self, picture: Pixels) -> Maps:
        """As the trainer shows it a picture: grey, -1 to 1."""
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) / 127.5 - 1
        side = len(grey) // STRIDE
        found = []
        for stage in self._session.run({self._session.inputs[0].name: grey[None, None]}):
            planes = np.ascontiguousarray(stage[0].transpose(1, 2, 0))
            found.append(cv2.resize(planes, (side, side), interpolation=cv2.INTER_AREA))
        # A place knows a little of its neighbours, as in Roth et al. 2022.
        return np.concatenate([cv2.blur(planes, (3, 3)) for planes in found], axis=2)


def solder_weights(root: Path, epochs: int) -> dict[str, NDArray[Any]]:
    """Of `tiny_cnn`, trained on solder joints: another product than any that is judged here."""
    return trained_weights(joints(root), epochs, MERGE)


def trained_weights(
    dataset: Dataset, epochs: int, merge: dict[str, str] | None = None, symmetry: Symmetry = "none"
) -> dict[str, NDArray[Any]]:
    """Of a `tiny_cnn` that the product's own training step makes of grey pictures with 64 pixels a side."""
    side = (_TRAINED_SIDE, _TRAINED_SIDE)
    wishes = Wishes(architecture="tiny_cnn", size=side, colour="grey", epochs=epochs, seed=_SEED, symmetry=symmetry)
    with tempfile.TemporaryDirectory() as directory:
        job = Job(
            name="features",
            version="1",
            source="",
            group="",
            merge=merge or {},
            digest=dataset.digest,
            recipe=choose(dataset, divide(dataset).train, wishes),
        )
        folder = begin(job, Path(directory))
        with Training(job, dataset, folder, threads=1, clock=time.perf_counter) as training:
            for _ in training.run():
                pass
            return dict(training.weights())


def _pooled(layer: NDArray[Any]) -> NDArray[np.float32]:
    side = (layer.shape[1] // STRIDE, layer.shape[0] // STRIDE)
    return np.asarray(cv2.resize(layer, side, interpolation=cv2.INTER_AREA), np.float32)
