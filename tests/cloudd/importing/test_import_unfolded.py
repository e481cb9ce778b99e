"""A model with its BatchNormalization folded comes in with the un-folded checkpoint that its author has, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import pytest
from foreign_models import SIDE, Take, brightness, save
from onnx import numpy_helper

from cloudd.importing import ImportRefused, Outcome, read_lineage
from edgekit.packages import Variant, checkpoint_files, open_package
from edgekit.runtimes import ModelError, open_session
from edgekit.training.folded import fold, normalisations
from edgekit.vision.classification import Classifier
from tests.support.models import picture


def trained(**options: Any) -> onnx.ModelProto:
    """As `brightness`, but with statistics that folding has something to do with, and the same answers."""
    model = brightness(**options)
    arrays = {one.name: one for one in model.graph.initializer}
    mean, variance = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 1.0, 2.0, 4.0])
    values = {
        "bn.running_mean": mean,
        "bn.running_var": variance,
        "bn.weight": np.sqrt(variance + 1e-6),
        "bn.bias": mean,
    }
    for name, array in values.items():
        arrays[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    return model


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    for one in (*model.graph.input, *model.graph.output):
        one.name = names.get(one.name, one.name)
    return model


def files(folder: Path, **options: Any) -> tuple[Path, Path]:
    """Folded and not."""
    whole = trained(**options)
    return save(fold(whole), folder / "served.onnx"), save(whole, folder / "trained.onnx")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return files(tmp_path)


def refusal(take: Take, source: Path, tmp_path: Path, **wishes: Any) -> str:
    with pytest.raises((ImportRefused, ModelError)) as caught:
        take(source, **wishes)
    assert not list((tmp_path / "out").glob("*")) and not list((tmp_path / "out").glob(".*"))
    return str(caught.value)


def check(outcome: Outcome) -> None:
    """Both forms say the same and are right, and devices learn on the one that is not folded."""
    package = open_package(Path(outcome.package))
    assert package.manifest.checkpoint is not None
    file = package.manifest.checkpoint.file
    counts = [normalisations(onnx.load(str(package.path(one)))) for one in (package.manifest.variants[0].file, file)]
    assert counts == [0, 1] and outcome.lineage.learning.normalisations == 1
    assert outcome.lineage.learning.possible == ["batchnorm", "head", "last-blocks", "full"]
    for variant in (None, Variant(file=file)):
        model = Classifier.load(package, variant=variant)
        assert model.prove() == outcome.samples == 6
        assert [model.classify(picture(level, seed=5)).label for level in (0.15, 0.5, 0.85)] == package.labels
        model.close()


def test_both_forms_are_in_the_package_and_compared(take: Take, pair: tuple[Path, Path]) -> None:
    served, whole = pair
    outcome = take(served, checkpoint=whole)
    check(outcome)
    package = open_package(Path(outcome.package))
    assert package.path("model.onnx").read_bytes() == served.read_bytes()
    assert package.path("checkpoint/model.onnx").read_bytes() == whole.read_bytes()
    assert checkpoint_files(package.manifest) == ["checkpoint/model.onnx"]
    record = outcome.lineage.checkpoint
    assert record is not None and outcome.lineage == read_lineage(package)
    assert record.source.file == "trained.onnx" and record.normalisations == 1 and record.largest < 1e-5


def test_without_it_devices_cannot_take_new_statistics(take: Take, pair: tuple[Path, Path]) -> None:
    outcome = take(pair[0])
    assert "batchnorm" not in outcome.lineage.learning.possible and outcome.lineage.checkpoint is None
    assert open_package(Path(outcome.package)).manifest.checkpoint is None


def test_a_softmax_goes_from_both_and_an_open_size_is_closed_in_both(take: Take, tmp_path: Path) -> None:
    served, whole = files(tmp_path, ending="Softmax", sides=("h", "w"))
    check(take(served, checkpoint=whole, input={"width": SIDE, "height": SIDE}))


def test_other_names_of_input_and_output_become_those_of_the_model(take: Take, tmp_path: Path) -> None:
    served, _ = files(tmp_path)
    # "answer" is the output of the served model and the features of this one.
    other = renamed(trained(), {"input": "picture", "answer": "scores", "f": "answer"})
    outcome = take(served, checkpoint=save(other, tmp_path / "other.onnx"))
    check(outcome)
    session = open_session(Path(outcome.package) / "checkpoint" / "model.onnx", "onnxruntime")
    assert [session.inputs[0].name, session.outputs[0].name] == ["input", "answer"]
    session.close()


def test_weights_beside_the_checkpoint_come_along(take: Take, pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "outside"
    folder.mkdir()
    onnx.save(
        onnx.load(str(pair[1])),
        str(folder / "m.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    outcome = take(pair[0], checkpoint=folder / "m.onnx")
    check(outcome)
    package = open_package(Path(outcome.package))
    assert checkpoint_files(package.manifest) == ["checkpoint/model.onnx", "checkpoint/weights.bin"]


def test_another_networks_checkpoint_is_refused_with_the_difference(
    take: Take, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    model = trained()
    bias = next(one for one in model.graph.initializer if one.name == "bn.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.05), bias.name))
    said = refusal(take, pair[0], tmp_path, checkpoint=save(model, tmp_path / "other.onnx"))
    assert '"answer" differs by' in said and "0.001 is allowed" in said


def test_what_brings_nothing_back_or_does_not_fit_is_refused(
    take: Take, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    served, whole = pair
    assert "has 0 BatchNormalization and the model has 0" in refusal(take, served, tmp_path, checkpoint=served)
    assert "has 1 BatchNormalization and the model has 1" in refusal(take, whole, tmp_path, checkpoint=whole)
    small = save(trained(sides=(8, 8)), tmp_path / "small.onnx")
    assert "takes float32 ?x3x8x8, and the model float32 ?x3x16x16" in refusal(take, served, tmp_path, checkpoint=small)
    two = save(trained(twice=True), tmp_path / "two.onnx")
    assert "gives 2 outputs, and the model 1" in refusal(take, served, tmp_path, checkpoint=two)
    (tmp_path / "x.tflite").write_bytes(b"\0\0\0\0TFL3" + bytes(32))
    assert "gradients are derived of ONNX" in refusal(take, served, tmp_path, checkpoint=tmp_path / "x.tflite")


def test_a_model_in_half_precision_takes_no_checkpoint(take: Take, pair: tuple[Path, Path], tmp_path: Path) -> None:
    model = onnx.load(str(pair[0]))
    weight = next(one for one in model.graph.initializer if one.name == "fc.weight")
    half = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), "fc.half")
    model.graph.initializer.remove(weight)
    model.graph.initializer.append(half)
    cast = onnx.helper.make_node("Cast", ["fc.half"], ["fc.weight"], to=onnx.TensorProto.FLOAT, name="cast")
    model.graph.node.insert(0, cast)
    said = refusal(take, save(model, tmp_path / "half.onnx"), tmp_path, checkpoint=pair[1])
    assert "is fp16: nobody could show that both are one network" in said


def test_the_same_request_gives_the_same_package(take: Take, pair: tuple[Path, Path], tmp_path: Path) -> None:
    one = take(pair[0], checkpoint=pair[1])
    other = take(pair[0], checkpoint=pair[1], out=tmp_path / "again")
    assert open_package(Path(one.package)).digest == open_package(Path(other.package)).digest
