"""Real models that nobody here wrote: quantised classifiers, a face detector, and one that must fail cleanly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudd.importing import ImportRefused, Outcome, Request, import_model
from edgekit.packages import open_package
from edgekit.runtimes import ModelError
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector
from edgekit.vision.images import sniff

pytestmark = pytest.mark.real_data


@pytest.fixture
def models(real_data: Path) -> Path:
    return real_data / "models"


@pytest.fixture
def expected(models: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((models / "expected.json").read_text())
    return found


def take(models: Path, out: Path, file: str, labels: tuple[str, ...], **wishes: Any) -> Outcome:
    told: dict[str, Any] = {"name": "foreign", "pictures": models / "coral", **wishes}
    return import_model(Request(source=models / file, out=out, labels=labels, **told))


def lines(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text().splitlines())


def test_a_quantised_imagenet_classifier_answers_as_was_measured(
    models: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    labels = lines(models / "coral/imagenet_labels.txt")
    outcome = take(models, tmp_path, "coral/mobilenet_v1_0.25_128_quant.tflite", labels)
    package = open_package(Path(outcome.package))
    spec = package.manifest.input
    # uint8 with scale 1/128 and zero point 128: pixels become -1 to 1.
    assert (spec.width, spec.layout, spec.dtype, spec.mean) == (128, "nhwc", "uint8", [128.0])
    assert outcome.lineage.input["mean"] == outcome.lineage.input["scale"] == "read"
    assert package.manifest.output.kind == "probabilities" and outcome.labels == 1001
    model = Classifier.load(package)
    for name in ("cat_720p", "bird", "grace_hopper"):
        answer = model.classify((models / f"coral/{name}.jpg").read_bytes())
        (index, label, score), *_ = expected[f"mobilenet_v1_0.25_128_quant|coral/{name}.jpg"]
        assert (answer.index, answer.label) == (index, label)
        assert answer.score == pytest.approx(score, abs=0.02)
    model.close()
    assert "this is TFLite" in outcome.lineage.learning.reason and outcome.lineage.learning.possible == []


def test_a_person_detector_of_tinyml_answers_as_was_measured(
    models: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    outcome = take(models, tmp_path, "mlcommons-tiny/vww_96_int8.tflite", ("no person", "person"))
    model = Classifier.load(open_package(Path(outcome.package)))
    assert model.prove() == outcome.samples >= 2
    for name in ("cat_720p", "bird", "grace_hopper", "face"):
        answer = model.classify((models / f"coral/{name}.jpg").read_bytes())
        assert answer.probabilities[1] == pytest.approx(expected[f"vww_96_int8|coral/{name}.jpg"]["person"], abs=0.02)
    model.close()


def test_the_scale_of_an_int8_input_says_that_pixels_stay_as_they_are(models: Path, tmp_path: Path) -> None:
    labels = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    outcome = take(models, tmp_path, "mlcommons-tiny/pretrainedResnet_quant.tflite", labels)
    assert (outcome.input.mean, outcome.input.scale, outcome.input.dtype) == ([0.0], [1.0], "int8")
    model = Classifier.load(open_package(Path(outcome.package)))
    assert model.classify((models / "coral/cat_720p.jpg").read_bytes()).label == "cat"
    model.close()


def test_a_face_detector_finds_the_faces_and_its_weights_are_no_inputs(
    models: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    outcome = take(
        models,
        tmp_path,
        "linzaer/version-RFB-320.onnx",
        ("face",),
        input={"mean": [127.0], "scale": [1 / 128]},
        detection={"head": "ssd", "report": 0.7, "nms_iou": 0.3},
    )
    assert outcome.lineage.changes[0].endswith("weights are no longer listed among the inputs")
    same = outcome.lineage.sameness
    assert same.how == "outputs" and same.pictures == 4 and same.largest < 1e-4
    learning = outcome.lineage.learning
    assert learning.weights == learning.reached > 100 and "only centre-point ones" in learning.reason
    package = open_package(Path(outcome.package))
    assert (package.manifest.input.width, package.manifest.input.height) == (320, 240)
    model = Detector.load(package)
    assert model.prove() == outcome.samples
    assert sorted({one.count for one in package.manifest.samples if one.count is not None}) == [0]
    for name in ("cat_720p", "grace_hopper", "face"):
        data = (models / f"coral/{name}.jpg").read_bytes()
        boxes = expected[f"RFB-320|coral/{name}.jpg"]["boxes"]
        found = model.detect(data).reported
        assert len(found) == len(boxes)
        info = sniff(data)
        size = (info.width, info.height, info.width, info.height)
        wanted = sorted(tuple(round(v, 2) for v in row[:4]) for row in boxes)
        given = sorted(tuple(round(float(v) / s, 2) for v, s in zip(box, size, strict=True)) for box in found.boxes)
        assert all(
            abs(a - b) <= 0.02 for one, two in zip(wanted, given, strict=True) for a, b in zip(one, two, strict=True)
        )
    model.close()


def test_what_cannot_be_a_package_is_refused_with_the_reason(models: Path, tmp_path: Path) -> None:
    for file, labels, message in (
        ("coral/model_invoking_error.tflite", ("a",), "fake-op-double"),
        ("coral/split_concat.tflite", ("a",), "the model has 3 inputs"),
        ("coral/mobilenet_v1_0.25_128_quant.tflite", ("a", "b"), "there are 2 labels"),
        ("linzaer/version-RFB-320.onnx", ("face",), "Is it a detector?"),
        ("linzaer/LICENSE", ("a",), "none of ONNX, TFLite"),
    ):
        with pytest.raises((ImportRefused, ModelError), match=message):
            take(models, tmp_path, file, labels)
    assert not list(tmp_path.iterdir())
