"""Fetching models: interrupted, killed, tampered with, refused; never half-installed."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import msgspec
import pytest
from link_cloud import Cloud, Device

from edged.link import download, sync
from edged.link.errors import SyncError
from edgekit.messages import FileEntry, ModelEntry
from edgekit.packages import InputSpec, Manifest, OutputSpec, PackageError, Variant, open_package, seal_package

REPOSITORY = Path(__file__).parents[2]
BIG = 400_000


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    cloud = Cloud(tmp_path / "cloud")
    await cloud.start()
    root = tmp_path / "source"
    (root / "samples").mkdir(parents=True)
    (root / "model.onnx").write_bytes(bytes(i * 7 % 251 for i in range(BIG)))
    (root / "labels.txt").write_text("good\nbad\n")
    (root / "samples" / "empty.txt").write_bytes(b"")
    seal_package(
        root,
        Manifest(
            name="solder",
            version="1.2",
            task="classification",
            labels="labels.txt",
            input=InputSpec(width=32, height=32),
            output=OutputSpec(kind="logits"),
            variants=[Variant(file="model.onnx", runtime="onnxruntime", precision="fp32")],
        ),
    )
    cloud.add_model("solder", "1.2", root)
    yield cloud
    await cloud.stop()


@pytest.fixture
async def device(cloud: Cloud, tmp_path: Path) -> Device:
    device = Device(tmp_path / "device")
    await device.service.join(cloud.invite().text(), cloud.url)
    return device


def _blob(cloud: Cloud, path: str) -> str:
    return next(file.sha256 for file in cloud.models["solder"].files if file.path == path)


@pytest.mark.parametrize("ref", ["solder", "solder@1.2"])
async def test_a_model_arrives_whole(cloud: Cloud, device: Device, tmp_path: Path, ref: str) -> None:
    models = tmp_path / "models"
    seen: list[tuple[int, int]] = []
    package = await device.service.fetch_model(ref, models, lambda done, total: seen.append((done, total)))
    assert package.root == models / "solder@1.2"
    assert open_package(package.root).digest == cloud.models["solder"].digest
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert [entry.name for entry in models.iterdir()] == ["solder@1.2"]
    asked = len(cloud.ranges)
    assert (await device.service.fetch_model(ref, models)).digest == package.digest
    assert len(cloud.ranges) == asked, "what is installed is not fetched again"


async def test_a_broken_connection_is_continued_where_it_broke(cloud: Cloud, device: Device, tmp_path: Path) -> None:
    cloud.cut_after = [100_000, 50_000]
    package = await device.service.fetch_model("solder", tmp_path / "models")
    assert package.digest == cloud.models["solder"].digest
    continued = [int(r.removeprefix("bytes=").removesuffix("-")) for r in cloud.ranges if r]
    assert continued
    assert all(start > 0 for start in continued)
    assert continued == sorted(continued)


async def test_when_cloudd_goes_away_the_next_call_continues(cloud: Cloud, device: Device, tmp_path: Path) -> None:
    models = tmp_path / "models"
    cloud.cut_after = [1, 1_000, 200_000, *[0] * 20]
    with pytest.raises(SyncError, match="cannot be fetched now"):
        await device.service.fetch_model("solder", models)
    assert not (models / "solder@1.2").exists()
    kept = max(path.stat().st_size for path in models.rglob("*") if path.is_file())
    assert kept > 0
    cloud.cut_after = []
    cloud.ranges.clear()
    await device.service.fetch_model("solder", models)
    assert any(cloud.ranges), "it did not begin anew"


FETCH = """
import asyncio, sys
from pathlib import Path
from edged.link.http import open_session
from edged.link.sync import fetch_model
from edgekit.identity import IdentityStore, client_context

async def main():
    identity = IdentityStore(Path(sys.argv[1])).current()
    context = client_context(identity.authority_path, identity.certificate_path, identity.key_path)
    async with open_session(context) as session:
        await fetch_model(session, sys.argv[2], "solder", Path(sys.argv[3]))

asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["model.chunk:3", "package.renamed"])
async def test_a_killed_download_is_continued(cloud: Cloud, device: Device, tmp_path: Path, point: str) -> None:
    models = tmp_path / "models"
    arguments = [sys.executable, "-c", FETCH, str(tmp_path / "device" / "identity"), cloud.url, str(models)]
    killed = await asyncio.create_subprocess_exec(
        *arguments, env={**os.environ, "EDGED_CRASH_AT": point, "PYTHONPATH": str(REPOSITORY)}
    )
    assert await killed.wait() == -9
    assert (models / "solder@1.2").exists() == (point == "package.renamed")
    cloud.ranges.clear()
    package = await device.service.fetch_model("solder", models)
    assert package.digest == cloud.models["solder"].digest
    assert [entry.name for entry in models.iterdir()] == ["solder@1.2"]
    if point == "package.renamed":
        assert cloud.ranges == []
    else:
        assert sum(1 for r in cloud.ranges if not r) < len(cloud.models["solder"].files), "something was kept"


async def test_wrong_content_is_named_and_removed(cloud: Cloud, device: Device, tmp_path: Path) -> None:
    models = tmp_path / "models"
    sha256 = _blob(cloud, "model.onnx")
    good = cloud.blobs[sha256]
    cloud.blobs[sha256] = good[:-1] + b"?"
    with pytest.raises(
        SyncError, match=r"solder@1\.2 cannot be fetched: model\.onnx does not have the announced SHA-256"
    ):
        await device.service.fetch_model("solder", models)
    assert not list(models.rglob(sha256))
    assert not (models / "solder@1.2").exists()
    cloud.blobs[sha256] = good
    await device.service.fetch_model("solder", models)


