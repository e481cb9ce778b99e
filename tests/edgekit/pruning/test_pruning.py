"""Taking channels out of a graph: what is left computes what the whole does with those channels silenced."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.architectures import Spec, build
from edgekit.pruning import importance, reader, surgery
from edgekit.pruning.channels import Channels
from edgekit.pruning.errors import PruningError
from edgekit.runtimes import open_session

SIDE = 16


class Net:
    """Collects nodes and weights."""

    def __init__(self, seed: int = 1) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def weight(self, *shape: int, least: float | None = None) -> str:
        name = f"w{len(self.weights)}"
        array = self._rng.normal(0, 1 / math.sqrt(max(1, math.prod(shape[1:]))), shape)
        self.weights.append(numpy_helper.from_array((np.abs(array) + least if least else array).astype("f4"), name))
        return name

    def constant(self, array: NDArray[np.int64]) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"n{len(self.nodes)}", **attributes))
        return output

    def conv(self, x: str, into: int, out: int, kernel: int = 3, groups: int = 1, bias: bool = True) -> str:
        pads = [kernel // 2] * 4
        weights = [self.weight(out, into // groups, kernel, kernel), *([self.weight(out)] if bias else [])]
        return self.node("Conv", x, *weights, pads=pads, group=groups)

    def norm(self, x: str, channels: int) -> str:
        scales = [self.weight(channels, least=0.5), self.weight(channels), self.weight(channels)]
        return self.node("BatchNormalization", x, *scales, self.weight(channels, least=0.5))

    def dense(self, x: str, into: int, out: int, turned: bool = False) -> str:
        weight = self.weight(out, into) if turned else self.weight(into, out)
        return self.node("Gemm", x, weight, self.weight(out), transB=int(turned))

    def model(self, output: str, classes: int = 4) -> onnx.ModelProto:
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "g",
            [info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
            [info(output, TensorProto.FLOAT, ["batch", classes])],
            self.weights,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        made.ir_version = 9
        return made


def plain() -> onnx.ModelProto:
    """Convolution, normalisation, pooling, flattening of 4 x 4 pixels, two dense layers."""
    net = Net()
    x = net.node("Relu", net.norm(net.conv("x", 3, 16, bias=False), 16))
    x = net.node("MaxPool", net.conv(x, 16, 24), kernel_shape=[4, 4], strides=[4, 4])
    x = net.node("Relu", net.dense(net.node("Flatten", x), 24 * 16, 32))
    return net.model(net.dense(x, 32, 4, turned=True))


def residual() -> onnx.ModelProto:
    """Two branches that are added, one of them the input of the other; the mean as a reduction."""
    net = Net(2)
    x = net.node("Relu", net.conv("x", 3, 16))
    y = net.conv(net.node("Relu", net.norm(net.conv(x, 16, 24), 24)), 24, 16)
    x = net.node("Relu", net.node("Add", x, y))
    x = net.node("ReduceMean", x, net.constant(np.array([2, 3])), keepdims=0)
    return net.model(net.dense(x, 16, 4))


def depthwise() -> onnx.ModelProto:
    """An inverted residual with ReLU6, and the shape of a flattening with numbers in it."""
    net = Net(3)
    x = net.conv("x", 3, 16)
    low, high = net.weight(), net.weight(least=6.0)
    y = net.node("Clip", net.conv(x, 16, 32, kernel=1), low, high)
    y = net.node("Clip", net.norm(net.conv(y, 32, 32, groups=32, bias=False), 32), low, high)
    x = net.node("Add", x, net.conv(y, 32, 16, kernel=1))
    x = net.node("Reshape", net.node("GlobalAveragePool", x), net.constant(np.array([-1, 16])))
    return net.model(net.dense(x, 16, 4))


def gated() -> onnx.ModelProto:
    """Squeeze and excitation: channels are multiplied by what was made of their means."""
    net = Net(4)
    x = net.node("HardSwish", net.conv("x", 3, 16))
    gate = net.node("Relu", net.conv(net.node("GlobalAveragePool", x), 16, 8, kernel=1))
    x = net.node("Mul", x, net.node("HardSigmoid", net.conv(gate, 8, 16, kernel=1)))
    return net.model(net.dense(net.node("Flatten", net.node("GlobalAveragePool", x)), 16, 4))


def joined() -> onnx.ModelProto:
    """Concatenation of two branches, a depthwise convolution of two outputs a channel, one constant a channel."""
    net = Net(5)
    x = net.node("Concat", net.conv("x", 3, 8), net.conv("x", 3, 16, kernel=1), axis=1)
    x = net.node("Relu", net.conv(x, 24, 48, groups=24))
    x = net.node("Mul", x, net.weight(48, 1, 1))
    x = net.node("GlobalAveragePool", net.conv(x, 48, 16, kernel=1))
    return net.model(net.dense(net.node("Squeeze", x, net.constant(np.array([2, 3]))), 16, 4))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    one.__name__: one for one in (plain, residual, depthwise, gated, joined)
}


def answers(model: onnx.ModelProto, path: Path, count: int = 3) -> NDArray[np.float32]:
    onnx.save(model, str(path))
    session = open_session(path, "onnxruntime")
    x = np.random.default_rng(7).normal(0, 1, (count, 3, SIDE, SIDE)).astype(np.float32)
    return np.asarray(session.run({session.inputs[0].name: x})[0])


def silenced(model: onnx.ModelProto, channels: Channels, gone: set[int]) -> onnx.ModelProto:
    """The whole model with zeros wherever a layer reads a channel that goes: what pruning must amount to."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = {one.name: one for one in copy.graph.initializer}
    for layer in channels.layers:
        array = numpy_helper.to_array(tensors[layer.weight]).copy()
        places = [place for place, unit in enumerate(channels.slots[layer.weight, layer.axis]) if unit in gone]
        np.moveaxis(array, layer.axis, 0)[places] = 0
        tensors[layer.weight].CopyFrom(numpy_helper.from_array(array, layer.weight))
    return copy


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_what_is_left_computes_what_the_whole_does_without_those_channels(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = surgery.tidied(NETWORKS[name]())
    channels = reader.read_channels(model)
    gone: set[int] = set()
    for group in channels.groups:
        some = data.draw(st.sets(st.sampled_from(group.units), max_size=len(group.units) - 1))
        gone |= some
    small = surgery.without(model, channels, gone)
    folder = tmp_path_factory.mktemp("pruned")
    want = answers(silenced(model, channels, gone), folder / "whole.onnx")
    np.testing.assert_allclose(answers(small, folder / "small.onnx"), want, atol=1e-4)


def test_a_residual_addition_ties_the_channels_of_both_branches() -> None:
    channels = reader.read_channels(surgery.tidied(residual()))
    widths = {group.layers: len(group.units) for group in channels.groups}
    assert widths == {("n0", "n5"): 16, ("n2",): 24}


def test_a_depthwise_convolution_goes_with_the_channels_that_it_filters() -> None:
    model = surgery.tidied(depthwise())
    channels = reader.read_channels(model)
    scores = {unit: float(number) for group in channels.groups for number, unit in enumerate(group.units)}
    small = surgery.without(model, channels, importance.least(channels, scores, 0.5))
    node = next(one for one in small.graph.node if reader.attribute(one, "group", 1) > 1)
    weight = next(one for one in small.graph.initializer if one.name == node.input[1])
    assert reader.attribute(node, "group") == weight.dims[0] == 16 and weight.dims[1] == 1


def test_equal_weights_that_an_exporter_kept_once_are_cut_each_by_its_own_channels(tmp_path: Path) -> None:
    net = Net()
    shared = net.weight(16)
    x = net.node("Conv", "x", net.weight(16, 3, 3, 3), shared)
    x = net.node("Conv", x, net.weight(16, 16, 3, 3), shared)
    model = net.model(net.dense(net.node("Flatten", net.node("GlobalAveragePool", x)), 16, 4))
    tidied = surgery.tidied(model)
    channels = reader.read_channels(tidied)
    first, second = channels.groups
    small = surgery.without(tidied, channels, {*first.units[:8], *second.units[8:12]})
    assert [list(one.dims) for one in small.graph.initializer if one.name.startswith(shared)] == [[12], [8]]
    assert np.isfinite(answers(small, tmp_path / "small.onnx")).all()


def test_the_least_important_channels_go_first_and_dead_ones_before_all() -> None:
    model = surgery.tidied(plain())
    channels = reader.read_channels(model)
    squares = {name: np.ones(len(channels.tensors[name])) for name in channels.measured}
    dead = channels.layers[1]  # the second convolution reads the first one's 16 channels
    squares[dead.reads][[3, 5]] = 0.0
    scores = importance.importance(model, channels, squares)
    gone = importance.least(channels, scores, 0.5)
    units = channels.slots[dead.weight, dead.axis]
    assert {units[3], units[5]} <= gone
    assert sum(unit in gone for unit in units) == 8


def test_importance_does_not_change_when_a_channel_is_scaled_up_and_its_reader_down() -> None:
    model = surgery.tidied(plain())
    channels = reader.read_channels(model)
    rng = np.random.default_rng(1)
    squares = {name: rng.uniform(0.1, 1, len(channels.tensors[name])) for name in channels.measured}
    before = importance.importance(model, channels, squares)
    layer = channels.layers[1]
    factor = rng.uniform(0.1, 10, len(squares[layer.reads]))
    squares[layer.reads] = squares[layer.reads] * factor**2
    tensor = next(one for one in model.graph.initializer if one.name == layer.weight)
    array = numpy_helper.to_array(tensor) / factor.reshape(1, -1, 1, 1)
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    assert importance.importance(model, channels, squares) == pytest.approx(before, rel=1e-5)


@given(st.integers(1, 2048), st.floats(0.05, 1.0))
def test_a_width_is_a_multiple_that_processors_like_and_not_far_below_what_was_asked(count: int, keep: float) -> None:
    left = importance.width(count, keep)
    assert 1 <= left <= count and left >= min(count, 0.9 * count * keep)
    assert left == count or left % (16 if count >= 64 else 8) == 0


@pytest.mark.parametrize("architecture", ["tiny_cnn", "resnet18", "mobilenet_v2"])
def test_the_built_in_classifiers_become_narrower_in_every_layer(
    architecture: Literal["tiny_cnn", "resnet18", "mobilenet_v2"],
) -> None:
    spec = Spec(architecture=architecture, classes=4, input_width=32, input_height=32, width=0.5)
    model = surgery.tidied(build(spec).model)
    channels = reader.read_channels(model)
    scores = {unit: float(number) for group in channels.groups for number, unit in enumerate(group.units)}
    small = surgery.without(model, channels, importance.least(channels, scores, 0.5))
    size, whole = (sum(math.prod(one.dims) for one in each.graph.initializer) for each in (small, model))
    assert size < 0.4 * whole
    layers = [one for one in model.graph.node if one.op_type == "Conv"]
    assert {name for group in channels.groups for name in group.layers} == {one.name for one in layers}


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("Transpose", {"perm": [0, 1, 3, 2]}),
        ("DepthToSpace", {"blocksize": 2}),
        ("Split", {"axis": 1, "num_outputs": 1}),
    ],
)
def test_an_operator_that_is_not_understood_is_refused_by_the_name_of_its_node(
    kind: str, attributes: dict[str, object]
) -> None:
    net = Net()
    x = net.node(kind, net.conv("x", 3, 16), **attributes)
    x = net.node("Flatten", net.node("GlobalAveragePool", x))
    model = surgery.tidied(net.model(x, classes=4 if kind == "DepthToSpace" else 16))
    with pytest.raises(PruningError, match=rf'around the node "n1" \({kind}\): how it carries channels is not known'):
        reader.read_channels(model)


