"""Keras models and SavedModels through a TensorFlow of the user's own, as TFLite."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from foreign_models import Take

from cloudd.importing import ImportRefused
from edgekit.packages import open_package
from edgekit.runtimes import ModelError
from edgekit.vision.classification import Classifier

_MAKE = Path(__file__).with_name("tensorflow_maker.py")


@pytest.fixture(scope="session")
def files(tensorflow_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow")
    subprocess.run([tensorflow_python, _MAKE, folder, folder / "executed"], check=True, timeout=100)
    return folder


@pytest.mark.parametrize("name", ["net.keras", "net.h5", "saved"])
def test_a_model_of_tensorflow_becomes_a_package(take: Take, files: Path, tensorflow_python: str, name: str) -> None:
    outcome = take(files / name, python=tensorflow_python)
    lineage = outcome.lineage
    assert lineage.source.kind == ("saved_model" if name == "saved" else "keras")
    assert lineage.sameness.how == "outputs" and lineage.sameness.pictures == 16 and lineage.sameness.largest < 1e-4
    assert lineage.figures is not None and lineage.figures.right.hits == 24
    assert lineage.tools["tensorflow"] and "TFLiteConverter" in lineage.road
    assert "this is TFLite" in lineage.learning.reason
    package = open_package(Path(outcome.package))
    assert package.manifest.input.layout == "nhwc" and package.manifest.output.kind == "probabilities"
    loaded = Classifier.load(package)
    assert loaded.prove() == 6
    loaded.close()


def test_python_code_in_a_keras_file_is_not_read(take: Take, files: Path, tensorflow_python: str) -> None:
    with pytest.raises(ImportRefused, match="Lambda"):
        take(files / "lambda.keras", python=tensorflow_python)


def test_a_program_that_writes_files_writes_none(take: Take, files: Path, tensorflow_python: str) -> None:
    with pytest.raises((ImportRefused, ModelError)):
        take(files / "writes", python=tensorflow_python)
    assert not (files / "executed").exists()
