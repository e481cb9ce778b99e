"""Frozen features as an ONNX graph: nothing in it was learned, so that nothing about it must be brought along.

A place has 8x8 pixels and 18 values: the mean of each colour; of three smoothed copies of the grey picture (Gaussian,
sigma 1, 2 and 4 pixels) the mean size of the Laplacian and the mean product of the two gradients; and the roots of the
mean squares of both gradients and of what the smoothing took away, so that contrast enters once. They are those of
`benchmarks.anomaly_features.Statistics`, which told good parts from others better than a network that was trained on
another product (docs/anomaly.md has the figures). Means and roots are the same on every runtime up to rounding.

What learns adds its own nodes behind `FEATURES` and writes one file, so the features that a device computes are those
that were learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekit import toml
from edgekit.datasets.dataset import Dataset, DatasetError, Picture
from edgekit.packages import InputSpec
from edgekit.runtimes import Session, SessionOptions, open_session
from edgekit.vision.images import ImageError, decode
from edgekit.vision.preprocess import reduced_size

PLACE = 8
"""Pixels along the side of a place."""
VALUES = 18
"""Of one place."""
INPUT, FEATURES = "picture", "features"
"""Tensors [1, 3, height, width], 0..1, and [1, VALUES, height / PLACE, width / PLACE]."""
SMALLEST, LARGEST = 64, 512
"""Pixels of a side of the input: the widest smoothing needs the one, `edgekit.heads.anomaly.MAX_PLACES` the other."""
_SIGMAS = (1.0, 2.0, 4.0)
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
_OPSET, _IR = 18, 9


def input_spec(width: int, height: int) -> InputSpec:
    """What a package with these features says about its input."""
    return InputSpec(width=width, height=height, colour="rgb", mean=[0.0], scale=[1 / 255], name=INPUT)


def decoded(dataset: Dataset, picture: Picture, spec: InputSpec) -> NDArray[np.uint8]:
    """The pixels of a picture as a device decodes it. Raises DatasetError if they cannot be had."""
    try:
        return decode(dataset.read(picture), spec.colour, reduce_to=reduced_size(spec))
    except ImageError as error:
        raise DatasetError(f"{toml.show(picture.file)} cannot be used: {error}") from None


class Graph:
    """Collects one graph behind the features; methods that add a node return the name of its output."""

    def __init__(self, width: int, height: int) -> None:
        """`width` and `height`: pixels, multiples of PLACE within SMALLEST and LARGEST."""
        if any(side % PLACE or not SMALLEST <= side <= LARGEST for side in (width, height)):
            raise ValueError(f"{width}x{height} pixels; multiples of {PLACE} from {SMALLEST} to {LARGEST} belong there")
        self.width, self.height = width, height
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[Any]] = {}
        self._features()

    @property
    def places(self) -> tuple[int, int]:
        """Rows and columns of places."""
        return self.height // PLACE, self.width // PLACE

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """One node with one output."""
        output = name or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def pooled(self, x: str, height: int, width: int) -> str:
        """Means of blocks of height x width values."""
        return self.node("AveragePool", x, kernel_shape=[height, width], strides=[height, width])

    def constant(self, values: NDArray[Any] | Sequence[float] | Sequence[int] | float, dtype: Any = np.float32) -> str:
        """An initialiser."""
        name = f"constant_{len(self._constants)}"
        self._constants[name] = np.ascontiguousarray(np.asarray(values, dtype))
        return name

    def write(self, path: Path, outputs: Mapping[str, Sequence[int]]) -> None:
        """The graph with these outputs (name -> shape) as an ONNX file."""
        picture = helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, [1, 3, self.height, self.width])
        given = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)) for name, shape in outputs.items()
        ]
        constants = [numpy_helper.from_array(values, name) for name, values in self._constants.items()]
        graph = helper.make_graph(self._nodes, "frozen", [picture], given, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="cloudd")
        model.ir_version = _IR
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())

    # --- the features -------------------------------------------------------------------------------------------------

    def _features(self) -> None:
        grey = self.node("Conv", INPUT, self.constant(np.reshape(_GREY, (1, 3, 1, 1))))
        means, squares = [INPUT], []
        for sigma in _SIGMAS:
            smooth = self._smoothed(grey, sigma)
            across, down, laplacian = self._derivatives(smooth, sigma)
            means += [self.node("Abs", laplacian), self.node("Mul", across, down)]
            rest = self.node("Sub", grey, smooth)
            squares += [self.node("Mul", one, one) for one in (across, down, rest)]
        mean = self.pooled(self.node("Concat", *means, axis=1), PLACE, PLACE)
        square = self.pooled(self.node("Concat", *squares, axis=1), PLACE, PLACE)
        self.node("Concat", mean, self.node("Sqrt", square), name=FEATURES, axis=1)

    def _smoothed(self, grey: str, sigma: float) -> str:
        reach = round(4 * sigma)
        at = np.arange(-reach, reach + 1, dtype=np.float64)
        weights = np.exp(-0.5 * np.square(at / sigma))
        weights /= weights.sum()
        padded = self._padded(grey, reach)
        rows = self.node("Conv", padded, self.constant(weights.reshape(1, 1, 1, -1)))
        return self.node("Conv", rows, self.constant(weights.reshape(1, 1, -1, 1)))

    def _derivatives(self, smooth: str, sigma: float) -> tuple[str, str, str]:
        """Sobel's gradients across and down, and the Laplacian, in units of the smoothing."""
        sobel = np.outer([1.0, 2.0, 1.0], [-1.0, 0.0, 1.0]) * (sigma / 8)
        laplace = np.array([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]) * sigma**2
        padded = self._padded(smooth, 1)
        across, down, laplacian = (
            self.node("Conv", padded, self.constant(kernel.reshape(1, 1, 3, 3))) for kernel in (sobel, sobel.T, laplace)
        )
        return across, down, laplacian

    def _padded(self, x: str, by: int) -> str:
        """The picture mirrored at its edges, the outermost pixel once."""
        return self.node("Pad", x, self.constant([0, 0, by, by, 0, 0, by, by], np.int64), mode="reflect")


def open_features(width: int, height: int, folder: Path) -> Session:
    """A session that gives FEATURES; its file is written into `folder`. Raises ModelError."""
    graph = Graph(width, height)
    path = folder / "features.onnx"
    graph.write(path, {FEATURES: (1, VALUES, *graph.places)})
    return open_session(path, "onnxruntime", SessionOptions(threads=1))