def test_an_unknown_operator_before_the_first_layer_is_in_nobodys_way() -> None:
    net = Net()
    x = net.node("Transpose", "x", perm=[0, 1, 3, 2])
    x = net.node("GlobalAveragePool", net.conv(x, 3, 16))
    model = surgery.tidied(net.model(net.dense(net.node("Flatten", x), 16, 4)))
    assert [len(group.units) for group in reader.read_channels(model).groups] == [16]


def test_a_weight_that_is_computed_while_the_model_runs_is_refused() -> None:
    net = Net()
    net.nodes.append(helper.make_node("Relu", [net.weight(16, 3, 3, 3)], ["w"], name="made"))
    x = net.node("Conv", "x", "w")
    model = surgery.tidied(net.model(net.dense(net.node("Flatten", net.node("GlobalAveragePool", x)), 16, 4)))
    with pytest.raises(PruningError, match=r'the node "n1" \(Conv\): its weight "w" is computed'):
        reader.read_channels(model)


def test_grouped_convolutions_and_outputs_keep_their_channels() -> None:
    net = Net()
    x = net.conv(net.conv("x", 3, 16), 16, 16, groups=4)
    x = net.node("Flatten", net.node("GlobalAveragePool", net.conv(x, 16, 4)))
    model = surgery.tidied(net.model(net.node("Softmax", x)))
    channels = reader.read_channels(model)
    assert channels.groups == ()
    with pytest.raises(PruningError, match="no channels to take away: the widths that may change are none"):
        importance.least(channels, {}, 0.5)


def test_activations_that_are_not_finite_rank_nothing() -> None:
    model = surgery.tidied(plain())
    channels = reader.read_channels(model)
    squares = {name: np.full(len(channels.tensors[name]), np.nan) for name in channels.measured}
    with pytest.raises(PruningError, match="were not measured, or are not finite"):
        importance.importance(model, channels, squares)


def test_control_flow_is_refused() -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "i", [], [helper.make_empty_tensor_value_info("z")]
    )
    net = Net()
    net.node("If", "x", then_branch=inner, else_branch=inner)
    with pytest.raises(PruningError, match="control flow"):
        surgery.tidied(net.model("t0"))
