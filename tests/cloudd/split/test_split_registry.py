"""The registry keeps heads and tails together, and tails at home."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from shutil import copytree

import msgspec
import pytest
from split_networks import brightness

from cloudd.registry import Registry, RegistryError
from cloudd.split import Request, split
from cloudd.storage import Blobs, Rows
from cloudd.storage.rows import sqlite_url
from edgekit.packages import open_package, seal_package


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    rows = await Rows.open(sqlite_url(tmp_path / "cloudd.db"))
    yield Registry(rows, await Blobs.open(str(tmp_path / "blobs")), tmp_path / "cache")
    await rows.close()


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of a head and its tail."""
    folder = tmp_path_factory.mktemp("split")
    outcome = split(Request(brightness(folder / "net"), folder, "3"))
    return Path(outcome.head_package), Path(outcome.tail_package)


async def test_a_head_comes_after_its_tail(registry: Registry, halves: tuple[Path, Path]) -> None:
    head, tail = halves
    with pytest.raises(RegistryError, match="brightness-tail@3, is not registered; add that first"):
        await registry.add(head)
    assert await registry.all() == []
    await registry.add(tail)
    entry = await registry.add(head)
    assert await registry.offered("brightness-head") == entry == await registry.offered("brightness-head", "3")


async def test_a_tail_is_found_here_and_offered_to_nobody(registry: Registry, halves: tuple[Path, Path]) -> None:
    entry = await registry.add(halves[1])
    assert await registry.resolve("brightness-tail") == entry
    for version in (None, "3"):
        with pytest.raises(RegistryError, match="is the tail of a split model, which stays at cloudd"):
            await registry.offered("brightness-tail", version)
    assert await registry.offered("brightness-tail", "4") is None and await registry.offered("other") is None
    assert [await registry.offered_size(file.sha256) for file in entry.files] == [None] * len(entry.files)


async def test_a_file_that_head_and_tail_share_is_offered(registry: Registry, halves: tuple[Path, Path]) -> None:
    head, tail = halves
    await registry.add(tail)
    await registry.add(head)
    labels = open_package(tail).manifest.files["labels.txt"]
    assert await registry.offered_size(labels) == len("dark\nbright\n")


async def test_a_head_does_not_go_with_the_tail_of_another_model(
    registry: Registry, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    head, tail = halves
    package = open_package(tail)
    assert package.manifest.tail is not None
    other = msgspec.structs.replace(package.manifest.tail, digest="0" * 64)
    copytree(tail, tmp_path / "other")
    seal_package(tmp_path / "other", msgspec.structs.replace(package.manifest, tail=other))
    await registry.add(tmp_path / "other")
    with pytest.raises(RegistryError, match="brightness-tail@3 is not the tail of brightness-head@3"):
        await registry.add(head)


async def test_a_head_does_not_go_with_what_is_no_tail(
    registry: Registry, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = brightness(tmp_path / "whole")
    await registry.add(seal_package(whole.root, msgspec.structs.replace(whole.manifest, name="brightness-tail")).root)
    with pytest.raises(RegistryError, match="is not the tail of"):
        await registry.add(halves[0])
