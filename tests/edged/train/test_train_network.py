from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from numpy.typing import NDArray

from edged.train.network import Network, features, read_network
from edgekit import packages
from edgekit.graphs.errors import NetworkError
from edgekit.packages import InputSpec, Manifest, OutputSpec, Package, Variant
from edgekit.runtimes import open_session

CHANNELS, SIDE, CLASSES = 5, 8, 3
KINDS = ("gemm", "gemm-plain", "matmul", "matmul-bare", "conv")


def classifier(kind: str, softmax: bool = False, reshape: tuple[int, ...] = ()) -> onnx.ModelProto:
    """A convolution, a mean, and a last layer of some kind."""
    rng = np.random.default_rng(7)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)

    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["image", "stem"], ["maps"]),
        make("Relu", ["maps"], ["bent"]),
        make("GlobalAveragePool", ["bent"], ["mean"]),
    ]
    weights = [weight("stem", CHANNELS, 1, 3, 3)]
    if kind == "conv":
        nodes += [make("Conv", ["mean", "w", "b"], ["values"]), make("Flatten", ["values"], ["last"])]
        weights += [weight("w", CLASSES, CHANNELS, 1, 1), weight("b", CLASSES)]
    else:
        nodes.append(make("Flatten", ["mean"], ["row"]))
        if kind == "gemm":
            nodes.append(make("Gemm", ["row", "w", "b"], ["last"], transB=1))
            weights += [weight("w", CLASSES, CHANNELS), weight("b", CLASSES)]
        elif kind == "gemm-plain":
            nodes.append(make("Gemm", ["row", "w"], ["last"]))
            weights.append(weight("w", CHANNELS, CLASSES))
        else:
            nodes.append(make("MatMul", ["row", "w"], ["product" if kind == "matmul" else "last"]))
            weights.append(weight("w", CHANNELS, CLASSES))
        if kind == "matmul":
            nodes.append(make("Add", ["b", "product"], ["last"]))
            weights.append(weight("b", 1, CLASSES))
    end = "last"
    if reshape:
        nodes.append(make("Reshape", [end, "shape"], ["shaped"]))
        weights.append(onnx.numpy_helper.from_array(np.array(reshape, np.int64), "shape"))
        end = "shaped"
    if softmax:
        nodes.append(make("Softmax", [end], ["shares"]))
        end = "shares"
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 1, SIDE, SIDE])
    output = onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, ["n", CLASSES])
    graph = onnx.helper.make_graph(nodes, "classifier", [image], [output], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, images: NDArray[np.float32], folder: Path) -> NDArray[np.float32]:
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    path.write_bytes(model.SerializeToString())
    session = open_session(path, "onnxruntime")
    return np.concatenate([session.run({"image": one[None]})[0].reshape(1, -1) for one in images])


def images(count: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(count, 1, SIDE, SIDE)).astype(np.float32)


def package(root: Path, model: onnx.ModelProto, kind: str = "logits", labels: int = CLASSES) -> Package:
    root.mkdir()
    (root / "m.onnx").write_bytes(model.SerializeToString())
    (root / "labels.txt").write_text("".join(f"label {number}\n" for number in range(labels)))
    manifest = Manifest(
        name="m",
        version="1",
        labels="labels.txt",
        input=InputSpec(width=SIDE, height=SIDE, colour="grey"),
        output=OutputSpec(kind=kind),  # type: ignore[arg-type]
        variants=[Variant(file="m.onnx")],
    )
    return packages.seal_package(root, manifest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_is_weight_times_features_plus_bias(kind: str, tmp_path: Path) -> None:
    network = Network(classifier(kind), "image", "last")
    layer, x = network.last_layer(), images()
    with network.feature_session(tmp_path / "features", 1) as session:
        rows = np.stack(list(features(session, "image", iter(x[:, None]))))
    assert rows.shape == (3, CHANNELS)
    np.testing.assert_allclose(rows @ layer.weight.T + layer.bias, run(network.model, x, tmp_path), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_last_layer_computes_what_it_says_with_more_classes_than_before(kind: str, tmp_path: Path) -> None:
    network = Network(classifier(kind), "image", "last")
    rng, x = np.random.default_rng(3), images()
    weight, bias = rng.normal(size=(CLASSES + 2, CHANNELS)), rng.normal(size=CLASSES + 2)
    grown = network.with_last_layer(weight, bias)
    onnx.checker.check_model(grown.model, full_check=True)
    with network.feature_session(tmp_path / "features", 1) as session:
        rows = np.stack(list(features(session, "image", iter(x[:, None]))))
    np.testing.assert_allclose(run(grown.model, x, tmp_path), rows @ weight.T + bias, atol=1e-5)
    again = grown.with_last_layer(weight[:2], bias[:2])
    assert again.last_layer().weight.shape == (2, CHANNELS), "what was learned once can be learned again"
    assert "w" not in {one.name for one in grown.model.graph.initializer}, "the old weights are gone"


def test_a_softmax_is_cut_off_and_the_logits_are_left(tmp_path: Path) -> None:
    network = read_network(package(tmp_path / "p", classifier("gemm", softmax=True), "probabilities"))
    assert network.logits == "last"
    (tmp_path / "runs").mkdir()
    expected = run(classifier("gemm"), images(), tmp_path / "runs")
    np.testing.assert_allclose(run(network.model, images(), tmp_path / "runs"), expected, atol=1e-6)


def test_a_saved_network_is_a_model_that_serves(tmp_path: Path) -> None:
    network = Network(classifier("matmul"), "image", "last")
    (tmp_path / "saved").mkdir()
    network.save(tmp_path / "saved")
    session = open_session(tmp_path / "saved" / "model.onnx", "onnxruntime", files=["weights.safetensors"])
    expected = run(network.model, images(1), tmp_path)
    np.testing.assert_array_equal(session.run({"image": images(1)})[0], expected)


@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        (classifier("gemm", reshape=(-1, CLASSES)), "logits", "fixes the number of classes"),
        (classifier("gemm"), "probabilities", "only those of a Softmax"),
    ],
)
def test_what_cannot_learn_is_said_with_the_node(model: onnx.ModelProto, kind: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=says):
        network = read_network(package(tmp_path / "p", model, kind))
        network.with_last_layer(np.zeros((CLASSES + 1, CHANNELS)), np.zeros(CLASSES + 1))


def test_a_last_layer_before_the_pooling_is_no_layer_that_can_be_replaced(tmp_path: Path) -> None:
    make = onnx.helper.make_node
    model = classifier("conv")
    nodes = [
        make("Conv", ["image", "stem"], ["maps"]),
        make("Conv", ["maps", "w", "b"], ["values"]),
        make("GlobalAveragePool", ["values"], ["mean"]),
        make("Flatten", ["mean"], ["last"]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with pytest.raises(NetworkError, match="GlobalAveragePool"):
        Network(model, "image", "last").last_layer()


def test_a_package_without_a_float_file_cannot_learn(tmp_path: Path) -> None:
    found = package(tmp_path / "p", classifier("gemm"))
    manifest = found.manifest
    (tmp_path / "p" / "package.toml").unlink()
    int8 = [Variant(file="m.onnx", precision="int8")]
    sealed = packages.seal_package(
        tmp_path / "p", Manifest(**{**{f: getattr(manifest, f) for f in manifest.__struct_fields__}, "variants": int8})
    )
    with pytest.raises(NetworkError, match="no fp32 file"):
        read_network(sealed)
