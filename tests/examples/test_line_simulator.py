"""The simulated line: a seed repeats itself, plants look different, wear shows, and the models know the classes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from edgekit.packages import open_package
from edgekit.vision.classification import Classifier
from examples.feeds import simulated
from examples.line_simulator.joints import CLASSES, SIDE, Look, Wear, draw_joint
from examples.line_simulator.line import JOINTS_PER_BOARD, PLANTS, boards

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"


def test_a_seed_gives_the_same_boards_again() -> None:
    first, second = (list(islice(boards("north", 3), 2)) for _ in range(2))
    assert [board.serial for board in first] == ["N03-000000", "N03-000001"]
    for one, other in zip(first, second, strict=True):
        assert len(one.joints) == JOINTS_PER_BOARD
        assert all(np.array_equal(a.image, b.image) for a, b in zip(one.joints, other.joints, strict=True))
    assert not np.array_equal(first[0].joints[0].image, next(boards("north", 4)).joints[0].image)


def test_plants_differ_and_wear_takes_light_and_sharpness() -> None:
    def draw(look: Look, wear: Wear) -> np.ndarray:
        return draw_joint("normal", 0.5, look, wear, np.random.default_rng(1)).astype(float)

    north, south = draw(PLANTS["north"], Wear()), draw(PLANTS["south"], Wear())
    assert abs(north - south).mean() > 10
    worn = draw(PLANTS["north"], Wear(dimming=0.4, blur=2.0))
    assert worn.mean() < 0.9 * north.mean()
    assert abs(np.diff(worn, axis=1)).mean() < abs(np.diff(north, axis=1)).mean()


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_draws_at_every_severity(kind: str) -> None:
    for severity in (0.0, 0.5, 1.0):
        image = draw_joint(kind, severity, Look(), Wear(), np.random.default_rng(0))
        assert image.shape == (SIDE, SIDE, 3)
        assert image.dtype == np.uint8


def test_an_unknown_plant_is_refused() -> None:
    with pytest.raises(KeyError):
        next(boards("nowhere", 1))


def test_the_committed_models_are_small_prove_themselves_and_leave_work_for_the_cloud() -> None:
    files = [file for file in MODELS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    small, large = (Classifier.load(open_package(MODELS / name)) for name in ("solder-small", "solder-large"))
    assert small.prove() == large.prove() == len(CLASSES)
    items = [item for batch in islice(simulated("south", 11), 40) for item in batch]
    right = [
        (small.classify(item.data).label == item.label, large.classify(item.data).label == item.label) for item in items
    ]
    edge, cloud = (sum(one[side] for one in right) / len(items) for side in (0, 1))
    assert 0.85 < edge < cloud
    assert cloud > 0.97
