"""The classifier on small packages made here: answers, proof samples, and models that break their promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.packages import InputSpec, Manifest, OutputSpec, Package, ProofSample, Variant, seal_package
from edgekit.runtimes import ModelError, SessionOptions, TensorInfo
from edgekit.vision.classification import Classifier, read_answer, softmax
from edgekit.vision.images import ImageError, encode_jpeg, encode_png

LABELS = ["red", "green", "blue"]


def solid(colour: int, size: int = 16) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = np.zeros((size, size, 3), np.uint8)
    image[:, :, colour] = 200
    return image


def colour_model(*, batch: int | str = 1, tail: tuple[str, ...] = (), outputs: int = 3) -> onnx.ModelProto:
    """Mean of each colour plane, times ten: logits of red, green, blue. `tail` appends operators to the logits."""
    weight = np.zeros((3, outputs), np.float32)
    np.fill_diagonal(weight, 10)
    names = ["logits", *(f"t{i}" for i in range(len(tail)))]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        *(helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(tail)),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, [batch, outputs])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def package(
    root: Path,
    model: onnx.ModelProto,
    *,
    output: OutputSpec | None = None,
    samples: tuple[ProofSample, ...] = (),
    labels: list[str] | None = None,
    **input_changes: Any,
) -> Package:
    root.mkdir(exist_ok=True)
    (root / "model.onnx").write_bytes(model.SerializeToString())
    (root / "labels.txt").write_text("\n".join(labels or LABELS) + "\n")
    (root / "blue.png").write_bytes(encode_png(solid(2)))
    manifest = Manifest(
        name="colours",
        version="1",
        labels="labels.txt",
        input=InputSpec(**{"width": 8, "height": 8, "scale": [1 / 255], **input_changes}),
        output=output or OutputSpec(),
        variants=[Variant(file="model.onnx")],
        samples=list(samples),
    )
    return seal_package(root, manifest)


@pytest.mark.parametrize("colour", [0, 1, 2])
def test_a_picture_gets_its_label_and_margin(tmp_path: Path, colour: int) -> None:
    classifier = Classifier.load(package(tmp_path / "p", colour_model()), SessionOptions(threads=1))
    answer = classifier.classify(encode_png(solid(colour)))
    expected = softmax(np.eye(3)[colour] * 10 * 200 / 255)
    assert answer.label == LABELS[colour]
    assert answer.index == colour
    np.testing.assert_allclose(answer.probabilities, expected, rtol=1e-4)
    assert answer.score == pytest.approx(expected.max(), rel=1e-4)
    assert answer.margin == pytest.approx(expected.max() - expected.min(), rel=1e-4)
    assert set(answer.timings_ms) == {"decode", "infer"}
    assert classifier.classify_image(solid(colour)).label == LABELS[colour]


def test_probabilities_are_used_as_they_are(tmp_path: Path) -> None:
    built = package(tmp_path / "p", colour_model(tail=("Softmax",)), output=OutputSpec(kind="probabilities"))
    answer = Classifier.load(built).classify(encode_jpeg(solid(1)))
    assert answer.label == "green"
    assert answer.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_colour_order_of_the_package_is_followed(tmp_path: Path) -> None:
    built = package(tmp_path / "p", colour_model(), colour="bgr")
    assert Classifier.load(built).classify(encode_png(solid(2))).label == "red"


def test_prove_accepts_what_the_package_promises(tmp_path: Path) -> None:
    samples = (ProofSample(file="blue.png", label="blue", score=0.998, tolerance=0.01),)
    assert Classifier.load(package(tmp_path / "p", colour_model(), samples=samples)).prove() == 1
    assert Classifier.load(package(tmp_path / "q", colour_model())).prove() == 0


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (ProofSample(file="blue.png", label="red"), 'should be "red", but the model says "blue"'),
        (ProofSample(file="blue.png", label="blue", score=0.5), r"with 0\.500 ± 0\.050, but the model says 0\.99"),
        (ProofSample(file="labels.txt", label="blue"), "labels.txt cannot be used: the bytes are not a JPEG or PNG"),
    ],
)
def test_prove_refuses_other_answers(tmp_path: Path, sample: ProofSample, message: str) -> None:
    built = package(tmp_path / "p", colour_model(), samples=(sample,))
    with pytest.raises(ModelError, match=message):
        Classifier.load(built).prove()


def test_a_model_that_gives_nan_is_refused(tmp_path: Path) -> None:
    # The square root of a negative logit is NaN; the blank picture of `prove` gives 0 and does not show it.
    model = colour_model(tail=("Neg", "Sqrt"))
    classifier = Classifier.load(package(tmp_path / "p", model))
    classifier.prove()
    with pytest.raises(ModelError, match="not numbers"):
        classifier.classify(encode_png(solid(0)))
    classifier.prove()  # and it goes on working


def test_a_model_that_cannot_run_shows_in_prove(tmp_path: Path) -> None:
    classifier = Classifier.load(package(tmp_path / "p", colour_model(tail=("Log", "Neg"))))
    with pytest.raises(ModelError, match="not numbers"):
        classifier.prove()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a", "b"]}, "is 1x3, but there are 2 labels"),
        ({"width": 9}, 'says the input is 1x3x8x9, but the model\'s "x" is 1x3x8x8'),
        ({"colour": "grey"}, "says the input is 1x1x8x8"),
        ({"name": "image"}, 'no input "image"; it has x'),
        ({"output": OutputSpec(name="scores")}, 'no output "scores"; it has logits'),
        ({"output": OutputSpec(kind="none")}, "no classifier"),
    ],
)
def test_a_package_that_does_not_fit_its_model_is_refused_when_loaded(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        Classifier.load(package(tmp_path / "p", colour_model(), **options))


def test_logits_declared_as_probabilities_are_found(tmp_path: Path) -> None:
    built = package(tmp_path / "p", colour_model(), output=OutputSpec(kind="probabilities"))
    with pytest.raises(ModelError, match='should say kind = "logits"'):
        Classifier.load(built).classify(encode_png(solid(0)))


def test_wrong_tensors_and_bad_pictures_leave_the_classifier_unharmed(tmp_path: Path) -> None:
    classifier = Classifier.load(package(tmp_path / "p", colour_model(batch="n")))
    with pytest.raises(ModelError, match="a batch of one"):
        classifier.classify_tensor(np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(ModelError, match="shape"):
        classifier.classify_tensor(np.zeros((1, 3, 8, 9), np.float32))
    with pytest.raises(ImageError, match="not a JPEG or PNG"):
        classifier.classify(b"text")
    assert classifier.classify(encode_png(solid(0))).label == "red"
    classifier.close()
    with pytest.raises(ModelError, match="closed"):
        classifier.classify(encode_png(solid(0)))


def test_external_weights_of_a_package_in_a_subfolder(tmp_path: Path) -> None:
    root = tmp_path / "p"
    (root / "fp32").mkdir(parents=True)
    model = colour_model()
    onnx.save_model(
        model, str(root / "fp32" / "m.onnx"), save_as_external_data=True, size_threshold=0, location="w.bin"
    )
    (root / "labels.txt").write_text("\n".join(LABELS))
    manifest = Manifest(
        name="colours",
        version="1",
        labels="labels.txt",
        input=InputSpec(width=8, height=8, scale=[1 / 255]),
        variants=[Variant(file="fp32/m.onnx")],
    )
    assert Classifier.load(seal_package(root, manifest)).classify(encode_png(solid(1))).label == "green"


PLAIN = TensorInfo("y", (1, 3), "float32")


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 3, 1, 1), (1, 1, 3)])
def test_one_value_per_label_in_any_rank(shape: tuple[int, ...]) -> None:
    assert read_answer(np.array([0, 5, 1], np.float32).reshape(shape), PLAIN, "logits", LABELS).label == "green"


@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (3, 1), (0,)])
def test_another_number_of_values_is_refused(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.float32)
    if array.size == 3:
        assert read_answer(array, PLAIN, "logits", LABELS).index == 0
        return
    with pytest.raises(ModelError, match="values for 3 labels"):
        read_answer(array, PLAIN, "logits", LABELS)


def test_quantised_outputs_are_dequantised() -> None:
    info = TensorInfo("y", (1, 3), "int8", (1 / 256, -128))
    answer = read_answer(np.array([[-128, 0, -64]], np.int8), info, "probabilities", LABELS)
    np.testing.assert_allclose(answer.probabilities, [0, 0.5, 0.25])
    assert answer.margin == pytest.approx(0.25)


def test_a_single_label_has_full_margin() -> None:
    answer = read_answer(np.array([[3.0]], np.float32), TensorInfo("y", (1, 1), "float32"), "logits", ["only"])
    assert (answer.score, answer.margin) == (1.0, 1.0)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=20))
def test_softmax_is_a_distribution_for_any_finite_logits(logits: list[float]) -> None:
    values = softmax(np.array(logits, np.float32))
    assert np.isfinite(values).all()
    assert values.sum() == pytest.approx(1, abs=1e-5)
    assert values.argmax() == np.argmax(np.array(logits, np.float32)) or values.max() - values[np.argmax(logits)] < 1e-6
