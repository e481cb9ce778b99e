from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from train_pictures import Draw, disc

from edgekit.datasets.dataset import Dataset
from edgekit.datasets.formats import read_dataset
from edgekit.vision.images import encode_png


@pytest.fixture(scope="session")
def draw(tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """Makes discs.csv with pictures beside it: `good` without and `bad` with a hole, five a board."""

    def make(good: int = 120, bad: int = 100, seed: int = 0, random_labels: bool = False) -> Path:
        root = tmp_path_factory.mktemp("discs")
        rng = np.random.default_rng(seed)
        with (root / "discs.csv").open("w", newline="") as out:
            lines = csv.writer(out)
            lines.writerow(("file", "label", "board"))
            for number, hole in enumerate(rng.permutation([False] * good + [True] * bad)):
                (root / f"{number}.png").write_bytes(encode_png(disc(bool(hole), rng)))
                said = bool(rng.random() < bad / (good + bad)) if random_labels else bool(hole)
                lines.writerow((f"{number}.png", "bad" if said else "good", f"b{number // 5}"))
        return root / "discs.csv"

    return make


@pytest.fixture(scope="session")
def discs(draw: Draw) -> Path:
    return draw()


@pytest.fixture(scope="session")
def dataset(discs: Path) -> Dataset:
    return read_dataset(discs, "board")


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of boxes: bright squares on noise, none to two a picture."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(1)
    with (root / "boxes.csv").open("w", newline="") as out:
        lines = csv.writer(out)
        lines.writerow(("file", "label", "left", "top", "right", "bottom"))
        for number in range(130):
            image = rng.integers(0, 60, (48, 48), np.uint8)
            places = rng.permutation([2, 26])[: number % 3]
            for left in places:
                side, top = rng.integers(12, 18), rng.integers(2, 28)
                image[top : top + side, left : left + side] += 160
                lines.writerow((f"{number}.png", "square", left, top, left + side, top + side))
            if not len(places):
                lines.writerow((f"{number}.png", "", "", "", "", ""))
            (root / f"{number}.png").write_bytes(encode_png(image))
    return root / "boxes.csv"
