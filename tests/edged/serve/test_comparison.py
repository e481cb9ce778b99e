"""A new model on the samples of the one before, for each task."""

from __future__ import annotations

from pathlib import Path

from edged.serve.comparison import compare
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector
from tests.support.detectors import make_detector, make_template
from tests.support.models import make_package


def test_detectors_are_compared_box_by_box(tmp_path: Path) -> None:
    old = make_detector(tmp_path / "old").root
    alike = Detector.load(make_detector(tmp_path / "alike", version="2", gain=0.9, samples=False))
    found = compare("s", alike, old)
    assert found is not None
    assert (found.model, found.previous) == ("cells@2", "cells@1")
    assert (found.samples, found.agreed, found.differing) == (3, 3, [])
    assert 0.07 < found.score_change < 0.09  # 0.8 was pinned
    blind = compare("s", Detector.load(make_detector(tmp_path / "blind", version="3", gain=0.5, samples=False)), old)
    assert blind is not None and (blind.samples, blind.agreed) == (3, 1)
    assert blind.differing[0] == 'bad.png had "short" at 16, 32, 32, 48 and has it no more'
    eager = compare("s", Detector.load(make_detector(tmp_path / "eager", version="4", gain=1.2, samples=False)), old)
    assert eager is not None and eager.agreed == 2
    assert eager.differing == ['good.png had 0 "short" and has now 1']


def test_a_detector_of_other_labels_has_nothing_of_what_was_pinned(tmp_path: Path) -> None:
    found = compare("s", Detector.load(make_template(tmp_path / "t")), make_detector(tmp_path / "d").root)
    assert found is not None and found.agreed == 1  # it finds no "short" either where there is none


def test_models_of_different_tasks_cannot_be_compared(tmp_path: Path) -> None:
    detector, classifier = make_detector(tmp_path / "d"), make_package(tmp_path / "c")
    assert compare("s", Detector.load(detector), classifier.root) is None
    assert compare("s", Classifier.load(classifier), detector.root) is None


def test_it_ends_when_its_time_is_over(tmp_path: Path) -> None:
    package = make_package(tmp_path / "c", labels=["a", "b", "c"])
    times = iter([0.0, 1.0, 11.0])
    found = compare("s", Classifier.load(package), package.root, lambda: next(times))
    assert found is not None and found.samples == 1
