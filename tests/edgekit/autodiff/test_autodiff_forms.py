"""Forms that were chosen for their speed give what the plain ones give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgekit.autodiff.builder import GraphBuilder
from edgekit.autodiff.interfaces import Optimiser
from edgekit.autodiff.manifest import MANIFEST
from edgekit.autodiff.optimisers import AdamW, Sgd
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.step import build_step
from tests.edgekit.autodiff import networks
from tests.edgekit.autodiff.checking import check_gradients, on_runtime, one_operator, relative
from tests.edgekit.autodiff.losses import CrossEntropy

RNG = np.random.default_rng(4)


def few_pixels(size: int, stride: int = 1) -> onnx.ModelProto:
    """Two convolutions, of which the second has many weights and few pixels, and a head."""
    n = networks.Network(1, channels=8, size=size)
    y = n.node("Relu", n.cbn("x", "a", 128, 1))
    y = n.node("Relu", n.cbn(y, "b", 128, 3, stride))
    return n.build(n.linear(n.head(y), "fc", 4))


def feeds(size: int, count: int = 3) -> dict[str, Any]:
    return {"x": RNG.normal(size=(count, 8, size, size)).astype(np.float32), "labels": RNG.integers(0, 4, count)}


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (7, 2)])
def test_a_frozen_convolution_of_few_pixels_gives_what_the_model_gives(size: int, stride: int, tmp_path: Path) -> None:
    model, fed = few_pixels(size, stride), feeds(size)
    output = model.graph.output[0].name
    step = build_step(model, CrossEntropy(), Sgd(), "^fc", outputs=(output,))
    assert sum(node.op_type == "Conv" for node in step.graph.graph.node) == 1
    step.save(tmp_path / "step")
    found = StepRunner(tmp_path / "step").step({**fed, "learning_rate": 0.0})[output]
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": fed["x"]})[0]
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "group", "bias", "norms"),
    [
        (9, 3, 1, 1, False, 2),  # forward, and once backward
        (9, 3, 2, 4, True, 2),
        (16, 3, 1, 1, True, 1),  # backward it is a convolution of every channel
        (16, 1, 1, 4, False, 1),
        (4, 5, 1, 1, False, 3),  # the weight is the larger tensor: forward, and twice backward
    ],
)
def test_a_normalisation_that_leaves_its_scale_to_the_convolution_has_the_same_gradients(
    size: int, kernel: int, stride: int, group: int, bias: bool, norms: int
) -> None:
    n = networks.Network(2, channels=4, size=size)
    y = n.relu6(n.norm(n.conv("x", "a", 4, kernel, stride, group, bias), "bn"))
    model = n.build(n.linear(n.head(y), "fc", 3))
    x = RNG.normal(1, 2, size=(3, 4, size, size)).astype(np.float32)
    step = check_gradients(model, x, batch_norm="train")
    assert sum(node.op_type == "BatchNormalization" for node in step.graph.graph.node) == norms


@pytest.mark.parametrize("trained", ["^a", "^(a|b.bn|fc)", "^(b.conv|fc)", "^(b.bn|fc)"])
def test_what_is_frozen_does_not_change_the_gradients_of_the_rest(trained: str) -> None:
    n = networks.Network(3, channels=4, size=16)
    y = n.relu(n.cbn(n.relu(n.cbn("x", "a", 4)), "b", 6, 3, 2))
    model = n.build(n.linear(n.head(y), "fc", 3))
    fed: dict[str, Any] = {
        "x": RNG.normal(size=(3, 4, 16, 16)).astype(np.float32),
        "labels": RNG.integers(0, 3, 3),
    }
    whole, part = (build_step(model, CrossEntropy(), None, which, batch_norm="train") for which in (".*", trained))
    if trained == "^a":  # otherwise the first normalisation stays frozen
        wanted, found = (on_runtime(one.graph, {**fed, **one.initial}) for one in (whole, part))
        for name in part.manifest.gradients:
            assert relative(found[f"{name}.gradient"], wanted[f"{name}.gradient"], 1e-4) < 1e-4, name
    else:
        check_gradients(model, fed["x"], trainable=trained, batch_norm="train")


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_product_that_adds_to_the_momentum_follows_the_formula(nesterov: bool, tmp_path: Path) -> None:
    model, fed = few_pixels(2), feeds(2)
    build_step(model, CrossEntropy(), None, batch_norm="train").save(tmp_path / "gradients")
    build_step(model, CrossEntropy(), Sgd(momentum=0.8, nesterov=nesterov), batch_norm="train").save(tmp_path / "step")
    oracle, runner = StepRunner(tmp_path / "gradients"), StepRunner(tmp_path / "step")
    shapes = {one.name: one.shape for one in runner.manifest.of("optimiser")}
    assert shapes["b.conv.weight.momentum"] == (128, 128 * 9)
    weights = {one.name: runner.states()[one.name] for one in runner.manifest.of("parameter")}
    velocity = {name: np.zeros_like(array) for name, array in weights.items()}
    for rate in (0.1, 0.05, 0.2):
        oracle.load(weights)
        for name, gradient in oracle.gradients(fed)[1].items():
            velocity[name] = np.float32(0.8) * velocity[name] + gradient
            step = gradient + np.float32(0.8) * velocity[name] if nesterov else velocity[name]
            weights[name] = weights[name] - np.float32(rate) * step
        runner.step({**fed, "learning_rate": rate})
        for name, array in weights.items():
            np.testing.assert_allclose(runner.states()[name], array, rtol=2e-4, atol=2e-5, err_msg=name)
        runner.load(weights)


@pytest.mark.parametrize("optimiser", [Sgd(), Sgd(nesterov=True, weight_decay=0.01), AdamW()])
def test_states_that_are_written_over_end_as_those_that_are_not(optimiser: Optimiser, tmp_path: Path) -> None:
    model = few_pixels(2)
    for name in ("over", "beside"):
        build_step(model, CrossEntropy(), optimiser, batch_norm="train").save(tmp_path / name)
    path = tmp_path / "beside" / MANIFEST
    path.write_text(path.read_text("utf-8").replace('"in_place": true', '"in_place": false'), "utf-8")
    runners = [StepRunner(tmp_path / name) for name in ("over", "beside")]
    assert all(one.in_place for one in runners[0].manifest.of("optimiser"))
    assert not any(one.in_place for one in (*runners[0].manifest.of("parameter"), *runners[1].manifest.states))
    for _ in range(4):
        fed = feeds(2)
        losses = [runner.step({**fed, "learning_rate": 0.05})["loss"] for runner in runners]
        assert losses[0] == losses[1]
    assert all(np.array_equal(array, runners[1].states()[name]) for name, array in runners[0].states().items())


def test_a_state_is_written_over_only_where_nothing_else_can_read_it_later() -> None:
    b = GraphBuilder()
    fed = b.input("fed", (4, 4))
    states = {name: b.state(name, np.ones((4, 4), np.float32)) for name in ("sum", "twice", "moved", "left", "third")}
    half = b.scalar(0.5, 2)
    b.update("sum", b.add(b.mul(states["sum"], half), fed))
    b.update("twice", b.add(b.mul(states["twice"], half), states["twice"]))
    b.update("moved", b.add(b.transpose(states["moved"], [1, 0]), fed))
    b.update("left", b.emit("Gemm", [states["left"], fed]))
    b.update("third", b.emit("Gemm", [fed, fed, states["third"]], {"beta": 0.5}))
    assert {name for name in states if b.in_place(name)} == {"sum", "third"}


@pytest.mark.parametrize("stride", [1, 2])
def test_rows_of_a_depthwise_kernel_that_see_only_padding_have_no_gradient(stride: int) -> None:
    attributes = {"group": 3, "dilations": [9, 1], "pads": [9, 1, 9, 2], "strides": [stride, stride]}
    weights = {"w": RNG.normal(size=(3, 1, 3, 3)).astype(np.float32)}
    model = one_operator("Conv", (2, 3, 8, 9), weights, attributes)
    check_gradients(model, RNG.normal(size=(2, 3, 8, 9)).astype(np.float32))


@pytest.mark.parametrize(("stride", "pads"), [(2, [1, 1, 1, 1]), (1, [2, 0, 1, 1])])
def test_padding_is_never_the_maximum_of_a_pool(stride: int, pads: list[int]) -> None:
    attributes = {
        "kernel_shape": [3, 3],
        "strides": [stride, stride],
        "pads": pads,
    }
    x = -np.abs(RNG.normal(size=(2, 3, 8, 9))).astype(np.float32) - 1
    check_gradients(one_operator("MaxPool", (2, 3, 8, 9), {}, attributes), x)
