"""Foreign embedding and anomaly models: which output is the answer, what pictures say of it, and what is refused."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign_models import save
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cloudd.cli import importing
from cloudd.importing import ImportRefused, Outcome, Request, import_model, read_lineage
from edgekit.datasets.dataset import DatasetError
from edgekit.packages import open_package
from edgekit.runtimes import ModelError
from edgekit.vision.anomaly import AnomalyDetector
from edgekit.vision.embedding import Embedder
from edgekit.vision.images import encode_png

SIDE, GRID = 16, 4
Take = Callable[..., Outcome]


def model(
    nodes: Sequence[onnx.NodeProto], outputs: dict[str, list[Any]], weights: dict[str, NDArray[Any]] | None = None
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


POOL = {"kernel_shape": [SIDE // GRID] * 2, "strides": [SIDE // GRID] * 2}


def embedder(twice: bool = False, blind: bool = False) -> onnx.ModelProto:
    """The mean colour of GRID x GRID fields, less grey; `blind`: of nothing."""
    nodes = [
        helper.make_node("Sub", ["input", "half"], ["moved"]),
        helper.make_node("AveragePool", ["moved"], ["fields"], **POOL),
        helper.make_node("Flatten", ["fields"], ["flat"]),
        helper.make_node("Mul", ["flat", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "one"], ["same"]),
        helper.make_node("Identity", ["same" if blind else "flat"], ["vector"]),
        *([helper.make_node("Neg", ["vector"], ["other"])] if twice else []),
    ]
    width = 3 * GRID * GRID
    weights = {name: np.float32(value) for name, value in (("half", 0.5), ("zero", 1e-9), ("one", 1.0))}
    return model(nodes, {name: ["n", width] for name in ("vector", "other")[: 1 + twice]}, weights)


def mapper(kind: str = "map", sign: float = 1.0) -> onnx.ModelProto:
    """How far each of GRID x GRID fields is from grey: a map, a score, or both."""
    nodes = [
        helper.make_node("Sub", ["input", "half"], ["moved"]),
        helper.make_node("Abs", ["moved"], ["far"]),
        helper.make_node("ReduceMean", ["far"], ["plane"], axes=[1], keepdims=1),
        helper.make_node("AveragePool", ["plane"], ["fields"], **POOL),
        helper.make_node("Mul", ["fields", "sign"], ["map"]),
        helper.make_node("ReduceMax", ["map"], ["score"], axes=[1, 2, 3], keepdims=0),
    ]
    shapes: dict[str, list[Any]] = {"map": ["n", 1, GRID, GRID], "score": ["n"]}
    kept = {name: shape for name, shape in shapes.items() if kind in (name, "both")}
    return model(nodes, kept, {"half": np.float32(0.5), "sign": np.float32(sign)})


def png(values: NDArray[np.floating]) -> bytes:
    return encode_png(np.clip(np.rint(255 * values), 0, 255).astype(np.uint8), "rgb")


def face(identity: int, number: int) -> bytes:
    fields = np.random.default_rng(identity).random((GRID, GRID, 3))
    noise = np.random.default_rng([identity, number]).normal(0, 0.05, (SIDE, SIDE, 3))
    return png(np.kron(fields, np.ones((SIDE // GRID, SIDE // GRID, 1))) + noise)


def part(number: int, bad: bool = False) -> bytes:
    rng = np.random.default_rng([number, bad])
    values = 0.5 + rng.normal(0, 0.02 + 0.001 * (number % 7), (SIDE, SIDE, 3))
    if bad:
        y, x = rng.integers(0, SIDE - 5, 2)
        values[y : y + 5, x : x + 5] = 0.9
    return png(values)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faces")
    for identity in range(8):
        (root / f"person-{identity}").mkdir()
        for number in range(5):
            (root / f"person-{identity}" / f"{number}.png").write_bytes(face(identity, number))
    return root


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    for label, count in (("fine", 60), ("scratch", 12), ("dent", 10)):
        (root / label).mkdir()
        for number in range(count):
            where = 1000 * (label == "dent") + number
            (root / label / f"{number}.png").write_bytes(part(where, label != "fine"))
    return root


@pytest.fixture
def take(tmp_path: Path) -> Take:
    def run(made: onnx.ModelProto, task: str, **wishes: Any) -> Outcome:
        told: dict[str, Any] = {"name": "net", "out": tmp_path / "out", "normalise": "unit", "task": task}
        return import_model(Request(source=save(made, tmp_path / "m.onnx"), **{**told, **wishes}))

    return run


def refusal(take: Take, tmp_path: Path, made: onnx.ModelProto, task: str, **wishes: Any) -> str:
    with pytest.raises((ImportRefused, ModelError, DatasetError)) as caught:
        take(made, task, **wishes)
    assert not list((tmp_path / "out").glob("*")) and not list((tmp_path / "out").glob(".*"))
    return str(caught.value)


# --- embedding --------------------------------------------------------------------------------------------------------


def test_an_embedding_model_comes_in_with_a_threshold_from_its_pictures(take: Take, faces: Path) -> None:
    outcome = take(embedder(), "embedding", pictures=faces)
    package = open_package(Path(outcome.package))
    manifest = package.manifest
    assert manifest.task == "embedding" and manifest.labels == "" and manifest.output.kind == "none"
    assert manifest.embedding is not None and manifest.embedding.width == 3 * GRID * GRID
    told = outcome.lineage.likeness
    assert told is not None and told.identities == 8 and told.nearest.hits == told.nearest.trials == 40
    assert manifest.embedding.threshold == told.threshold and told.missed.hits == 0
    assert outcome.lineage == read_lineage(package) and outcome.lineage.pinned == "labels"
    assert outcome.lineage.sameness.how == "bytes" and outcome.labels == 0
    assert outcome.lineage.learning.possible == []
    model = Embedder.load(package)
    assert model.prove() == outcome.samples == 6
    model.close()


def test_pictures_without_identities_or_none_at_all_make_an_unproved_package(
    take: Take, tmp_path: Path, faces: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for number in range(3):
        (plain / f"{number}.png").write_bytes(face(number, 0))
    for number, pictures in enumerate((plain, None)):
        outcome = take(embedder(), "embedding", pictures=pictures, version=str(number))
        manifest = open_package(Path(outcome.package)).manifest
        assert manifest.embedding is not None and manifest.embedding.threshold is None
        assert outcome.samples == 0 and outcome.lineage.likeness is None


def test_an_embedding_that_sees_nothing_is_refused(take: Take, tmp_path: Path, faces: Path) -> None:
    said = refusal(take, tmp_path, embedder(blind=True), "embedding", pictures=faces)
    assert "of 40 pictures are nearer to another of their own identity" in said and "as well be chance" in said


def test_which_output_is_the_vector_is_asked_and_no_vector_is_refused(take: Take, tmp_path: Path, faces: Path) -> None:
    assert "say --output name=NAME, one of" in refusal(take, tmp_path, embedder(twice=True), "embedding")
    assert "no output is one vector" in refusal(take, tmp_path, mapper("score"), "embedding")
    assert 'no output "gone"' in refusal(take, tmp_path, embedder(), "embedding", output={"name": "gone"})
    outcome = take(embedder(twice=True), "embedding", output={"name": "vector"}, pictures=faces)
    assert open_package(Path(outcome.package)).manifest.output.name == "vector"


# --- anomaly ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["map", "score"])
def test_an_anomaly_model_gets_its_limit_from_good_parts(kind: str, take: Take, parts: Path) -> None:
    outcome = take(mapper(kind), "anomaly", pictures=parts, good="fine")
    package = open_package(Path(outcome.package))
    assert package.manifest.task == "anomaly" and package.labels == ["fine", "anomaly"]
    told = outcome.lineage.parts
    assert told is not None and told.good == 60 and 0 < told.false_alarms.hits <= 3
    assert {label: one.hits for label, one in told.found.items()} == {"dent": 10, "scratch": 12}
    assert package.manifest.anomaly is not None and package.manifest.anomaly.limit == told.limit
    assert outcome.lineage == read_lineage(package) and outcome.samples == 4
    model = AnomalyDetector.load(package)
    assert model.prove() == 4
    answer = model.classify(part(5000, bad=True))
    assert answer.label == "anomaly" and (answer.heat is not None) == (kind == "map")
    assert model.classify(part(5001)).label == "fine"
    model.close()


def test_one_folder_of_good_parts_is_enough(take: Take, parts: Path) -> None:
    outcome = take(mapper(), "anomaly", pictures=parts / "fine", labels=("good", "bad"), false_alarms=0.1)
    assert open_package(Path(outcome.package)).labels == ["good", "bad"] and outcome.samples == 2
    assert outcome.lineage.parts is not None and outcome.lineage.parts.auroc is None
    assert outcome.lineage.parts.false_alarms.hits <= 6


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"pictures": None}, "bring some with --pictures"),
        ({}, "say which one good parts have: --good"),
        ({"good": "gone"}, "no picture has the label 'gone'"),
        ({"good": "fine", "false_alarms": 0.01}, "60 good parts cannot give 0.01 false alarms; 99 can"),
        ({"good": "fine", "false_alarms": 0.7}, "a share above 0 and below 0.5"),
        ({"good": "fine", "labels": ("a",)}, "two belong there"),
        ({"good": "fine", "normalise": ""}, "say --normalise NAME"),
        ({"good": "fine", "detection": {}}, "are two tasks"),
        ({"good": "fine", "checkpoint": Path("x.onnx")}, "no anomaly model learns on a device"),
    ],
)
def test_what_cannot_be_is_refused(
    wishes: dict[str, Any], message: str, take: Take, tmp_path: Path, parts: Path
) -> None:
    assert message in refusal(take, tmp_path, mapper(), "anomaly", **{"pictures": parts, **wishes})


def test_outputs_that_are_no_map_and_maps_that_see_nothing_are_refused(take: Take, tmp_path: Path, parts: Path) -> None:
    told: dict[str, Any] = {"pictures": parts, "good": "fine"}
    assert "say --output name=NAME" in refusal(take, tmp_path, mapper("both"), "anomaly", **told)
    assert "distances from what is good are 0 or more" in refusal(take, tmp_path, mapper(sign=-1.0), "anomaly", **told)
    assert "so nothing can be told by them" in refusal(take, tmp_path, mapper(sign=0.0), "anomaly", **told)
    assert "no output is a map" in refusal(take, tmp_path, embedder(), "anomaly", **told)
    swapped = refusal(take, tmp_path, mapper(), "anomaly", pictures=parts, good="scratch", false_alarms=0.2)
    assert "may as well be chance" in swapped


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_person_reads_how_well_the_model_does_its_task(
    faces: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "nice", lambda by: 0)
    parser = argparse.ArgumentParser(prog="cloudd")
    importing.add(parser.add_subparsers(required=True))

    def here(made: onnx.ModelProto, name: str, *more: object) -> tuple[int, str]:
        told = (save(made, tmp_path / f"{name}.onnx"), "--model", name, "--normalise", "unit", "--out", tmp_path)
        args = parser.parse_args(["import", *map(str, (*told, *more))])
        status = int(args.do(args))
        out = capsys.readouterr()
        return status, out.out + out.err

    status, said = here(embedder(), "faces", "--task", "embedding", "--pictures", faces)
    assert status == 0 and "Nearer to their own identity than to any other: 40 of 40 pictures" in said
    assert "no labels" in said and "6 proof samples say what the labels say" in said
    assert "Devices cannot learn with it: devices learn classifiers and detectors" in said
    status, said = here(mapper(), "parts", "--task", "anomaly", "--pictures", parts, "--good", "fine")
    assert status == 0 and "of 60 good parts are called anomalous" in said
    assert "  scratch: 12 of 12 found (73.5% to 100.0%)" in said
    status, said = here(mapper(), "others", "--pictures", parts, "--good", "fine")
    assert status == 1 and "--good belongs to --task anomaly" in said
