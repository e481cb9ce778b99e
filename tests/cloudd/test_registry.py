"""The registry on real storage: packages become blobs and rows, and come back byte by byte over HTTP and as files."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from cloudd.registry import Registry, RegistryError
from cloudd.registry.routes import parse_range, routes
from cloudd.storage import Blobs, Rows, StorageError, references
from cloudd.storage.rows import sqlite_url
from cloudd.web import new_app
from edgekit.messages import ModelEntry, Problem
from edgekit.packages import PackageError, open_package
from tests.support.models import make_package


@pytest.fixture
async def rows(tmp_path: Path) -> AsyncIterator[Rows]:
    opened = await Rows.open(sqlite_url(tmp_path / "cloudd.db"))
    yield opened
    await opened.close()


@pytest.fixture
async def blobs(tmp_path: Path) -> Blobs:
    return await Blobs.open(str(tmp_path / "blobs"))


@pytest.fixture
def registry(rows: Rows, blobs: Blobs, tmp_path: Path) -> Registry:
    return Registry(rows, blobs, tmp_path / "cache", wall=lambda: 1000.0)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_a_package_is_added_once_and_found_by_name_and_version(registry: Registry, tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", "big", "1.9")
    entry = await registry.add(package.root)
    assert await registry.add(package.root) == entry
    assert entry.digest == package.digest
    assert {file.path: file.size for file in entry.files} == package.sizes
    await registry.add(make_package(tmp_path / "q", "big", "1.10").root)
    newest = await registry.entry("big")
    assert newest is not None
    assert newest.version == "1.10"
    assert await registry.entry("big", "1.9") == entry
    assert await registry.resolve("big@1.9") == entry
    assert await registry.resolve("big@2") is None
    assert await registry.resolve("small") is None
    with pytest.raises(PackageError):
        await registry.resolve("../big")
    summaries = await registry.all()
    assert [(one.name, one.version, one.files) for one in summaries] == [
        ("big", "1.10", len(entry.files)),
        ("big", "1.9", len(entry.files)),
    ]
    assert summaries[1].bytes == sum(package.sizes.values())


async def test_a_changed_package_needs_a_new_version(registry: Registry, tmp_path: Path) -> None:
    await registry.add(make_package(tmp_path / "p", "big", "1").root)
    with pytest.raises(RegistryError, match="new version"):
        await registry.add(make_package(tmp_path / "q", "big", "1", sharpness=10.0).root)


async def test_a_hostile_package_leaves_nothing(registry: Registry, rows: Rows, tmp_path: Path) -> None:
    root = make_package(tmp_path / "p").root
    (root / "model.onnx").write_bytes(b"changed")
    with pytest.raises(PackageError, match="changed or damaged"):
        await registry.add(root)
    assert await registry.all() == []
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


async def test_a_package_comes_back_as_a_directory_byte_by_byte(registry: Registry, tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", "big", "1")
    entry = await registry.add(package.root)
    directory = await registry.materialise(entry)
    assert tree(directory) == tree(package.root)
    assert open_package(directory).digest == package.digest
    assert await registry.materialise(entry) == directory


async def test_a_lost_or_damaged_cache_is_made_again(rows: Rows, blobs: Blobs, tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", "big", "1")
    first = Registry(rows, blobs, tmp_path / "cache")
    entry = await first.add(package.root)
    directory = await first.materialise(entry)
    shutil.rmtree(directory)
    assert tree(await first.materialise(entry)) == tree(package.root)
    (directory / "model.onnx").write_bytes(b"bitrot")
    restarted = Registry(rows, blobs, tmp_path / "cache")
    assert tree(await restarted.materialise(entry)) == tree(package.root)


async def test_a_missing_or_damaged_blob_is_said_and_leaves_no_directory(registry: Registry, tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", "big", "1")
    entry = await registry.add(package.root)
    weights = package.manifest.files["model.onnx"]
    blob = tmp_path / "blobs" / weights[:2] / weights
    good = blob.read_bytes()
    blob.write_bytes(bytes(len(good)))
    with pytest.raises(StorageError, match="damaged"):
        await registry.materialise(entry)
    blob.unlink()
    with pytest.raises(StorageError, match="missing"):
        await registry.materialise(entry)
    assert list((tmp_path / "cache").iterdir()) == []


async def test_adding_a_package_again_heals_its_damaged_files(registry: Registry, tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", "big", "1")
    entry = await registry.add(package.root)
    weights = package.manifest.files["model.onnx"]
    blob = tmp_path / "blobs" / weights[:2] / weights
    blob.write_bytes(bytes(blob.stat().st_size))
    assert await registry.add(package.root) == entry
    assert tree(await registry.materialise(entry)) == tree(package.root)


async def test_a_kill_between_blobs_and_rows_is_swept_and_can_be_repeated(tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", "big", "1")
    code = """
import asyncio, sys
from pathlib import Path
from cloudd.registry import Registry
from cloudd.storage import Blobs, Rows
from cloudd.storage.rows import sqlite_url
async def main(state, package):
    rows = await Rows.open(sqlite_url(state / "cloudd.db"))
    await Registry(rows, await Blobs.open(str(state / "blobs")), state / "cache").add(package)
