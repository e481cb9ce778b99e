"""Steps on ONNX graphs, and the last layer of classifiers: what is left computes what it did before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from numpy.typing import NDArray

from edgekit.graphs.editing import attributes, called, copied, drop_unused, free_name, keep_outputs, nested, read_from
from edgekit.graphs.errors import NetworkError
from edgekit.graphs.logits import keep_logits, last_layer
from edgekit.runtimes import open_session

CLASSES, FEATURES = 3, 4
make = onnx.helper.make_node
X = np.random.default_rng(5).normal(size=(2, FEATURES)).astype(np.float32)


def array(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    return onnx.numpy_helper.from_array(values, name)


def model(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], outputs: tuple[str, ...] = ("last",)
) -> onnx.ModelProto:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("x", onnx.TensorProto.FLOAT, ["n", FEATURES])],
        [info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        weights,
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def run(tried: onnx.ModelProto, folder: Path) -> list[NDArray[np.float32]]:
    (folder / "m.onnx").write_bytes(tried.SerializeToString())
    return open_session(folder / "m.onnx", "onnxruntime").run({"x": X})


def two_headed(last: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    """A classifier with a second output that has a weight of its own, and a Softmax behind its logits."""
    nodes = [
        make("Relu", ["x"], ["bent"]),
        *(last or [make("Gemm", ["bent", "w", "b"], ["last"], transB=1)]),
        make("MatMul", ["x", "other"], ["aside"]),
        make("Softmax", ["last"], ["shares"]),
    ]
    weights = [array("w", CLASSES, FEATURES), array("b", CLASSES), array("other", FEATURES, 1)]
    return model(nodes, weights, ("aside", "shares"))


def test_what_the_outputs_do_not_need_is_gone_and_the_others_answer_as_before(tmp_path: Path) -> None:
    whole = two_headed()
    expected = run(whole, tmp_path)
    small = copied(whole)
    keep_outputs(small, ["shares"])
    assert [node.op_type for node in small.graph.node] == ["Relu", "Gemm", "Softmax"]
    assert {one.name for one in small.graph.initializer} == {"w", "b"}
    np.testing.assert_array_equal(run(small, tmp_path)[0], expected[1])
    assert [one.name for one in whole.graph.output] == ["aside", "shares"], "the copy alone was changed"


def test_outputs_come_in_the_order_that_is_asked_for() -> None:
    turned = two_headed()
    keep_outputs(turned, ["shares", "aside"])
    assert [one.name for one in turned.graph.output] == ["shares", "aside"]
    with pytest.raises(NetworkError, match='no output "gone"'):
        keep_outputs(turned, ["gone"])


def test_a_graph_can_be_cut_at_a_value_inside() -> None:
    cut = two_headed()
    drop_unused(cut, ["bent"])
    assert [node.op_type for node in cut.graph.node] == ["Relu"] and not cut.graph.initializer


def test_logits_are_what_the_softmax_gets(tmp_path: Path) -> None:
    whole = two_headed()
    shares = run(whole, tmp_path)[1]
    assert keep_logits(whole, "shares", probabilities=True) == "last"
    (logits,) = run(whole, tmp_path)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), shares, atol=1e-6)


def test_probabilities_of_something_else_have_no_logits() -> None:
    with pytest.raises(NetworkError, match=r"made by MatMul \(aside\); only those of a Softmax"):
        keep_logits(two_headed(), "aside", probabilities=True)
    kept = two_headed()
    assert keep_logits(kept, "shares", probabilities=False) == "shares", "it says that these are logits"


def test_a_last_layer_is_read_as_rows_of_classes() -> None:
    layer = last_layer(two_headed().graph, "last")
    assert layer.features == "bent" and layer.bias_node is None
    np.testing.assert_array_equal(layer.weight, onnx.numpy_helper.to_array(array("w", CLASSES, FEATURES)))
    np.testing.assert_array_equal(layer.bias, onnx.numpy_helper.to_array(array("b", CLASSES)))


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([make("Softmax", ["bent"], ["last"])], r"made by Softmax \(last\)"),
        ([make("Gemm", ["bent", "w", "b"], ["last"], transB=1, alpha=2.0)], "Gemm with factors"),
        ([make("Relu", ["w"], ["made"]), make("Gemm", ["bent", "made"], ["last"], transB=1)], "are computed"),
        ([make("Gemm", ["bent", "w", "bent"], ["last"], transB=1)], "bias bent is no list"),
        ([make("Gemm", ["bent", "w", "other"], ["last"], transB=1)], "bias other is no list"),
        ([make("MatMul", ["bent", "w"], ["p"]), make("Add", ["p", "bent"], ["last"])], "bias bent is no list"),
        ([make("MatMul", ["bent", "b"], ["last"])], "are no matrix"),
    ],
)
def test_a_last_layer_that_cannot_be_made_anew_is_refused_with_the_reason(
    nodes: list[onnx.NodeProto], says: str
) -> None:
    with pytest.raises(NetworkError, match=says):
        last_layer(two_headed(nodes).graph, "last")


def test_a_name_that_is_taken_gets_a_number() -> None:
    assert free_name("w", {"v"}) == "w"
    assert free_name("w", {"w", "w.2"}) == "w.3"


def test_inner_graphs_are_seen() -> None:
    inner = onnx.helper.make_graph([make("Relu", ["x"], ["y"])], "inner", [], [])
    node = make("If", ["flag"], ["last"], then_branch=inner, else_branch=inner)
    assert nested(model([node], []).graph)
    assert not nested(two_headed().graph)


def test_a_node_is_called_by_its_operator_and_its_name_or_value() -> None:
    assert called(None) == "nothing"
    assert called(make("Relu", ["x"], ["y"], name="first")) == "Relu (first)"
    assert called(make("Relu", ["x"], ["y"])) == "Relu (y)"
    assert attributes(make("Gemm", ["a", "b"], ["c"], transB=1)) == {"transB": 1}


def test_a_weight_can_lie_in_a_file_beside_the_model(tmp_path: Path) -> None:
    whole = two_headed()
    expected = run(whole, tmp_path)
    data = bytes(8)
    for tensor in whole.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).tobytes()
        read_from(tensor, "weights.bin", len(data), len(values))
        data += values
    (tmp_path / "weights.bin").write_bytes(data)
    (tmp_path / "m.onnx").write_bytes(whole.SerializeToString())
    found = open_session(tmp_path / "m.onnx", "onnxruntime", files=["weights.bin"]).run({"x": X})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
