"""A last layer that reads earlier maps, too: which ones, in which graphs, and that it says the same as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from numpy.typing import NDArray
from test_train_network import KINDS, classifier, run

from edged.train.network import Network, features
from edged.train.stages import MOST, more_features
from edgekit.architectures import Spec, build

SIDE = 32


def built(architecture: str, width: float = 0.25) -> Network:
    spec = Spec(
        architecture=architecture,  # type: ignore[arg-type]
        classes=3,
        input_width=2 * SIDE,
        input_height=SIDE,
        channels=1,
        width=width,
    )
    return Network(build(spec).model, "image", "logits")


def pictures(height: int, width: int, count: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=(count, 1, height, width)).astype(np.float32)


def exported(open_sides: bool = False) -> onnx.ModelProto:
    """As TensorFlow's exporters write: borders of their own, a squeeze-and-excitation block, a mean without axes."""
    rng = np.random.default_rng(2)
    weights = []

    def weight(name: str, *shape: int) -> str:
        weights.append(onnx.numpy_helper.from_array(rng.normal(0, 0.5, shape).astype(np.float32), name))
        return name

    def ints(name: str, *values: int) -> str:
        weights.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    make = onnx.helper.make_node
    border = ints("border", 0, 0, 0, 0, 0, 0, 1, 1)
    nodes = [
        make("Conv", ["image", weight("w1", 4, 1, 3, 3)], ["c1"], pads=[1, 1, 1, 1]),
        make("Sigmoid", ["c1"], ["s1"]),
        make("Mul", ["c1", "s1"], ["swish"]),
        make("Conv", ["swish", weight("w2", 6, 4, 3, 3)], ["c2"], pads=[1, 1, 1, 1], strides=[2, 2]),
        make("Relu", ["c2"], ["r2"]),
        make("GlobalAveragePool", ["r2"], ["squeezed"]),
        make("Conv", ["squeezed", weight("se", 6, 6, 1, 1)], ["excited"]),
        make("Sigmoid", ["excited"], ["gate"]),
        make("Mul", ["r2", "gate"], ["gated"]),
        make("Pad", ["gated", border], ["padded"]),
        make("Conv", ["padded", weight("w3", 5, 6, 3, 3)], ["c3"], strides=[2, 2]),
        make("Relu", ["c3"], ["r3"]),
        make("ReduceMean", ["r3", ints("axes", 2, 3)], ["row"], keepdims=0),
        make("MatMul", ["row", weight("w", 5, 3)], ["product"]),
        make("Add", ["product", weight("b", 3)], ["last"]),
    ]
    sides: list[str | int] = ["h", "w"] if open_sides else [SIDE, SIDE]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 1, *sides])
    output = onnx.helper.make_tensor_value_info("last", onnx.TensorProto.FLOAT, ["n", 3])
    graph = onnx.helper.make_graph(nodes, "exported", [image], [output], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("architecture", "maps"),
    [
        ("tiny_cnn", ["stage4.relu", "stage3.relu"]),
        ("resnet18", ["stage4.2.relu2", "stage3.2.relu2"]),
        ("mobilenet_v2", ["block14.expand_relu6"]),
    ],
)
def test_the_last_two_resolutions_of_the_built_in_classifiers(
    architecture: str, maps: list[str], tmp_path: Path
) -> None:
    network = built(architecture)
    images = pictures(SIDE, 2 * SIDE)
    wide = network.widened((1, *images.shape[1:]))
    assert wide is not None
    onnx.checker.check_model(wide.model, full_check=True)
    found = more_features(network.model, "image", (1, *images.shape[1:]), network.last_layer().features)
    assert [one.map for one in found] == maps, "of MobileNetV2's 1280 last features there is no room for the maxima"
    np.testing.assert_allclose(run(wide.model, images, tmp_path), run(network.model, images, tmp_path), atol=1e-5)