asyncio.run(main(*map(Path, sys.argv[1:])))
"""
    environment = {**os.environ, "EDGED_CRASH_AT": "model.blobs", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path), str(package.root)]
    assert subprocess.run(command, env=environment, timeout=60).returncode == -signal.SIGKILL
    rows = await Rows.open(sqlite_url(tmp_path / "cloudd.db"))
    blobs = await Blobs.open(str(tmp_path / "blobs"))
    registry = Registry(rows, blobs, tmp_path / "cache")
    assert await registry.all() == []
    assert await references.sweep(rows, blobs) == len(package.sizes)
    entry = await registry.add(package.root)
    assert tree(await registry.materialise(entry)) == tree(package.root)
    await rows.close()


# --- over HTTP ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def client(registry: Registry, blobs: Blobs) -> AsyncIterator[TestClient]:
    app = new_app()
    app.add_routes(routes(registry, blobs))
    async with TestClient(TestServer(app)) as opened:
        yield opened


async def test_a_device_finds_an_entry_and_fetches_every_file(
    client: TestClient,
    registry: Registry,
    tmp_path: Path,
) -> None:
    package = make_package(tmp_path / "p", "big", "1")
    await registry.add(package.root)
    reply = await client.get("/v1/models/big")
    entry = msgspec.json.decode(await reply.read(), type=ModelEntry)
    assert entry == await registry.entry("big")
    reply = await client.get("/v1/models/big/1")
    assert msgspec.json.decode(await reply.read(), type=ModelEntry) == entry
    for file in entry.files:
        reply = await client.get(f"/v1/blobs/{file.sha256}")
        data = await reply.read()
        assert hashlib.sha256(data).hexdigest() == file.sha256
        assert reply.headers["ETag"] == f'"{file.sha256}"'
        assert int(reply.headers["Content-Length"]) == file.size


async def test_a_download_resumes_where_it_stopped(
    client: TestClient,
    registry: Registry,
    tmp_path: Path,
) -> None:
    package = make_package(tmp_path / "p")
    await registry.add(package.root)
    sha256 = package.manifest.files["model.onnx"]
    data = (package.root / "model.onnx").read_bytes()
    url, tag = f"/v1/blobs/{sha256}", f'"{sha256}"'

    reply = await client.get(url, headers={"Range": "bytes=10-", "If-Range": tag})
    assert (reply.status, await reply.read()) == (206, data[10:])
    assert reply.headers["Content-Range"] == f"bytes 10-{len(data) - 1}/{len(data)}"
    reply = await client.get(url, headers={"Range": "bytes=3-5"})
    assert (reply.status, await reply.read()) == (206, data[3:6])
    reply = await client.get(url, headers={"Range": "bytes=-4"})
    assert (reply.status, await reply.read()) == (206, data[-4:])
    reply = await client.get(url, headers={"Range": "bytes=10-", "If-Range": '"other"'})
    assert (reply.status, await reply.read()) == (200, data)
    reply = await client.get(url, headers={"Range": f"bytes={len(data)}-"})
    assert reply.status == 416
    assert reply.headers["Content-Range"] == f"bytes */{len(data)}"
    reply = await client.get(url, headers={"Range": "bytes=0-1,4-5"})
    assert (reply.status, await reply.read()) == (200, data)
    assert (await client.get(url, headers={"If-None-Match": tag})).status == 304
    reply = await client.head(url)
    assert (reply.status, int(reply.headers["Content-Length"])) == (200, len(data))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/absent", 404),
        ("/v1/models/absent/1", 404),
        ("/v1/models/BAD", 400),
        ("/v1/models/a/..%2F1", 400),
        ("/v1/blobs/" + "0" * 64, 404),
        ("/v1/blobs/short", 404),
        ("/v1/blobs/..%2F..%2Fcloudd.db", 404),
    ],
)
async def test_what_is_not_there_is_a_problem(client: TestClient, path: str, status: int) -> None:
    reply = await client.get(path)
    assert reply.status == status
    assert msgspec.json.decode(await reply.read(), type=Problem).error


async def test_a_blob_that_belongs_to_no_model_is_not_served(client: TestClient, blobs: Blobs) -> None:
    picture = await blobs.put(b"somebody else's picture")
    assert (await client.get(f"/v1/blobs/{picture}")).status == 404


async def test_a_blob_that_vanished_is_a_503_and_the_server_lives(
    client: TestClient,
    registry: Registry,
    tmp_path: Path,
) -> None:
    package = make_package(tmp_path / "p")
    await registry.add(package.root)
    sha256 = package.manifest.files["model.onnx"]
    (tmp_path / "blobs" / sha256[:2] / sha256).unlink()
    reply = await client.get(f"/v1/blobs/{sha256}")
    assert reply.status == 503
    assert "Retry-After" in reply.headers
    assert (await client.get(f"/v1/blobs/{package.digest}")).status == 200


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-", (0, 100)),
        ("bytes=0-0", (0, 1)),
        ("bytes=99-500", (99, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=-0", (100, 0)),
        ("bytes=100-", (100, 100)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=a-b", None),
        ("bytes=1-2,3-4", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_ranges(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 100) == expected
