"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# An example that takes 300 ms on a busy machine is no failure; what must be quick is measured in benchmarks.
hypothesis.settings.register_profile("edged", deadline=None)
# What decides about a change must say the same of the same change: CI draws the same examples each time, people others.
hypothesis.settings.register_profile("same", hypothesis.settings.get_profile("edged"), derandomize=True)
hypothesis.settings.load_profile(os.environ.get("EDGED_EXAMPLES", "edged"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real pictures and models; the test is skipped where EDGED_REAL_DATA does not name one."""
    value = os.environ.get("EDGED_REAL_DATA", "")
    if not value or not Path(value).is_dir():
        pytest.skip("EDGED_REAL_DATA names no folder of real data")
    return Path(value)
