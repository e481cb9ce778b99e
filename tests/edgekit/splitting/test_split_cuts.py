"""Where a model can be cut: the graphs of real networks, everything that is not live, and files that are hostile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from split_models import CHANNELS, SIDE, conv, kernels, networks, save, value

from benchmarks.adapt_models import mobilenet_v2, residual
from edgekit.runtimes import ModelError
from edgekit.splitting.cuts import Cut, CutTable, candidates, find_cuts
from edgekit.splitting.graph import read_graph

RELU = helper.make_node("Relu", ["a"], ["b"])
W1, W2 = kernels("w1", CHANNELS, 3), kernels("w2", CHANNELS, CHANNELS, seed=1)


def cuts_of(path: Path, max_tensors: int = 4) -> CutTable:
    return find_cuts(read_graph(path), max_tensors)


def crossing(table: CutTable) -> list[set[str]]:
    return [{tensor.name for tensor in cut.tensors} for cut in table.cuts]


def test_mobilenet_v2_has_49_cuts_of_one_tensor(tmp_path: Path) -> None:
    mobilenet_v2(tmp_path / "m.onnx")
    table = cuts_of(tmp_path / "m.onnx")
    assert len(table.cuts) == 49
    assert {len(cut.tensors) for cut in table.cuts} == {1}
    assert table.macs == pytest.approx(300e6, rel=0.01)  # Sandler et al. 2018, table 4, without the large classifier


def test_resnet_18_has_21_cuts_and_none_inside_a_residual_block(tmp_path: Path) -> None:
    residual(tmp_path / "m.onnx")
    graph = read_graph(tmp_path / "m.onnx")
    table = find_cuts(graph)
    assert len(table.cuts) == 21
    sums = {node.outputs[0] for node in graph.nodes if len(set(node.inputs) - graph.constants) == 2}
    inside = [cut for cut in table.cuts if cut.tensors[0].name not in sums]
    kinds = [graph.model.graph.node[graph.producers[cut.tensors[0].name]].op_type for cut in inside]
    assert kinds == ["Conv", "Relu", "MaxPool", *["Relu"] * 8, "GlobalAveragePool", "Flatten"]


def test_work_grows_from_cut_to_cut_and_bytes_follow_the_shapes(tmp_path: Path) -> None:
    residual(tmp_path / "m.onnx", side=64)
    cuts = cuts_of(tmp_path / "m.onnx").cuts
    works = [cut.work for cut in cuts]
    assert works == sorted(set(works))
    assert works[0] > 0 and works[-1] < 1
    assert cuts[0].tensors[0].shape == (1, 32, 32, 32)
    assert (cuts[0].bytes, cuts[0].wire_bytes) == (4 * 32**3, 32**3)
    assert cuts[-1].tensors[0].shape == (1, 256)


def test_candidates_are_the_cuts_that_no_earlier_one_undercuts(tmp_path: Path) -> None:
    mobilenet_v2(tmp_path / "m.onnx")
    front = candidates(cuts_of(tmp_path / "m.onnx").cuts)
    assert [cut.tensors[0].shape[1:] for cut in front] == [
        (32, 112, 112),
        (16, 112, 112),
        (24, 56, 56),
        (32, 28, 28),
        (64, 14, 14),
        (160, 7, 7),
        (1280,),
    ]
    assert front[0].index == 2  # after the first convolution's activation, not before it


def u_net(path: Path, skip: int) -> Path:
    """One skip of `skip` channels over a bottleneck of one channel and half the side."""
    nodes = [
        conv("x", "w1", "a"),
        helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        conv("p", "narrow", "n"),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Resize", ["r", "", "scales"], ["u"], mode="nearest"),
        helper.make_node("Concat", ["a", "u"], ["c"], axis=1),
        conv("c", "last", "y"),
    ]
    weights = [
        kernels("w1", skip, 3),
        kernels("narrow", 1, skip),
        kernels("last", CHANNELS, skip + 1),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
    ]
    return save(path, nodes, weights)


def test_a_cut_of_several_tensors_is_dropped_when_an_earlier_one_has_fewer_bytes(tmp_path: Path) -> None:
    assert crossing(cuts_of(u_net(tmp_path / "m.onnx", 4))) == [{"a"}, {"c"}]


def test_a_cut_of_several_tensors_stays_when_it_has_the_fewest_bytes(tmp_path: Path) -> None:
    nodes = [
        conv("x", "w1", "wide"),
        conv("wide", "left", "l", strides=[2, 2]),
        conv("wide", "right", "r", strides=[3, 3]),
        helper.make_node("Relu", ["l"], ["l2"]),
        helper.make_node("GlobalMaxPool", ["l2"], ["l3"]),
        helper.make_node("GlobalMaxPool", ["r"], ["r3"]),
        helper.make_node("Concat", ["l3", "r3"], ["y"], axis=1),
    ]
    weights = [kernels("w1", 8, 3), kernels("left", 2, 8), kernels("right", 2, 8)]
    path = save(tmp_path / "m.onnx", nodes, weights, outputs=[value("y", 1, 4, 1, 1)])
    assert crossing(cuts_of(path)) == [{"wide"}, {"r", "l2"}, {"r", "l3"}, {"l3", "r3"}]
    assert crossing(cuts_of(path, max_tensors=1)) == [{"wide"}]


def test_nothing_is_cut_before_the_first_convolution(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), conv("a", "w1", "b"), helper.make_node("Relu", ["b"], ["y"])]
    table = cuts_of(save(tmp_path / "m.onnx", nodes, [W1]))
    assert crossing(table) == [{"b"}]
    assert [(one.after, one.places) for one in table.refused] == [("a", 1)]
    assert "the picture itself" in table.refused[0].reason


def test_a_model_that_reads_the_picture_again_is_cut_only_after_that(tmp_path: Path) -> None:
    nodes = [
        conv("x", "w1", "a"),
        RELU,
        helper.make_node("Concat", ["b", "x"], ["c"], axis=1),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    table = cuts_of(save(tmp_path / "m.onnx", nodes, [W1], outputs=[value("y", 1, CHANNELS + 3, SIDE, SIDE)]))
    assert crossing(table) == [{"c"}]
    assert table.refused[0].reason == "the tail needs the picture itself"
    assert table.refused[0].places == 2


def test_a_small_second_input_may_cross(tmp_path: Path) -> None:
    nodes = [conv("x", "w1", "a"), RELU, helper.make_node("Mul", ["b", "gain"], ["y"])]
    inputs = [value("gain", 1), value("x", 1, 3, SIDE, SIDE)]
    table = cuts_of(save(tmp_path / "m.onnx", nodes, [W1], inputs=inputs))
    assert crossing(table) == [{"gain", "a"}, {"gain", "b"}]


def test_weights_and_what_follows_from_them_never_cross(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["gain"], value=numpy_helper.from_array(np.float32(2.0))),
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"]),
        helper.make_node("Mul", ["w", "gain"], ["w_gain"]),
        conv("x", "w_gain", "a"),
        RELU,
        helper.make_node("Mul", ["b", "gain"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.ones((CHANNELS, 3, 3, 3), np.int8), "w8"),
        numpy_helper.from_array(np.float32(0.1), "scale"),
    ]
    table = cuts_of(save(tmp_path / "m.onnx", nodes, weights))
    assert crossing(table) == [{"a"}, {"b"}]
    assert table.macs == SIDE * SIDE * CHANNELS * 27


def test_weights_that_are_listed_as_inputs_are_weights(tmp_path: Path) -> None:
    inputs = [value("x", 1, 3, SIDE, SIDE), value("w1", CHANNELS, 3, 3, 3)]
    nodes = [conv("x", "w1", "a"), helper.make_node("Relu", ["a"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [W1], inputs=inputs, ir_version=3)
    assert read_graph(path).inputs == ["x"]
    assert crossing(cuts_of(path)) == [{"a"}]


def flattened(path: Path, batch: int | str = "n") -> Path:
    """`x.view(x.size(0), -1)` as exporters write it: the shape is computed beside the data."""
    nodes = [
        conv("x", "w1", "a"),
        helper.make_node("Shape", ["a"], ["s"], start=0, end=1),
        helper.make_node("Concat", ["s", "rest"], ["target"], axis=0),
        RELU,
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("Reshape", ["c", "target"], ["f"]),
        helper.make_node("Relu", ["f"], ["y"]),
    ]
    weights = [W1, numpy_helper.from_array(np.array([-1], np.int64), "rest")]
    return save(
        path,
        nodes,
        weights,
        inputs=[value("x", batch, 3, SIDE, SIDE)],
        outputs=[value("y", batch, CHANNELS * SIDE * SIDE)],
    )


def test_the_shape_of_a_tensor_is_a_constant_and_an_open_batch_is_one(tmp_path: Path) -> None:
    table = cuts_of(flattened(tmp_path / "m.onnx"))
    assert crossing(table) == [{"a"}, {"b"}, {"c"}, {"f"}]
    assert table.cuts[-1].tensors[0].shape == (1, CHANNELS * SIDE * SIDE)


def test_shapes_fix_open_sides(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [conv("x", "w1", "a"), helper.make_node("Relu", ["a"], ["y"])],
        [W1],
        inputs=[value("x", "n", 3, "h", "w")],
        outputs=[value("y", "n", CHANNELS, "h", "w")],
    )
    with pytest.raises(ModelError, match='dimension 2 of the input "x" is open'):
        read_graph(path)
    cut = find_cuts(read_graph(path, {"x": [1, 3, 20, 30]})).cuts[0]
    assert cut.tensors[0].shape == (1, CHANNELS, 20, 30)
    for shapes, complaint in (
        ({"z": [1]}, 'no input "z"'),
        ({"x": [1, 3, 20]}, "has 4 dimensions, not 3"),
        ({"x": [1, 1, 20, 30]}, "dimension 1 .* is 3 in the model, not 1"),
        ({"x": [1, 3, 20, -1]}, "dimension 3 .* is open"),
    ):
        with pytest.raises(ModelError, match=complaint):
            read_graph(path, shapes)


def branching(path: Path) -> Path:
    """An If whose branches take the map "a" and the weight "w2" from outside."""
    bodies = {
        f"{name}_branch": helper.make_graph(
            [conv("a", "w2", "inner"), helper.make_node(kind, ["inner"], [f"{name}_out"])],
            name,
            [],
            [value(f"{name}_out", 1, CHANNELS, SIDE, SIDE)],
        )
        for name, kind in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [
        conv("x", "w1", "a"),
        helper.make_node("ReduceMax", ["a"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "limit"], ["bright"]),
        helper.make_node("If", ["bright"], ["i"], **bodies),
        helper.make_node("Relu", ["i"], ["y"]),
    ]
    return save(path, nodes, [W1, W2, numpy_helper.from_array(np.float32(0.5), "limit")])


def test_a_subgraph_is_one_opaque_node_and_what_it_takes_from_outside_crosses(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    graph = read_graph(path)
    assert crossing(find_cuts(graph)) == [{"a"}, {"i"}]
    assert {"bright", "a", "w2"} == set(graph.nodes[-2].inputs)


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    nodes = [conv("x", "w1", "a"), RELU, conv("b", "w2", "c"), helper.make_node("Relu", ["c"], ["y"])]
    straight = cuts_of(save(tmp_path / "a.onnx", nodes, [W1, W2]))
    assert cuts_of(save(tmp_path / "b.onnx", nodes[::-1], [W1, W2])) == straight
    assert crossing(straight) == [{"a"}, {"b"}, {"c"}]


def test_unused_nodes_make_no_cut(tmp_path: Path) -> None:
    nodes = [conv("x", "w1", "a"), helper.make_node("Neg", ["a"], ["unused"]), RELU, conv("b", "w2", "y")]
    assert crossing(cuts_of(save(tmp_path / "m.onnx", nodes, [W1, W2]))) == [{"a"}, {"b"}]


def test_a_tensor_of_unknown_size_is_not_cut(tmp_path: Path) -> None:
    nodes = [
        conv("x", "w1", "a"),
        helper.make_node("NonZero", ["a"], ["where"]),
        helper.make_node("Cast", ["where"], ["y"], to=TensorProto.FLOAT),
    ]
    table = cuts_of(save(tmp_path / "m.onnx", nodes, [W1], outputs=[value("y", 4, "found")]))
    assert crossing(table) == [{"a"}]
    assert "not known before the model runs" in table.refused[0].reason


def test_shapes_behind_operators_of_onnxruntime_are_known(tmp_path: Path) -> None:
    nodes = [
        conv("x", "w1", "a"),
        helper.make_node("Gelu", ["a"], ["b"], domain="com.microsoft"),
        conv("b", "w2", "c"),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    table = cuts_of(save(tmp_path / "m.onnx", nodes, [W1, W2], domains=["com.microsoft"]))
    assert crossing(table) == [{"a"}, {"b"}, {"c"}]
    assert table.macs == SIDE * SIDE * CHANNELS * 9 * (3 + CHANNELS)


def test_a_quantised_tensor_crosses_with_one_byte_a_value(tmp_path: Path) -> None:
    nodes = [
        conv("x", "w1", "a"),
        helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        conv("d", "w2", "y"),
    ]
    weights = [
        kernels("w1", 64, 3),
        kernels("w2", 64, 64),
        numpy_helper.from_array(np.float32(0.1), "scale"),
        numpy_helper.from_array(np.uint8(128), "zero"),
    ]
    cuts = cuts_of(save(tmp_path / "m.onnx", nodes, weights, outputs=[value("y", 1, 64, SIDE, SIDE)])).cuts
    values = 64 * SIDE * SIDE
    assert [(cut.tensors[0].dtype, cut.bytes, cut.wire_bytes) for cut in cuts] == [
        ("float32", 4 * values, values),
        ("uint8", values, values),
        ("float32", 4 * values, values),
    ]
    assert [cut.tensors[0].name for cut in candidates(cuts)] == ["q"]


def test_an_impossible_graph_is_refused(tmp_path: Path) -> None:
    circle = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        RELU,
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    with pytest.raises(ModelError, match="circle"):
        read_graph(save(tmp_path / "m.onnx", circle))
    twice = [RELU, helper.make_node("Neg", ["x"], ["b"]), helper.make_node("Relu", ["b"], ["y"])]
    with pytest.raises(ModelError, match='two nodes of the model write the tensor "b"'):
        read_graph(save(tmp_path / "m.onnx", twice))
    endless = helper.make_function(
        "own",
        "Endless",
        ["p"],
        ["q"],
        [helper.make_node("Endless", ["p"], ["q"], domain="own")],
        [helper.make_opsetid("own", 1)],
    )
    call = [helper.make_node("Endless", ["x"], ["y"], domain="own")]
    with pytest.raises(ModelError, match="cannot be followed"):
        read_graph(save(tmp_path / "m.onnx", call, domains=["own"], functions=[endless]))


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model\n")
    model = save(tmp_path / "m.onnx", [conv("x", "w1", "y")], [W1])
    (tmp_path / "link.onnx").symlink_to(model)
    (tmp_path / "bytes.onnx").write_bytes(model.read_bytes().replace(b"w1", b"w\xff"))
    for name, complaint in (
        ("text.onnx", "is not an ONNX model"),
        ("link.onnx", "not a regular file"),
        ("missing.onnx", "cannot be read"),
        ("bytes.onnx", "not UTF-8"),
    ):
        with pytest.raises(ModelError, match=complaint):
            read_graph(tmp_path / name)


def test_a_graph_with_thousands_of_branches_is_read_in_linear_time(tmp_path: Path) -> None:
    nodes = [conv("x", "w1", "a")]
    nodes += [helper.make_node("Relu", ["a"], [f"b{index}"]) for index in range(5000)]
    outputs = [value(f"b{index}", 1, CHANNELS, SIDE, SIDE) for index in range(5000)]
    table = cuts_of(save(tmp_path / "m.onnx", nodes, [W1], outputs=outputs))
    assert crossing(table) == [{"a"}]
    assert [(one.places, one.reason) for one in table.refused] == [(4996, "more than 4 tensors cross")]


@settings(max_examples=40)
@given(networks(), st.data())
def test_a_damaged_file_gives_cuts_or_a_model_error(
    tmp_path_factory: pytest.TempPathFactory, model: onnx.ModelProto, data: st.DataObject
) -> None:
    content = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "m.onnx"
    path.write_bytes(content)
    try:
        table = cuts_of(path)
    except ModelError:
        return
    assert all(isinstance(cut, Cut) and cut.bytes > 0 for cut in table.cuts)


@given(networks())
def test_every_cut_of_one_tensor_lies_on_every_way_from_the_picture_to_an_output(
    tmp_path_factory: pytest.TempPathFactory, model: onnx.ModelProto
) -> None:
    path = tmp_path_factory.mktemp("drawn") / "m.onnx"
    path.write_bytes(model.SerializeToString())
    ways = _ways(model)
    through = {name for name in set.intersection(*ways) if name != "x"}
    ends = {one.name for one in model.graph.output}
    found = {cut.tensors[0].name for cut in cuts_of(path).cuts if len(cut.tensors) == 1}
    assert found == through - ends if len(ends) == 1 else found <= through


def _ways(model: onnx.ModelProto) -> list[set[str]]:
    """Every way from an output back to the input, as the set of tensors on it."""
    producers = {node.output[0]: node for node in model.graph.node}

    def back(name: str) -> list[set[str]]:
        if name == "x":
            return [{"x"}]
        inputs = [one for one in producers[name].input if not one.startswith("w")]
        return [{name} | way for one in inputs for way in back(one)]

    return [way for output in model.graph.output for way in back(output.name)]
