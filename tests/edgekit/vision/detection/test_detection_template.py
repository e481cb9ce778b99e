"""Comparison with a golden picture: synthetic boards with known faults, and real bare boards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detection_models import GREYS, HEIGHT, WIDTH, board, template_package
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.packages import (
    InputSpec,
    ProofSample,
    TemplateSpec,
)
from edgekit.runtimes import ModelError
from edgekit.vision.detection.alignment import Aligner, Limits, rescaled
from edgekit.vision.detection.boxes import Detections, iou, ranked
from edgekit.vision.detection.detector import Detector
from edgekit.vision.detection.metrics import Counts, Truth, count
from edgekit.vision.detection.template import EXCESS, MISSING, GoldenPicture
from edgekit.vision.images import decode, encode_jpeg, encode_png

Grey = NDArray[np.uint8]


def spoil(image: Grey, box: tuple[int, int, int, int], what: str) -> Grey:
    spoilt = image.copy()
    spoilt[box[1] : box[3], box[0] : box[2]] = GREYS[what]
    return spoilt


FAULTS = {
    "a gap in a wide trace": ((100, 24, 106, 36), "ground", MISSING),
    "a gap in a thin trace": ((57, 80, 64, 92), "ground", MISSING),
    "a hole in an area": ((170, 160, 177, 168), "ground", MISSING),
    "a gap in a hair of a trace": ((180, 49, 192, 54), "ground", MISSING),
    "a narrow gap filled": ((190, 160, 194, 180), "material", EXCESS),
    "a bite": ((140, 165, 146, 173), "ground", MISSING),
    "a bridge": ((80, 34, 85, 60), "material", EXCESS),
    "an island": ((100, 110, 108, 118), "material", EXCESS),
    "a spur": ((96, 34, 101, 44), "material", EXCESS),
}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector.load(template_package(tmp_path_factory.mktemp("t") / "p", board()))


def moved(image: Grey, shift: tuple[float, float] = (0, 0), degrees: float = 0, scale: float = 1.0) -> tuple[Grey, Any]:
    """The picture turned and scaled about its middle and shifted, and the 2x3 matrix of that."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    matrix[:, 2] += shift
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE), matrix


def test_the_golden_picture_itself_has_no_difference(detector: Detector) -> None:
    assert len(detector.detect(encode_png(board())).detections) == 0


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("change", ["none", "shifted", "turned", "darker", "brighter", "jpeg", "reversed"])
def test_a_fault_is_found_and_nothing_else(detector: Detector, tmp_path: Path, name: str, change: str) -> None:
    box, what, label = FAULTS[name]
    image = spoil(board(), box, what)
    target = np.array([box], float)
    data = b""
    if change == "shifted":
        image, _ = moved(image, (5, -4))
        target += [5, -4, 5, -4]
    if change == "turned":
        image, matrix = moved(image, (2, 1), 1.0)
        middle = matrix[:, :2] @ ((target[0, :2] + target[0, 2:]) / 2) + matrix[:, 2]
        half = (target[0, 2:] - target[0, :2]) / 2
        target = np.concatenate([middle - half, middle + half])[None]
    if change == "darker":
        image = (image * 0.4).astype(np.uint8)
    if change == "brighter":
        image = np.minimum(image * 0.9 + 70.0, 255).astype(np.uint8)
    if change == "jpeg":
        data = encode_jpeg(image, 80)
    if change == "reversed":
        detector = Detector.load(template_package(tmp_path / "p", 255 - board(), TemplateSpec(material="dark")))
        image = 255 - image
    found = detector.detect(data or encode_png(image)).reported
    assert found.labels.tolist() == [label]
    assert iou(found.boxes, target)[0, 0] > 0.33
    assert 0 < found.margins[0] <= 1


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_edges_may_lie_aside_within_the_tolerance(pixels: int) -> None:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1,) * 2)
    spec = InputSpec(width=WIDTH, height=HEIGHT, colour="grey")
    for tolerance in (1, 2, 3):
        how = TemplateSpec(tolerance=tolerance, max_shift=0, max_rotation=0, max_scale=0)
        golden = GoldenPicture(board(fine=False), spec, how, 0.05)
        for image in (cv2.dilate(board(fine=False), kernel), cv2.erode(board(fine=False), kernel)):
            found = golden.find(np.asarray(image, np.uint8))
            assert (found.scores >= 0.5).any() == (pixels > tolerance)


