"""Fitting the demo's models to other pictures: a frozen backbone, a new head, a package that proves itself."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from edgekit.packages import open_package
from edgekit.vision.classification import Classifier
from examples.adapt import adapt, discriminant
from examples.feeds import FeedError, folder, simulated

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"


def test_discriminant_separates_gaussians_and_does_not_drown_a_rare_class() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 3, (3, 8))
    labels = np.array([0] * 400 + [1] * 60 + [2] * 12)
    features = centres[labels] + rng.normal(0, 1, (len(labels), 8))
    weights, bias = discriminant(features, labels, 3)
    guesses = (features @ weights.T + bias).argmax(1)
    assert all((guesses[labels == kind] == kind).mean() > 0.9 for kind in range(3))


def test_a_new_head_learns_new_words(tmp_path: Path) -> None:
    words = {"normal": "good", "insufficient": "bad", "bridge": "bad", "pinhole": "bad", "cold": "bad"}
    items = [item for batch in islice(simulated("south", 5), 40) for item in batch]
    learn, test = items[:360], items[360:]
    package = adapt(
        MODELS / "solder-large", tmp_path / "own", "own", [item.data for item in learn],
        [words[item.label] for item in learn], side=64, stages=True,
    )  # fmt: skip
    assert open_package(package.root).labels == ["bad", "good"]
    classifier = Classifier.load(package)
    assert classifier.prove() == 2
    right = [classifier.classify(item.data).label == words[item.label] for item in test]
    assert sum(right) / len(right) > 0.9
    assert not (tmp_path / "own" / "backbone.onnx").exists()


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than two classes"):
        adapt(MODELS / "solder-small", tmp_path / "own", "own", [b""], ["a"], side=32, stages=False)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_board_is_wholly_learned_from_or_wholly_tested(tmp_path: Path) -> None:
    rows = []
    for number in range(60):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
        rows.append({"file": f"{number}.jpg", "label": "a", "board": str(number // 3)})
    real = folder(tmp_path, write(tmp_path / "labels.csv", rows), devices=2)
    boards = [{item.serial.split("-")[0] for item in real.learn}]
    boards += [{item.serial.split("-")[0] for batch in feed for item in batch} for feed in real.feeds]
    assert sum(len(some) for some in boards) == len(set().union(*boards)) == 20
    assert sum(len(batch) for feed in real.feeds for batch in feed) + len(real.learn) == 60


def test_bad_labels_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="columns file and label"):
        folder(tmp_path, write(tmp_path / "a.csv", [{"name": "x"}]), devices=2)
    with pytest.raises(FeedError, match="is not in"):
        folder(tmp_path, write(tmp_path / "b.csv", [{"file": "../../etc/passwd", "label": "x"}]), devices=2)
    with pytest.raises(FeedError, match="cannot be read"):
        folder(tmp_path, tmp_path / "none.csv", devices=2)