def test_earlier_maps_are_read_only_as_far_as_there_is_room(tmp_path: Path) -> None:
    """MobileNetV2 has 1280 last features; their maxima would make 2560."""
    network = built("mobilenet_v2", 1.0)
    wide = network.widened((1, 1, SIDE, 2 * SIDE))
    assert wide is not None
    assert wide.last_layer().weight.shape[1] == 1280 + 576 < MOST


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_with_every_kind_of_last_layer(kind: str, tmp_path: Path) -> None:
    network = Network(classifier(kind), "image", "last")
    images = pictures(8, 8)
    wide = network.widened((1, 1, 8, 8))
    assert wide is not None
    onnx.checker.check_model(wide.model, full_check=True)
    old, new = network.last_layer(), wide.last_layer()
    assert new.weight.shape[1] == 2 * old.weight.shape[1], "the mean was there before"
    np.testing.assert_allclose(run(wide.model, images, tmp_path), run(network.model, images, tmp_path), atol=1e-5)
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(5, new.weight.shape[1])), rng.normal(size=5)
    grown = wide.with_last_layer(weight, bias)
    with wide.feature_session(tmp_path / "features", 1) as session:
        rows = np.stack(list(features(session, "image", iter(images[:, None]))))
    np.testing.assert_allclose(run(grown.model, images, tmp_path), rows @ weight.T + bias, atol=1e-5)
    assert wide.widened((1, 1, 8, 8)) is None, "what it reads already it does not read twice"


@pytest.mark.parametrize("open_sides", [False, True])
def test_an_exported_network_is_read_where_its_resolutions_end(open_sides: bool, tmp_path: Path) -> None:
    """Not the padded copy, nor what a squeeze-and-excitation block makes smaller, nor a mean that it reads already."""
    network = Network(exported(open_sides), "image", "last")
    found = more_features(network.model, "image", (1, 1, SIDE, SIDE), "row")
    assert [(one.map, one.channels, one.window, len(one.operators)) for one in found] == [
        ("r3", 5, (1, 1), 1),
        ("gated", 6, (2, 2), 2),
    ]
    wide, images = network.widened((1, 1, SIDE, SIDE)), pictures(SIDE, SIDE)
    assert wide is not None
    np.testing.assert_allclose(run(wide.model, images, tmp_path), run(network.model, images, tmp_path), atol=1e-5)


def test_the_features_are_means_and_maxima_of_places(tmp_path: Path) -> None:
    network = Network(exported(), "image", "last")
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("gated", onnx.TensorProto.FLOAT, None))
    images = pictures(SIDE, SIDE, 1)
    places = run(model, images, tmp_path).reshape(6, 8, 2, 8, 2).mean(axis=(2, 4))
    wide = network.widened((1, 1, SIDE, SIDE))
    assert wide is not None
    with wide.feature_session(tmp_path / "features", 1) as session:
        (row,) = features(session, "image", iter(images[:, None]))
    assert row.shape == (6 + 6 + 5 + 5,)
    np.testing.assert_allclose(row[:6], places.mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(row[6:12], places.max(axis=(1, 2)), atol=1e-5)


def test_a_graph_without_maps_keeps_its_features() -> None:
    make = onnx.helper.make_node
    weights = [
        onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in (("w1", (9, 64)), ("w2", (3, 9)))
    ]
    nodes = [
        make("Flatten", ["image"], ["flat"]),
        make("Gemm", ["flat", "w1"], ["hidden"], transB=1),
        make("Relu", ["hidden"], ["bent"]),
        make("Gemm", ["bent", "w2"], ["last"], transB=1),
    ]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])
    output = onnx.helper.make_tensor_value_info("last", onnx.TensorProto.FLOAT, ["n", 3])
    graph = onnx.helper.make_graph(nodes, "dense", [image], [output], weights)
    network = Network(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), "image", "last")
    assert network.widened((1, 1, 8, 8)) is None
