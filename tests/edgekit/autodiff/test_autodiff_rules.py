"""Every operator's gradient equals differences in float64, and onnxruntime's equals that within 1e-4."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgekit.autodiff import rules
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.step import build_step
from tests.edgekit.autodiff.checking import check_gradients, evaluate, on_runtime, one_operator, relative
from tests.edgekit.autodiff.losses import Weighted

RNG = np.random.default_rng(1)
MORE = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


PLAIN = [
    *(
        "Relu",
        "Sigmoid",
        "Tanh",
        "Softplus",
        "Softsign",
        "HardSwish",
        "HardSigmoid",
        "LeakyRelu",
        "Elu",
        "Celu",
        "Selu",
    ),
    *("Mish", "Neg", "Exp", "Abs", "Sin", "Cos", "Atan", "Erf", "Softmax", "LogSoftmax", "Identity", "Flatten"),
    *(
        "GlobalAveragePool",
        "GlobalMaxPool",
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "ReduceL1",
        "ReduceL2",
    ),
    *("ReduceSumSquare", "ReduceLogSumExp", "Transpose", "LpNormalization"),
]
POSITIVE = ["Log", "Sqrt", "Reciprocal"]
CASES: dict[str, tuple[Any, ...]] = {
    "Gelu": ("Gelu", (3, 4, 5, 6), {}, {}, None, 20),
    "Gelu tanh": ("Gelu", (3, 4, 5, 6), {}, {"approximate": "tanh"}, None, 20),
    "Add broadcast": ("Add", (3, 4, 5, 6), {"w": normal(4, 1, 6)}),
    "Sub from": ("Sub", (3, 4, 5, 6), {"w": normal(4, 1, 1)}, {}, ["w", "x"]),
    "Mul by more axes": ("Mul", (3, 4, 5), {"w": normal(2, 1, 4, 1)}),
    "Div": ("Div", (3, 4, 5, 6), {"w": np.abs(normal(6)) + 1}),
    "Div by": ("Div", (3, 4), {"w": normal(4)}, {}, ["w", "x"]),
    "Sum": ("Sum", (3, 4, 5), {"w": normal(4, 5), "v": normal(5)}),
    "Mean": ("Mean", (3, 4, 5), {"w": normal(4, 5)}),
    "Max": ("Max", (3, 4, 5), {"w": normal(4, 5)}),
    "Min": ("Min", (3, 4, 5), {"w": normal(4, 1)}),
    "Pow 2": ("Pow", (3, 4), {"e": np.float32(2.0)}),
    "Pow 3": ("Pow", (3, 4), {"e": np.float32(3.0)}),
    "Clip": ("Clip", (3, 4, 5), {"lo": np.float32(-0.5), "hi": np.float32(0.7)}),
    "PRelu": ("PRelu", (3, 4, 5), {"w": normal(4, 1)}),
    "Gemm": ("Gemm", (3, 4), {"w": normal(4, 5), "c": normal(5)}, {"alpha": 0.5, "beta": 2.0}),
    "Gemm turned": ("Gemm", (3, 4), {"w": normal(5, 4), "c": normal(1, 5)}, {"transB": 1}),
    "Gemm left turned": ("Gemm", (3, 4), {"w": normal(3, 5)}, {"transA": 1, "alpha": 2.0}),
    "Gemm both turned": ("Gemm", (3, 4), {"w": normal(5, 3)}, {"transA": 1, "transB": 1}),
    "MatMul of a weight": ("MatMul", (3, 4, 5), {"w": normal(5, 6)}),
    "MatMul by batches": ("MatMul", (3, 4, 5), {"w": normal(1, 5, 6)}),
    "MatMul from the left": ("MatMul", (3, 4, 5), {"w": normal(7, 4)}, {}, ["w", "x"]),
    "Einsum": ("Einsum", (3, 4, 5), {"w": normal(5, 6)}, {"equation": "nij,jk->nki"}),
    "Reshape": ("Reshape", (3, 4, 6), {"s": ints(-1, 8, 3)}),
    "Squeeze": ("Squeeze", (3, 1, 6), {"a": ints(1)}),
    "Unsqueeze": ("Unsqueeze", (3, 4), {"a": ints(1, -1)}),
    "Expand": ("Expand", (3, 1, 4), {"s": ints(2, 1, 5, 4)}),
    "Tile": ("Tile", (3, 4, 2), {"r": ints(1, 3, 2)}),
    "Concat": ("Concat", (3, 4, 5), {"w": normal(3, 2, 5)}, {"axis": 1}),
    "Split": ("Split", (3, 5, 4), {"s": ints(2, 3)}, {"axis": 1}, None, 18, 2),
    "Slice": ("Slice", (3, 6, 5), {"s": ints(1, -4), "e": ints(5, 100), "a": ints(1, 2)}),
    "Slice with a step": ("Slice", (3, 7, 5), {"s": ints(6), "e": ints(-100), "a": ints(1), "p": ints(-2)}),
    "Gather a number": ("Gather", (3, 6, 5), {"i": np.array(-2, np.int64)}, {"axis": 1}),
    "Gather some": ("Gather", (3, 6, 5), {"i": ints(1, 4, 1)}, {"axis": 2}),
    "Pad": ("Pad", (3, 4, 5), {"p": ints(0, 1, 2, 0, 0, 3)}),
    "Transpose": ("Transpose", (3, 4, 5), {}, {"perm": [1, 2, 0]}),
    "DepthToSpace": ("DepthToSpace", (2, 8, 3, 4), {}, {"blocksize": 2}),
    "DepthToSpace CRD": ("DepthToSpace", (2, 8, 3, 4), {}, {"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": ("SpaceToDepth", (2, 3, 4, 6), {}, {"blocksize": 2}),
    "CumSum": ("CumSum", (3, 4), {"a": np.array(1, np.int64)}),
    "InstanceNormalization": ("InstanceNormalization", (3, 4, 5, 6), {"w": normal(4), "c": normal(4)}),
    "LayerNormalization": ("LayerNormalization", (3, 4, 6), {"w": normal(6), "c": normal(6)}, {"axis": -1}),
    "LayerNormalization 2": ("LayerNormalization", (3, 4, 6), {"w": normal(4, 6)}, {"axis": 1}),
    "Where": ("Where", (3, 4), {"q": np.array([True, False, True, False]), "w": normal(4)}, {}, ["q", "x", "w"]),
    "Softmax 1": ("Softmax", (3, 4, 5), {}, {"axis": 1}),
    "ReduceMean some": ("ReduceMean", (3, 4, 5), {"a": ints(1)}, {"keepdims": 0}),
    "ReduceSum batch": ("ReduceSum", (3, 4, 5), {"a": ints(0, 2)}, {"keepdims": 1}),
    "ReduceMean batch": ("ReduceMean", (3, 4, 5), {"a": ints(0, 2)}, {"keepdims": 1}),
    "ReduceMax some": ("ReduceMax", (3, 4, 5), {"a": ints(2)}, {"keepdims": 0}),
}


@pytest.mark.parametrize("op", PLAIN)
def test_gradients_of_plain_operators_equal_differences(op: str) -> None:
    shape = (3, 4, 5, 6)
    opset = 22 if op in ("Mish",) else 18
    check_gradients(one_operator(op, shape, opset=opset), RNG.normal(size=shape).astype(np.float32) * 2)


@pytest.mark.parametrize("op", POSITIVE)
def test_gradients_of_operators_on_positive_numbers_equal_differences(op: str) -> None:
    check_gradients(one_operator(op, (3, 4)), RNG.uniform(0.5, 2, (3, 4)).astype(np.float32))


@pytest.mark.parametrize("case", list(CASES))
def test_gradients_of_operators_with_weights_and_attributes_equal_differences(case: str) -> None:
    op, shape, *rest = CASES[case]
    check_gradients(one_operator(op, shape, *rest), normal(*shape))


@MORE
@given(st.data())
def test_gradients_of_convolutions_equal_differences_over_shapes_strides_groups_and_pads(data: st.DataObject) -> None:
    draw = data.draw
    group = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = group * draw(st.integers(1, 3)), group * draw(st.integers(1, 3))
    if draw(st.booleans()):
        group = inputs = outputs = draw(st.integers(2, 4))
    kernel = [draw(st.integers(1, 3)) for _ in range(2)]
    strides, dilations = ([draw(st.integers(1, 3)) for _ in range(2)] for _ in range(2))
    pads = [draw(st.integers(0, 2)) for _ in range(4)]
    size = [draw(st.integers(4, 8)) for _ in range(2)]
    assume(all(size[i] + pads[i] + pads[i + 2] >= (kernel[i] - 1) * dilations[i] + 1 for i in range(2)))
    weights = {"w": normal(outputs, inputs // group, *kernel)}
    if draw(st.booleans()):
        weights["c"] = normal(outputs)
    attributes = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads, "group": group}
    shape = (2, inputs, *size)
    check_gradients(one_operator("Conv", shape, weights, attributes), normal(*shape))


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_gradients_of_convolutions_with_automatic_pads_equal_differences(pad: str) -> None:
    attributes = {"auto_pad": pad, "strides": [2, 2], "kernel_shape": [3, 3]}
    check_gradients(one_operator("Conv", (2, 3, 7, 8), {"w": normal(4, 3, 3, 3)}, attributes), normal(2, 3, 7, 8))


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride", "size"),
    [
        (128, 128, 3, 1, 3),
        (128, 128, 3, 2, 4),
        (384, 384, 1, 1, 2),
        (384, 384, 1, 2, 4),
        (64, 8, 3, 1, 5),
        (8, 6, 3, 1, 17),
        (3, 4, 3, 2, 33),
        (3, 4, 7, 2, 13),
        (2, 3, 5, 1, 9),
    ],
)
def test_gradients_of_convolutions_in_every_formulation_equal_differences(
    inputs: int, outputs: int, kernel: int, stride: int, size: int
) -> None:
    attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
    weights = {"w": normal(outputs, inputs, kernel, kernel) / 30, "c": normal(outputs)}
    check_gradients(one_operator("Conv", (2, inputs, size, size), weights, attributes), normal(2, inputs, size, size))


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 12), (12, 4)])
def test_gradients_of_pointwise_convolutions_equal_differences(inputs: int, outputs: int) -> None:
    check_gradients(
        one_operator("Conv", (3, inputs, 9, 9), {"w": normal(outputs, inputs, 1, 1)}), normal(3, inputs, 9, 9)
    )


@MORE
@given(st.data())
def test_gradients_of_convolutions_equal_those_of_pytorch(data: st.DataObject) -> None:
    torch = pytest.importorskip("torch")
    draw = data.draw
    kernel, stride, dilation = draw(st.sampled_from([1, 3, 5, 7])), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    pad, size = draw(st.integers(0, 3)), draw(st.integers(13, 24))
    depthwise = draw(st.booleans())
    inputs = draw(st.sampled_from([2, 3, 16, 64]))
    outputs, group = (inputs, inputs) if depthwise else (draw(st.sampled_from([4, 12, 64])), 1)
    attributes = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": [pad] * 4, "group": group}
    weights = {"w": normal(outputs, inputs // group, kernel, kernel), "c": normal(outputs)}
    step = build_step(one_operator("Conv", (2, inputs, size, size), weights, attributes), Weighted(), None)
    x = normal(2, inputs, size, size)
    leaves = {name: torch.from_numpy(array).double().requires_grad_(True) for name, array in step.initial.items()}
    gated = torch.from_numpy(x).double() * leaves["gate"]
    y = torch.nn.functional.conv2d(gated, leaves["w"], leaves["c"], stride, pad, dilation, group)
    seed = RNG.normal(size=y.shape).astype(np.float32)
    (y * torch.from_numpy(seed)).sum().backward()
    found = on_runtime(step.graph, {"x": x, "seed": seed, **step.initial})
    for name, leaf in leaves.items():
        assert relative(found[f"{name}.gradient"], leaf.grad.numpy()) < 1e-4, name


@MORE
@given(st.data())
def test_gradients_of_transposed_convolutions_equal_differences(data: st.DataObject) -> None:
    draw = data.draw
    group = draw(st.sampled_from([1, 2]))
    inputs, outputs = group * draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel, strides = ([draw(st.integers(1, 3)) for _ in range(2)] for _ in range(2))
    pads = [draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4)]
    extra = [draw(st.integers(0, strides[i] - 1)) for i in range(2)]
    size = [draw(st.integers(3, 5)) for _ in range(2)]
    for i in range(2):
        assume((size[i] - 1) * strides[i] + kernel[i] + extra[i] - pads[i] - pads[i + 2] > 0)
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "group": group, "output_padding": extra}
    shape = (2, inputs, *size)
    weights = {"w": normal(inputs, outputs, *kernel), "c": normal(outputs * group)}
    check_gradients(one_operator("ConvTranspose", shape, weights, attributes), normal(*shape))


@MORE
@given(st.data())
def test_gradients_of_pools_equal_differences(data: st.DataObject) -> None:
    draw = data.draw
    op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    kernel, strides = ([draw(st.integers(1, 3)) for _ in range(2)] for _ in range(2))
    pads = [draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4)]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    if op == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    size = [draw(st.integers(3, 8)) for _ in range(2)]
    assume(all(size[i] >= kernel[i] for i in range(2)))
    shape = (2, 3, *size)
    x = RNG.permutation(np.prod(shape)).reshape(shape).astype(np.float32) / 10  # no ties
    check_gradients(one_operator(op, shape, {}, attributes), x)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("scales", [(2.0, 3.0), (1.5, 0.5)])
def test_gradients_of_resizing_equal_differences(mode: str, coordinates: str, scales: tuple[float, float]) -> None:
    weights = {"r": np.array([], np.float32), "s": np.array([1, 1, *scales], np.float32)}
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check_gradients(one_operator("Resize", (2, 3, 4, 6), weights, attributes), normal(2, 3, 4, 6))


def test_gradients_of_the_k_largest_equal_differences() -> None:
    model = one_operator("TopK", (3, 8), {"k": ints(3)}, {"axis": 1})
    model.graph.node[1].output.append("places")
    check_gradients(model, normal(3, 8))


def test_values_that_are_the_maximum_together_share_its_gradient() -> None:
    model = one_operator("MaxPool", (1, 1, 2, 2), {}, {"kernel_shape": [2, 2], "strides": [2, 2]})
    step = build_step(model, Weighted(), None)
    feeds = {"x": np.ones((1, 1, 2, 2), np.float32), "seed": np.ones((1, 1, 1, 1), np.float32)}
    found = evaluate(step.graph, {**feeds, "gate": np.ones((1, 2, 2), np.float32)})
    assert np.allclose(found["gate.gradient"], 0.25)


def test_an_operator_without_a_rule_is_named_with_its_node_and_a_way_out() -> None:
    model = one_operator("Asinh", (3, 4))
    with pytest.raises(
        AutodiffError, match=r"node out0: operator Asinh has no gradient rule\. Freeze everything before it"
    ):
        check_gradients(model, normal(3, 4))


def test_every_rule_is_tested_by_name_here() -> None:
    tested = {*PLAIN, *POSITIVE, *(case[0] for case in CASES.values())}
    tested |= {"TopK", "Conv", "ConvTranspose", "MaxPool", "AveragePool", "Resize"}
    elsewhere = {"BatchNormalization", "GroupNormalization", "Cast", "GatherElements"}
    assert {*rules.RULES, *rules.RULES_OF_MANY} - tested - elsewhere == set()
