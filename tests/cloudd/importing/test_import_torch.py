"""TorchScript and .pt2 through a PyTorch of the user's own; nothing in them is ever unpickled."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import onnx
import pytest
from foreign_models import LABELS, Take

from cloudd.importing import ImportRefused
from edgekit.packages import Variant, open_package
from edgekit.vision.classification import Classifier

_MAKE = Path(__file__).with_name("torch_maker.py")


@pytest.fixture(scope="session")
def files(torch_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    subprocess.run([torch_python, _MAKE, folder, folder / "executed"], check=True, timeout=100)
    assert (folder / "evil.pt2").exists() and not (folder / "executed").exists()
    return folder


@pytest.mark.parametrize("name", ["scripted.pt", "traced.pt", "static.pt2", "open.pt2"])
def test_a_program_of_pytorch_becomes_a_package_that_can_learn(
    take: Take, files: Path, torch_python: str, name: str
) -> None:
    size = {"width": 16, "height": 16} if name.endswith(".pt") else {}
    outcome = take(files / name, python=torch_python, input=size)
    lineage = outcome.lineage
    assert lineage.source.kind == ("exported" if name.endswith("2") else "torchscript")
    assert lineage.sameness.how == "outputs" and lineage.sameness.pictures == 16 and lineage.sameness.largest < 1e-4
    assert lineage.figures is not None and lineage.figures.right.hits == 24
    assert lineage.tools["torch"] and "torch" in lineage.road
    assert lineage.learning.possible == ["batchnorm", "head", "last-blocks", "full"]
    package = open_package(Path(outcome.package))
    model = onnx.load(package.path("model.onnx"))
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 1
    assert any("conv.weight" in one.name for one in model.graph.initializer)
    loaded = Classifier.load(package)
    assert loaded.prove() == 6
    loaded.close()


@pytest.mark.parametrize("name", ["static.pt2", "scripted.pt"])
def test_what_the_exporter_folded_comes_back_with_the_program_as_checkpoint(
    take: Take, files: Path, torch_python: str, name: str
) -> None:
    outcome = take(files / "folded.onnx", checkpoint=files / name, python=torch_python)
    package = open_package(Path(outcome.package))
    counts = []
    for file in ("model.onnx", "checkpoint/model.onnx"):
        counts.append([node.op_type for node in onnx.load(package.path(file)).graph.node].count("BatchNormalization"))
    assert counts == [0, 1]
    record = outcome.lineage.checkpoint
    assert record is not None and record.largest < 1e-4 and "torch" in record.road
    assert outcome.lineage.learning.possible == ["batchnorm", "head", "last-blocks", "full"]
    loaded = Classifier.load(package, variant=Variant(file="checkpoint/model.onnx"))
    assert loaded.prove() == 6 and loaded.session.inputs[0].name == "image"
    loaded.close()


def test_a_size_that_the_file_does_not_say_is_asked(take: Take, files: Path, torch_python: str) -> None:
    with pytest.raises(ImportRefused, match="does not say how large its input is"):
        take(files / "scripted.pt", python=torch_python)


def test_programs_that_cannot_serve_are_refused_with_what_to_do(take: Take, files: Path, torch_python: str) -> None:
    for name, message in (
        ("eight.pt2", "exported for a batch of 8"),
        ("training.pt2", r"model\.eval\(\)"),
        ("weights.pt", "holds Python objects"),
        ("whole.pt", "holds Python objects"),
    ):
        with pytest.raises(ImportRefused, match=message):
            take(files / name, python=torch_python, labels=LABELS)


def test_a_pickle_inside_of_an_exported_program_is_not_carried_out(take: Take, files: Path, torch_python: str) -> None:
    with pytest.raises(ImportRefused):
        take(files / "evil.pt2", python=torch_python)
    assert not (files / "executed").exists()


def test_a_damaged_program_is_refused(take: Take, files: Path, torch_python: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(files / "static.pt2") as good, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as bad:
        for entry in good.infolist():
            data = good.read(entry)
            bad.writestr(entry.filename, data[: len(data) // 2] if entry.filename.endswith("model.json") else data)
    with pytest.raises(ImportRefused, match=r"cannot read this \.pt2"):
        take(tmp_path / "bad.pt2", python=torch_python)
