"""What exporters write is understood; what cannot be trained is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.forward import BATCH, read_forward
from edgekit.autodiff.selection import select, trainable_weights
from edgekit.autodiff.step import build_step
from tests.edgekit.autodiff import networks
from tests.edgekit.autodiff.checking import check_gradients
from tests.edgekit.autodiff.losses import CrossEntropy

RNG = np.random.default_rng(2)


def graph(
    nodes: list[Any], weights: dict[str, Any], shape: tuple[Any, ...] = ("N", 3, 4, 4), opset: int = 18
) -> onnx.ModelProto:
    arrays = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "g", inputs, outputs, arrays)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def weight(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def test_shapes_computed_at_run_time_become_constants() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["logits"]),
    ]
    weights = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([48]), "w": weight(48, 5)}
    forward = read_forward(graph(nodes, weights))
    assert forward.outputs["logits"].shape == (BATCH, 5)
    reshape = next(node for node in forward.nodes if node.op == "Reshape")
    assert forward.graph.literal(reshape.inputs[1]).tolist() == [-1, 48]  # type: ignore[union-attr]
    check_gradients(graph(nodes, weights), RNG.normal(size=(3, 3, 4, 4)).astype(np.float32))


def test_sizes_that_are_cast_to_real_numbers_are_computed_with() -> None:
    """As exporters write attention: divided by the root of a width that is read off a shape."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Shape", ["flat"], ["s"], start=1),
        helper.make_node("Cast", ["s"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["real"], ["root"]),
        helper.make_node("Div", ["flat", "root"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "w"], ["logits"]),
    ]
    check_gradients(graph(nodes, {"w": weight(48, 5)}), RNG.normal(size=(3, 3, 4, 4)).astype(np.float32))


def test_a_model_exported_for_one_picture_trains_on_many() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["flat"]), helper.make_node("Gemm", ["flat", "w"], ["logits"])]
    model = graph(nodes, {"s": np.array([1, 48]), "w": weight(48, 4)}, (1, 3, 4, 4))
    step = build_step(model, CrossEntropy(), None)
    assert [one.name for one in step.manifest.states] == ["w"]
    check_gradients(model, RNG.normal(size=(1, 3, 4, 4)).astype(np.float32))


def test_a_transposed_weight_keeps_its_name() -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Transpose", ["fc.weight"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["flat", "t"], ["y"]),
        helper.make_node("Add", ["y", "fc.bias"], ["logits"]),
    ]
    model = graph(nodes, {"fc.weight": weight(4, 48), "fc.bias": weight(4)})
    assert trainable_weights(read_forward(model)) == ["fc.weight", "fc.bias"]
    check_gradients(model, RNG.normal(size=(3, 3, 4, 4)).astype(np.float32))


def test_weights_tied_by_an_exporter_are_trained_apart() -> None:
    names = ["s", "b", "m", "v"]
    nodes = [
        helper.make_node("BatchNormalization", ["x", *names], ["y"]),
        helper.make_node("Identity", ["s"], ["s2"]),
        helper.make_node("BatchNormalization", ["y", "s2", "b", "m", "v"], ["logits"]),
    ]
    model = graph(nodes, {"s": np.ones(3, "f"), "b": np.zeros(3, "f"), "m": np.zeros(3, "f"), "v": np.ones(3, "f")})
    forward = read_forward(model)
    assert trainable_weights(forward) == ["s", "b", "s2", "b_1"]
    for mode in ("frozen", "train"):
        check_gradients(model, RNG.normal(size=(5, 3, 4, 4)).astype(np.float32), batch_norm=mode)


