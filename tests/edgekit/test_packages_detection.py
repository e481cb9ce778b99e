"""What a manifest says about detection: strict, readable back, and invisible in packages that have none."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgekit.packages import (
    DetectionSpec,
    InputSpec,
    Manifest,
    PackageError,
    ProofSample,
    TemplateSpec,
    Variant,
    manifest_text,
    open_package,
    parse_manifest,
    seal_package,
)
from edgekit.packages.manifest import check_manifest

OLD = """\
schema = 1
name = "solder-small"
version = "1.0.0"
task = "classification"
description = ""
labels = "labels.txt"

[input]
width = 8
height = 8
colour = "rgb"
layout = "nchw"
dtype = "float32"
resize = "stretch"
interpolation = "area"
mean = [127.5]
scale = [0.5]
name = ""

[output]
kind = "logits"
name = ""

[[variants]]
file = "model.onnx"
runtime = "onnxruntime"
precision = "fp32"

[[samples]]
file = "good.png"
label = "good"
score = 0.9
tolerance = 0.05

[files]
"good.png" = "{0}"
"labels.txt" = "{0}"
"model.onnx" = "{0}"
""".replace("{0}", "0" * 64)
"""As releases before detection wrote it."""

BASE = Manifest(
    name="faces",
    version="1",
    task="detection",
    labels="labels.txt",
    input=InputSpec(width=320, height=240),
    detection=DetectionSpec(head="ssd"),
    variants=[Variant(file="model.onnx")],
)
GOLDEN = msgspec.structs.replace(
    BASE,
    input=InputSpec(width=64, height=64, colour="grey"),
    detection=DetectionSpec(head="template"),
    variants=[Variant(file="golden.png", runtime="template")],
)
BOX = [1.0, 2.0, 30.0, 40.0]


def changed(base: Manifest = BASE, **changes: Any) -> Manifest:
    return msgspec.structs.replace(base, **changes)


def head(name: str, **keys: Any) -> Manifest:
    return changed(detection=DetectionSpec(head=name, **keys))  # type: ignore[arg-type]


def sample(base: Manifest = BASE, **keys: Any) -> Manifest:
    return changed(base, samples=[ProofSample(file="a.jpg", label="face", **keys)])


def test_a_manifest_without_detection_is_written_as_it_always_was() -> None:
    manifest = parse_manifest(OLD.encode())
    assert manifest.detection is None
    assert manifest.template is None
    assert manifest_text(manifest) == OLD


def test_a_detection_manifest_of_before_the_table_is_still_read_and_written_as_it_was() -> None:
    old = OLD.replace('task = "classification"', 'task = "detection"').replace('labels = "labels.txt"', 'labels = ""')
    assert manifest_text(parse_manifest(old.encode())) == old


@pytest.mark.parametrize(
    "manifest",
    [
        BASE,
        GOLDEN,
        changed(GOLDEN, template=TemplateSpec(material="dark", grow=9)),
        head("ssd_raw", priors="priors.safetensors", variances=[0.1, 0.2]),
        head("centernet", outputs=["hm", "wh", "reg"], strides=[4]),
        head("yolov8", report=0.25, nms_iou=0.7, class_agnostic=True, scores="logits", unit="fraction"),
        sample(box=BOX, min_iou=0.6, score=0.9),
        sample(count=0),
    ],
)
def test_what_is_written_reads_back_equal(manifest: Manifest) -> None:
    names = {"model.onnx", "golden.png", "labels.txt", "priors.safetensors", "a.jpg"}
    whole = changed(manifest, files={name: hashlib.sha256(name.encode()).hexdigest() for name in sorted(names)})
    assert parse_manifest(manifest_text(whole).encode()) == whole


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (changed(labels=""), '"labels" is missing; a detection model'),
        (changed(task="classification"), r'\[detection\] belongs to task = "detection", not to "classification"'),
        (changed(detection=None, template=TemplateSpec()), r"\[detection\] is missing; a golden picture needs it"),
        (changed(GOLDEN, task="other", detection=None), r"\[detection\] is missing; a golden picture needs it"),
        (head("ssd", strides=[8]), '"detection.strides" is set; it belongs to the heads yolox, fastestdet, centernet'),
        (head("yolov10", scores="logits"), '"detection.scores" is set'),
        (head("yolox", unit="pixel"), '"detection.unit" is set'),
        (head("ssd", priors="p"), '"detection.priors" is set; it belongs to head = "ssd_raw", not to "ssd"'),
        (head("ssd_raw"), '"detection.priors" is missing'),
        (head("ssd_raw", priors="../p"), "without"),
        (head("ssd_raw", priors="p", variances=[0.1]), '"detection.variances" is'),
        (head("ssd_raw", priors="p", variances=[0.1, -0.2]), '"detection.variances" is'),
        (head("yolox", strides=[8, 0]), '"detection.strides" is'),
        (head("centernet", strides=[4, 8]), "centernet has one grid"),
        (head("ssd", report=0.04), 'below "detection.score_floor"'),
        (head("template"), r'"variants\[0\].runtime" is "onnxruntime" and "detection.head" is "template"'),
        (changed(GOLDEN, detection=BASE.detection), r'"variants\[0\].runtime" is "template"'),
        (changed(template=TemplateSpec()), r'\[template\] belongs to detection.head = "template"'),
        (changed(GOLDEN, input=InputSpec(width=8, height=8)), '"input.colour" is "rgb"'),
        (sample(), r'"samples\[0\].box" or "count" is needed'),
        (sample(box=BOX, count=1), r'"samples\[0\].box" or "count" is needed'),
        (sample(count=1, score=0.5), r'"samples\[0\].score" belongs to a sample with a box'),
        (sample(count=1, min_iou=0.5), r'"samples\[0\].min_iou" belongs to a sample with a box'),
        (sample(box=[1.0, 2.0, 1.0, 4.0]), r'"samples\[0\].box" is \[1.0, 2.0, 1.0, 4.0\]; left, top'),
        (sample(box=[1.0, 2.0, 3.0]), r'"samples\[0\].box" is'),
        (
            sample(changed(task="classification", detection=None), box=BOX),
            r'"samples\[0\].box" belongs to a package with',
        ),
        (
            sample(changed(task="classification", detection=None), count=1),
            r'"samples\[0\].count" belongs to a package with',
        ),
    ],
)
def test_what_does_not_belong_together_is_refused_by_name(manifest: Manifest, message: str) -> None:
    with pytest.raises(PackageError, match=message):
        check_manifest(manifest)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('head = "yolo"', '"detection.head" is "yolo"'),
        ('head = "ssd"\nscore_floor = 0.0', '"detection.score_floor" is 0.0'),
        ('head = "ssd"\nreport = nan', '"detection.report" is nan'),
        ('head = "ssd"\nnms_iou = 1.5', '"detection.nms_iou" is 1.5'),
        ('head = "ssd"\nnms = 0.5', 'did you mean "nms_iou"'),
        ('head = "ssd"\nmax_detections = 100000', '"detection.max_detections" is 100000'),
        ('head = "template"\n[template]\ntolerance = 17', '"template.tolerance" is 17'),
        ('head = "template"\n[template]\njoin = 33', '"template.join" is 33'),
        ('head = "ssd"\nstrides = [1.5]', r'"detection.strides\[0\]" is 1.5'),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(line: str, message: str) -> None:
    text = OLD.replace('task = "classification"', 'task = "detection"') + f"\n[detection]\n{line}\n"
    with pytest.raises(PackageError, match=message):
        parse_manifest(text.encode())


def test_priors_must_be_a_listed_file() -> None:
    listed = dict.fromkeys(("model.onnx", "labels.txt"), "0" * 64)
    manifest = changed(head("ssd_raw", priors="priors.safetensors"), files=listed)
    with pytest.raises(PackageError, match=r'"detection\.priors" names "priors\.safetensors", which'):
        parse_manifest(manifest_text(manifest).encode())


def test_a_detection_package_is_sealed_and_opened(tmp_path: Path) -> None:
    for name in ("model.onnx", "a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "labels.txt").write_text("face\n")
    seal_package(tmp_path, sample(box=BOX))
    opened = open_package(tmp_path)
    assert opened.manifest.detection == DetectionSpec(head="ssd")
    assert opened.manifest.samples[0].box == BOX
    (tmp_path / "labels.txt").write_text("head\n")
    with pytest.raises(PackageError, match=r'label "face", which "labels\.txt" does not contain'):
        seal_package(tmp_path, sample(box=BOX))


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=5))
@example([0.0, 0.0, float("inf"), 1.0])
@example([0.0, 0.0, 2.0, 1.0])
def test_only_real_boxes_pass(box: list[float]) -> None:
    good = len(box) == 4 and 0 <= box[0] < box[2] < float("inf") and 0 <= box[1] < box[3] < float("inf")
    manifest = sample(box=box)
    try:
        check_manifest(manifest)
    except PackageError:
        assert not good
    else:
        assert good