def test_an_edge_that_comes_into_view_at_the_border_is_no_difference(detector: Detector) -> None:
    for inside, wanted in ((2, 0), (8, 1)):
        image = board()
        image[60:140, -inside:] = GREYS["material"]
        assert len(detector.detect(encode_png(image)).reported) == wanted


def test_a_larger_and_a_stronger_difference_has_a_higher_score(detector: Detector) -> None:
    scores = []
    for side in (3, 5, 8, 14):
        found = detector.detect(encode_png(spoil(board(), (100, 110, 100 + side, 110 + side), "material"))).detections
        scores.append(float(found.scores[0]))
    assert scores == sorted(scores)
    assert scores[0] == pytest.approx(1 - 2 ** (-9 / 12), abs=0.01)
    assert scores[0] < 0.5 < scores[1] < 0.95 < scores[-1]
    faint = board()
    faint[110:118, 100:108] = 130
    assert detector.detect(encode_png(faint)).detections.scores[0] < scores[2]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((HEIGHT, WIDTH), np.uint8),
        np.full((HEIGHT, WIDTH), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), np.uint8),
        np.ascontiguousarray(board()[::-1]),
        moved(board(), (0, 0), 20.0)[0],
        moved(board(), (40, 0))[0],
        np.full((HEIGHT, WIDTH), 120, np.uint8) + board() // 64,
        np.where(np.arange(WIDTH) < 100, np.uint8(200), board()),
        moved(board(), scale=1.05)[0],
    ],
    ids=[
        "black",
        "white",
        "noise",
        "upside down",
        "turned too far",
        "shifted too far",
        "no contrast",
        "flooded",
        "too large",
    ],
)
def test_what_cannot_be_laid_over_the_golden_picture_is_one_difference_of_which_nothing_is_certain(
    detector: Detector, image: Grey
) -> None:
    found = detector.detect(encode_png(image)).reported
    assert found.boxes.tolist() == [[0, 0, WIDTH, HEIGHT]]
    assert found.scores.tolist() == [1.0]
    assert found.margins.tolist() == [0.0]


def test_boxes_come_in_pixels_of_a_picture_of_another_size(tmp_path: Path) -> None:
    golden = cv2.resize(board(), (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_NEAREST)
    package = template_package(tmp_path / "p", golden, TemplateSpec(grow=2))
    box = (200, 220, 216, 236)
    found = Detector.load(package).detect(encode_png(spoil(golden, box, "material"))).reported
    np.testing.assert_allclose(found.boxes, [[196, 216, 220, 240]], atol=2)


def test_the_packages_samples_prove_a_golden_picture(tmp_path: Path) -> None:
    box, what, _ = FAULTS["a bridge"]
    bad = ProofSample(file="bad.png", label="excess", box=[float(edge) for edge in box], min_iou=0.5)
    samples = {
        "bad.png": (spoil(board(), box, what), bad),
        "good.png": (board(), ProofSample(file="good.png", label="excess", count=0)),
    }
    assert Detector.load(template_package(tmp_path / "p", board(), samples=samples)).prove() == 2
    samples["bad.png"] = (board(), bad)
    with pytest.raises(ModelError, match=r'bad\.png should have "excess"'):
        Detector.load(template_package(tmp_path / "q", board(), samples=samples)).prove()
    assert Detector.load(template_package(tmp_path / "r", board())).prove() == 0


@pytest.mark.parametrize(
    ("golden", "labels", "message"),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), "missing\nexcess\n", "no areas of light and dark"),
        (board() // 32 + 100, "missing\nexcess\n", "too little contrast"),
        (board(), "difference\n", "has 1 labels; a template has two"),
    ],
)
def test_a_golden_picture_that_nothing_can_be_compared_with_is_refused(
    tmp_path: Path, golden: Grey, labels: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        Detector.load(template_package(tmp_path / "p", golden, labels=labels))


def test_a_golden_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    package = template_package(tmp_path / "p", board())
    (package.root / "golden.png").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"golden picture golden\.png cannot be used"):
        Detector.load(package)


