"""What becomes of a detector's candidates: what answers something is kept, within the bounds of one answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cloudd.answers.judging import judge, load
from edgekit.messages import AskModel
from edgekit.packages import DetectionSpec, Package
from edgekit.regions.answers import compare
from edgekit.regions.cutouts import EXACT, region
from edgekit.regions.header import MAX_FOUND, check_answer
from edgekit.regions.mosaic import Mosaic, compose
from edgekit.regions.select import Candidate
from edgekit.runtimes import ModelError, SessionOptions
from edgekit.services import Pipeline, Tiles
from edgekit.vision.images import encode_png
from tests.edgekit.vision.detection.detection_models import detection_package, emitting

LABELS = ("short", "spur")
FRAME: NDArray[np.uint8] = np.zeros((128, 512, 3), np.uint8)


def always(root: Path, rows: list[tuple[float, ...]]) -> Package:
    """A detector that finds the same in every picture: left, top, right, bottom of 64x64, score, label."""
    spec = DetectionSpec(head="yolov10")
    return detection_package(root, emitting({"out": np.array([rows])}), spec, labels=LABELS)


def cut(*boxes: tuple[float, float, float, float]) -> Mosaic:
    asked = [region(i, Candidate(box, "short", 0.6, 0.1), "hard", EXACT, 512, 128) for i, box in enumerate(boxes)]
    return compose(FRAME, asked)


def ask(mosaic: Mosaic | None = None, pipeline: Pipeline | None = None) -> AskModel:
    header = mosaic.header if mosaic is not None else None
    return AskModel(ticket=1, model="finder@1", directory="", mosaic=header, pipeline=pipeline)


def test_of_weak_candidates_only_the_one_that_fits_the_region_is_sent(tmp_path: Path) -> None:
    rows = [(0, 0, 62, 64, 0.3, 0), (0, 0, 50, 64, 0.4, 1), (0, 0, 8, 8, 0.2, 1), (20, 20, 30, 30, 0.9, 1)]
    model = load(always(tmp_path / "p", rows), SessionOptions(threads=1))
    mosaic = cut((64.0, 0.0, 128.0, 64.0))
    said = judge(model, ask(mosaic), mosaic.encode())
    assert said.mosaic is not None
    assert [(one.label, one.box) for one in said.mosaic.found] == [
        ("spur", (84.0, 20.0, 94.0, 30.0)), ("", (64.0, 0.0, 126.0, 64.0)),
    ]  # fmt: skip
    ((outcome,), (beside,)) = compare(mosaic.header, said.mosaic)
    assert (outcome.label, round(outcome.score, 2), beside.label) == ("", 0.7, "spur")
    assert (said.label, said.differing) == ("nothing", (0,))


def test_an_answer_keeps_its_bound_and_the_best_boxes(tmp_path: Path) -> None:
    rows = [(i % 50, i // 50, i % 50 + 8, i // 50 + 8, 0.6 + i / 1000, 0) for i in range(300)]
    model = load(always(tmp_path / "p", rows), SessionOptions(threads=1))
    mosaic = cut(*((128.0 * i, 0.0, 128.0 * i + 64, 64.0) for i in range(4)))
    said = judge(model, ask(mosaic), mosaic.encode())
    assert said.mosaic is not None and len(said.mosaic.found) == MAX_FOUND < 4 * 300
    check_answer(mosaic.header, said.mosaic)
    assert min(one.score for one in said.mosaic.found) > 0.6 + 40 / 1000
    assert [one.cell for one in said.mosaic.found] == sorted(one.cell for one in said.mosaic.found)


def test_a_whole_picture_gets_the_worst_label_and_only_boxes_that_count(tmp_path: Path) -> None:
    rows = [(0, 0, 20, 20, 0.9, 0), (30, 30, 50, 50, 0.7, 1), (5, 5, 9, 9, 0.3, 0)]
    model = load(always(tmp_path / "p", rows), SessionOptions(threads=1))
    worst = Pipeline(tiles=Tiles(width=512, height=128, worst=["spur"]))
    said = judge(model, ask(pipeline=worst), encode_png(FRAME))
    assert said.label == "spur" and said.mosaic is not None
    assert sorted(one.label for one in said.mosaic.found) == ["short", "spur"]


def test_of_a_whole_picture_with_doubtful_candidates_only_nothing_is_said_with_their_doubt(tmp_path: Path) -> None:
    model = load(always(tmp_path / "p", [(0, 0, 20, 20, 0.45, 0)]), SessionOptions(threads=1))
    said = judge(model, ask(), encode_png(FRAME))
    assert (said.label, round(said.score, 2), round(said.margin, 2)) == ("nothing", 0.55, 0.1)
    assert said.mosaic is not None and said.mosaic.found == []


def test_a_model_that_does_not_keep_what_its_package_promises_is_not_loaded(tmp_path: Path) -> None:
    package = always(tmp_path / "p", [(0, 0, 20, 20, 0.9, 7)])  # a label that it does not have
    with pytest.raises(ModelError):
        judge(load(package, SessionOptions(threads=1)), ask(), encode_png(FRAME))
