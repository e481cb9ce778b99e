"""The detector on packages made here: boxes in the picture's pixels, proof samples, models that break promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_models import detection_package, emitting, picture, rectangle_package
from numpy.typing import NDArray

from edgekit import tensors
from edgekit.packages import DetectionSpec, InputSpec, Manifest, ProofSample, Variant, seal_package
from edgekit.runtimes import ModelError, SessionOptions
from edgekit.vision.detection.boxes import iou
from edgekit.vision.detection.detector import Detector
from edgekit.vision.images import ImageError, encode_jpeg, encode_png

YOLOV8 = DetectionSpec(head="yolov8", report=0.25)


def rows(*found: tuple[float, float, float, float, float]) -> dict[str, NDArray[Any]]:
    """One class: centre x, y, width, height, score."""
    return {"output0": np.array(found, np.float32).T[None]}


@pytest.mark.parametrize("resize", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("crop", [None, [0.0, 0.25, 0.75, 1.0]])
@pytest.mark.parametrize("size", [(160, 120), (97, 203), (64, 64)])
def test_a_rectangle_is_found_where_it_is_in_the_picture(
    tmp_path: Path, resize: str, crop: list[float] | None, size: tuple[int, int]
) -> None:
    width, height = size
    box = (int(width * 0.3), int(height * 0.45), int(width * 0.6), int(height * 0.65))
    built = rectangle_package(tmp_path / "p", (48, 64), resize=resize, crop=crop, interpolation="linear")
    detector = Detector.load(built, SessionOptions(threads=1))
    answer = detector.detect(encode_png(picture(width, height, box)))
    assert (answer.width, answer.height) == size
    assert detector.labels[answer.detections.labels[0]] == "rectangle"
    pixel = max(width / 48, height / 64) * 1.1  # one pixel of the input, in pixels of the picture
    np.testing.assert_allclose(answer.detections.boxes, [box], atol=pixel)
    assert answer.detections.scores[0] == pytest.approx(0.9)
    assert answer.detections.margins[0] == pytest.approx(0.8)
    assert set(answer.timings_ms) == {"decode", "infer"}
    assert detector.detect(encode_png(picture(width, height))).detections.boxes.tolist() == []


@pytest.mark.parametrize("size", [(640, 480), (515, 519), (511, 385)])
def test_a_jpeg_decoded_at_a_fraction_gives_boxes_of_the_full_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    box = (int(width * 0.5), int(height * 0.25), width, height)  # to the last pixel, which a reduced one covers partly
    data = encode_jpeg(picture(width, height, box))
    for decode in ("full", "reduced"):
        built = rectangle_package(tmp_path / decode, (64, 64), decode=decode, interpolation="area")
        found = Detector.load(built).detect(data).detections
        np.testing.assert_allclose(found.boxes, [box], atol=width / 64)
        assert found.boxes[0, 2:].tolist() == [width, height]


def test_doubtful_candidates_are_kept_and_only_sure_ones_reported(tmp_path: Path) -> None:
    outputs = rows((10, 10, 8, 8, 0.9), (30, 30, 8, 8, 0.3), (50, 50, 8, 8, 0.06), (20, 50, 8, 8, 0.04))
    detector = Detector.load(detection_package(tmp_path / "p", emitting(outputs), YOLOV8))
    answer = detector.detect(encode_png(np.zeros((64, 64, 3), np.uint8)))
    assert answer.detections.scores == pytest.approx([0.9, 0.3, 0.06])
    assert answer.reported.scores == pytest.approx([0.9, 0.3])
    assert answer.detections.margins == pytest.approx([0.65 / 0.75, 0.05 / 0.75, 0.19 / 0.25], abs=1e-5)


def test_repeated_boxes_go_as_the_package_says(tmp_path: Path) -> None:
    outputs = rows((20, 20, 16, 16, 0.9), (21, 20, 16, 16, 0.8), (20, 26, 16, 16, 0.7))
    png = encode_png(np.zeros((64, 64, 3), np.uint8))
    for index, (changes, count) in enumerate(
        [({}, 2), ({"nms_iou": 1.0}, 3), ({"nms_iou": 0.2}, 1), ({"nms_iou": 1.0, "max_detections": 2}, 2)]
    ):
        spec = DetectionSpec(head="yolov8", **changes)
        found = Detector.load(detection_package(tmp_path / str(index), emitting(outputs), spec)).detect(png)
        assert len(found.detections) == count, changes


def test_raw_pixels_are_detected_as_their_picture_is(tmp_path: Path) -> None:
    detector = Detector.load(rectangle_package(tmp_path / "p"))
    image = picture(64, 64, (8, 16, 40, 32))
    assert detector.detect_pixels(np.stack([image] * 3, axis=2)).boxes.tolist() == [[8, 16, 40, 32]]
    assert detector.detect_image(image).boxes.tolist() == [[8, 16, 40, 32]]
    with pytest.raises(ImageError, match="raw pixels"):
        detector.detect_pixels(image.astype(np.float32))


BOX = ProofSample(file="some.png", label="rectangle", box=[8.0, 16.0, 40.0, 32.0], score=0.9)


@pytest.mark.parametrize(
    "samples",
    [
        (BOX,),
        (BOX, ProofSample(file="some.png", label="rectangle", count=1)),
        (
            ProofSample(file="none.png", label="rectangle", count=0),
            ProofSample(file="some.png", label="other", count=0),
        ),
        (),
    ],
)
def test_prove_accepts_what_the_package_promises(tmp_path: Path, samples: tuple[ProofSample, ...]) -> None:
    assert Detector.load(rectangle_package(tmp_path / "p", samples=samples)).prove() == len(samples)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (
            (ProofSample(file="some.png", label="rectangle", box=[8.0, 8.0, 40.0, 32.0], min_iou=0.7),),
            r'should have "rectangle" at 8, 8, 40, 32 \(IoU 0\.7\), but the nearest has an IoU of 0\.67',
        ),
        ((ProofSample(file="some.png", label="other", box=[8.0, 16.0, 40.0, 32.0]),), "but there is none"),
        ((BOX, BOX), "but there is none"),
        ((ProofSample(file="none.png", label="rectangle", box=[8.0, 8.0, 40.0, 32.0]),), "but there is none"),
        ((ProofSample(file="some.png", label="rectangle", count=0),), 'should have 0 "rectangle", but 1 are found'),
        (
            (ProofSample(file="some.png", label="rectangle", box=[8.0, 16.0, 40.0, 32.0], score=0.5),),
            r"with 0\.500 ± 0\.050, but the model says 0\.900",
        ),
        ((ProofSample(file="labels.txt", label="other", count=0),), "labels.txt cannot be used: the bytes are not"),
    ],
)
def test_prove_refuses_other_answers(tmp_path: Path, samples: tuple[ProofSample, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Detector.load(rectangle_package(tmp_path / "p", samples=samples)).prove()


def test_a_package_that_does_not_fit_its_model_is_refused_when_loaded(tmp_path: Path) -> None:
    model = emitting(rows((1, 1, 1, 1, 1)))
    with pytest.raises(ModelError, match=r"wants boxes with class scores as 1x6x\? or 1x\?x6"):
        Detector.load(detection_package(tmp_path / "a", model, YOLOV8, labels=("a", "b")))
    with pytest.raises(ModelError, match="says the input is 1x3x64x32"):
        Detector.load(detection_package(tmp_path / "b", model, YOLOV8, size=(32, 64)))
    with pytest.raises(ModelError, match='no input "image"; it has x'):
        Detector.load(detection_package(tmp_path / "c", model, YOLOV8, name="image"))


def test_a_model_that_gives_nan_is_refused_and_goes_on(tmp_path: Path) -> None:
    detector = Detector.load(detection_package(tmp_path / "p", emitting(rows((1, 1, 1, 1, np.nan))), YOLOV8))
    with pytest.raises(ModelError, match="not numbers"):
        detector.prove()


def test_boxes_beyond_all_bounds_are_cut_off_at_the_picture(tmp_path: Path) -> None:
    outputs = rows((0, 0, 3e38, 3e38, 0.9), (3e38, 3e38, 3e38, 3e38, 0.8))
    detector = Detector.load(detection_package(tmp_path / "p", emitting(outputs), YOLOV8))
    with np.errstate(all="raise", over="ignore"):
        found = detector.detect(encode_png(np.zeros((50, 40, 3), np.uint8))).detections
    assert found.boxes.tolist() == [[0, 0, 40, 50]]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("classification", 'has the task "classification", so it is no detector'),
        ("detection", r"has no \[detection\], which says what head"),
    ],
)
def test_a_package_that_says_nothing_of_boxes_is_no_detector(tmp_path: Path, task: str, message: str) -> None:
    root = tmp_path / "p"
    root.mkdir()
    (root / "model.onnx").write_bytes(emitting(rows((1, 1, 1, 1, 1))).SerializeToString())
    (root / "labels.txt").write_text("a\n")
    spec, variants = InputSpec(width=64, height=64), [Variant(file="model.onnx")]
    manifest = Manifest(name="c", version="1", task=task, labels="labels.txt", input=spec, variants=variants)
    with pytest.raises(ModelError, match=message):
        Detector.load(seal_package(root, manifest))


def test_priors_come_from_a_file_of_the_package(tmp_path: Path) -> None:
    priors = np.array([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.25, 0.25]], np.float32)
    outputs = {"scores": np.array([[[0, 5], [5, 0]]]), "boxes": np.zeros((1, 2, 4))}
    spec = DetectionSpec(head="ssd_raw", priors="priors.safetensors")

    def load(root: Path, data: bytes) -> Detector:
        return Detector.load(detection_package(root, emitting(outputs), spec, files={"priors.safetensors": data}))

    detector = load(tmp_path / "a", tensors.save({"priors": priors}))
    found = detector.detect(encode_png(np.zeros((64, 64, 3), np.uint8)))
    assert found.detections.boxes.tolist() == [[0, 0, 32, 32]]
    assert iou(found.detections.boxes, np.array([[0, 0, 32, 32]]))[0, 0] == 1
    with pytest.raises(ModelError, match='has no tensor "priors"'):
        load(tmp_path / "b", tensors.save({"anchors": priors}))
    with pytest.raises(ModelError, match=r"priors\.safetensors cannot be used"):
        load(tmp_path / "c", b"nonsense")
    with pytest.raises(ModelError, match="locations as 1x1x4"):
        load(tmp_path / "d", tensors.save({"priors": priors[:1]}))
