from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from foreign_models import LABELS, Take, pictures

from cloudd.importing import Outcome, Request, import_model


@pytest.fixture(scope="session")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures, a folder a label."""
    return pictures(tmp_path_factory.mktemp("shades"))


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without labels."""
    return pictures(tmp_path_factory.mktemp("unlabelled"), labelled=False)


@pytest.fixture
def take(tmp_path: Path, shades: Path) -> Take:
    """Imports a file into tmp_path/out as shades@1, with the labelled pictures unless other wishes say otherwise."""

    def run(source: Path, **wishes: Any) -> Outcome:
        told: dict[str, Any] = {
            "name": "shades",
            "out": tmp_path / "out",
            "labels": LABELS,
            "pictures": shades,
            "normalise": "unit",
        }
        return import_model(Request(source=source, **{**told, **wishes}))

    return run


@pytest.fixture(scope="session")
def torch_python() -> str:
    """An interpreter with PyTorch: EDGED_TORCH_PYTHON, or this one; the test is skipped where there is none."""
    named = os.environ.get("EDGED_TORCH_PYTHON", "")
    if named:
        return named
    if importlib.util.find_spec("torch") is None:
        pytest.skip("EDGED_TORCH_PYTHON names no interpreter with PyTorch")
    return sys.executable


@pytest.fixture(scope="session")
def tensorflow_python() -> str:
    """An interpreter with TensorFlow: EDGED_TENSORFLOW_PYTHON; the test is skipped where there is none."""
    named = os.environ.get("EDGED_TENSORFLOW_PYTHON", "")
    if not named:
        pytest.skip("EDGED_TENSORFLOW_PYTHON names no interpreter with TensorFlow")
    return named