async def test_a_partial_file_that_was_damaged_on_disk_is_found_out(
    cloud: Cloud, device: Device, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    sha256 = _blob(cloud, "model.onnx")
    partial = models / f".download-{cloud.models['solder'].digest[:32]}" / "partial" / sha256
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"\x00" * 1_000)
    await device.service.fetch_model("solder", models)
    assert (models / "solder@1.2" / "model.onnx").read_bytes() == cloud.blobs[sha256]


async def test_a_file_that_does_not_end_is_cut_off(cloud: Cloud, device: Device, tmp_path: Path) -> None:
    sha256 = _blob(cloud, "labels.txt")
    cloud.blobs[sha256] += b"x" * 1_000_000
    with pytest.raises(SyncError, match="longer than the announced"):
        await device.service.fetch_model("solder", tmp_path / "models")
    assert not [path for path in (tmp_path / "models").rglob("*") if path.is_file()]


async def test_an_unlisted_or_changed_manifest_is_refused(cloud: Cloud, device: Device, tmp_path: Path) -> None:
    """The blobs are what was announced, but together they are no package."""
    entry = cloud.models["solder"]
    extra = b"not in package.toml"
    sha256 = hashlib.sha256(extra).hexdigest()
    cloud.blobs[sha256] = extra
    files = [*entry.files, FileEntry(path="evil.so", sha256=sha256, size=len(extra))]
    cloud.models["solder"] = msgspec.structs.replace(entry, files=files)
    with pytest.raises(SyncError, match="not usable"):
        await device.service.fetch_model("solder", tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


async def test_a_full_disk_is_said_before_and_during(
    cloud: Cloud, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=download.FREE_RESERVE + 1_000))
        with pytest.raises(SyncError, match="but only 1000 can be used"):
            await device.service.fetch_model("solder", models)
    assert cloud.ranges == [], "nothing was fetched"

    with monkeypatch.context() as patch:
        full = download._DiskFault(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        patch.setattr(download._Sink, "append", Mock(side_effect=full))
        with pytest.raises(SyncError, match="No space left"):
            await device.service.fetch_model("solder", models)
    assert list(models.iterdir()) == [], "the space was given back"
    await device.service.fetch_model("solder", models)


async def test_unknown_models_and_missing_membership_are_sentences(
    cloud: Cloud, device: Device, tmp_path: Path
) -> None:
    with pytest.raises(SyncError, match="there is no model glue"):
        await device.service.fetch_model("glue", tmp_path / "models")
    with pytest.raises(SyncError, match="no model name"):
        await device.service.fetch_model("../x", tmp_path / "models")
    with pytest.raises(SyncError, match="has not joined"):
        await Device(tmp_path / "stranger").service.fetch_model("solder", tmp_path / "models")


SHA = "a" * 64


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"name": "other"}, "answered with other"),
        ({"name": "../x"}, "no model name"),
        ({"version": "2"}, "answered with m@2"),
        ({"version": "../../1"}, "no model version"),
        ({"files": []}, "0 files"),
        ({"digest": "b" * 64}, "no package.toml"),
        ({"files": [FileEntry(path="../x", sha256=SHA, size=1)]}, "inside the package"),
        ({"files": [FileEntry(path="/x", sha256=SHA, size=1)]}, "relative"),
        ({"files": [FileEntry(path="a\\b", sha256=SHA, size=1)]}, "backslash"),
        ({"files": [FileEntry(path="a\x00b", sha256=SHA, size=1)]}, "control characters"),
        ({"files": [FileEntry(path="package.toml", sha256=SHA, size=1)] * 2}, "twice"),
        ({"files": [FileEntry(path="package.toml", sha256="../" + SHA[3:], size=1)]}, "no valid hash"),
        ({"files": [FileEntry(path="package.toml", sha256=SHA, size=-1)]}, "no valid hash and size"),
        ({"files": [FileEntry(path="package.toml", sha256=SHA, size=1 << 30)]}, "no package.toml"),
        (
            {
                "files": [
                    FileEntry(path="package.toml", sha256=SHA, size=1),
                    FileEntry(path="x", sha256=SHA, size=1 << 60),
                ]
            },
            "are allowed",
        ),
        ({"files": [FileEntry(path=f"{i}", sha256=SHA, size=1) for i in range(10_001)]}, "10001 files"),
    ],
)
def test_a_hostile_entry_is_refused(change: dict[str, object], hint: str) -> None:
    good = ModelEntry(name="m", version="1", digest=SHA, files=[FileEntry(path="package.toml", sha256=SHA, size=10)])
    sync.check_entry(good, "m", "1")
    sync.check_entry(good, "m", None)
    with pytest.raises(PackageError) as caught:
        sync.check_entry(msgspec.structs.replace(good, **change), "m", "1")
    assert hint in str(caught.value)


def test_the_link_imports_nothing_heavy() -> None:
    code = (
        "import sys, edged.link.service; "
        "heavy = {'numpy', 'cv2', 'onnxruntime', 'onnx', 'ai_edge_litert'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
