from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from cloudd.compress import read_dataset
from edgekit.datasets.dataset import Dataset
from edgekit.packages import Package, open_package
from examples.line_simulator.line import boards

MODELS = Path(__file__).resolve().parents[3] / "examples" / "models"


@pytest.fixture(scope="session")
def joints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """720 solder joints that no model was trained on, a folder a label."""
    root = tmp_path_factory.mktemp("joints")
    for board in islice(boards("north", 4711, defect_rate=0.6), 60):
        for joint in board.joints:
            (root / joint.label).mkdir(exist_ok=True)
            (root / joint.label / f"{board.serial}-{joint.position}.jpg").write_bytes(joint.jpeg())
    return root


@pytest.fixture(scope="session")
def solder() -> Iterator[Package]:
    """A trained model that gets nearly all of them right."""
    yield open_package(MODELS / "solder-large")


@pytest.fixture(scope="session")
def dataset(joints: Path, solder: Package) -> Dataset:
    return read_dataset(joints, solder.labels)
