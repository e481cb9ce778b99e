"""On pictures of a real product: a toy, of which good ones are known and defects are not."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest

from cloudd.frozen import AnomalyFigures, AnomalyWishes, learn_anomaly
from edgekit.datasets.formats.files import Row, collect

pytestmark = pytest.mark.real_data


def test_a_toy_without_a_head_is_found_though_only_whole_ones_were_shown(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "products-aws"
    with (root / "labels.csv").open(newline="") as file:
        rows = [Row(row["file"], row["label"]) for row in csv.DictReader(file) if row["factory"] == "toy"]
    wishes = AnomalyWishes(good="normal", size=(192, 136))
    made = learn_anomaly("toy", "1", collect(root, rows, root), wishes, tmp_path, lambda step, done, total: None)
    figures = msgspec.convert(made.record.figures, AnomalyFigures)
    assert made.record.recipe["placement"] == "fixed"
    assert figures.auroc is not None and figures.auroc > 0.9
    assert figures.found["anomaly"].hits >= 18 and figures.false_alarms.hits <= 2
