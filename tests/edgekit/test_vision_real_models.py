"""Models that nobody here wrote, on real pictures, against answers that other tools gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.packages import InputSpec, Manifest, OutputSpec, Package, ProofSample, Variant, seal_package
from edgekit.runtimes import ModelError, open_session
from edgekit.vision.classification import Classifier
from edgekit.vision.images import decode
from edgekit.vision.preprocess import prepare

pytestmark = pytest.mark.real_data

PICTURES = ["cat_720p", "bird", "grace_hopper", "face"]


@pytest.fixture(scope="session")
def models(real_data: Path) -> Path:
    return real_data / "models"


@pytest.fixture(scope="session")
def expected(models: Path) -> dict[str, Any]:
    answers: dict[str, Any] = json.loads((models / "expected.json").read_text())
    return answers


def pack(root: Path, file: Path, labels: list[str], spec: InputSpec, samples: dict[Path, str] | None = None) -> Package:
    root.mkdir()
    shutil.copyfile(file, root / file.name)
    (root / "labels.txt").write_text("\n".join(labels))
    for path in samples or {}:
        shutil.copyfile(path, root / path.name)
    manifest = Manifest(
        name="foreign",
        version="1",
        labels="labels.txt",
        input=spec,
        output=OutputSpec(kind="probabilities"),
        variants=[Variant(file=file.name, runtime="litert", precision="int8")],
        samples=[ProofSample(file=path.name, label=label, tolerance=0.1) for path, label in (samples or {}).items()],
    )
    return seal_package(root, manifest)


def test_every_model_has_the_tensors_that_others_read(models: Path) -> None:
    described = json.loads((models / "io.json").read_text())["io"]
    found = {path.name: path for path in models.glob("*/*") if path.suffix in (".tflite", ".onnx")}
    assert set(found) == set(described)
    for name, want in described.items():
        runtime = "onnxruntime" if name.endswith(".onnx") else "litert"
        if not want["ok"]:
            with pytest.raises(ModelError, match="fake-op-double"):
                open_session(found[name], runtime)
            continue
        session = open_session(found[name], runtime)
        for tensors, texts in ((session.inputs, want["inputs"]), (session.outputs, want["outputs"])):
            assert len(tensors) == len(texts), name
            for tensor, text in zip(tensors, texts, strict=True):
                shape = json.loads(text[: text.index("]") + 1])
                assert tensor.accepts(shape), (name, tensor, text)
                dtype = text[text.index("]") + 1 :].strip().replace("tensor(float)", "float32")
                assert dtype in ("", tensor.dtype), (name, tensor, text)
        session.close()


def test_mobilenet_quantised_uint8(models: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    """A grey level up or down moves this small 8-bit network by ten of its steps of 0.004; that is the tolerance."""
    labels = (models / "coral/imagenet_labels.txt").read_text().splitlines()
    spec = InputSpec(
        width=128, height=128, layout="nhwc", dtype="uint8", mean=[128.0], scale=[1 / 128], interpolation="antialias"
    )
    file = models / "coral/mobilenet_v1_0.25_128_quant.tflite"
    classifier = Classifier.load(pack(tmp_path / "p", file, labels, spec))
    for picture in PICTURES:
        answer = classifier.classify((models / f"coral/{picture}.jpg").read_bytes())
        want = expected[f"mobilenet_v1_0.25_128_quant|coral/{picture}.jpg"]
        for index, label, score in want:
            assert classifier.labels[index] == label
            assert answer.probabilities[index] == pytest.approx(score, abs=0.04), (picture, label)
        # Where the first places are a toss-up (the cat is tiger cat and Egyptian cat), the right one is near the top.
        assert answer.score - answer.probabilities[want[0][0]] <= 0.04, picture


def test_visual_wake_words_quantised_int8(models: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    spec = InputSpec(width=96, height=96, layout="nhwc", dtype="int8", scale=[1 / 255], interpolation="antialias")
    file = models / "mlcommons-tiny/vww_96_int8.tflite"
    samples = {models / f"coral/{name}.jpg": "person" for name in ("grace_hopper", "face")}
    samples[models / "coral/cat_720p.jpg"] = "no person"
    classifier = Classifier.load(pack(tmp_path / "p", file, ["no person", "person"], spec, samples))
    assert classifier.prove() == 3
    for picture in PICTURES:
        answer = classifier.classify((models / f"coral/{picture}.jpg").read_bytes())
        want = expected[f"vww_96_int8|coral/{picture}.jpg"]["person"]
        assert answer.probabilities[1] == pytest.approx(want, abs=0.02), picture


def test_cifar_resnet_quantised_runs(models: Path, tmp_path: Path) -> None:
    labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    spec = InputSpec(width=32, height=32, layout="nhwc", dtype="int8")
    file = models / "mlcommons-tiny/pretrainedResnet_quant.tflite"
    classifier = Classifier.load(pack(tmp_path / "p", file, labels, spec))
    answer = classifier.classify((models / "coral/bird.jpg").read_bytes())
    assert answer.probabilities.sum() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("interpolation", ["linear", "area"])
def test_another_resize_gives_other_scores(models: Path, tmp_path: Path, interpolation: str) -> None:
    """Why the package names its resize: person 0.89 with the one it was trained for."""
    spec = InputSpec(width=96, height=96, layout="nhwc", dtype="int8", scale=[1 / 255], interpolation=interpolation)  # type: ignore[arg-type]
    file = models / "mlcommons-tiny/vww_96_int8.tflite"
    classifier = Classifier.load(pack(tmp_path / "p", file, ["no person", "person"], spec))
    score = classifier.classify((models / "coral/grace_hopper.jpg").read_bytes()).probabilities[1]
    assert score == pytest.approx({"linear": 0.30, "area": 0.87}[interpolation], abs=0.05)


def test_split_concat_takes_three_inputs_and_gives_five_outputs(models: Path) -> None:
    session = open_session(models / "coral/split_concat.tflite", "litert")
    rng = np.random.default_rng(3)
    feeds = {t.name: rng.integers(0, 256, [n or 1 for n in t.shape], np.uint8) for t in session.inputs}
    results = session.run(feeds)
    assert [r.shape for r in results] == [t.shape for t in session.outputs]
    # It only splits and joins channels: every plane that comes out went in.
    planes = {feed[..., c].tobytes() for feed in feeds.values() for c in range(feed.shape[-1])}
    assert all(result[..., c].tobytes() in planes for result in results for c in range(result.shape[-1]))
    first = session.inputs[0].name
    with pytest.raises(ModelError, match="must have the shape"):
        session.run({**feeds, first: np.zeros((1, 8, 9, 3), np.uint8)})
    with pytest.raises(ModelError, match="must be uint8"):
        session.run({**feeds, first: feeds[first].astype(np.int8)})
    with pytest.raises(ModelError, match="missing"):
        session.run({first: feeds[first]})
    assert [r.tobytes() for r in session.run(feeds)] == [r.tobytes() for r in results]


def test_a_flexible_batch_is_resized_and_a_fixed_one_is_not(models: Path) -> None:
    session = open_session(models / "mlcommons-tiny/vww_96_int8.tflite", "litert")
    [tensor] = session.inputs
    assert tensor.shape == (None, 96, 96, 3)
    batch = np.random.default_rng(0).integers(-128, 128, (3, 96, 96, 3), np.int8)
    [together] = session.run({tensor.name: batch})
    single = [session.run({tensor.name: batch[i : i + 1]})[0][0] for i in range(3)]
    assert np.abs(together.astype(int) - np.stack(single)).max() <= 1
    fixed = open_session(models / "coral/mobilenet_v1_0.25_128_quant.tflite", "litert")
    with pytest.raises(ModelError, match="1x128x128x3"):
        fixed.run({fixed.inputs[0].name: np.zeros((2, 128, 128, 3), np.uint8)})


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Intersection over union of two corner-form boxes."""
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(size, 0)))
    return common / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)


