"""Foreign ONNX files whose answers a test can predict: they sort pictures by mean brightness, dark first.

Convolution, BatchNormalization, mean, linear layer: logit i is -sharpness (m - c_i)^2 + sharpness m^2 of the mean
brightness m in 0..1, c_i = (i + 0.5) / labels. Pixels must come as 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cloudd.importing import Outcome
from tests.support.models import picture

Take = Callable[..., Outcome]
"""The fixture `take`."""
SIDE = 16
LABELS = ("dark", "middle", "bright")
SHARPNESS = 60.0


def brightness(
    *,
    ending: str = "",
    middle: str = "",
    listed: bool = False,
    sides: tuple[int | str, int | str] = (SIDE, SIDE),
    batch: int | str = "n",
    twice: bool = False,
) -> onnx.ModelProto:
    """`ending`: a last operator. `middle`: one before the mean. `listed`: weights among the inputs, as in IR 3.
    `twice`: a second output of the same shape."""
    count = len(LABELS)
    centres = (np.arange(count, dtype=np.float32) + 0.5) / count
    weights = {
        "conv.weight": np.full((4, 3, 1, 1), 1 / 3),
        "bn.weight": np.ones(4),
        "bn.bias": np.zeros(4),
        "bn.running_mean": np.zeros(4),
        "bn.running_var": np.ones(4),
        "fc.weight": np.repeat((2 * SHARPNESS * centres)[:, None] / 4, 4, 1),
        "fc.bias": -SHARPNESS * centres**2,
    }
    norm = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    options: dict[str, Any] = {"LRN": {"size": 3, "alpha": 1e-9}}.get(middle, {})
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", *norm], ["b"], name="bn", epsilon=1e-6),
        *([helper.make_node(middle, ["b"], ["m"], name=f"the_{middle}", **options)] if middle else []),
        helper.make_node("GlobalAveragePool", ["m" if middle else "b"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["z" if ending else "answer"], name="fc", transB=1),
        *([helper.make_node(ending, ["z"], ["answer"], name="last")] if ending else []),
        *([helper.make_node("Neg", ["answer"], ["other"], name="neg")] if twice else []),
    ]
    tensors = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, *sides])]
    if listed:
        inputs += [helper.make_tensor_value_info(one.name, TensorProto.FLOAT, list(one.dims)) for one in tensors]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, count])
        for name in ("answer", "other")[: 1 + twice]
    ]
    graph = helper.make_graph(nodes, "brightness", inputs, outputs, tensors)
    opset = 8 if listed else 17
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if listed else 8)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def pictures(root: Path, labelled: bool = True, each: int = 8) -> Path:
    """A folder a label, or one folder."""
    for index, label in enumerate(LABELS):
        folder = root / label if labelled else root
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            level = (index + 0.3 + 0.4 * number / each) / len(LABELS)
            (folder / f"{label}-{number}.png").write_bytes(picture(level, seed=100 * index + number))
    return root
