"""A face detector that nobody here wrote answers cut-outs of a real picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgekit.packages import DetectionSpec, InputSpec, Manifest, Variant, seal_package
from edgekit.regions.answers import compare
from edgekit.regions.cutouts import Context, region
from edgekit.regions.header import FloatBox, check_answer, overlap
from edgekit.regions.mosaic import compose
from edgekit.regions.select import Candidate
from edgekit.vision.images import decode, sniff
from tests.support.answers import cloud, sample

pytestmark = pytest.mark.real_data


def faces_package(root: Path, models: Path) -> Path:
    root.mkdir()
    shutil.copyfile(models / "linzaer/version-RFB-320.onnx", root / "faces.onnx")
    (root / "labels.txt").write_text("face\n")
    manifest = Manifest(
        name="faces",
        version="1",
        task="detection",
        labels="labels.txt",
        input=InputSpec(width=320, height=240, mean=[127.0], scale=[1 / 128], interpolation="antialias"),
        detection=DetectionSpec(head="ssd", report=0.7, nms_iou=0.3),
        variants=[Variant(file="faces.onnx")],
    )
    return seal_package(root, manifest).root


def same(one: FloatBox, other: FloatBox) -> float:
    """Intersection over union."""
    shared = overlap(one, other)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (sum(areas) - shared)


async def test_faces_are_found_in_their_cells_and_none_where_there_is_none(real_data: Path, tmp_path: Path) -> None:
    models = real_data / "models"
    picture = (models / "coral/face.jpg").read_bytes()
    info = sniff(picture)
    rows = json.loads((models / "expected.json").read_text())["RFB-320|coral/face.jpg"]["boxes"]
    scale = (info.width, info.height, info.width, info.height)
    faces: list[FloatBox] = [tuple(v * f for v, f in zip(row[:4], scale, strict=True)) for row in rows]  # type: ignore[misc]
    boxes = [*faces, (360.0, 250.0, 420.0, 330.0)]
    asked = [
        region(i, Candidate(box, "face", 0.6, 0.1 * i), "hard", Context(0.5), info.width, info.height)
        for i, box in enumerate(boxes)
    ]
    mosaic = compose(decode(picture), asked)
    async with cloud(tmp_path) as here:
        await here.registry.add(faces_package(tmp_path / "p", models))
        answer = await here.answers.answer("DEV", sample(1, "faces", mosaic=mosaic.header), mosaic.encode())
        (kept,) = await here.store.recent(1)
    assert answer.mosaic is not None
    check_answer(mosaic.header, answer.mosaic)
    outcomes, _ = compare(mosaic.header, answer.mosaic)
    said = {one.region.index: one for one in outcomes}
    assert [said[i].label for i in range(len(boxes))] == ["face"] * 4 + [""]
    assert all(same(said[i].box, face) > 0.8 for i, face in enumerate(faces))
    assert (kept.regions, kept.differing) == (5, [4])
