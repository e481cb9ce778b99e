from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boxes_bench
import pytest
from train_bench import NEW, OLD, base_package, device

from edgekit.packages import Package


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: nothing here measures a disk, and much of it waits for one."""
    yield from _folder()


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """The same for what tests share."""
    yield from _folder()


def _folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="edged-train-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def base(place: Path) -> Package:
    return base_package(place / "base" / "patterns@1")


@pytest.fixture(scope="session")
def state(place: Path) -> Path:
    """A device with labels of all old classes and 20 of a new one. Only to be read."""
    found = place / "state"
    device(found, {**dict.fromkeys(OLD, 30), NEW: 20})
    return found


@pytest.fixture(scope="session")
def small(place: Path) -> Path:
    """A device with so few labels that a training takes a second."""
    found = place / "small"
    device(found, {**dict.fromkeys(OLD, 9), NEW: 20})
    return found


@pytest.fixture(scope="session")
def detector(place: Path) -> Package:
    return boxes_bench.base_package(place / "detector" / "boards@1")
