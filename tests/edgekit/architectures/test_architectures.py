from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from edgekit.architectures import ARCHITECTURES, ArchitectureError, Spec, build, detection_spec, input_spec
from edgekit.packages import Manifest, ProofSample, Variant, seal_package
from edgekit.runtimes import SessionOptions, open_session
from edgekit.training import WEIGHTS_FILE, write_model
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector
from edgekit.vision.images import encode_png


def spec(architecture: Any, **other: Any) -> Spec:
    return Spec(**{"architecture": architecture, "classes": 3, "input_width": 64, "input_height": 32, **other})


def parameters(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_answers_any_batch_in_the_shape_that_it_says(
    architecture: str, channels: Any, tmp_path: Path
) -> None:
    network = build(spec(architecture, channels=channels, width=0.5))
    write_model(network.model, tmp_path)
    session = open_session(tmp_path / "model.onnx", "onnxruntime", SessionOptions(), frozenset([WEIGHTS_FILE]))
    for batch in (1, 5):
        image = np.random.default_rng(0).normal(size=(batch, channels, 32, 64)).astype(np.float32)
        for tensor, array in zip(session.outputs, session.run({"image": image}), strict=True):
            assert array.shape == (batch, *tensor.shape[1:])
            assert np.isfinite(array).all()


@pytest.mark.parametrize(
    ("architecture", "millions"), [("tiny_cnn", 0.08), ("resnet18", 11.18), ("mobilenet_v2", 2.23)]
)
def test_a_classifier_has_as_many_parameters_as_its_authors_say(architecture: str, millions: float) -> None:
    network = build(spec(architecture))
    arrays = parameters(network.model)
    count = sum(arrays[name].size for name in network.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_gives_the_same_network_and_another_seed_another_one(architecture: str) -> None:
    first, same, other = (build(spec(architecture, width=0.25, seed=seed)) for seed in (7, 7, 8))
    assert first.model.SerializeToString() == same.model.SerializeToString()
    head = first.blocks[-1].parameters[0]
    assert not np.array_equal(parameters(first.model)[head], parameters(other.model)[head])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_belongs_to_one_block_and_the_head_is_the_last(architecture: str) -> None:
    network = build(spec(architecture, width=0.25))
    names = network.parameters()
    assert len(names) == len(set(names))
    statistics = {
        name for node in network.model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]
    }
    weights = {
        name for name, array in parameters(network.model).items() if array.size > 4 and array.dtype == np.float32
    }
    assert weights - statistics <= set(names)
    assert network.blocks[-1].name == "head"
    assert network.parameters(1) == network.blocks[-1].parameters
    assert set(network.parameters(2)) == {*network.blocks[-2].parameters, *network.blocks[-1].parameters}


@pytest.mark.parametrize("last", [0, 99])
def test_blocks_that_are_not_there_are_refused(last: int) -> None:
    with pytest.raises(ArchitectureError, match=f"{last} blocks were asked for; the network has 1 to 5"):
        build(spec("tiny_cnn")).parameters(last)


def test_signals_neither_vanish_nor_explode_at_first() -> None:
    for architecture in ("tiny_cnn", "resnet18", "mobilenet_v2"):
        model = build(spec(architecture, input_width=64, input_height=64, width=0.5)).model
        last = next(node for node in model.graph.node if node.op_type == "Flatten").output[0]
        model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
        image = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32)
        (features,) = onnxruntime_run(model, image, last)
        assert 1e-3 < features.std() < 1e2, architecture


def onnxruntime_run(model: onnx.ModelProto, image: Any, output: str) -> list[Any]:
    import onnxruntime

    return list(onnxruntime.InferenceSession(model.SerializeToString()).run([output], {"image": image}))


def test_a_centre_point_detector_needs_sides_that_its_cells_divide() -> None:
    with pytest.raises(ArchitectureError, match="multiples of 16 pixels, not 64x40"):
        build(spec("centre_point", input_height=40))


def test_an_untrained_detector_believes_in_almost_nothing() -> None:
    network = build(spec("centre_point"))
    image = np.zeros((1, 3, 32, 64), np.float32)
    (heat,) = onnxruntime_run(network.model, image, "heat")
    assert 1 / (1 + np.exp(-heat.max())) < 0.05


def package(tmp_path: Path, network: Any, **other: Any) -> Any:
    write_model(network.model, tmp_path)
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    (tmp_path / "blank.png").write_bytes(encode_png(np.zeros((40, 90, 3), np.uint8)))
    return seal_package(
        tmp_path,
        Manifest(
            name="made",
            version="1",
            labels="labels.txt",
            input=input_spec(network.spec),
            variants=[Variant(file="model.onnx")],
            **other,
        ),
    )


def test_a_built_classifier_is_a_package_that_serves(tmp_path: Path) -> None:
    made = package(tmp_path, build(spec("tiny_cnn")))
    assert Classifier.load(made).prove() == 0
    answer = Classifier.load(made).classify(encode_png(np.zeros((40, 90, 3), np.uint8)))
    assert answer.label in "abc"


def test_a_built_detector_is_a_package_that_serves(tmp_path: Path) -> None:
    sample = ProofSample(file="blank.png", label="a", count=0)
    network = build(spec("centre_point"))
    made = package(tmp_path, network, task="detection", detection=detection_spec(), samples=[sample])
    assert Detector.load(made).prove() == 1
