"""Proving a detector in another setting: its boxes are compared, not only its tensors."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edged.hardware.bench.answers import Answers, disagreement, load_answers, save_answers
from edged.hardware.bench.server import Server
from edged.hardware.bench.subject import Subject
from edged.hardware.candidates import CPU_FLOOR
from edged.hardware.facts import Facts
from edged.hardware.gate import gate_all
from edged.hardware.host import RealHost
from edged.hardware.settings import ProbeResult, Setting
from edged.hardware.wire import Job, Probe, Probed
from edgekit.packages import DetectionSpec, Package
from edgekit.vision.detection.boxes import Detections
from tests.support.detectors import make_detector, make_template

CPU = Setting(candidate="floor#onnxruntime", variant="model.onnx", runtime="onnxruntime")


def said(package: Package) -> Answers:
    subject = Subject(package, CPU, "", 8, strict=False)
    try:
        return subject.answers()
    finally:
        subject.close()


def probe(package: Package, **order: object) -> ProbeResult:
    server = Server(Job(package=str(package.root), memory_bytes=1 << 30))
    answer = server.answer(msgspec.json.encode(Probe(setting=CPU, **order)))  # type: ignore[arg-type]
    assert isinstance(answer, Probed)
    return answer.result


def found(*rows: tuple[float, float, float, int]) -> Answers:
    """Boxes of 10x10 pixels: left, score, margin, label."""
    boxes = np.array([[left, 0, left + 10, 10] for left, *_ in rows], np.float32).reshape(-1, 4)
    scores, margins = (np.array([row[at] for row in rows], np.float32) for at in (1, 2))
    return Answers([], [Detections(boxes, scores, np.array([row[3] for row in rows], np.int32), margins)])


def test_the_packages_own_pictures_are_each_fed_once_and_their_boxes_are_kept(tmp_path: Path) -> None:
    answers = said(make_detector(tmp_path / "d"))
    assert len(answers.tensors) == len(answers.boxes) == 2  # three samples name two pictures
    assert sorted(len(one) for one in answers.boxes) == [1, 2]
    save_answers(tmp_path / "reference.npz", answers)
    again = load_answers(tmp_path / "reference.npz")
    assert disagreement(again, answers, 0.05) == 0.0 and again.tells
    assert [one.labels.tolist() for one in again.boxes] == [one.labels.tolist() for one in answers.boxes]


def test_a_wrong_score_shows_that_is_nothing_beside_positions_of_many_pixels(tmp_path: Path) -> None:
    right, wrong = said(make_detector(tmp_path / "a")), said(make_detector(tmp_path / "b", gain=0.6, samples=True))
    assert disagreement(Answers(wrong.tensors), Answers(right.tensors)) < 0.01
    assert disagreement(wrong, right, 0.05) == pytest.approx(0.32, abs=0.01)


def test_a_probe_runs_the_samples(tmp_path: Path) -> None:
    package, reference = make_detector(tmp_path / "a"), tmp_path / "reference.npz"
    written = probe(package, write=str(reference))
    assert written.ok and written.samples == 3
    assert probe(package, reference=str(reference), same_file=True).agreement == 0.0
    weaker = probe(make_detector(tmp_path / "b", gain=0.9))
    assert weaker.kind == "wrong" and 'should have "short" at 16, 32, 32, 48 with 0.800' in weaker.reason


def test_a_probe_refuses_other_boxes_than_the_cpus_where_there_are_no_samples(tmp_path: Path) -> None:
    reference = str(tmp_path / "reference.npz")
    assert probe(make_detector(tmp_path / "a", samples=False), write=reference).ok
    weaker = probe(make_detector(tmp_path / "b", gain=0.9, samples=False), reference=reference, same_file=True)
    assert weaker.kind == "wrong" and "its answers differ from the CPU's" in weaker.reason


def test_made_up_pictures_do_where_there_are_no_samples(tmp_path: Path) -> None:
    answers = said(make_detector(tmp_path / "d", samples=False))
    assert len(answers.boxes) == 3 and answers.tells


def test_a_model_that_sorts_its_boxes_is_judged_by_them_alone() -> None:
    one = found((0, 0.9, 0.8, 0), (50, 0.6, 0.2, 1))
    assert disagreement(found((50, 0.6, 0.2, 1), (0, 0.9, 0.8, 0)), one, 0.05) == 0.0
    assert not found().tells and found((0, 0.1, 0.8, 0)).tells


def test_boxes_differ_by_their_scores_and_a_missing_one_by_what_it_is_above_the_floor() -> None:
    one = found((0, 0.9, 0.8, 0), (50, 0.06, 0.9, 1))
    assert disagreement(found((1, 0.8, 0.6, 0), (50, 0.06, 0.9, 1)), one, 0.05) == pytest.approx(0.1)
    assert disagreement(found((0, 0.9, 0.8, 0)), one, 0.05) == pytest.approx(0.01)  # it may be just under the floor
    assert disagreement(found((50, 0.06, 0.9, 1)), one, 0.05) == pytest.approx(0.85)
    assert disagreement(found((7, 0.9, 0.8, 0), (50, 0.06, 0.9, 1)), one, 0.05) == pytest.approx(0.85), "elsewhere"
    assert disagreement(found(), one, 0.05) == disagreement(one, found(), 0.05) == pytest.approx(0.85)
    assert disagreement(Answers([]), one, 0.05) == float("inf")


def test_another_label_differs_by_the_margin_of_a_box_that_counts() -> None:
    one = found((0, 0.9, 0.8, 0))
    assert disagreement(found((0, 0.9, 0.8, 1)), one, 0.05) == pytest.approx(0.8)
    close = found((0, 0.52, 0.03, 0))
    assert disagreement(found((0, 0.52, 0.03, 1)), close, 0.05) == pytest.approx(0.03)
    under = found((0, 0.3, 0.4, 0))
    assert disagreement(found((0, 0.3, 0.4, 1)), under, 0.05) == 0.0


def test_boxes_are_compared_before_any_is_dropped(tmp_path: Path) -> None:
    package = make_detector(tmp_path / "d", spec=DetectionSpec(head="yolov8", max_detections=1))
    assert sorted(len(one) for one in said(package).boxes) == [1, 2]


def test_there_is_nothing_to_choose_for_a_golden_picture(tmp_path: Path) -> None:
    manifest = make_template(tmp_path / "t").manifest
    assert gate_all(CPU_FLOOR, Facts(), RealHost(), manifest, {("onnxruntime", "cpu")}) == ([], [])
