"""Head and tail of every cut answer together what the whole model answers, or the cut is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from split_models import CHANNELS, SIDE, conv, networks, picture, save, value
from test_split_cuts import RELU, W1, W2, branching, flattened

from benchmarks.adapt_models import mobilenet_v2, residual
from edgekit.runtimes import ModelError, open_session
from edgekit.splitting import features
from edgekit.splitting.cuts import Cut, candidates, find_cuts
from edgekit.splitting.graph import CutTensor, Graph, read_graph
from edgekit.splitting.halves import TOLERANCE, SplitError, make_halves, prove, run_halves


def prove_all(path: Path, feeds: Sequence[dict[str, NDArray[np.float32]]] = ()) -> int:
    """Make and prove the halves of every cut; returns how many there are."""
    graph = read_graph(path)
    cuts = find_cuts(graph).cuts
    for cut in cuts:
        make(path, graph, cut, feeds)
    return len(cuts)


def make(
    path: Path, graph: Graph, cut: Cut, feeds: Sequence[dict[str, NDArray[np.float32]]] = (), files: Sequence[str] = ()
) -> float:
    given = feeds or [{"x": picture(seed=seed)} for seed in range(2)]
    return make_halves(path, graph, cut, path.with_name("head.onnx"), path.with_name("tail.onnx"), given, files)


@settings(max_examples=40)
@given(networks())
def test_the_halves_of_every_cut_of_any_network_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, model: onnx.ModelProto
) -> None:
    path = tmp_path_factory.mktemp("drawn") / "m.onnx"
    path.write_bytes(model.SerializeToString())
    prove_all(path)


def test_the_halves_of_known_networks_are_the_whole(tmp_path: Path) -> None:
    for name, network in (("mobilenet", mobilenet_v2), ("resnet", residual)):
        path = tmp_path / name / "m.onnx"
        path.parent.mkdir()
        network(path, side=64)
        graph = read_graph(path)
        for cut in candidates(find_cuts(graph).cuts)[::2]:
            assert make(path, graph, cut, [{"input": picture(1, 3, 64, 64)}]) <= 1e-5


def test_a_real_detector_is_cut_where_several_tensors_cross(tmp_path: Path, real_data: Path) -> None:
    path = real_data / "models" / "linzaer" / "version-RFB-320.onnx"
    graph = read_graph(path)
    cuts = find_cuts(graph, max_tensors=8).cuts
    assert max(len(cut.tensors) for cut in cuts) > 4
    feed = {"input": picture(1, 3, 240, 320)}
    for cut in candidates(cuts):
        make_halves(path, graph, cut, tmp_path / "head.onnx", tmp_path / "tail.onnx", [feed])


def test_both_halves_are_files_of_fixed_shape_without_the_other_ones_weights(tmp_path: Path) -> None:
    path = flattened(tmp_path / "m.onnx")
    graph = read_graph(path)
    make(path, graph, find_cuts(graph).cuts[1])
    head, tail = (open_session(tmp_path / f"{name}.onnx", "onnxruntime") for name in ("head", "tail"))
    assert [(one.name, one.shape) for one in head.inputs] == [("x", (1, 3, SIDE, SIDE))]
    assert [(one.name, one.shape) for one in tail.inputs] == [("b", (1, CHANNELS, SIDE, SIDE))]
    assert [(one.name, one.shape) for one in tail.outputs] == [("y", (1, CHANNELS * SIDE * SIDE))]
    assert [one.name for one in onnx.load(tmp_path / "tail.onnx").graph.initializer] == ["rest", "s"]


def test_a_computed_shape_a_subgraph_and_an_old_file_are_split_too(tmp_path: Path) -> None:
    assert prove_all(flattened(tmp_path / "flat.onnx")) == 4
    assert prove_all(branching(tmp_path / "if.onnx")) == 2
    listed = [value("x", 1, 3, SIDE, SIDE), value("w1", CHANNELS, 3, 3, 3)]
    nodes = [conv("x", "w1", "a"), helper.make_node("Relu", ["a"], ["y"])]
    assert prove_all(save(tmp_path / "old.onnx", nodes, [W1], inputs=listed, ir_version=3)) == 1


def test_functions_of_the_model_are_split_around(tmp_path: Path) -> None:
    twice = helper.make_function(
        "own", "Twice", ["p"], ["q"], [helper.make_node("Add", ["p", "p"], ["q"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        conv("x", "w1", "a"),
        helper.make_node("Twice", ["a"], ["b"], domain="own"),
        conv("b", "w2", "c"),
        helper.make_node("Twice", ["c"], ["y"], domain="own"),
    ]
    assert prove_all(save(tmp_path / "m.onnx", nodes, [W1, W2], domains=["own"], functions=[twice])) == 3


def test_an_output_of_the_head_and_an_integer_answer_pass_through_the_tail(tmp_path: Path) -> None:
    nodes = [conv("x", "w1", "a"), RELU, helper.make_node("ArgMax", ["b"], ["y"], axis=1)]
    outputs = [value("a", 1, CHANNELS, SIDE, SIDE), value("y", 1, 1, SIDE, SIDE, kind=TensorProto.INT64)]
    path = save(tmp_path / "m.onnx", nodes, [W1], outputs=outputs)
    assert prove_all(path) == 1
    graph = read_graph(path)
    with_b = Cut(index=2, tensors=(graph.tensors["a"], graph.tensors["b"]), work=0.5, bytes=1, wire_bytes=1)
    assert make(path, graph, with_b) == 0.0


def test_a_second_input_that_crosses_is_passed_on_by_the_head(tmp_path: Path) -> None:
    nodes = [conv("x", "w1", "a"), RELU, helper.make_node("Mul", ["b", "gain"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [W1], inputs=[value("gain", 1), value("x", 1, 3, SIDE, SIDE)])
    assert prove_all(path, [{"x": picture(), "gain": np.array([0.3], np.float32)}]) == 2


def with_outside_weights(folder: Path) -> Path:
    path = save(folder / "m.onnx", [conv("x", "w1", "a"), RELU, conv("b", "w2", "y")], [W1, W2])
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="w.bin",
        size_threshold=0,
    )
    return path


def test_weights_from_other_files_end_up_inside_the_halves(tmp_path: Path) -> None:
    path = with_outside_weights(tmp_path)
    graph = read_graph(path)
    cuts = find_cuts(graph).cuts
    assert len(cuts) == 2
    assert make(path, graph, cuts[0], files=["w.bin"]) == pytest.approx(0, abs=1e-6)
    (tmp_path / "w.bin").unlink()
    feeds = {"x": picture()}
    halves = [open_session(tmp_path / f"{name}.onnx", "onnxruntime") for name in ("head", "tail")]
    assert run_halves(*halves, feeds)[0].shape == (1, CHANNELS, SIDE, SIDE)


def test_weights_in_a_file_that_is_not_listed_are_never_read(tmp_path: Path) -> None:
    path = with_outside_weights(tmp_path)
    graph = read_graph(path)
    with pytest.raises(ModelError, match=r"w\.bin.*does not list"):
        make(path, graph, find_cuts(graph).cuts[0])
    assert not (tmp_path / "head.onnx").exists()


def test_tensors_that_do_not_separate_the_model_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    nodes = [conv("x", "w1", "a"), RELU, helper.make_node("Add", ["a", "b"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [W1])
    graph = read_graph(path)
    for name, complaint in (("b", '"x" does not follow'), ("nowhere", '"nowhere" does not follow')):
        tensor = CutTensor(name=name, shape=(1, CHANNELS, SIDE, SIDE), dtype="float32")
        with pytest.raises(SplitError, match=complaint):
            make(path, graph, Cut(index=2, tensors=(tensor,), work=0.5, bytes=1, wire_bytes=1))
    assert [one.name for one in tmp_path.iterdir()] == ["m.onnx"]


def test_a_model_that_answers_differently_each_time_is_refused(tmp_path: Path) -> None:
    nodes = [
        conv("x", "w1", "a"),
        helper.make_node("RandomNormalLike", ["a"], ["noise"]),
        helper.make_node("Add", ["a", "noise"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [W1])
    graph = read_graph(path)
    with pytest.raises(SplitError, match="with a difference of"):
        make(path, graph, find_cuts(graph).cuts[0])
    assert [one.name for one in tmp_path.iterdir()] == ["m.onnx"]


def test_a_tail_with_other_weights_is_refused_and_one_within_the_tolerance_is_not(tmp_path: Path) -> None:
    nodes = [conv("x", "w1", "a"), RELU, helper.make_node("Mul", ["b", "gain"], ["y"])]
    paths = {}
    for gain in (1.0, 1.0 + 0.5 * TOLERANCE, 1.0 + 2 * TOLERANCE):
        weights = [W1, numpy_helper.from_array(np.float32(gain), "gain")]
        paths[gain] = save(tmp_path / f"{gain}.onnx", nodes, weights)
        graph = read_graph(paths[gain])
        make(paths[gain], graph, find_cuts(graph).cuts[1])
        (tmp_path / "tail.onnx").rename(tmp_path / f"{gain}.tail.onnx")
    whole, head = (open_session(path, "onnxruntime") for path in (paths[1.0], tmp_path / "head.onnx"))
    tails = [open_session(tmp_path / f"{gain}.tail.onnx", "onnxruntime") for gain in paths]
    feeds = [{"x": picture()}]
    assert prove(whole, head, tails[0], feeds) == pytest.approx(0, abs=1e-6)
    assert prove(whole, head, tails[1], feeds) == pytest.approx(0.5 * TOLERANCE, rel=0.01)
    with pytest.raises(SplitError, match=r"difference of 0\.002 of its largest value \(input 0\); 0\.001 is allowed"):
        prove(whole, head, tails[2], feeds)


def test_a_model_that_answers_with_nan_proves_nothing(tmp_path: Path) -> None:
    nodes = [conv("x", "w1", "a"), RELU, helper.make_node("Sqrt", ["a"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [W1])
    graph = read_graph(path)
    with pytest.raises(SplitError, match="NaN or infinity"):
        make(path, graph, find_cuts(graph).cuts[0])
    with pytest.raises(SplitError, match="at least one input"):
        make_halves(path, graph, find_cuts(graph).cuts[0], tmp_path / "head.onnx", tmp_path / "tail.onnx", [])


def test_the_answer_of_the_tail_survives_the_wire(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    residual(path, side=64)
    graph = read_graph(path)
    whole = open_session(path, "onnxruntime")
    feed = {"input": picture(1, 3, 64, 64)}
    (expected,) = whole.run(feed)
    for cut in candidates(find_cuts(graph).cuts):
        make(path, graph, cut, [feed])
        head, tail = (open_session(tmp_path / f"{name}.onnx", "onnxruntime") for name in ("head", "tail"))
        sent = dict(zip((one.name for one in head.outputs), head.run(feed), strict=True))
        frame = features.encode(sent)
        assert len(frame) < cut.wire_bytes + 200
        (found,) = tail.run(features.decode(frame, tail.inputs))
        assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
