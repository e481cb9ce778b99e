from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.packages import Package, open_package

MODELS = Path(__file__).resolve().parents[3] / "examples" / "models"


@pytest.fixture(scope="session")
def solder() -> Package:
    """A trained classifier with five samples, which can be cut in sixteen places."""
    return open_package(MODELS / "solder-large")