def faces(scores: NDArray[Any], boxes: NDArray[Any]) -> list[tuple[NDArray[Any], float]]:
    """Score above 0.7, then greedy suppression at 0.3: the model's scores are already softmaxed, its boxes corners."""
    kept: list[tuple[NDArray[Any], float]] = []
    for at in np.argsort(-scores):
        if scores[at] < 0.7:
            break
        if all(overlap(boxes[at], box) < 0.3 for box, _ in kept):
            kept.append((boxes[at], float(scores[at])))
    return kept


def test_face_detector_with_weights_among_its_inputs(models: Path, expected: dict[str, Any]) -> None:
    session = open_session(models / "linzaer/version-RFB-320.onnx", "onnxruntime")
    [tensor] = session.inputs
    spec = InputSpec(width=320, height=240, mean=[127.0], scale=[1 / 128], interpolation="antialias")
    for picture in PICTURES:
        image = decode((models / f"coral/{picture}.jpg").read_bytes())
        scores, boxes = session.run({tensor.name: prepare(image, spec, tensor)})
        np.testing.assert_allclose(scores[0].sum(axis=1), 1, atol=1e-4)
        found = faces(scores[0, :, 1], boxes[0])
        want = expected[f"RFB-320|coral/{picture}.jpg"]["boxes"]
        assert len(found) == len(want), picture
        for x0, y0, x1, y1, score in want:
            box, best = max(found, key=lambda item: overlap(item[0], np.array([x0, y0, x1, y1])))
            assert overlap(box, np.array([x0, y0, x1, y1])) > 0.85, picture
            assert best == pytest.approx(score, abs=0.02), picture
