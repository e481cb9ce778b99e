"""An anomaly package says which parts are anomalous, how sure that is, and where."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.packages import Package, ProofSample, open_package
from edgekit.runtimes import ModelError, TensorInfo
from edgekit.vision.anomaly import AnomalyDetector, Examined, Heat, areas, probability, read_map, usual_spread
from edgekit.vision.images import ImageError, encode_png
from tests.support.parts import CELL, SIDE, dark, make_anomaly, part

MAP = TensorInfo("map", (1, None, None), "float32")


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return make_anomaly(tmp_path / "dark")


@pytest.fixture
def detector(package: Package) -> Iterator[AnomalyDetector]:
    detector = AnomalyDetector.load(package)
    yield detector
    detector.close()


def test_a_good_part_is_normal_and_nothing_on_it_is_marked(detector: AnomalyDetector) -> None:
    answer = detector.classify(dark((1, 1, 0.2)))
    assert (answer.label, answer.index, answer.areas) == ("normal", 0, ())
    assert answer.part_score == pytest.approx(0.2, abs=0.01)
    assert answer.score == pytest.approx(1 - 1 / (1 + math.exp(3)), abs=0.01)
    assert set(answer.timings_ms) == {"decode", "infer"}


def test_an_anomalous_part_has_its_places_in_pixels_of_the_picture(detector: AnomalyDetector) -> None:
    answer = detector.classify(dark((2, 3, 0.9), (6, 6, 0.7), (7, 6, 0.6), (0, 0, 0.3), side=2 * SIDE))
    assert (answer.label, answer.index) == ("anomaly", 1)
    step = 2 * CELL
    assert [tuple(one.box) for one in answer.areas] == [
        (2 * step, 3 * step, 3 * step, 4 * step),
        (6 * step, 6 * step, 8 * step, 7 * step),
    ]
    assert answer.areas[0].score > answer.areas[1].score >= 0.5


def test_an_answer_is_least_sure_at_the_limit_and_surer_on_either_side(detector: AnomalyDetector) -> None:
    levels = np.linspace(0.02, 0.98, 25)
    answers = [detector.classify(dark((4, 4, float(level)))) for level in levels]
    margins = [answer.margin for answer in answers]
    hardest = int(np.argmin(margins))
    assert abs(levels[hardest] - 0.5) < 0.05
    assert margins[: hardest + 1] == sorted(margins[: hardest + 1], reverse=True)
    assert margins[hardest:] == sorted(margins[hardest:])
    for answer in answers:
        assert answer.score == pytest.approx(answer.probabilities[answer.index], abs=1e-6)
        assert answer.margin == pytest.approx(abs(float(np.diff(answer.probabilities)[0])), abs=1e-6)


@given(
    scores=st.lists(st.floats(0, 1e9), min_size=1, max_size=20),
    limit=st.floats(1e-6, 1e6),
    spread=st.floats(1e-6, 1e6),
)
def test_the_probability_rises_with_the_score_and_is_a_half_at_the_limit(
    scores: list[float], limit: float, spread: float
) -> None:
    ordered = np.sort(np.array(scores))
    found = probability(ordered, limit, spread)
    assert ((found >= 0) & (found <= 1)).all() and (np.diff(found) >= 0).all()
    assert float(probability(np.array(limit), limit, spread)) == 0.5


def test_the_spread_gives_the_median_good_part_one_in_twenty() -> None:
    good = np.array([1.0, 2.0, 3.0, 4.0, 9.0])
    spread = usual_spread(5.0, good)
    assert float(probability(np.array(3.0), 5.0, spread)) == pytest.approx(0.05)
    assert usual_spread(5.0, np.array([5.0, 5.0])) == pytest.approx(0.05)


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 1, 4, 6), (1, 4, 6, 1)])
def test_a_map_may_have_a_channel_or_none(shape: tuple[int, ...]) -> None:
    values = np.arange(24, dtype=np.float32)
    assert read_map(values.reshape(shape), MAP).tolist() == values.reshape(4, 6).tolist()


@pytest.mark.parametrize("shape", [(1,), (1, 1), ()])
def test_a_single_score_is_a_map_of_one_place_or_refused(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 2.0, np.float32)
    if shape:
        assert read_map(array, MAP).tolist() == [[2.0]]
    else:
        with pytest.raises(ModelError, match="a map"):
            read_map(array, MAP)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 4, 4), np.float32), "a map"),
        (np.zeros((1, 3, 4, 4), np.float32), "a map"),
        (np.zeros((1, 0, 4), np.float32), "a map"),
        (np.zeros((1, 10), np.float32), "a map"),
        (np.zeros((1, 3000, 3000), np.float32), "a map"),
        (np.full((1, 2, 2), np.nan, np.float32), "not numbers"),
        (np.full((1, 2, 2), np.inf, np.float32), "not numbers"),
        (np.full((1, 2, 2), -0.5, np.float32), "0 or more"),
        (np.zeros((1, 2, 2), np.int8), "no quantisation scale"),
    ],
)
def test_an_output_that_is_no_map_is_a_model_error(array: np.ndarray, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_map(array, TensorInfo("map", (1, None, None), "int8" if array.dtype == np.int8 else "float32"))


def test_a_package_proves_itself_on_its_samples(detector: AnomalyDetector, tmp_path: Path) -> None:
    assert detector.prove() == 2
    wrong = AnomalyDetector.load(make_anomaly(tmp_path / "strict", limit=1.5, samples=True))
    with pytest.raises(ModelError, match=r'bad.png should be "anomaly", but the model says "normal" \(its score is 1'):
        wrong.prove()
    wrong.close()
    blank = AnomalyDetector.load(make_anomaly(tmp_path / "blank", samples=False))
    assert blank.prove() == 0
    blank.close()


def test_a_package_without_two_labels_or_without_the_table_is_no_anomaly_detector(tmp_path: Path) -> None:
    import msgspec

    package = make_anomaly(tmp_path / "dark")
    one = Package(package.root, package.manifest, package.digest, ["normal"], package.sizes)
    with pytest.raises(ModelError, match="has 1 labels; an anomaly package has two"):
        AnomalyDetector.load(one)
    bare = msgspec.structs.replace(package.manifest, anomaly=None)
    with pytest.raises(ModelError, match=r"has no \[anomaly\]"):
        AnomalyDetector.load(Package(package.root, bare, package.digest, package.labels, package.sizes))


def test_a_crop_moves_the_places_back_to_the_full_picture(tmp_path: Path) -> None:
    detector = AnomalyDetector.load(make_anomaly(tmp_path / "crop", samples=False, crop=[0.5, 0.5, 1.0, 1.0]))
    image = np.full((2 * SIDE, 2 * SIDE, 3), 255, np.uint8)
    image[SIDE + CELL : SIDE + 2 * CELL, SIDE : SIDE + CELL] = 0
    image[:CELL, :CELL] = 0  # outside of the crop
    answer = detector.classify(encode_png(image))
    assert [one.box for one in answer.areas] == [(SIDE, SIDE + CELL, SIDE + CELL, SIDE + 2 * CELL)]
    detector.close()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AnomalyDetector]:
    """By how pictures come to the model's size. Letterbox is grey, so its limit is above that grey's darkness."""
    ways: list[Literal["stretch", "crop", "letterbox"]] = ["stretch", "crop", "letterbox"]
    root = tmp_path_factory.mktemp("fitted")
    return {
        way: AnomalyDetector.load(make_anomaly(root / way, samples=False, resize=way, limit=0.7, width=96, height=72))
        for way in ways
    }


@given(
    way=st.sampled_from(["stretch", "crop", "letterbox"]),
    width=st.integers(120, 240),
    height=st.integers(120, 240),
    across=st.floats(0.47, 0.53),
    down=st.floats(0.47, 0.53),
)
def test_a_place_is_found_where_it_lies_however_the_picture_was_fitted(
    fitted: dict[str, AnomalyDetector], way: str, width: int, height: int, across: float, down: float
) -> None:
    image = np.full((height, width, 3), 255, np.uint8)
    reach = 0.5 * min(width, height)  # several places
    left, top = round(across * width - reach / 2), round(down * height - reach / 2)
    right, bottom = left + round(reach), top + round(reach)
    image[top:bottom, left:right] = 0
    answer = fitted[way].classify(encode_png(image))
    assert answer.label == "anomaly" and len(answer.areas) == 1
    box = answer.areas[0].box
    place = max(width / 12, height / 9) if way == "stretch" else max(width, height) / 9
    assert box == pytest.approx((left, top, right, bottom), abs=1.2 * place)
    assert ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) == pytest.approx(
        ((left + right) / 2, (top + bottom) / 2), abs=0.7 * place
    )


def test_a_picture_that_cannot_be_read_is_an_image_error(detector: AnomalyDetector) -> None:
    with pytest.raises(ImageError):
        detector.classify(b"\x89PNG\r\n\x1a\n nothing")


def registered(tmp_path: Path) -> AnomalyDetector:
    """Darkness, after the part was laid over the first one; its own holes and ring are darker than the limit."""
    reference = encode_png(part(0, side=96, moved=0.0))
    return AnomalyDetector.load(
        make_anomaly(tmp_path / "laid", samples=False, reference=reference, width=96, height=96, limit=0.01)
    )


def test_a_moved_part_is_laid_over_the_reference_and_its_places_follow_it(tmp_path: Path) -> None:
    detector = registered(tmp_path)
    still = detector.classify(encode_png(part(0, side=96, moved=0.0)))
    moved = part(0, side=96, moved=0.0)
    warp = np.array([[1.0, 0.0, 6.0], [0.0, 1.0, -4.0]])
    shifted = cv2.warpAffine(moved, warp, (96, 96), borderMode=cv2.BORDER_REPLICATE)
    there = detector.classify(encode_png(shifted))
    assert isinstance(still, Examined) and isinstance(there, Examined)
    assert still.heat is not None and there.heat is not None
    assert np.abs(still.heat.values[2:-2, 2:-2] - there.heat.values[2:-2, 2:-2]).mean() < 0.02
    at = np.array([6.0, 6.0, 1.0])
    assert there.heat.to_picture @ at - still.heat.to_picture @ at == pytest.approx([6.0, -4.0], abs=0.6)
    detector.close()


def test_a_picture_of_something_else_is_reported_and_nothing_about_it_is_sure(tmp_path: Path) -> None:
    detector = registered(tmp_path)
    noise = np.random.default_rng(5).integers(0, 256, (96, 96, 3), np.uint8)
    answer = detector.classify(encode_png(cv2.GaussianBlur(noise, (0, 0), 3)))
    assert (answer.label, answer.score, answer.margin) == ("anomaly", 0.5, 0.0)
    assert [one.box for one in answer.areas] == [(0.0, 0.0, 96.0, 96.0)] and answer.heat is None
    detector.close()


def test_a_reference_that_is_no_picture_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the reference reference.png cannot be used"):
        AnomalyDetector.load(make_anomaly(tmp_path / "laid", samples=False, reference=b"nothing"))


@given(st.integers(0, 2**32 - 1))
def test_areas_are_within_the_picture_the_worst_first_and_not_too_many(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((24, 30)).astype(np.float32)
    warp = np.array([[4.0, 0.3, rng.uniform(-40, 40)], [-0.3, 4.0, rng.uniform(-40, 40)]])
    found = list(areas(Heat(values, warp), (100, 80)))
    assert len(found) <= 64
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        left, top, right, bottom = one.box
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 80 and 0.5 <= one.score <= 1


def test_the_samples_of_a_package_are_proof(package: Package) -> None:
    assert [type(one) for one in open_package(package.root).manifest.samples] == [ProofSample, ProofSample]
