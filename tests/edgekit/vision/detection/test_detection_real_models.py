"""A face detector that nobody here wrote, on real pictures, against boxes that other tools gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from edgekit import tensors
from edgekit.packages import DetectionSpec, InputSpec, Manifest, Package, ProofSample, Variant, seal_package
from edgekit.services import Pipeline, Tiles
from edgekit.vision.detection.boxes import iou
from edgekit.vision.detection.detector import Detector
from edgekit.vision.detection.tiling import TiledDetector
from edgekit.vision.images import decode, encode_jpeg, sniff

pytestmark = pytest.mark.real_data

PICTURES = ["cat_720p", "bird", "grace_hopper", "face"]
SPEC = {"width": 320, "height": 240, "mean": [127.0], "scale": [1 / 128], "interpolation": "antialias"}


@pytest.fixture(scope="module")
def models(real_data: Path) -> Path:
    return real_data / "models"


@pytest.fixture(scope="module")
def faces(models: Path) -> dict[str, list[list[float]]]:
    """Picture -> left, top, right, bottom (pixels) and score."""
    answers = json.loads((models / "expected.json").read_text())
    boxes = {}
    for picture in PICTURES:
        info = sniff((models / f"coral/{picture}.jpg").read_bytes())
        scale = [info.width, info.height, info.width, info.height, 1]
        rows = answers[f"RFB-320|coral/{picture}.jpg"]["boxes"]
        boxes[picture] = [[value * factor for value, factor in zip(row, scale, strict=True)] for row in rows]
    return boxes


def pack(
    root: Path, model: Path, detection: DetectionSpec, samples: list[ProofSample], files: dict[str, bytes], **spec: Any
) -> Package:
    root.mkdir()
    shutil.copyfile(model, root / "faces.onnx")
    (root / "labels.txt").write_text("face\n")
    for name, data in files.items():
        (root / name).write_bytes(data)
    manifest = Manifest(
        name="faces",
        version="1",
        task="detection",
        labels="labels.txt",
        input=InputSpec(**{**SPEC, **spec}),
        detection=detection,
        variants=[Variant(file="faces.onnx")],
        samples=samples,
    )
    return seal_package(root, manifest)


def proofs(models: Path, faces: dict[str, list[list[float]]]) -> tuple[list[ProofSample], dict[str, bytes]]:
    samples = [
        ProofSample(file=f"{picture}.jpg", label="face", box=row[:4], min_iou=0.85, score=row[4], tolerance=0.02)
        for picture, rows in faces.items()
        for row in rows
    ]
    samples += [ProofSample(file=f"{name}.jpg", label="face", count=len(rows)) for name, rows in faces.items()]
    return samples, {f"{name}.jpg": (models / f"coral/{name}.jpg").read_bytes() for name in faces}


def test_faces_are_where_another_tool_found_them(
    models: Path, faces: dict[str, list[list[float]]], tmp_path: Path
) -> None:
    samples, files = proofs(models, faces)
    spec = DetectionSpec(head="ssd", report=0.7, nms_iou=0.3)
    detector = Detector.load(pack(tmp_path / "p", models / "linzaer/version-RFB-320.onnx", spec, samples, files))
    assert detector.prove() == len(samples) == 5 + 4
    answer = detector.detect(files["face.jpg"])
    assert len(answer.detections) >= len(answer.reported) == 4
    assert (answer.detections.scores >= 0.05).all()
    assert (answer.reported.margins > 0.9).all()


def test_raw_locations_and_priors_give_the_same_faces(
    models: Path, faces: dict[str, list[list[float]]], tmp_path: Path
) -> None:
    """The model with its own decoding cut off, and priors by the formula of its authors (`generate_priors`)."""
    model = onnx.load(models / "linzaer/version-RFB-320.onnx")
    nodes = list(model.graph.node)
    [softmax] = [place for place, node in enumerate(nodes) if node.op_type == "Softmax"]
    locations = nodes[softmax - 1].output[0]  # the four scales' locations put together
    [scores] = [output for output in model.graph.output if output.name == "scores"]
    del model.graph.output[:]
    model.graph.output.extend([scores, helper.make_tensor_value_info(locations, onnx.TensorProto.FLOAT, [1, 4420, 4])])
    raw = tmp_path / "raw.onnx"
    onnx.save(model, raw)
    priors: list[tuple[float, float, float, float]] = []
    for stride, sizes in zip((8, 16, 32, 64), ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256)), strict=True):
        rows, columns = -(-240 // stride), -(-320 // stride)
        priors += [
            ((x + 0.5) / columns, (y + 0.5) / rows, size / 320, size / 240)
            for y in range(rows)
            for x in range(columns)
            for size in sizes
        ]
    table = np.clip(np.array(priors, np.float32), 0, 1)
    assert table.shape == (4420, 4)
    samples, files = proofs(models, faces)
    files["priors.safetensors"] = tensors.save({"priors": table})
    spec = DetectionSpec(head="ssd_raw", scores="probabilities", priors="priors.safetensors", report=0.7, nms_iou=0.3)
    assert Detector.load(pack(tmp_path / "p", raw, spec, samples, files)).prove() == len(samples)


def largest_overlap(boxes: NDArray[Any], wanted: list[list[float]]) -> NDArray[Any]:
    return iou(np.array(wanted)[:, :4], boxes).max(axis=1)


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_a_small_picture_in_a_large_one_is_found_by_tiles_alone(
    models: Path, faces: dict[str, list[list[float]]], tmp_path: Path, resize: str
) -> None:
    small = decode((models / "coral/face.jpg").read_bytes())
    large = np.full((2400, 3200, 3), 90, np.uint8)
    left, top = 1700, 1100
    large[top : top + small.shape[0], left : left + small.shape[1]] = small
    spec = DetectionSpec(head="ssd", report=0.7, nms_iou=0.3)
    model = models / "linzaer/version-RFB-320.onnx"
    detector = Detector.load(pack(tmp_path / "p", model, spec, [], {}, resize=resize, interpolation="area"))
    wanted = [[row[0] + left, row[1] + top, row[2] + left, row[3] + top] for row in faces["face"]]
    data = encode_jpeg(large, 95)
    tiled = TiledDetector(detector, Pipeline(tiles=Tiles(width=960, height=720, overlap=400, aggregate="mean")))
    found = tiled.detect(data).reported
    assert len(found) == len(wanted)
    assert (largest_overlap(found.boxes, wanted) > 0.6).all()
