"""One value for two labels: a classifier that ends in a Sigmoid becomes one of two logits, and answers as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign_models import SIDE, Take, save
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cloudd.importing import ImportRefused, onnx_file
from edgekit.packages import open_package
from edgekit.runtimes import ModelError, open_session
from edgekit.runtimes.onnx_reader import read_references
from edgekit.vision.classification import Classifier, softmax
from tests.support.models import picture

LABELS = ("dark", "bright")
SLOPE = 40.0
ENDS = ("gemm", "gemm-plain", "matmul", "matmul-add", "add-matmul")


def judge(
    last: str = "gemm",
    behind: tuple[str, ...] = ("Sigmoid",),
    swapped: bool = False,
    odd: bool = False,
) -> onnx.ModelProto:
    """The probability that a picture is bright: Sigmoid of SLOPE (mean - 1/2). `behind`: operators after the layer."""
    sign = -1 if swapped else 1
    row, offset = np.full((1, 3), sign * SLOPE / 3, np.float32), np.array([-sign * SLOPE / 2], np.float32)
    if odd:  # a layer that is not a layer: the mean of the channels, scaled
        row, offset = np.array([[sign * SLOPE]], np.float32), offset
    make = helper.make_node
    nodes = [
        make("GlobalAveragePool", ["input"], ["pooled"]),
        make("Flatten", ["pooled"], ["features"]),
        *([make("ReduceMean", ["features", "axis"], ["narrow"], keepdims=1)] if odd else []),
    ]
    source = "narrow" if odd else "features"
    weights = {"w": row, "b": offset}
    if odd:
        nodes += [make("Mul", [source, "w"], ["scaled"]), make("Add", ["scaled", "b"], ["z"])]
    elif last == "gemm":
        nodes.append(make("Gemm", [source, "w", "b"], ["z"], transB=1))
    elif last == "gemm-plain":
        weights = {"w": row.T.copy(), "b": offset}
        nodes.append(make("Gemm", [source, "w", "b"], ["z"]))
    elif last == "matmul":
        nodes.append(make("Sub", [source, "half"], ["moved"]))
        weights = {"w": row.T.copy(), "half": np.float32(0.5)}
        nodes.append(make("MatMul", ["moved", "w"], ["z"]))
    else:
        weights = {"w": row.T.copy(), "b": offset}
        nodes.append(make("MatMul", [source, "w"], ["product"]))
        nodes.append(make("Add", ["product", "b"] if last == "matmul-add" else ["b", "product"], ["z"]))
    value = "z"
    for number, kind in enumerate(behind):
        inputs = [value, "one"] if kind == "Squeeze" else [value]
        value = f"v{number}"
        nodes.append(make(kind, inputs, [value]))
    nodes[-1].output[0] = "answer"
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    tensors += [numpy_helper.from_array(np.array([1], np.int64), name) for name in ("axis", "one")]
    shape = ["n"] if "Squeeze" in behind else ["n", 1]
    graph = helper.make_graph(
        nodes,
        "judge",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, shape)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures: darker or brighter than the middle."""
    root = tmp_path_factory.mktemp("halves")
    for index, label in enumerate(LABELS):
        (root / label).mkdir()
        for number in range(12):
            level = 0.5 * index + 0.1 + 0.3 * number / 12
            (root / label / f"{number}.png").write_bytes(picture(level, seed=100 * index + number))
    return root


def check(source: Path, package: Path) -> None:
    """The package's two probabilities are 1 - p and p of the file's one value p."""
    theirs = open_session(source, "onnxruntime", files=[one.name for one in source.parent.glob("*.bin")])
    model = Classifier.load(open_package(package))
    rng = np.random.default_rng(3)
    for level in (0.1, 0.45, 0.5, 0.55, 0.9):
        tensor = (level + rng.normal(0, 0.01, (1, 3, SIDE, SIDE))).astype(np.float32)
        p = float(theirs.run({"input": tensor})[0].reshape(-1)[0])
        said = model.classify_tensor(tensor).probabilities
        np.testing.assert_allclose(said, [1 - p, p], atol=1e-5)
    theirs.close()
    model.close()


@pytest.mark.parametrize("last", ENDS)
def test_a_last_layer_of_one_row_becomes_one_of_two_and_can_learn(
    last: str, take: Take, tmp_path: Path, halves: Path
) -> None:
    source = save(judge(last), tmp_path / "m.onnx")
    outcome = take(source, labels=LABELS, pictures=halves)
    assert outcome.lineage.changes[0].startswith('the last Sigmoid is gone: "answer" gives two logits')
    assert outcome.lineage.sameness.how == "outputs" and outcome.lineage.sameness.largest < 1e-5
    assert outcome.lineage.figures is not None and outcome.lineage.figures.right.hits == 24
    check(source, Path(outcome.package))
    model = onnx.load(Path(outcome.package) / "model.onnx")
    assert model.graph.node[-1].op_type in ("Gemm", "MatMul", "Add")
    assert {"head", "full"} <= set(outcome.lineage.learning.possible)
    assert open_package(Path(outcome.package)).manifest.output.kind == "logits"


