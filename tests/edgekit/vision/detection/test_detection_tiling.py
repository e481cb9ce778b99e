"""Boxes of tiles put together: objects across borders come out once and whole, and nothing that was seen is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detection_models import board, picture, rectangle_package, template_package
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtimes import ModelError
from edgekit.services import Pipeline, Tiles
from edgekit.vision.detection.boxes import NONE, Detections, ranked
from edgekit.vision.detection.detector import Detector
from edgekit.vision.detection.tiling import TiledDetector, merge
from edgekit.vision.images import ImageError, encode_jpeg, encode_png
from edgekit.vision.pipeline import Box, regions


def pipeline(side: int, overlap: int, **changes: object) -> Pipeline:
    return Pipeline(tiles=Tiles(width=side, height=side, overlap=overlap, aggregate="mean"), **changes)  # type: ignore[arg-type]


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """left, top, right, bottom, score, label."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return ranked(table[:, :4], table[:, 4], table[:, 5].astype(np.int32), table[:, 4] / 2)


LEFT, RIGHT = (0, 0, 100, 100), (60, 0, 160, 100)
TILES: list[Box] = [LEFT, RIGHT]


def test_a_box_cut_at_an_inner_border_gives_way_to_the_whole_one_and_leaves_it_its_score() -> None:
    merged = merge(TILES, [found((70, 40, 100, 60, 0.9, 0)), found((70, 40, 130, 60, 0.6, 0))], 0.5)
    assert merged.boxes.tolist() == [[70, 40, 130, 60]]
    assert merged.scores.tolist() == pytest.approx([0.9])
    assert merged.margins.tolist() == pytest.approx([0.45])
    merged = merge(TILES, [found((70, 40, 100, 60, 0.5, 0)), found((70, 40, 130, 60, 0.6, 0))], 0.5)
    assert merged.scores.tolist() == pytest.approx([0.6])


def test_a_cut_box_stays_where_no_other_tile_saw_the_whole() -> None:
    for other in (NONE, found((64, 0, 90, 20, 0.9, 0)), found((70, 40, 130, 60, 0.6, 1))):
        merged = merge(TILES, [found((70, 40, 100, 60, 0.9, 0)), other], 0.5)
        assert [70, 40, 100, 60] in merged.boxes.tolist()
    merged = merge(
        TILES, [found((70, 40, 100, 60, 0.9, 0)), found((70, 40, 130, 60, 0.6, 1))], 0.5, class_agnostic=True
    )
    assert merged.boxes.tolist() == [[70, 40, 130, 60]]
    assert merged.labels.tolist() == [0]


def test_a_whole_box_of_the_same_tile_is_another_object() -> None:
    part = found((40, 30, 90, 90, 0.9, 0), (70, 40, 100, 60, 0.8, 0))
    assert len(merge(TILES, [part, NONE], 0.5)) == 2


def test_a_box_at_the_edge_of_the_picture_is_not_cut() -> None:
    edge = found((0, 0, 20, 20, 0.9, 0), (30, 80, 50, 100, 0.8, 0))
    merged = merge(TILES, [edge, found((140, 0, 160, 20, 0.7, 0))], 0.5)
    assert len(merged) == 3


def test_what_both_tiles_see_whole_is_one_box() -> None:
    merged = merge(TILES, [found((65, 10, 90, 30, 0.7, 0)), found((66, 10, 91, 31, 0.8, 0))], 0.5)
    assert merged.boxes.tolist() == [[66, 10, 91, 31]]


def test_one_tile_is_left_as_it_is() -> None:
    both = found((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0))
    assert merge([LEFT], [both], 0.5) is both
    assert len(merge(TILES, [NONE, NONE], 0.5)) == 0


def test_the_merged_boxes_are_bounded() -> None:
    many = found(*[(10 * i, 0, 10 * i + 5, 5, 0.9 - i / 100, 0) for i in range(9)])
    assert len(merge(TILES, [many, NONE], 0.5, max_candidates=5)) == 5
    assert len(merge(TILES, [many, NONE], 0.5, max_kept=3)) == 3


@settings(max_examples=60)
@given(st.data())
def test_every_object_smaller_than_the_overlap_comes_out_once_and_whole(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(60, 250)), data.draw(st.integers(60, 250))
    overlap = data.draw(st.integers(30, 45))
    tiles = regions(pipeline(60, overlap), width, height)
    largest = overlap - 8  # a box nearer to a border than some pixels may be a cut one
    objects = []
    for _ in range(data.draw(st.integers(1, 4))):
        w, h = data.draw(st.integers(8, largest)), data.draw(st.integers(8, largest))
        x, y = data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h))
        objects.append((x, y, x + w, y + h))
    apart = [
        one
        for i, one in enumerate(objects)
        if all(one[2] <= o[0] or o[2] <= one[0] or one[3] <= o[1] or o[3] <= one[1] for o in objects[:i])
    ]
    parts = []
    for left, top, right, bottom in tiles:
        cut = [(max(o[0], left), max(o[1], top), min(o[2], right), min(o[3], bottom)) for o in apart]
        # What is cut gets the better score, the worst case for plain suppression.
        rows = [
            (*c, 0.5 + 0.4 * (c != o), 0)
            for c, o in zip(cut, apart, strict=True)
            if c[2] - c[0] >= 4 and c[3] - c[1] >= 4
        ]
        parts.append(found(*rows))
    merged = merge(tiles, parts, 0.5)
    assert sorted(tuple(int(edge) for edge in box) for box in merged.boxes) == sorted(apart)


@pytest.mark.parametrize("suffix", ["png", "jpeg"])
def test_a_large_picture_is_searched_tile_by_tile(tmp_path: Path, suffix: str) -> None:
    objects = [(100, 100, 150, 160), (500, 30, 560, 90), (620, 400, 700, 470), (1190, 880, 1200, 900)]
    image = picture(1200, 900, *objects)
    data = encode_png(image) if suffix == "png" else encode_jpeg(image)
    detector = Detector.load(rectangle_package(tmp_path / "p", (64, 64), interpolation="area"))
    assert len(detector.detect(data).detections) == 1  # all of them as one, as the small input shows the whole picture
    tiled = TiledDetector(detector, pipeline(256, 128))
    answer = tiled.detect(data)
    assert (answer.width, answer.height) == (1200, 900)
    assert sorted(answer.timings_ms) == ["decode", "infer"]
    boxes = sorted(answer.reported.boxes.tolist())
    np.testing.assert_allclose(boxes, sorted(objects), atol=5)


def test_a_region_of_interest_limits_the_search(tmp_path: Path) -> None:
    detector = Detector.load(rectangle_package(tmp_path / "p", (64, 64), interpolation="linear"))
    data = encode_png(picture(200, 100, (10, 10, 30, 30), (150, 40, 170, 60)))
    inside = TiledDetector(detector, Pipeline(roi=[100, 0, 200, 100], roi_unit="pixel")).detect(data)
    np.testing.assert_allclose(inside.detections.boxes, [[150, 40, 170, 60]], atol=2)
    with pytest.raises(ImageError, match="outside of this picture"):
        TiledDetector(detector, Pipeline(roi=[100, 0, 201, 100], roi_unit="pixel")).detect(data)


def test_a_golden_picture_is_not_cut_into_tiles(tmp_path: Path) -> None:
    detector = Detector.load(template_package(tmp_path / "p", board()))
    with pytest.raises(ModelError, match=r"input\.crop"):
        TiledDetector(detector, pipeline(64, 16))
    assert len(TiledDetector(detector, Pipeline()).detect(encode_png(board())).reported) == 0
