"""Fewer channels: what the student is, what it learns from, and that the gate judges it like any other variant."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cloudd.compress import Request, compress, distil, pruned, quantise
from cloudd.compress.dataset import lessons, split
from cloudd.compress.errors import CompressError
from cloudd.compress.maker import Materials, Training
from cloudd.compress.variants import KINDS, QUICK
from edgekit.datasets.dataset import Dataset, Picture
from edgekit.packages import (
    CheckpointSpec,
    InputSpec,
    Manifest,
    OutputSpec,
    Package,
    Variant,
    open_package,
    seal_package,
)
from edgekit.runtimes import open_session
from edgekit.training.folded import fold, normalisations
from edgekit.vision.classification import Classifier
from tests.support.models import picture

SIDE = 16
SPEC = InputSpec(width=SIDE, height=SIDE, colour="rgb", scale=[1 / 255])


def network(last: str = "Softmax", odd: str = "") -> onnx.ModelProto:
    """Two convolutions of 16 channels with batch normalisation, mean, dense layer: a batch of one only."""
    rng = np.random.default_rng(1)
    weights: dict[str, NDArray[Any]] = {
        "w1": rng.normal(0, 0.4, (16, 3, 3, 3)),
        "w2": rng.normal(0, 0.2, (16, 16, 3, 3)),
        "w3": rng.normal(0, 1.0, (4, 16)),
    }
    for layer in ("1", "2"):
        weights |= {
            f"gamma{layer}": rng.uniform(0.5, 1.5, 16),
            f"beta{layer}": rng.normal(0, 0.1, 16),
            f"mean{layer}": rng.normal(0, 0.1, 16),
            f"var{layer}": rng.uniform(0.5, 1.5, 16),
        }
    norms = [[f"{name}{layer}" for name in ("gamma", "beta", "mean", "var")] for layer in ("1", "2")]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["a", *norms[0]], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        *([helper.make_node(odd, ["c"], ["o"], name="odd-one", perm=[0, 1, 3, 2])] if odd else []),
        helper.make_node("Conv", ["o" if odd else "c", "w2"], ["d"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["d", *norms[1]], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("GlobalAveragePool", ["f"], ["g"]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "w3"], ["i" if last else "y"], transB=1),
    ]
    if last:
        nodes.append(helper.make_node(last, ["i"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def shown(number: int) -> bytes:
    return picture((number % 20 + 0.5) / 20, side=SIDE, seed=number)


def materials(
    folder: Path, model: onnx.ModelProto, count: int = 64, seconds: float = 60.0, told: list[Any] | None = None
) -> Materials:
    onnx.save(model, str(folder / "model.onnx"))
    quantise.prepare(folder / "model.onnx", 1000, folder / "prepared.onnx")
    heard = [] if told is None else told
    training = Training(folder / "model.onnx", "y", SPEC, count, shown, seconds, lambda *step: heard.append(step))

    def pictures() -> Iterator[NDArray[np.float32]]:
        rng = np.random.default_rng(3)
        for _ in range(16):
            yield rng.uniform(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32)

    return Materials(folder / "prepared.onnx", "x", pictures, training)


def answers(path: Path) -> NDArray[np.float32]:
    """Of pictures that nothing was taught with."""
    session = open_session(path, "onnxruntime")
    rng = np.random.default_rng(9)
    bright = rng.uniform(0.1, 0.9, (40, 1, 1, 1, 1)) + rng.normal(0, 0.02, (40, 1, 3, SIDE, SIDE))
    return np.concatenate([session.run({"x": one.astype(np.float32)})[0] for one in bright])


def widths(path: Path) -> list[int]:
    graph = onnx.load(str(path)).graph
    tensors = {one.name: one for one in graph.initializer}
    return [tensors[node.input[1]].dims[0] for node in graph.node if node.op_type == "Conv"]


def test_a_student_is_narrower_and_learns_to_answer_as_the_whole_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil, "SHOWN", 6400)
    made = materials(tmp_path, network())
    cut = pruned.cut(tmp_path / "model.onnx", "y", made, pruned.KEEP, tmp_path)
    pruned.finish(cut.small, cut.ending, tmp_path / "model.onnx", tmp_path / "untaught.onnx")
    recipe = KINDS["pruned"].make(made, tmp_path / "taught.onnx", careful=False)
    want = answers(tmp_path / "model.onnx")
    before, after = (np.abs(answers(tmp_path / f"{name}.onnx") - want).mean() for name in ("untaught", "taught"))
    assert after < before / 3 and after < 0.02
    assert widths(tmp_path / "taught.onnx") == [8, 8]
    assert "0.5 of every width" in recipe.method and "64 pictures, 6144 times in all" in recipe.method


def test_a_student_takes_and_gives_exactly_what_the_model_does_and_its_normalisation_is_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil, "SHOWN", 320)
    made = materials(tmp_path, network())
    for kind in ("pruned", "pruned-u8s8"):
        KINDS[kind].make(made, tmp_path / f"{kind}.onnx", careful=False)
        session, whole = (open_session(tmp_path / f"{name}.onnx", "onnxruntime") for name in (kind, "model"))
        assert session.inputs == whole.inputs and session.outputs == whole.outputs
        np.testing.assert_allclose(answers(tmp_path / f"{kind}.onnx").sum(axis=1), 1, atol=0.01)
        operators = {node.op_type for node in onnx.load(str(tmp_path / f"{kind}.onnx")).graph.node}
        assert "BatchNormalization" not in operators and "Softmax" in operators
        assert ("QuantizeLinear" in operators) == (kind == "pruned-u8s8")


def test_both_kinds_are_one_student_that_is_taught_once_and_the_same_again_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil, "SHOWN", 512)
    told: list[Any] = []
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made = materials(tmp_path / name, network(), told=told)
        told.clear()
        KINDS["pruned"].make(made, tmp_path / name / "p.onnx", careful=False)
        assert told[-1] == ("teaching", 16, 16)
        KINDS["pruned-u8s8"].make(made, tmp_path / name / "q.onnx", careful=False)
        assert len(told) == 16
        files.append([(tmp_path / name / file).read_bytes() for file in ("p.onnx", "q.onnx")])
    assert files[0] == files[1]


def test_a_training_that_the_time_does_not_suffice_for_is_shortened_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil, "step_seconds", lambda engine, lessons, size, clock: 0.5)
    recipe = KINDS["pruned"].make(materials(tmp_path, network(), seconds=20.0), tmp_path / "p.onnx", careful=False)
    assert "1024 times in all, as often as the time allowed" in recipe.method  # 2 x 16 steps of 32 pictures


def test_a_time_that_does_not_suffice_for_all_pictures_once_is_refused_and_not_tried_again_by_the_other_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil, "step_seconds", lambda engine, lessons, size, clock: 0.5)
    made = materials(tmp_path, network(), count=320, seconds=2.0)
    with pytest.raises(CompressError, match="2 seconds suffice for 4 of the 20 steps"):
        KINDS["pruned"].make(made, tmp_path / "p.onnx", careful=False)
    monkeypatch.setattr(pruned, "_teach", pytest.fail)
    with pytest.raises(CompressError, match="2 seconds suffice for 4 of the 20 steps"):
        KINDS["pruned-u8s8"].make(made, tmp_path / "q.onnx", careful=False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network(odd="Transpose"), r'around the node "odd-one" \(Transpose\)'),
        (network(last="Sigmoid"), "come out of a Sigmoid"),
    ],
)
def test_a_graph_that_is_not_understood_is_refused_with_what_is_in_the_way(
    model: onnx.ModelProto, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CompressError, match=message):
        KINDS["pruned"].make(materials(tmp_path, model), tmp_path / "p.onnx", careful=False)


def test_without_pictures_to_learn_from_nothing_is_pruned(tmp_path: Path) -> None:
    made = replace(materials(tmp_path, network()), training=None)
    with pytest.raises(CompressError, match="no pictures to teach"):
        KINDS["pruned"].make(made, tmp_path / "p.onnx", careful=False)


def coloured(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    level = rng.uniform(0, 255, (1, 1, 3)) + rng.normal(0, 12, (SIDE, SIDE, 3))
    return bytes(cv2.imencode(".png", np.clip(level, 0, 255).astype(np.uint8))[1])


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Dataset]:
    """A model that sorts pictures by colour, and 800 that it is sure of."""
    root = tmp_path_factory.mktemp("colours") / "model"
    root.mkdir()
    onnx.save(network(), str(root / "model.onnx"))
    (root / "labels.txt").write_text("a\nb\nc\nd\n")
    variants = [Variant(file="model.onnx")]
    output = OutputSpec(kind="probabilities")
    manifest = Manifest(
        name="colours", version="1", labels="labels.txt", input=SPEC, output=output, variants=variants, samples=[]
    )
    package = seal_package(root, manifest)
    model = Classifier.load(package)
    files: dict[str, bytes] = {}
    found = []
    for seed in range(4000):
        data = coloured(seed)
        said = model.classify(data)
        if said.margin > 0.2 and len(found) < 800:
            digest = hashlib.sha256(data).hexdigest()
            files[digest] = data
            found.append(Picture(f"{seed}.png", digest, said.label))
    model.close()
    assert len(found) == 800 and len({one.label for one in found}) > 1
    return package, Dataset(tuple(found), lambda one: files[one.sha256])


def test_the_step_keeps_a_student_that_answers_as_well_and_says_what_it_learnt_from(
    colours: tuple[Package, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil, "SHOWN", 6_400)
    source, data = colours
    outcome = compress(Request(source, data, tmp_path, "2", kinds=("pruned", "pruned-u8s8")))
    for made in outcome.lineage.variants:
        assert made.accepted, made.reason
        assert made.gate is not None and made.gate.drop <= 0.005
        assert made.recipe is not None and made.recipe.network == "width 0.5"
    used = outcome.lineage.data
    assert used.training == used.calibration > 100 and used.training_digest == used.calibration_digest
    package = open_package(Path(outcome.package))
    assert [one.file for one in package.manifest.variants] == [
        "compressed/pruned-u8s8.onnx",
        "model.onnx",
        "compressed/pruned.onnx",
    ]


def test_a_checkpoint_teaches_the_student_and_stays_in_the_package(
    colours: tuple[Package, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, data = colours
    root = tmp_path / "folded"
    (root / "checkpoint").mkdir(parents=True)
    for file, target in (("labels.txt", "labels.txt"), ("model.onnx", "checkpoint/model.onnx")):
        (root / target).write_bytes(source.path(file).read_bytes())
    onnx.save(fold(network()), str(root / "model.onnx"))
    table = CheckpointSpec(file="checkpoint/model.onnx")
    folded = seal_package(root, msgspec.structs.replace(source.manifest, checkpoint=table))
    seen: list[int] = []

    def watched(student: onnx.ModelProto, *_: object) -> distil.Taught:
        seen.append(normalisations(student))
        return distil.Taught(student, 0, True)

    monkeypatch.setattr(distil, "distil", watched)
    outcome = compress(Request(folded, data, tmp_path / "out", "2", kinds=("u8s8", "pruned")))
    assert seen and set(seen) == {2}, "the student has what was folded"
    package = open_package(Path(outcome.package))
    assert package.manifest.checkpoint == table
    assert package.manifest.files[table.file] == folded.manifest.files[table.file]


def untaught(student: onnx.ModelProto, *_: object) -> distil.Taught:
    return distil.Taught(student, 0, True)


def shuffled(student: onnx.ModelProto, *_: object) -> distil.Taught:
    """The weights of one convolution in another order."""
    tensor = [one for one in student.graph.initializer if len(one.dims) == 4][-1]
    values = np.random.default_rng(1).permutation(numpy_helper.to_array(tensor).ravel()).reshape(tuple(tensor.dims))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return distil.Taught(student, 0, True)


@pytest.mark.parametrize("sabotage", [untaught, shuffled])
def test_a_sabotaged_student_is_refused_by_the_same_gate(
    sabotage: Callable[..., distil.Taught],
    colours: tuple[Package, Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distil, "distil", sabotage)
    outcome = compress(Request(*colours, tmp_path / "out", "2", kinds=("pruned", "pruned-u8s8")))
    assert not outcome.package and not (tmp_path / "out").exists()
    for made in outcome.lineage.variants:
        assert not made.accepted and made.reason.startswith("refused: ")
        assert made.gate is not None and made.gate.drop > 0.01


def named(number: int, group: str = "") -> Picture:
    return Picture(f"{number}.jpg", hashlib.sha256(str(number).encode()).hexdigest(), "good", group=group)


def test_no_picture_that_judges_and_none_of_its_group_is_ever_learnt_from() -> None:
    pictures = [named(n, f"board-{n % 50}") for n in range(600)]
    sides = split(pictures, 20, 400)
    more = [named(n, f"board-{n % 80}") for n in range(500, 1000)] + [named(n) for n in range(300, 400)]
    learnt = lessons(Dataset(tuple(pictures), lambda one: b"own"), sides, Dataset(tuple(more), lambda one: b"more"))
    judges = {one.sha256 for one in sides.held_out}
    groups = {one.group for one in sides.held_out}
    assert not judges & {one.sha256 for one in learnt.pictures}
    assert not groups & {one.group for one in learnt.pictures}
    assert set(sides.training) <= set(learnt.pictures) and len(learnt.pictures) > len(sides.training)
    assert set(sides.calibration) <= set(sides.training)
    assert learnt.fetch(learnt.pictures[0]) == b"own" and learnt.fetch(learnt.pictures[-1]) == b"more"


def test_what_needs_no_training_can_be_asked_for_by_itself() -> None:
    assert QUICK == ("u8s8", "s8s8", "fp16") and set(KINDS) - set(QUICK) == {"pruned", "pruned-u8s8"}
