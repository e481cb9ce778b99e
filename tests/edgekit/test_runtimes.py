"""The runtime drivers against models made here: answers, feeds, and everything a hostile model file can try."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.runtimes import ModelError, SessionOptions, TensorInfo, installed, open_session
from edgekit.runtimes import onnx_reader as reader_module
from edgekit.runtimes.base import check_feeds, dequantise
from edgekit.runtimes.onnx_reader import read_references

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)


def make_model(
    nodes: Sequence[onnx.NodeProto] | None = None,
    initializers: Sequence[onnx.TensorProto] | None = None,
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """x[?,3] times a weight [3,2]; with `inputs`, those tensors are listed as graph inputs too."""
    if nodes is None:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if initializers is None:
        initializers = [numpy_helper.from_array(WEIGHT, "w")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]), *inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions)
    model.ir_version = 8
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def external(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "24")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def open_onnx(path: Path, files: Sequence[str] = ()) -> Any:
    return open_session(path, "onnxruntime", files=files)


def test_onnx_model_answers_and_describes_itself(tmp_path: Path) -> None:
    session = open_onnx(save(make_model(), tmp_path / "m.onnx"))
    assert session.inputs == [TensorInfo("x", (None, 3), "float32")]
    assert session.outputs == [TensorInfo("y", (None, 2), "float32")]
    x = np.array([[1, 2, 3], [0, 0, 1]], np.float32)
    [y] = session.run({"x": x})
    np.testing.assert_allclose(y, x @ WEIGHT)
    session.close()
    with pytest.raises(ModelError, match="closed"):
        session.run({"x": x})


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_weights_listed_as_graph_inputs_are_not_inputs(tmp_path: Path) -> None:
    model = make_model(inputs=[helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2])])
    session = open_onnx(save(model, tmp_path / "m.onnx"))
    assert [tensor.name for tensor in session.inputs] == ["x"]
    [y] = session.run({"x": np.ones((1, 3), np.float32)})
    np.testing.assert_allclose(y, [[6, 9]])


def test_onnx_runs_from_several_threads_at_once(tmp_path: Path) -> None:
    session = open_session(save(make_model(), tmp_path / "m.onnx"), "onnxruntime", SessionOptions(threads=2))
    inputs = [np.full((1, 3), i, np.float32) for i in range(64)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: session.run({"x": x})[0], inputs))
    for x, y in zip(inputs, results, strict=True):
        np.testing.assert_allclose(y, x @ WEIGHT)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, '"x" is missing'),
        ({"x": np.ones((1, 4), np.float32)}, r"shape \?x3, not 1x4"),
        ({"x": np.ones(3, np.float32)}, r"shape \?x3, not 3"),
        ({"x": np.ones((1, 3), np.float64)}, "must be float32, not float64"),
        ({"x": np.ones((1, 3), np.float32), "w": WEIGHT}, 'no input "w"'),
    ],
)
def test_wrong_feeds_are_named(feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_feeds([TensorInfo("x", (None, 3), "float32")], feeds)


def test_a_model_that_fails_while_it_runs_is_a_model_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    shape = numpy_helper.from_array(np.array([5, 3], np.int64), "shape")
    session = open_onnx(save(make_model(nodes, [shape, numpy_helper.from_array(WEIGHT, "w")]), tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match="the model failed"):
        session.run({"x": np.ones((2, 3), np.float32)})


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    path = save(make_model([helper.make_node("Frobnicate", ["x"], ["y"])], []), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="Frobnicate"):
        open_onnx(path)


def in_branch(node: onnx.NodeProto) -> onnx.NodeProto:
    """`node` hidden inside the branch of an If."""
    branch = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_foreign_operator_domain_is_refused_before_the_runtime_sees_it(tmp_path: Path, hidden: bool) -> None:
    node = helper.make_node("Run", ["x"], ["y"], domain="evil.ops")
    model = make_model([in_branch(node) if hidden else node], [], domains=["evil.ops"])
    with pytest.raises(ModelError, match=r'operator "Run" of the domain "evil\.ops"'):
        open_onnx(save(model, tmp_path / "m.onnx"))


def test_functions_that_the_model_defines_itself_are_allowed(tmp_path: Path) -> None:
    function = helper.make_function(
        "local", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Double", ["h"], ["y"], domain="local"),
    ]
    session = open_onnx(save(make_model(nodes, domains=["local"], functions=[function]), tmp_path / "m.onnx"))
    np.testing.assert_allclose(session.run({"x": np.ones((1, 3), np.float32)})[0], [[12, 18]])


def test_listed_external_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(WEIGHT.tobytes())
    session = open_onnx(save(make_model(initializers=[external("data/w.bin")]), tmp_path / "m.onnx"), ["data/w.bin"])
    np.testing.assert_allclose(session.run({"x": np.ones((1, 3), np.float32)})[0], [[6, 9]])


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../secret.bin", "outside its folder"),
        ("a/../../secret.bin", "outside its folder"),
        ("/etc/hostname", "outside its folder"),
        ("..\\secret.bin", "outside its folder"),
        ("", "outside its folder"),
        ("unlisted.bin", "does not list"),
        ("./unlisted.bin", "does not list"),
        ("link.bin", "symbolic link"),
        ("linked/w.bin", "symbolic link"),
        ("folder", "not a regular file"),
        ("absent.bin", "cannot be read"),
    ],
)
def test_other_external_data_is_refused(tmp_path: Path, location: str, message: str) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    package = tmp_path / "package"
    (package / "folder").mkdir(parents=True)
    (package / "unlisted.bin").write_bytes(WEIGHT.tobytes())
    (package / "link.bin").symlink_to(tmp_path / "secret.bin")
    (package / "linked").symlink_to(tmp_path)
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    path = save(make_model(initializers=[external(location)]), package / "m.onnx")
    with pytest.raises(ModelError, match=message):
        open_onnx(path, ["link.bin", "linked/w.bin", "folder", "absent.bin"])


def sparse(location: str) -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.array([0], np.int64), "i")
    return onnx.SparseTensorProto(values=external(location), indices=indices, dims=[3, 2])


def hiding_places() -> list[onnx.ModelProto]:
    """One model per place in the format where a tensor may hide."""
    tensor = external("hidden.bin")
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    in_list = helper.make_node("Constant", [], ["y"])
    in_list.attribute.add(name="values", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
    in_sparse = helper.make_node("Constant", [], ["y"])
    in_sparse.attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(
        sparse("hidden.bin")
    )
    in_graphs = helper.make_node("Constant", [], ["y"])
    in_graphs.attribute.add(name="g", type=onnx.AttributeProto.GRAPHS).graphs.append(
        helper.make_graph([constant], "inner", [], [])
    )
    function = helper.make_function("local", "F", [], ["y"], [constant], [helper.make_opsetid("", 17)])
    defaults = helper.make_function("local", "F", [], ["y"], [], [helper.make_opsetid("", 17)])
    defaults.attribute_proto.add(name="t", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    with_sparse = make_model([], [])
    with_sparse.graph.sparse_initializer.append(sparse("hidden.bin"))
    training = make_model([], [])
    training.training_info.add().algorithm.CopyFrom(helper.make_graph([constant], "step", [], []))
    return [
        make_model([], [tensor]),
        make_model([constant], []),
        make_model([in_branch(constant)], []),
        make_model([in_list], []),
        make_model([in_sparse], []),
        make_model([in_graphs], []),
        make_model([], [], functions=[function]),
        make_model([], [], functions=[defaults]),
        with_sparse,
        training,
    ]


def test_external_data_is_found_wherever_it_hides(tmp_path: Path) -> None:
    for number, model in enumerate(hiding_places()):
        path = save(model, tmp_path / f"{number}.onnx")
        assert read_references(path).external == {"hidden.bin"}, number


def test_the_walk_follows_every_field_that_can_hold_a_tensor_or_a_node() -> None:
    kinds = {
        "ModelProto": reader_module._MODEL,
        "GraphProto": reader_module._GRAPH,
        "NodeProto": reader_module._NODE,
        "AttributeProto": reader_module._ATTRIBUTE,
        "FunctionProto": reader_module._FUNCTION,
        "TrainingInfoProto": reader_module._TRAINING,
        "SparseTensorProto": reader_module._SPARSE,
    }
    for name, kind in kinds.items():
        fields = getattr(onnx, name).DESCRIPTOR.fields
        holders = {f.number for f in fields if f.message_type and f.message_type.name in {*kinds, "TensorProto"}}
        assert holders == set(reader_module._CHILDREN[kind]), name
    location = onnx.TensorProto.DESCRIPTOR.fields_by_name["external_data"]
    assert set(reader_module._CHILDREN[reader_module._TENSOR]) == {location.number}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (b"hello, this is text and no model", "not an ONNX model"),
        (b"\x08\x08", "no graph"),
        (b"\x3a\xff\xff\xff\xff\x0f", "longer than the file"),
        (b"\x3a", "cut short"),
        (b"\xff" * 20, "make no sense"),
        (b"\x00\x00\x00\x00ORTM" + bytes(64), "not an ONNX model"),
    ],
)
def test_bytes_that_are_no_model_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        open_onnx(path)


def test_every_truncation_of_a_model_is_a_model_error_or_loads(tmp_path: Path) -> None:
    whole = make_model().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(1, len(whole), 3):
        path.write_bytes(whole[:length])
        try:
            open_onnx(path).close()
        except ModelError as error:
            assert "m.onnx" in str(error)


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


@pytest.mark.parametrize("tag", [(5 << 3 | 2) | 1 << 32, 2])
def test_a_tag_that_protobuf_reads_otherwise_hides_nothing(tmp_path: Path, tag: int) -> None:
    """A second part of the graph holds the weights; onnxruntime would drop bit 32 of their tag and find them."""
    weights = external("w.bin").SerializeToString()
    hidden = varint(tag) + varint(len(weights)) + weights
    model = make_model(initializers=[]).SerializeToString()
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    path = tmp_path / "m.onnx"
    path.write_bytes(model + varint(7 << 3 | 2) + varint(len(hidden)) + hidden)
    with pytest.raises(ModelError, match="fields make no sense"):
        open_onnx(path)


def test_the_name_of_the_file_does_not_choose_another_format(tmp_path: Path) -> None:
    session = open_onnx(save(make_model(), tmp_path / "m.ort"))
    assert session.run({"x": np.ones((1, 3), np.float32)})[0].tolist() == [[6.0, 9.0]]


def test_deep_nesting_and_endless_fields_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = b""
    for _ in range(200):  # a graph in an attribute of a node of a graph ...
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            length = len(inner)
            encoded = bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
            inner = tag + encoded + inner
    path = tmp_path / "deep.onnx"
    path.write_bytes(
        b"\x3a" + bytes([len(inner) & 0x7F | 0x80, len(inner) >> 7 & 0x7F | 0x80, len(inner) >> 14]) + inner
    )
    with pytest.raises(ModelError, match="nested deeper"):
        open_onnx(path)
    monkeypatch.setattr(reader_module, "MAX_FIELDS", 1000)
    path.write_bytes(b"\x08\x08" * 2000)
    with pytest.raises(ModelError, match="more than 1000 fields"):
        open_onnx(path)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_the_reader_survives_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.onnx"
    path.write_bytes(content or b"\0")
    try:
        read_references(path)
    except ModelError as error:
        assert "fuzz.onnx" in str(error)


def test_a_model_file_must_be_a_regular_file(tmp_path: Path) -> None:
    real = save(make_model(), tmp_path / "real.onnx")
    link = tmp_path / "m.onnx"
    link.symlink_to(real)
    for path in (link, tmp_path):
        with pytest.raises(ModelError, match="not a regular file"):
            open_onnx(path)
    with pytest.raises(ModelError, match="No such file"):
        open_onnx(tmp_path / "absent.onnx")


def test_outputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    with pytest.raises(ModelError, match="only plain tensors"):
        open_onnx(save(model, tmp_path / "m.onnx"))


def test_a_dimension_whose_name_is_no_text_is_a_model_error(tmp_path: Path) -> None:
    path = save(make_model(), tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"batch", b"bat\xff\xfe"))
    with pytest.raises(ModelError):
        open_onnx(path)


def test_runtimes_that_are_unknown_or_bytes_that_are_no_litert_model(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(b"\x1c\x00\x00\x00TFL2" + bytes(100))
    with pytest.raises(ModelError, match='"caffe" is unknown'):
        open_session(path, "caffe")
    with pytest.raises(ModelError, match="not a LiteRT model"):
        open_session(path, "litert")
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(100))
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_session(path, "litert")
    assert installed("onnxruntime")
    assert installed("litert")
    assert not installed("caffe")


def test_quantised_values_become_real_values() -> None:
    stored = np.array([-128, 0, 127], np.int8)
    real = dequantise(stored, TensorInfo("y", (3,), "int8", (1 / 256, -128)))
    np.testing.assert_allclose(real, [0, 0.5, 255 / 256])
    assert real.dtype == np.float32
    with pytest.raises(ModelError, match="no quantisation scale"):
        dequantise(stored, TensorInfo("y", (3,), "int8"))
