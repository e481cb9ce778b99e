"""An accelerator that fails while it serves: the service goes on on the CPU, says so, and comes back by itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from support.board import CANDIDATE, CPU, NPU, Board, Station, at_work, npu_package, remember_choice, use_fake_driver
from support.scripted import script

from edged.hardware.host import Node
from edged.serve.settings import Watch, sent
from edgekit.messages import SettingFailed
from edgekit.packages import Package


@pytest.fixture(autouse=True)
def fake_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_driver(monkeypatch)


def chosen_before(tmp_path: Path, board: Board, npu: Any, **outside: Any) -> tuple[Station, Package]:
    """A station that has the accelerator as its stored choice."""
    package = npu_package(tmp_path / "package", npu)
    station = Station(tmp_path, board, **outside)
    remember_choice(station, board, package)
    return station, package


@pytest.mark.parametrize("failing", [{"load_error": "the device is busy"}, {"wrong_at": 1}], ids=["refused", "wrong"])
async def test_a_setting_that_cannot_be_loaded_leaves_the_service_on_the_cpu(
    tmp_path: Path, failing: dict[str, Any]
) -> None:
    station, package = chosen_before(tmp_path, Board(), script(latency_ms=0.3, **failing), retry_s=60.0)
    async with at_work(station, package.root):
        assert await station.inspect() == 200
        await station.until(lambda: "hardware.lost" in station.codes())
        (item,) = [item for item in station.device.status().health.items if item.code == "hardware.lost"]
        assert item.severity == "error" and "solder" in item.text
        await station.until(lambda: station.running() == CPU.candidate)
        assert station.device.status().worker.restarts == 0
        (lost,) = station.device.status().hardware.lost
        assert (lost.candidate, lost.services, lost.failures) == (CANDIDATE, ["solder"], 1)
        assert await station.inspect() == 200
        workers = station.device._runner.worker
        await asyncio.sleep(2)
        assert station.device._runner.worker is workers, "no restart loop"


async def test_a_library_that_kills_the_loading_worker_is_given_up_at_once(tmp_path: Path) -> None:
    station, package = chosen_before(tmp_path, Board(), script(crash_at_load=True), retry_s=60.0)
    async with at_work(station, package.root):
        assert await station.inspect() == 200
        assert "hardware.lost" in station.codes()
        assert station.running() != CANDIDATE
        assert "SIGSEGV" in station.device.status().hardware.lost[0].reason
        assert station.device.status().worker.restarts <= 1


async def test_an_accelerator_that_begins_to_answer_nonsense_is_taken_out(tmp_path: Path) -> None:
    station, package = chosen_before(tmp_path, Board(), script(latency_ms=0.3, nan_at=5))
    async with at_work(station, package.root):
        assert station.running() == CANDIDATE
        answers = [await station.inspect() for _ in range(6)]
        assert answers[:2] == [200, 200] and 500 in answers, "two proofs, two pictures, then nonsense"
        await station.until(lambda: station.running() == CPU.candidate)
        await station.until(lambda: not station.device._runner.swapping)
        assert await station.inspect() == 200
        assert "hardware.lost" in station.codes()
        await station.until(lambda: station.device.status().hardware.lost[0].failures >= 3)  # it is tried again
        assert station.running() == CPU.candidate and await station.inspect() == 200
        assert station.device.status().worker.restarts == 0


async def test_two_deaths_with_an_accelerator_are_enough(tmp_path: Path) -> None:
    station, package = chosen_before(tmp_path, Board(), script(latency_ms=0.3, crash_at=4), retry_s=60.0)
    async with at_work(station, package.root):
        for _ in range(60):
            await station.inspect()
            if "hardware.lost" in station.codes():
                break
            await asyncio.sleep(0.2)
        await station.until(lambda: station.running() == CPU.candidate)
        await station.ready()
        assert station.device.status().worker.restarts == 2
        for _ in range(5):
            assert await station.inspect() == 200


async def test_a_pulled_out_accelerator_is_noticed_and_used_again_when_it_returns(tmp_path: Path) -> None:
    board = Board()
    station, package = chosen_before(tmp_path, board, script(latency_ms=0.3), mode="never")
    async with at_work(station, package.root):
        assert station.running() == CANDIDATE
        board.plugged = False
        await station.until(lambda: station.running() == CPU.candidate)
        (lost,) = station.device.status().hardware.lost
        assert "no device node /dev/testnpu*" in lost.reason
        assert await station.inspect() == 200
        board.plugged = True
        await station.until(lambda: station.running() == CANDIDATE)
        assert "hardware.lost" not in station.codes()
        assert await station.inspect() == 200
        assert station.device.status().worker.restarts == 0


async def test_a_node_that_may_not_be_opened_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    monkeypatch.setattr(board, "node", lambda path: Node(0o660, 0, -1, None, False, "root", "render"))
    package = npu_package(tmp_path / "package", script())
    async with at_work(Station(tmp_path, board, mode="never"), package.root) as station:
        (rejected,) = [one for one in station.model().rejected if one.candidate == CANDIDATE]
        assert "may not open /dev/testnpu0" in rejected.reason
        assert rejected.remedy == "add the user edged to the group render"


async def test_heat_steps_down_and_coolness_back_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOT_S", "SETTLE_S", "COOL_S"):
        monkeypatch.setattr(f"edged.governor.{name}", 0.5)
    board = Board()
    station, package = chosen_before(tmp_path, board, script(load_error="absent"), mode="never", retry_s=60.0)
    async with at_work(station, package.root):
        await station.until(lambda: station.running() == CPU.candidate)

        def threads() -> int:
            worker = station.device._runner.worker
            assert worker is not None
            return worker.settings["solder"].threads if "solder" in worker.settings else 0

        assert threads() == 2
        board.celsius = 88.0
        await station.until(lambda: threads() == 1)
        hardware = station.device.status().hardware
        assert hardware.level == 1 and hardware.soft_c == 80 and hardware.temperatures[0].celsius == 88
        (item,) = [item for item in station.device.status().health.items if item.code == "hardware.hot"]
        assert "1 step more gently" in item.text and "88 °C" in item.text
        assert await station.inspect() == 200
        board.celsius = 50.0
        await station.until(lambda: threads() == 2)
        assert "hardware.hot" not in station.codes()


def test_the_worker_tells_once_of_an_accelerator_that_fails_or_hangs() -> None:
    told: list[SettingFailed] = []
    watch = Watch("solder", NPU, told.append)
    watch.failed("nonsense")
    watch.failed("nonsense")
    watch.worked()
    watch.failed("nonsense")
    watch.failed("nonsense")
    assert told == [], "single failures may be the picture's fault"
    watch.failed("nonsense")
    watch.failed("nonsense")
    assert told == [SettingFailed(service="solder", setting=sent(NPU), kind="run", reason="nonsense")]
    hanging: list[SettingFailed] = []
    watch = Watch("solder", NPU, hanging.append)
    watch.running(1.0)
    watch.running(31.0)
    watch.running(32.0)
    assert [one.kind for one in hanging] == ["hang"]
    quiet = Watch("solder", CPU, hanging.append)
    quiet.running(99.0)
    assert len(hanging) == 1, "the CPU is no accelerator"


async def test_a_hung_accelerator_does_not_keep_the_service(tmp_path: Path) -> None:
    """Its thread never comes back: the successor serves, the old worker is ended."""
    station, package = chosen_before(tmp_path, Board(), script(latency_ms=0.3, hang_at=4), retry_s=60.0)
    async with at_work(station, package.root):
        assert await station.inspect() == 200
        stuck = asyncio.create_task(station.inspect())
        await asyncio.sleep(0.5)
        (subject,) = station.device._adaptation._subjects.all()
        told = SettingFailed(service=subject.services[0], setting=sent(NPU), kind="hang", reason="it takes 31 s")
        station.device._adaptation.setting_failed(told)  # what the worker says after half a minute
        await station.until(lambda: station.running() == CPU.candidate)
        begun = time.monotonic()
        assert await station.inspect() == 200
        assert time.monotonic() - begun < 20
        stuck.cancel()
