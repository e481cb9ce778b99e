"""Checks derived gradients: in float64 by the reference evaluator against differences, in float32 on onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgekit.autodiff.step import TrainStep, build_step
from tests.edgekit.autodiff.exact import OPERATORS
from tests.edgekit.autodiff.losses import Weighted

Arrays = Mapping[str, NDArray[Any]]


def one_operator(
    op: str,
    x_shape: Sequence[int],
    weights: Arrays | None = None,
    attributes: Mapping[str, Any] | None = None,
    inputs: Sequence[str] | None = None,
    opset: int = 18,
    outputs: int = 1,
) -> onnx.ModelProto:
    """A model of one operator on x * gate, so that the gradient of the weight `gate` is that of the operator's input.

    `weights` are float weights and integer constants by name; `inputs` says in which order, "x" for the gated input.
    """
    rng = np.random.default_rng(7)
    arrays = dict(weights or {})
    order = list(inputs or ["x", *arrays])
    nodes = [helper.make_node("Mul", ["x", "gate"], ["gated"])]
    names = ["gated" if name == "x" else name for name in order]
    made = [f"out{index}" for index in range(outputs)]
    nodes.append(helper.make_node(op, names, made, **(attributes or {})))
    last = made[0]
    if outputs > 1:  # everything but the first output counts twice
        nodes.append(helper.make_node("Concat", made, ["joined"], axis=(attributes or {}).get("axis", 0)))
        last = "joined"
    nodes.append(helper.make_node("Identity", [last], ["logits"]))
    gate = rng.uniform(0.5, 1.5, x_shape[1:]).astype(np.float32)
    initializers = [numpy_helper.from_array(gate, "gate")]
    for name, array in arrays.items():
        array = np.asarray(array)
        initializers.append(
            numpy_helper.from_array(array.astype(np.float32) if array.dtype.kind == "f" else array, name)
        )
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *x_shape[1:]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float64, for the reference evaluator."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node in copy.graph.node:
        if node.op_type == "Resize":  # its scales stay float32
            continue
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1), "value")))
    for info in [*copy.graph.input, *copy.graph.output]:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    return copy


def exactly(model: onnx.ModelProto) -> ReferenceEvaluator:
    """An evaluator of the graph in float64."""
    return ReferenceEvaluator(in_double(model), new_ops=OPERATORS)


def evaluate(model: onnx.ModelProto, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """All outputs in float64."""
    wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in feeds.items()}
    names = [one.name for one in model.graph.output]
    used = {one.name for one in model.graph.input}
    found = exactly(model).run(None, {k: v for k, v in wide.items() if k in used})
    return dict(zip(names, found, strict=True))


def on_runtime(model: onnx.ModelProto, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """All outputs of stock onnxruntime with the optimisations that a runner uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [one.name for one in session.get_outputs()]
    used = {one.name for one in session.get_inputs()}
    return dict(zip(names, session.run(None, {k: v for k, v in feeds.items() if k in used}), strict=True))


def relative(found: NDArray[Any], wanted: NDArray[Any], floor: float = 1e-6) -> float:
    """Largest error as a part of the largest value."""
    if not wanted.size:
        return 0.0
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), floor))


def check_gradients(model: onnx.ModelProto, x: NDArray[Any], **options: Any) -> TrainStep:
    """Of all weights: float64 against differences along a direction, onnxruntime's float32 against float64."""
    step = build_step(model, Weighted(), None, **options)
    onnx.checker.check_model(step.graph)
    rng = np.random.default_rng(3)
    shape = exactly(model).run(None, {"x": x.astype(np.float64)})[0].shape
    feeds: dict[str, NDArray[Any]] = {"x": x, "seed": rng.normal(size=shape).astype(np.float32), **step.initial}
    exact = evaluate(step.graph, feeds)
    fast = on_runtime(step.graph, feeds)
    wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in feeds.items()}
    loss = exactly(step.graph)
    used = {one.name for one in step.graph.graph.input}
    single = any(node.op_type in ("Erf", "Gelu") for node in step.graph.graph.node)
    largest = max(float(np.abs(exact[f"{name}.gradient"]).max()) for name in step.manifest.gradients)
    for name in step.manifest.gradients:
        gradient = exact[f"{name}.gradient"]
        direction = rng.normal(size=gradient.shape)
        # onnx evaluates Erf in float32 whatever its input is, so a step must be wide to be seen.
        width, close = (1e-2, 1e-3) if single else (1e-6, 1e-5)
        ends = []
        for sign in (1.0, -1.0):
            moved = {k: v for k, v in wide.items() if k in used}
            moved[name] = wide[name] + sign * width * direction
            ends.append(float(np.asarray(loss.run(["loss"], moved)[0]).sum()))
        slope, wanted = (ends[0] - ends[1]) / (2 * width), float((gradient * direction).sum())
        scale = max(float(np.abs(gradient * direction).sum()), 1e-3)
        assert abs(slope - wanted) <= close * scale + 1e-7, f"{name}: differences {slope}, derived {wanted}"
        error = relative(fast[f"{name}.gradient"], gradient, floor=1e-2 * largest)
        assert error < 1e-4, f"{name}: onnxruntime is {error:.1e} away"
    return step
