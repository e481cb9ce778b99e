"""Adaptation through the real supervisor, worker and bench children, on a board with a scripted accelerator."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.board import CANDIDATE, Board, Station, at_work, npu_package, use_fake_driver
from support.scripted import script

from edged.api import AdaptProgress, ApiError


@pytest.fixture(autouse=True)
def fake_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_driver(monkeypatch)


async def test_nobody_waits_then_the_worker_is_swapped_once_and_a_restart_begins_with_it(tmp_path: Path) -> None:
    package = npu_package(tmp_path / "package", script(latency_ms=0.3))
    async with at_work(Station(tmp_path, Board()), package.root) as station:
        assert station.running() == "safe", "the service came up before anything was measured"
        assert await station.inspect() == 200
        first = station.device._runner.worker
        await station.until(lambda: station.running() == CANDIDATE)
        await station.until(lambda: station.device._runner.worker is not first)
        assert await station.inspect() == 200
        status = station.device.status()
        model = station.model()
        assert model.phase == "chosen" and model.accelerated and model.measurements[0].chosen
        assert model.setting["provider"] == "npu"
        assert status.hardware.accelerators == ["Test NPU"] and status.hardware.name == "Test board"
        assert status.worker.restarts == 0 and status.health.items == []
        worker = station.device._runner.worker
        await station.until(lambda: not first.alive)  # type: ignore[union-attr]
        assert station.device._runner.worker is worker, "one swap, not two"
    begun = time.monotonic()
    async with at_work(Station(tmp_path, Board())) as station:
        took = time.monotonic() - begun
        assert station.running() == CANDIDATE, "the stored choice is used by the first worker"
        assert station.model().phase == "chosen"
        assert took < 8


@pytest.mark.parametrize(
    "failing",
    [
        script(latency_ms=0.3, crash_at_load=True),
        script(latency_ms=0.3, hang_at=1),
        script(latency_ms=0.3, wrong_at=1),
        script(latency_ms=0.3, load_error="the firmware is too old"),
    ],
    ids=["crash", "hang", "wrong", "refused"],
)
async def test_an_accelerator_that_fails_its_probe_never_comes_near_the_worker(tmp_path: Path, failing) -> None:  # type: ignore[no-untyped-def]
    package = npu_package(tmp_path / "package", failing)
    async with at_work(Station(tmp_path, Board(), budget_s=10), package.root) as station:
        await station.until(lambda: station.model().phase == "chosen", 40)
        model = station.model()
        assert not model.accelerated
        assert [one.candidate for one in model.failed] == [CANDIDATE] and model.failed[0].reason
        assert await station.inspect() == 200
        assert station.device.status().worker.restarts == 0
        assert station.codes() == set(), "what never worked is not lost"
    async with at_work(Station(tmp_path, Board())) as station:
        assert [one.candidate for one in station.model().failed] == [CANDIDATE], "it is remembered"


async def test_switched_off_it_measures_only_when_asked(tmp_path: Path) -> None:
    package = npu_package(tmp_path / "package", script(latency_ms=0.3))
    async with at_work(Station(tmp_path, Board(), mode="never"), package.root) as station:
        await station.until(lambda: station.device.status().hardware.temperatures)
        assert station.model().phase == "safe" and station.running() == "safe"
        said: list[AdaptProgress] = []
        with pytest.raises(ApiError, match="no service 'other'"):
            await station.device.adapt("other", False, said.append)
        await station.device.adapt("solder", False, said.append)
        assert said[-1].done and any("tries npu.json" in one.step for one in said)
        assert any("better than the safe way" in one.text for one in said)
        await station.until(lambda: station.running() == CANDIDATE)


async def test_a_busy_service_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.load.BUSY_CPU", -1.0)  # whatever the worker takes is too much
    package = npu_package(tmp_path / "package", script(latency_ms=0.3))
    async with at_work(Station(tmp_path, Board()), package.root) as station:
        await station.until(lambda: "of the CPUs" in station.device.status().hardware.busy)
        assert station.model().phase == "waiting"
        assert not station.model().measurements
        monkeypatch.setattr("edged.load.BUSY_CPU", 0.3)
        await station.until(lambda: station.running() == CANDIDATE)


async def test_a_site_may_forbid_an_accelerator_while_it_runs(tmp_path: Path) -> None:
    package = npu_package(tmp_path / "package", script(latency_ms=0.3))
    async with at_work(Station(tmp_path, Board()), package.root) as station:
        await station.until(lambda: station.running() == CANDIDATE)
        site = 'schema = 1\nid = "site/here"\nversion = 1\nlayer = "site"\ndisable = ["accel/test#npu"]\n'
        (tmp_path / "profiles" / "site.toml").write_text(site)
        await station.device.reload()
        await station.until(lambda: station.running() != CANDIDATE)
        assert "the profile site/here forbids it" in station.device.status().hardware.lost[0].reason
