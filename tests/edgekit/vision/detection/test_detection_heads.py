"""Each head against a decoder written out here, box by box, and against models that do not fit it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.runtimes import ModelError, TensorInfo
from edgekit.vision.detection.heads import HEADS, Candidates, HeadConfig, make_head

Array = NDArray[Any]
CONFIG = HeadConfig(width=64, height=32, classes=3, floor=0.05)
RNG = np.random.default_rng(5)


def infos(**shapes: tuple[int | None, ...]) -> list[TensorInfo]:
    return [TensorInfo(name, shape, "float32") for name, shape in shapes.items()]


def decode(name: str, config: HeadConfig, **arrays: Array) -> Candidates:
    tensors = infos(**{key: array.shape for key, array in arrays.items()})
    return make_head(name, config, tensors).decode([array.astype(np.float32) for array in arrays.values()])


def same(found: Candidates, expected: list[tuple[list[float], float, int, float]]) -> None:
    """Equal as sets of (box, score, label, second)."""
    columns = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.seconds.tolist()
    rows = sorted(zip(*columns, strict=True))
    assert len(rows) == len(expected)
    for (box, score, label, second), (box_e, score_e, label_e, second_e) in zip(rows, sorted(expected), strict=True):
        assert box == pytest.approx(box_e, abs=1e-3)
        assert score == pytest.approx(score_e, abs=1e-5)
        assert label == label_e
        assert second == pytest.approx(second_e, abs=1e-5)


def centred(x: float, y: float, w: float, h: float) -> list[float]:
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def classes_of(scores: Array) -> tuple[float, int, float]:
    order = sorted(scores.tolist(), reverse=True)
    return order[0], int(scores.argmax()), order[1]


def sparse(count: int, columns: int) -> Array:
    """Probabilities of which most are below the floor."""
    return np.where(RNG.random((count, columns)) < 0.1, RNG.random((count, columns)), 0.01)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def logit(values: Array) -> Array:
    return np.log(values) - np.log1p(-values)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("scores", ["probabilities", "logits"])
@pytest.mark.parametrize("unit", ["pixel", "fraction"])
def test_yolov8(turned: bool, scores: Any, unit: Any) -> None:
    boxes, likely = RNG.random((50, 4)), sparse(50, 3)
    scale = np.array([64, 32, 64, 32]) if unit == "fraction" else np.ones(4)
    rows = np.concatenate([boxes, logit(likely) if scores == "logits" else likely], axis=1)
    output = rows[None] if turned else rows.T[None]
    expected = []
    for box, row in zip(boxes * scale, likely, strict=True):
        best, label, second = classes_of(row)
        if best >= 0.05:
            expected.append((centred(*box), best, label, second))
    assert 5 < len(expected) < 40
    same(decode("yolov8", replace(CONFIG, scores=scores, unit=unit), output0=output), expected)


@pytest.mark.parametrize("scores", ["probabilities", "logits"])
def test_yolov5_multiplies_objectness_and_class(scores: Any) -> None:
    boxes, objects, likely = RNG.random((60, 4)) * 64, sparse(60, 1), RNG.random((60, 3)) * 0.98 + 0.01
    raw = np.concatenate([objects, likely], axis=1)
    output = np.concatenate([boxes, logit(raw) if scores == "logits" else raw], axis=1)[None]
    expected = []
    for box, thing, row in zip(boxes, objects[:, 0], likely, strict=True):
        best, label, second = classes_of(thing * row)
        if best >= 0.05:
            expected.append((centred(*box), best, label, second))
    assert expected
    same(decode("yolov5", replace(CONFIG, scores=scores), output=output), expected)


@pytest.mark.parametrize("strides", [(), (4, 8)])
def test_yolox_decodes_by_grid_and_stride(strides: tuple[int, ...]) -> None:
    cells = [
        (x, y, stride) for stride in strides or (8, 16, 32) for y in range(32 // stride) for x in range(64 // stride)
    ]
    boxes, objects, likely = RNG.normal(size=(len(cells), 4)), sparse(len(cells), 1), RNG.random((len(cells), 3))
    objects[3] = 0.9
    output = np.concatenate([boxes, objects, likely], axis=1)[None]
    expected = []
    for (x, y, stride), box, thing, row in zip(cells, boxes, objects[:, 0], likely, strict=True):
        best, label, second = classes_of(thing * row)
        if best >= 0.05:
            size = math.exp(box[2]) * stride, math.exp(box[3]) * stride
            expected.append((centred((box[0] + x) * stride, (box[1] + y) * stride, *size), best, label, second))
    assert expected
    same(decode("yolox", replace(CONFIG, strides=strides), output=output), expected)


def test_yolov10_is_read_as_it_is() -> None:
    output = np.array([[[1, 2, 11, 12, 0.9, 2], [5, 5, 9, 9, 0.06, 0], [0, 0, 0, 0, 0.04, 1], [0, 0, 0, 0, 0, -1]]])
    head = make_head("yolov10", CONFIG, infos(output0=(1, 4, 6)))
    assert head.overlap == 1.0
    same(decode("yolov10", CONFIG, output0=output), [([1, 2, 11, 12], 0.9, 2, 0), ([5, 5, 9, 9], 0.06, 0, 0)])
    output[0, 0, 5] = 3
    with pytest.raises(ModelError, match="gave the label 3 or 0, but there are 3 labels"):
        decode("yolov10", CONFIG, output0=output)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_ssd_with_and_without_background(background: bool, kind: Any) -> None:
    boxes, raw = RNG.random((40, 4)), RNG.normal(size=(40, 3 + background)) * 3
    if background:
        powers = np.exp(raw)
        likely = powers / powers.sum(axis=1, keepdims=True)
    else:
        likely = 1 / (1 + np.exp(-raw))
    expected = []
    for box, row in zip(boxes * [64, 32, 64, 32], likely[:, background:], strict=True):
        best, label, second = classes_of(row)
        if best >= 0.05:
            expected.append((box.tolist(), best, label, second))
    arrays = {"boxes": boxes[None], "scores": (raw if kind == "logits" else likely)[None]}
    names = ("scores", "boxes")
    same(decode("ssd", replace(CONFIG, scores=kind, outputs=names), **arrays), expected)


def test_ssd_tells_scores_and_boxes_apart_where_their_shapes_do() -> None:
    config = replace(CONFIG, classes=1)
    head = make_head("ssd", config, infos(boxes=(1, 9, 4), scores=(1, 9, 2)))
    boxes, scores = np.full((1, 9, 4), 0.5, np.float32), np.full((1, 9, 2), 0.5, np.float32)
    assert len(head.decode([boxes, scores]).scores) == 9
    with pytest.raises(ModelError, match=r"name them in this order in detection\.outputs"):
        make_head("ssd", CONFIG, infos(boxes=(1, 9, 4), scores=(1, 9, 4)))


def test_raw_ssd_uses_priors_and_variances() -> None:
    priors = np.stack([RNG.random(20), RNG.random(20), RNG.random(20) + 0.1, RNG.random(20) + 0.1], axis=1)
    locations, raw = RNG.normal(size=(20, 4)), RNG.normal(size=(20, 4)) * 3
    config = replace(CONFIG, priors=priors.astype(np.float32), variances=(0.2, 0.3), outputs=("confidence", "location"))
    expected = []
    for prior, location, row in zip(priors, locations, raw, strict=True):
        powers = np.exp(row)
        best, label, second = classes_of((powers / powers.sum())[1:])
        if best >= 0.05:
            x, y = (prior[i] + location[i] * 0.2 * prior[2 + i] for i in range(2))
            w, h = (prior[2 + i] * math.exp(location[2 + i] * 0.3) for i in range(2))
            expected.append((centred(x * 64, y * 32, w * 64, h * 32), best, label, second))
    same(decode("ssd_raw", config, location=locations[None], confidence=raw[None]), expected)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_fastestdet_cells(last: bool, kind: Any) -> None:
    objects, raw, box = sparse(4 * 8, 1).reshape(4, 8), RNG.normal(size=(3, 4, 8)), RNG.normal(size=(4, 4, 8))
    objects[2, 5] = 0.8
    powers = np.exp(raw)
    likely = powers / powers.sum(axis=0)
    first = logit(objects) if kind == "logits" else objects
    output = np.concatenate([first[None], box, raw if kind == "logits" else likely])[None]
    expected = []
    for y in range(4):
        for x in range(8):
            best, label, second = classes_of(objects[y, x] ** 0.6 * likely[:, y, x] ** 0.4)
            if best >= 0.05:
                centre = (x + math.tanh(box[0, y, x])) / 8 * 64, (y + math.tanh(box[1, y, x])) / 4 * 32
                size = sigmoid(box[2, y, x]) * 64, sigmoid(box[3, y, x]) * 32
                expected.append((centred(*centre, *size), best, label, second))
    assert expected
    output = output.transpose(0, 2, 3, 1) if last else output
    same(decode("fastestdet", replace(CONFIG, scores=kind, strides=(8,)), output=output), expected)


@pytest.mark.parametrize("last", [False, True])
def test_centernet_takes_the_peaks_of_the_heat_map(last: bool) -> None:
    heat = np.full((3, 8, 16), 0.01)
    heat[1, 2, 3], heat[1, 2, 4], heat[0, 2, 3], heat[2, 7, 15], heat[2, 0, 0] = 0.9, 0.8, 0.3, 0.6, 0.04
    size, offset = RNG.random((2, 8, 16)) * 5, RNG.random((2, 8, 16))
    arrays = {"hm": logit(heat)[None], "wh": size[None], "reg": offset[None]}
    if last:
        arrays = {name: array.transpose(0, 2, 3, 1) for name, array in arrays.items()}

    def box(x: int, y: int) -> list[float]:
        centre = (x + offset[0, y, x]) * 4, (y + offset[1, y, x]) * 4
        return centred(*centre, size[0, y, x] * 4, size[1, y, x] * 4)

    expected = [(box(3, 2), 0.9, 1, 0.3), (box(3, 2), 0.3, 0, 0.9), (box(15, 7), 0.6, 2, 0.01)]
    same(decode("centernet", replace(CONFIG, outputs=("hm", "wh", "reg")), **arrays), expected)
    with pytest.raises(ModelError, match="shapes alone do not tell"):
        decode("centernet", CONFIG, **arrays)


@pytest.mark.parametrize(
    ("head", "config", "tensors", "message"),
    [
        (
            "yolov8",
            CONFIG,
            infos(a=(1, 84, 8400)),
            r'wants boxes with class scores as 1x7x\? or 1x\?x7; the model has "a"',
        ),
        ("yolov8", CONFIG, [], "the model has no outputs"),
        ("yolov8", CONFIG, infos(a=(1, 7, 9), b=(1, 7, 9)), "name them in this order"),
        ("yolov8", replace(CONFIG, outputs=("c",)), infos(a=(1, 7, 9)), 'has no output "c"; it has "a" 1x7x9'),
        ("yolov8", replace(CONFIG, outputs=("a", "b")), infos(a=(1, 7, 9)), "names 2 tensors"),
        (
            "yolov5",
            replace(CONFIG, outputs=("a",)),
            infos(a=(1, 9, 7)),
            'the output "a" is 1x9x7; the head "yolov5" wants',
        ),
        ("yolox", CONFIG, infos(a=(1, 41, 8)), r"as 1x42x8; the model has"),
        ("yolox", replace(CONFIG, strides=(5,)), infos(a=(1, 42, 8)), "5 does not divide the input of 64x32"),
        ("yolov10", CONFIG, infos(a=(1, 300, 7)), r"wants corners, score and label as 1x\?x6"),
        ("ssd", replace(CONFIG, classes=1), infos(s=(1, 9, 2), b=(1, 8, 4)), '9 rows of "s", but 8 of "b"'),
        (
            "ssd",
            replace(CONFIG, classes=1),
            infos(s=(1, 9, 3), b=(1, 9, 4)),
            r"wants scores as 1x\?x2 or 1x\?x1, boxes",
        ),
        ("ssd_raw", CONFIG, infos(s=(1, 9, 4)), "Nx4 finite numbers, not nothing"),
        ("ssd_raw", replace(CONFIG, priors=np.full((9, 4), np.nan)), infos(s=(1, 9, 4)), "finite numbers, not 9x4"),
        ("ssd_raw", replace(CONFIG, priors=np.zeros((9, 4))), infos(s=(1, 9, 4)), "no width or no height"),
        ("ssd_raw", replace(CONFIG, priors=np.ones((8, 4), np.float32)), infos(s=(1, 9, 4)), "locations as 1x8x4"),
        ("fastestdet", CONFIG, infos(a=(1, 7, 4, 8)), "class scores as 1x8x2x4 or 1x2x4x8"),
        ("centernet", CONFIG, infos(a=(1, 3, 32, 64)), "heat map as 1x3x8x16 or 1x8x16x3, size as"),
        ("detr", CONFIG, [], 'the head "detr" is unknown'),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_what_does_not_fit(
    head: str, config: HeadConfig, tensors: list[TensorInfo], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        make_head(head, config, tensors)


def test_free_sizes_are_checked_when_the_model_has_run() -> None:
    head = make_head("yolov8", CONFIG, infos(a=(1, None, None)))
    with pytest.raises(ModelError, match=r'gave "a" as 1x6x9, not boxes with class scores as 1x7x\?'):
        head.decode([np.zeros((1, 6, 9), np.float32)])
    head = make_head("ssd", replace(CONFIG, classes=1, outputs=("s", "b")), infos(s=(1, None, 2), b=(1, None, 4)))
    with pytest.raises(ModelError, match="9 scores, but 8 boxes"):
        head.decode([np.zeros((1, 9, 2), np.float32), np.zeros((1, 8, 4), np.float32)])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers_are_refused(value: float) -> None:
    output = np.zeros((1, 7, 9), np.float32)
    output[0, 1, 4] = value
    with pytest.raises(ModelError, match="not numbers"):
        decode("yolov8", CONFIG, a=output)


def test_scores_beyond_one_point_to_the_manifest() -> None:
    output = np.zeros((1, 7, 9), np.float32)
    output[0, 5, 4] = 3.5
    with pytest.raises(ModelError, match=r'from 0 to 3\.5; its package should say detection\.scores = "logits"'):
        decode("yolov8", CONFIG, a=output)


def test_integers_are_read_with_their_scale() -> None:
    tensor = TensorInfo("a", (1, 7, 2), "int8", (0.5, -10))
    output = np.full((1, 7, 2), -10, np.int8)
    output[0, :4, 1], output[0, 6, 1] = (30, 20, 10, 0), -8
    found = make_head("yolov8", CONFIG, [tensor]).decode([output])
    same(found, [(centred(20, 15, 10, 5), 1.0, 2, 0.0)])


def test_the_work_is_bounded_by_the_best_candidates() -> None:
    output = np.ones((1, 7, 5000), np.float32)
    output[0, 4] = np.linspace(0.1, 1, 5000)
    output[0, 5:] = 0
    found = decode("yolov8", replace(CONFIG, max_candidates=100), a=output)
    assert len(found.scores) == 100
    assert found.scores.min() >= np.linspace(0.1, 1, 5000)[-101]


SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "yolov8": {"a": (1, 7, 12)},
    "yolov5": {"a": (1, 12, 8)},
    "yolox": {"a": (1, 42, 8)},
    "yolov10": {"a": (1, 12, 6)},
    "ssd": {"s": (1, 12, 4), "b": (1, 12, 4)},
    "ssd_raw": {"s": (1, 12, 4), "b": (1, 12, 4)},
    "fastestdet": {"a": (1, 8, 2, 4)},
    "centernet": {"h": (1, 3, 8, 16), "s": (1, 2, 8, 16), "o": (1, 2, 8, 16)},
}


@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 2**32 - 1), st.sampled_from([0.3, 1.0, 50.0, 1e6, 1e30]))
def test_whatever_a_model_gives_the_candidates_are_numbers_within_bounds(head: str, seed: int, size: float) -> None:
    assert set(SHAPES) == set(HEADS)
    generator = np.random.default_rng(seed)
    arrays = [(generator.normal(size=shape) * size).astype(np.float32) for shape in SHAPES[head].values()]
    config = replace(CONFIG, outputs=tuple(SHAPES[head]), priors=np.full((12, 4), 0.5, np.float32))
    made = make_head(head, config, infos(**SHAPES[head]))
    with np.errstate(all="raise", under="ignore"):
        try:
            found = made.decode(arrays)
        except ModelError:
            return
    assert len(found.boxes) == len(found.scores) == len(found.labels) == len(found.seconds)
    assert np.isfinite(found.scores).all()
    assert ((found.scores >= 0.05) & (found.scores <= 1)).all()
    assert ((found.labels >= 0) & (found.labels < 3)).all()
    assert ((found.seconds >= 0) & (found.seconds <= 1)).all()
    assert np.isfinite(found.boxes).all()