@pytest.mark.parametrize("behind", [("Sigmoid", "Squeeze"), ("Squeeze", "Sigmoid"), ("Identity", "Sigmoid", "Flatten")])
def test_what_only_moves_the_value_is_no_obstacle(
    behind: tuple[str, ...], take: Take, tmp_path: Path, halves: Path
) -> None:
    source = save(judge(behind=behind), tmp_path / "m.onnx")
    outcome = take(source, labels=LABELS, pictures=halves)
    check(source, Path(outcome.package))
    assert "head" in outcome.lineage.learning.possible


def test_where_no_such_layer_stands_before_it_a_product_is_put_behind(take: Take, tmp_path: Path, halves: Path) -> None:
    source = save(judge(odd=True), tmp_path / "m.onnx")
    outcome = take(source, labels=LABELS, pictures=halves)
    check(source, Path(outcome.package))
    assert onnx.load(Path(outcome.package) / "model.onnx").graph.node[-1].op_type == "MatMul"


@pytest.mark.parametrize("behind", [(), ("Squeeze",)])
@pytest.mark.parametrize("odd", [False, True])
def test_a_bare_logit_is_taken_when_the_user_says_so(
    odd: bool, behind: tuple[str, ...], take: Take, tmp_path: Path, halves: Path
) -> None:
    source = save(judge(behind=behind, odd=odd), tmp_path / "m.onnx")
    with pytest.raises(ImportRefused, match=r"comes from no Sigmoid; if it is the logit .* say --output kind=logits"):
        take(source, labels=LABELS, pictures=halves)
    outcome = take(source, labels=LABELS, pictures=halves, output={"kind": "logits"})
    assert '"answer" gives two logits instead of one' in outcome.lineage.changes
    assert outcome.lineage.figures is not None and outcome.lineage.figures.right.hits == 24
    session, foreign = (open_session(path, "onnxruntime") for path in (Path(outcome.package) / "model.onnx", source))
    x = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    pair, value = (one.run({"input": x})[0].reshape(-1) for one in (session, foreign))
    np.testing.assert_allclose(softmax(pair)[1], 1 / (1 + np.exp(-value[0])), atol=1e-6)
    session.close()
    foreign.close()


def test_weights_in_another_file_are_read_from_there(take: Take, tmp_path: Path, halves: Path) -> None:
    folder = tmp_path / "outside"
    folder.mkdir()
    onnx.save(judge(), str(folder / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    outcome = take(folder / "m.onnx", labels=LABELS, pictures=halves)
    check(folder / "m.onnx", Path(outcome.package))


def test_labels_in_the_wrong_order_are_found_by_the_pictures(take: Take, tmp_path: Path, halves: Path) -> None:
    with pytest.raises(ImportRefused, match="whether the labels stand in the order of the outputs"):
        take(save(judge(swapped=True), tmp_path / "m.onnx"), labels=LABELS, pictures=halves)


def test_three_labels_need_three_values(take: Take, tmp_path: Path, halves: Path) -> None:
    with pytest.raises(ImportRefused, match="there are 3 labels, but no output has as many values"):
        take(save(judge(), tmp_path / "m.onnx"), labels=("a", "b", "c"), pictures=None)


def test_a_checkpoint_loses_its_sigmoid_too(take: Take, tmp_path: Path, halves: Path) -> None:
    from edgekit.training.folded import fold

    whole = judge()
    whole.graph.node[0].input[0] = "normal"
    whole.graph.node.insert(0, helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["normal"]))
    whole.graph.node.insert(0, helper.make_node("Conv", ["input", "k"], ["c"]))
    arrays: dict[str, Any] = {
        "k": np.eye(3).reshape(3, 3, 1, 1),
        "s": np.full(3, 2.0),
        "t": np.full(3, 0.5),
        "m": np.full(3, 0.5),
        "v": np.full(3, 4.0),
    }
    whole.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()
    )
    served = save(fold(whole), tmp_path / "served.onnx")
    outcome = take(served, checkpoint=save(whole, tmp_path / "whole.onnx"), labels=LABELS, pictures=halves)
    check(served, Path(outcome.package))
    assert outcome.lineage.checkpoint is not None and outcome.lineage.learning.normalisations == 1
    assert "batchnorm" in outcome.lineage.learning.possible


_WHOLE = judge().SerializeToString()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12), st.booleans())
def test_no_damage_to_a_file_raises_anything_but_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], logit: bool
) -> None:
    data = bytearray(_WHOLE)
    for place, value in changes:
        data[place % len(data)] = value
    root = tmp_path_factory.getbasetemp() / "damaged-value"
    root.mkdir(exist_ok=True)
    source = root / "in.onnx"
    source.write_bytes(bytes(data))
    try:
        references = read_references(source)
        model = onnx_file.read_model(source)
        onnx_file.take(source, model, references, root, (8, 8), "answer", single=True, logit=logit)
    except (ImportRefused, ModelError, OSError) as error:
        assert str(error)
