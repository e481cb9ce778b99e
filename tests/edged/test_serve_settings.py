"""The worker applies a setting, or falls back to the safe way and says so; a load that hangs holds nobody up twice."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from support.board import CPU, NPU, npu_package
from support.scripted import script
from support.workers import WorkerProcess, configuration, listening_socket

from edged.serve import settings as run_settings
from edged.serve.loading import Loader
from edged.serve.settings import sent
from edgekit.messages import RunSetting, SettingFailed
from edgekit.packages import Package

SERVICES = ['name = "solder"\nmodel = "brightness@1"\n', 'name = "paint"\nmodel = "brightness@1"\n']


@pytest.fixture(autouse=True)
def fake_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGED_FAKE_RUNTIME", "1")


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[list[WorkerProcess]]:
    workers: list[WorkerProcess] = []
    yield workers
    for worker in workers:
        await worker.end()


async def start(started: list[WorkerProcess], state: Path, package: Package, **settings: RunSetting) -> WorkerProcess:
    configure = configuration(state, SERVICES, {"brightness@1": package.root}, settings=settings)
    worker = await WorkerProcess.start(listening_socket(), configure)
    started.append(worker)
    await worker.until_ready()
    return worker


def failures(worker: WorkerProcess) -> list[SettingFailed]:
    return [event for event in worker.events if isinstance(event, SettingFailed)]


async def test_each_service_runs_as_it_is_told(tmp_path: Path, started: list[WorkerProcess]) -> None:
    package = npu_package(tmp_path / "package", script())
    worker = await start(started, tmp_path / "state", package, solder=sent(NPU), paint=sent(CPU))
    assert worker.ready is not None and [one.state for one in worker.ready.services] == ["ready", "ready"]
    assert failures(worker) == []


async def test_what_cannot_be_used_is_told_and_the_service_is_ready_all_the_same(
    tmp_path: Path, started: list[WorkerProcess]
) -> None:
    package = npu_package(tmp_path / "package", script(wrong_at=1))
    absent = msgspec.structs.replace(CPU, variant="absent.onnx")
    worker = await start(started, tmp_path / "state", package, solder=sent(NPU), paint=sent(absent))
    assert worker.ready is not None and [one.state for one in worker.ready.services] == ["ready", "ready"]
    found = {one.service: one for one in failures(worker)}
    assert found["solder"].kind == "load" and found["solder"].setting == sent(NPU)
    assert "sample" in found["solder"].reason
    assert found["paint"].reason == "the package brightness@1 has no file absent.onnx"


def test_a_load_that_hangs_is_left_behind_and_not_waited_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_settings, "LOAD_S", 0.5)
    package = npu_package(tmp_path / "package", script(load_s=30.0))
    told: list[SettingFailed] = []
    two = msgspec.structs.replace(NPU, workers=2)
    loader = Loader(
        {"brightness@1": str(package.root)}, lambda name: None, {"solder": NPU, "paint": two}, told.append, tmp_path
    )
    begun = time.monotonic()
    loaded = loader.load_all(SERVICES)
    assert time.monotonic() - begun < 30
    assert [one.model is not None and one.setting is None for one in loaded] == [True, True]
    assert [one.kind for one in told] == ["hang", "hang"] and "another model" in told[1].reason
