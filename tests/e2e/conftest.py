"""One plant that has worked before, for all end-to-end tests of a run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stage import Template


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    folder = Path(tempfile.mkdtemp(prefix="e2e-template-"))  # short, because sockets lie in it
    try:
        yield Template(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
