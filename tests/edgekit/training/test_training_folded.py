"""Folding: the same answers with fewer nodes, and nothing is folded that somebody else needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.architectures import Spec, build
from edgekit.training.folded import LIMIT, difference, fold, normalisations

SIDE = 6


def model(
    nodes: Sequence[onnx.NodeProto], weights: dict[str, NDArray[Any]], shape: Sequence[int], outputs: Sequence[str]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * (1 + len(shape))) for name in outputs],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def statistics(rng: np.random.Generator, channels: int, name: str = "") -> dict[str, NDArray[Any]]:
    return {
        f"scale{name}": rng.uniform(-2, 2, channels),
        f"shift{name}": rng.normal(size=channels),
        f"mean{name}": rng.normal(size=channels),
        f"variance{name}": rng.uniform(0.01, 3, channels),
    }


def norm(source: str, target: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    names = [f"{one}{name}" for one in ("scale", "shift", "mean", "variance")]
    return helper.make_node("BatchNormalization", [source, *names], [target], **attributes)


def run(made: onnx.ModelProto, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[NDArray[np.float32]] = onnxruntime.InferenceSession(made.SerializeToString(), options).run(
        None, {"x": x}
    )
    return found


def check_same(made: onnx.ModelProto, shape: Sequence[int], left: int) -> onnx.ModelProto:
    small = fold(made)
    onnx.checker.check_model(small)
    assert normalisations(small) == left
    x = np.random.default_rng(5).normal(size=(2, *shape)).astype(np.float32)
    for one, other in zip(run(small, x), run(made, x), strict=True):
        assert difference(one, other) < 1e-4
    return small


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["Conv", "ConvTranspose"]),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    biased=st.booleans(),
    epsilon=st.sampled_from([1e-5, 1e-2]),
)
def test_a_convolution_takes_its_normalisation_in(
    seed: int, kind: str, groups: int, kernel: int, stride: int, biased: bool, epsilon: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = (6, 4 // groups, kernel, kernel) if kind == "Conv" else (4, 6 // groups, kernel, kernel)
    weights = {"w": rng.normal(size=shape), **statistics(rng, 6)} | ({"b": rng.normal(size=6)} if biased else {})
    layer = helper.make_node(
        kind, ["x", "w", *(["b"] if biased else [])], ["y"], group=groups, strides=[stride] * 2, pads=[kernel // 2] * 4
    )
    made = model([layer, norm("y", "z", epsilon=epsilon)], weights, (4, SIDE, SIDE), ["z"])
    check_same(made, (4, SIDE, SIDE), 1 if kind == "ConvTranspose" and groups > 1 else 0)


@pytest.mark.parametrize("turned", [0, 1])
def test_a_dense_layer_takes_its_normalisation_in(turned: int) -> None:
    rng = np.random.default_rng(2)
    weights = {"w": rng.normal(size=(6, 5) if turned else (5, 6)), "b": rng.normal(size=6), **statistics(rng, 6)}
    layer = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=turned)
    check_same(model([layer, norm("y", "z")], weights, (5,), ["z"]), (5,), 0)


def test_one_weight_of_two_layers_is_folded_for_each_of_them() -> None:
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(size=(4, 4, 1, 1)), **statistics(rng, 4, "1"), **statistics(rng, 4, "2")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        norm("a", "b", "1"),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        norm("c", "d", "2"),
    ]
    small = check_same(model(nodes, weights, (4, SIDE, SIDE), ["d"]), (4, SIDE, SIDE), 0)
    assert sorted(one.name for one in small.graph.initializer) == ["b.bias", "b.weight", "d.bias", "d.weight"]


@pytest.mark.parametrize("why", ["an addition", "another reader", "an output", "a computed weight", "training"])
def test_a_normalisation_stays_where_it_cannot_be_taken_in(why: str) -> None:
    rng = np.random.default_rng(4)
    weights = {"w": rng.normal(size=(4, 4, 1, 1)), **statistics(rng, 4)}
    nodes, outputs = [helper.make_node("Conv", ["x", "w"], ["y"])], ["z"]
    source = "y"
    if why == "an addition":
        nodes.append(helper.make_node("Add", ["y", "x"], ["s"]))
        source = "s"
    elif why == "another reader":
        nodes.append(helper.make_node("Relu", ["y"], ["r"]))
        outputs.append("r")
    elif why == "an output":
        outputs.append("y")
    elif why == "a computed weight":
        nodes[0].input[1] = "v"
        nodes.insert(0, helper.make_node("Neg", ["w"], ["v"]))
    made = model([*nodes, norm(source, "z")], weights, (4, SIDE, SIDE), outputs)
    if why == "training":
        made.graph.node[-1].attribute.append(helper.make_attribute("training_mode", 1))
        assert normalisations(fold(made)) == 1
    else:
        check_same(made, (4, SIDE, SIDE), 1)


@pytest.mark.parametrize("architecture", ["tiny_cnn", "resnet18", "mobilenet_v2"])
def test_the_built_in_classifiers_fold_whole(architecture: Any) -> None:
    spec = Spec(architecture=architecture, classes=3, input_width=32, input_height=32, width=0.25)
    made = build(spec).model
    small = fold(made)
    assert normalisations(made) > 0 == normalisations(small)
    x = np.random.default_rng(1).random((1, 3, 32, 32), np.float32)
    feeds = [onnxruntime.InferenceSession(one.SerializeToString()).run(None, {"image": x})[0] for one in (made, small)]
    assert difference(feeds[1], feeds[0]) < LIMIT
    assert [one.name for one in small.graph.input] == ["image"] and small.graph.output == made.graph.output


def test_a_difference_is_a_share_of_the_largest_value_and_never_hides_what_is_no_number() -> None:
    one = np.array([1.0, 4.0])
    assert difference(one, one) == 0 and difference(one, np.array([1.0, 5.0])) == pytest.approx(0.2)
    assert difference(one, np.array([1.0, np.nan])) == difference(one, np.ones(3)) == np.inf
    assert difference(one, np.zeros(2)) == 4.0
