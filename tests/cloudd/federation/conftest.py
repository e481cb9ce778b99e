"""What the tests of federated jobs share: one small model a session, and storage of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudd.federation.service import Federation
from edgekit.packages import Package
from tests.support.federation import site, small_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A registered classifier of some thousand weights."""
    return small_package(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[tuple[Federation, str]]:
    """cloudd's half on loopback, and its address."""
    async with site(tmp_path / "cloudd") as found:
        yield found