def test_old_operator_versions_are_converted() -> None:
    nodes = [
        helper.make_node("Clip", ["x"], ["y"], min=-0.5, max=0.5),
        helper.make_node("ReduceMean", ["y"], ["z"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["z", "w"], ["logits"]),
    ]
    check_gradients(graph(nodes, {"w": weight(3, 4)}, opset=9), RNG.normal(size=(3, 3, 4, 4)).astype(np.float32))


def test_open_sizes_are_refused_unless_given() -> None:
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["y"]), helper.make_node("Conv", ["y", "w"], ["logits"])]
    model = graph(nodes, {"w": weight(4, 3, 1, 1)}, ("N", 3, "H", "W"))
    with pytest.raises(AutodiffError, match="input x has open sizes"):
        read_forward(model)
    assert read_forward(model, {"x": (3, 8, 8)}).graph.inputs["x"].shape == (BATCH, 3, 8, 8)
    with pytest.raises(AutodiffError, match="no input y"):
        read_forward(model, {"y": (3, 8, 8)})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graph([helper.make_node("Foo", ["x"], ["logits"], domain="acme")], {}), "domain acme"),
        (graph([helper.make_node("Relu", ["y"], ["logits"])], {}), r"node logits \(Relu\) reads y, which no node"),
        (graph([helper.make_node("Nope", ["x"], ["logits"])], {}), r"node logits \(Nope\): operator Nope"),
        (graph([helper.make_node("Relu", ["x"], ["y"])], {}), "output logits is made by no node"),
        (
            graph([helper.make_node("Gemm", ["x", "w"], ["logits"])], {"w": weight(2, 2)}),
            r"\(Gemm\): operator Gemm does not fit",
        ),
        (graph([helper.make_node("Relu", ["x"], ["logits"])], {}, opset=6), "version 6 of the standard operators"),
        (graph([helper.make_node("Relu", ["x"], ["logits"])], {"w": np.zeros(4, np.float64)}), "w is float64"),
        (
            graph([helper.make_node("Add", ["x", "w"], ["logits"])], {"w": np.full((3, 4, 4), np.nan, "f")}),
            "not finite",
        ),
    ],
)
def test_models_that_cannot_be_trained_are_refused_with_the_reason(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(AutodiffError, match=message):
        read_forward(model)


def test_control_flow_is_refused() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["o"])], "b", [], [helper.make_tensor_value_info("o", 1, None)]
    )
    node = helper.make_node("If", ["c"], ["logits"], then_branch=body, else_branch=body)
    with pytest.raises(AutodiffError, match="holds a subgraph"):
        read_forward(graph([node], {"c": np.array(True)}))


def test_a_constant_that_would_fill_the_memory_is_not_evaluated() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["x", "sum"], ["logits"]),
    ]
    read_forward(graph(nodes, {"s": np.array([1 << 20, 1 << 20])}))


def test_a_file_that_is_no_model_and_data_outside_its_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x09hello")
    with pytest.raises(AutodiffError):
        read_forward(tmp_path / "bad.onnx")
    model = graph([helper.make_node("Add", ["x", "w"], ["logits"])], {"w": weight(3, 4, 4)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret.bin"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "out.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(AutodiffError, match="outside its folder"):
        read_forward(tmp_path / "m" / "out.onnx")
    with pytest.raises(AutodiffError, match="external data"):
        read_forward(model)


def test_weights_are_chosen_by_expression_by_name_and_by_predicate() -> None:
    forward = read_forward(networks.small(size=16, bn=True))
    assert select(forward, "^fc2") == ["fc2.weight", "fc2.bias"]
    assert select(forward, ["fc2.bias"]) == ["fc2.bias"]
    assert select(forward, lambda name: name.startswith("fc1")) == ["fc1.weight", "fc1.bias"]
    assert not any("running" in name for name in trainable_weights(forward))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("^nothing", "selects no weight"),
        ("(", "no regular expression"),
        (["fc9.weight"], "fc9.weight is no weight of the model"),
        (["features.0.bn.running_mean"], "is no weight that can be trained"),
    ],
)
def test_a_choice_that_names_nothing_is_refused(wanted: Any, message: str) -> None:
    with pytest.raises(AutodiffError, match=message):
        select(read_forward(networks.small(size=16, bn=True)), wanted)


def test_the_bias_before_a_normalisation_is_not_trained() -> None:
    n = networks.Network(size=8)
    model = n.build(n.linear(n.head(n.norm(n.conv("x", "c", 4, bias=True), "bn")), "fc", 3))
    assert "c.bias" not in trainable_weights(read_forward(model))