def test_warps_keep_their_meaning_at_another_size() -> None:
    warp, scale = np.array([[1.01, -0.05, 3.0], [0.04, 0.98, -2.0]]), np.array([6.25, 6.5])
    point = np.array([31.0, 17.0])

    def larger(value: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(scale * (value + 0.5) - 0.5)

    large = rescaled(warp, scale)
    there = warp[:, :2] @ point + warp[:, 2]
    np.testing.assert_allclose(large[:, :2] @ larger(point) + large[:, 2], larger(there))
    np.testing.assert_allclose(rescaled(large, 1 / scale), warp)


@settings(max_examples=30)
@given(
    st.tuples(st.floats(-12, 12), st.floats(-12, 12)),
    st.floats(-2.5, 2.5),
    st.floats(0.98, 1.02),
    st.integers(0, 2**32 - 1),
)
def test_a_movement_within_the_limits_is_measured_to_a_fraction_of_a_pixel(
    shift: tuple[float, float], degrees: float, scale: float, seed: int
) -> None:
    image, matrix = moved(board(), shift, degrees, scale)
    noisy = np.clip(image + np.random.default_rng(seed).normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    warp, correlation = Aligner(board(), Limits(16, 3, 0.03)).align(noisy)
    corners = np.array([[40, 40], [200, 40], [40, 160], [200, 160]], float)
    error = corners @ (warp - matrix)[:, :2].T + (warp - matrix)[:, 2]
    assert np.abs(error).max() < 1.0
    assert correlation > 0.8


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (8, 5), (400, 7)])
def test_pictures_of_odd_sizes_are_compared_or_refused(size: tuple[int, int]) -> None:
    width, height = size
    golden = np.zeros((height, width), np.uint8)
    golden[:, : width // 2] = 255
    spec = InputSpec(width=width, height=height, colour="grey")
    try:
        made = GoldenPicture(golden, spec, TemplateSpec(), 0.05)
    except ModelError:
        return
    for image in (golden, 255 - golden, np.zeros_like(golden)):
        found = made.find(image)
        assert np.isfinite(found.boxes).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()


# --- real boards ---------------------------------------------------------------------------------------------------

BORDER = 24  # cut off after a picture was moved, so that every pixel compared is a real one
PCB = TemplateSpec(material="dark", grow=9)
"""DeepPCB draws its boxes about 10 pixels around a defect; all else is the default."""


def inspect(
    root: Path,
    shift: tuple[float, float] = (0, 0),
    degrees: float = 0,
    brightness: tuple[float, float] = (1, 0),
) -> Counts:
    """The 60 boards of pcb-bare against their templates, any label, a find being an IoU above 0.33."""
    truth = json.loads((root / "coco.json").read_text())
    results: list[Detections] = []
    wanted: list[Truth] = []
    for entry in truth["images"]:
        golden = decode((root / entry["template"]).read_bytes(), "grey")
        image, matrix = moved(decode((root / entry["file_name"]).read_bytes(), "grey"), shift, degrees)
        image = np.clip(image * brightness[0] + brightness[1], 0, 255).astype(np.uint8)
        boxes = np.array([one["bbox"] for one in truth["annotations"] if one["image_id"] == entry["id"]], float)
        middles = (boxes[:, :2] + boxes[:, 2:] / 2) @ matrix[:, :2].T + matrix[:, 2]
        boxes = np.concatenate([middles - boxes[:, 2:] / 2, middles + boxes[:, 2:] / 2], axis=1)
        side = golden.shape[0]
        if shift != (0, 0) or degrees:
            side -= 2 * BORDER
            golden = np.ascontiguousarray(golden[BORDER:-BORDER, BORDER:-BORDER])
            image = np.ascontiguousarray(image[BORDER:-BORDER, BORDER:-BORDER])
            boxes = np.clip(boxes - BORDER, 0, side)
            boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 16]  # what the cut left too little of
        spec = InputSpec(width=side, height=side, colour="grey")
        found = GoldenPicture(golden, spec, PCB, 0.05).find(image)
        alike = np.zeros(len(found.scores), np.int32)
        results.append(ranked(found.boxes, found.scores, alike, alike).clipped(side, side))
        wanted.append(Truth(boxes, np.zeros(len(boxes), np.int32)))
    return count(results, wanted, report=0.5)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "change",
    [{}, {"shift": (3, -3), "degrees": 0.5}, {"brightness": (0.6, 40)}],
    ids=["as they are", "3 pixels aside and turned by half a degree", "paler"],
)
def test_real_bare_boards(real_data: Path, change: dict[str, Any]) -> None:
    counts = inspect(real_data / "pcb-bare", **change)
    boards = counts.bad_pictures + counts.good_pictures
    assert boards == 60
    assert counts.recall is not None
    assert counts.recall >= 0.98, counts
    assert counts.false / boards <= 0.15, counts
    assert counts.escape_pictures == 0
