"""The makers: what they write, and what they refuse to start from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cloudd.compress import quantise
from cloudd.compress.errors import CompressError
from cloudd.compress.maker import Materials
from cloudd.compress.variants import KINDS, QUICK
from edgekit.runtimes import open_session

SIDE = 16


def network(opset: int = 17, last: str = "") -> onnx.ModelProto:
    """Conv, batch normalisation, Relu, Conv, mean, dense layer; no node has a name."""
    rng = np.random.default_rng(1)
    weights = {
        "w1": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "gamma": rng.uniform(0.5, 1.5, 8),
        "beta": rng.normal(0, 0.1, 8),
        "mean": rng.normal(0, 0.1, 8),
        "var": rng.uniform(0.5, 1.5, 8),
        "w2": rng.normal(0, 0.2, (8, 8, 3, 3)),
        "w3": rng.normal(0, 1.0, (4, 8)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w2"], ["d"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["g" if last else "y"], transB=1),
    ]
    if last:
        nodes.append(helper.make_node(last, ["g"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def pictures() -> Iterator[NDArray[np.float32]]:
    for seed in range(20):
        yield np.random.default_rng(seed).normal(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32)


def prepared(folder: Path, model: onnx.ModelProto) -> Materials:
    onnx.save(model, str(folder / "model.onnx"))
    quantise.prepare(folder / "model.onnx", 1000, folder / "prepared.onnx")
    return Materials(folder / "prepared.onnx", "x", pictures)


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def answers(path: Path) -> NDArray[np.float32]:
    session = open_session(path, "onnxruntime")
    return np.concatenate([session.run({"x": one})[0] for one in pictures()])


@pytest.mark.parametrize("opset", [11, 12, 17])
def test_preparing_folds_batch_normalisation_and_changes_no_answer(tmp_path: Path, opset: int) -> None:
    materials = prepared(tmp_path, network(opset))
    model = onnx.load(str(materials.model))
    assert operators(materials.model)["BatchNormalization"] == 0
    assert model.opset_import[0].version >= 13
    assert all(node.name for node in model.graph.node)
    np.testing.assert_allclose(answers(materials.model), answers(tmp_path / "model.onnx"), atol=1e-5)


@pytest.mark.parametrize("kind", [KINDS[name] for name in QUICK], ids=QUICK)
def test_every_untaught_kind_answers_about_as_the_float_model_and_is_made_alike_twice(tmp_path: Path, kind) -> None:
    materials = prepared(tmp_path, network())
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    recipe = kind.make(materials, first, careful=False)
    assert kind.make(materials, second, careful=False) == recipe
    assert first.read_bytes() == second.read_bytes()
    want = answers(materials.model)
    assert np.abs(answers(first) - want).max() < 0.06 * np.ptp(want)


def test_eight_bit_weights_have_one_scale_a_channel_and_zero_points_of_their_kind(tmp_path: Path) -> None:
    materials = prepared(tmp_path, network())
    for name, dtype in (("u8s8", np.uint8), ("s8s8", np.int8)):
        KINDS[name].make(materials, tmp_path / "q.onnx", careful=False)
        graph = onnx.load(str(tmp_path / "q.onnx")).graph
        tensors = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        activations = [tensors[node.input[2]].dtype for node in graph.node if node.op_type == "QuantizeLinear"]
        assert activations and set(activations) == {np.dtype(dtype)}
        weights = [
            node.input
            for node in graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in tensors and tensors[node.input[0]].ndim == 4
        ]
        assert weights
        for stored, scale, _ in weights:
            assert tensors[stored].dtype == np.int8 and tensors[scale].shape == (8,)


def test_the_careful_way_leaves_the_first_and_the_last_layer_in_float(tmp_path: Path) -> None:
    materials = prepared(tmp_path, network())
    recipe = KINDS["u8s8"].make(materials, tmp_path / "careful.onnx", careful=True)
    weighted = [node.name for node in onnx.load(str(materials.model)).graph.node if node.op_type in ("Conv", "Gemm")]
    assert recipe.kept_in_float == [weighted[0], weighted[-1]]
    floats = [one.dims for one in onnx.load(str(tmp_path / "careful.onnx")).graph.initializer if one.data_type == 1]
    assert [8, 3, 3, 3] in floats and [4, 8] in floats and [8, 8, 3, 3] not in floats


@pytest.mark.parametrize("last", ["Softmax", "Sigmoid"])
def test_probabilities_are_not_rounded_to_256_steps(tmp_path: Path, last: str) -> None:
    materials = prepared(tmp_path, network(last=last))
    KINDS["u8s8"].make(materials, tmp_path / "q.onnx", careful=False)
    graph = onnx.load(str(tmp_path / "q.onnx")).graph
    assert next(node for node in graph.node if "y" in node.output).op_type == last


def test_half_precision_keeps_the_types_of_input_and_output(tmp_path: Path) -> None:
    materials = prepared(tmp_path, network())
    KINDS["fp16"].make(materials, tmp_path / "half.onnx", careful=False)
    session = open_session(tmp_path / "half.onnx", "onnxruntime")
    assert [one.dtype for one in (*session.inputs, *session.outputs)] == ["float32", "float32"]
    assert {one.data_type for one in onnx.load(str(tmp_path / "half.onnx")).graph.initializer} == {TensorProto.FLOAT16}


def test_a_model_with_weights_in_another_file_becomes_one_file(tmp_path: Path) -> None:
    onnx.save(network(), str(tmp_path / "model.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    quantise.prepare(tmp_path / "model.onnx", 1000, tmp_path / "prepared.onnx")
    (tmp_path / "w.bin").unlink()
    assert np.isfinite(answers(tmp_path / "prepared.onnx")).all()


def test_a_quantised_model_is_not_quantised_again(tmp_path: Path) -> None:
    KINDS["u8s8"].make(prepared(tmp_path, network()), tmp_path / "q.onnx", careful=False)
    with pytest.raises(CompressError, match="is quantised already: it has the operator"):
        quantise.prepare(tmp_path / "q.onnx", 1000, tmp_path / "again.onnx")


def test_a_model_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="are allowed for compression"):
        quantise.prepare(tmp_path / "is-not-there.onnx", quantise.MAX_MODEL_BYTES + 1, tmp_path / "p.onnx")


def test_a_graph_that_makes_no_sense_is_refused_with_a_sentence(tmp_path: Path) -> None:
    model = network()
    model.graph.node[0].op_type = "Convolution"
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(CompressError, match=r"model.onnx cannot be prepared for compression"):
        quantise.prepare(tmp_path / "model.onnx", 1000, tmp_path / "prepared.onnx")
