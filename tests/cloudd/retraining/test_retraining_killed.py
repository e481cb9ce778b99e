"""kill -9 of a job's process and of cloudd at every step: the job goes on, to the same weights."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import msgspec
import pytest
from retraining_bench import Asked, Device, plan, site

from cloudd.retraining.order import Ended, Event, WorkOrder

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent


def environment(crash_at: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(HERE)])
    return {**os.environ, "PYTHONPATH": path, "ORT_DISABLE_TELEMETRY": "1", "EDGED_CRASH_AT": crash_at}


def work(order: WorkOrder, crash_at: str = "") -> tuple[int, Ended | None]:
    """The process as the daemon starts it: its status and its last word."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cloudd.retraining"],
        input=msgspec.json.encode(order),
        env=environment(crash_at),
        capture_output=True,
        timeout=120,
        cwd="/",
    )
    events = [msgspec.json.decode(line, type=Event) for line in done.stdout.splitlines()]
    return done.returncode, next((one for one in events if isinstance(one, Ended)), None)


def prepared(root: Path, network: Path) -> WorkOrder:
    order = Asked(network).lie(root)
    plan(order, teacher=3, student=3)
    return order


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """The folder of the network, and the weights of a job that nobody disturbed."""
    root = tmp_path_factory.mktemp("whole")
    order = prepared(root, root / "network")
    assert work(order) == (0, Ended(kind="done"))
    return root / "network", (root / "job" / "result" / "weights.safetensors").read_bytes()


def test_a_process_that_is_killed_again_and_again_comes_to_the_same_bits(
    tmp_path: Path, whole: tuple[Path, bytes]
) -> None:
    order = prepared(tmp_path, whole[0])
    for point in ("retraining.step:4", "retraining.saved:3", "retraining.taught", "retraining.sealed"):
        assert work(order, point) == (-signal.SIGKILL, None), point
        assert not (tmp_path / "job" / "result").exists()
    assert work(order) == (0, Ended(kind="done"))
    assert (tmp_path / "job" / "result" / "weights.safetensors").read_bytes() == whole[1]


SITE = """
import asyncio, sys
from pathlib import Path
from retraining_bench import site

async def main() -> None:
    async with site(Path(sys.argv[1]), hours=float(sys.argv[2])) as url:
        print(url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_cloudd_that_is_killed_while_it_removes_a_job_ends_that_at_the_next_start(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "network")
    async with site(tmp_path / "cloudd") as url:
        await Device(url).begin(asked)
        await Device(url).fill(asked, leave=1)
    done = subprocess.run(
        [sys.executable, "-c", REMOVE, str(tmp_path / "cloudd"), asked.job],
        env=environment("retraining.removed"),
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    files = tmp_path / "cloudd" / "DEVICE-A" / "files"
    assert list(files.iterdir())
    async with site(tmp_path / "cloudd") as url:
        assert not list(files.iterdir())
        assert (await Device(url).state(asked)).stage == "closed"


REMOVE = """
import asyncio, sys
from pathlib import Path
from cloudd.retraining.service import Retraining

async def main() -> None:
    retraining = Retraining(Path(sys.argv[1]), 1.0, wall=lambda: 1.8e9)
    await retraining.open()
    await retraining.remove("DEVICE-A", sys.argv[2])

asyncio.run(main())
"""


async def serve(folder: Path, crash_at: str) -> tuple[asyncio.subprocess.Process, Device]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SITE, str(folder), "0.001", env=environment(crash_at), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    return process, Device((await process.stdout.readline()).decode().strip())


async def test_a_cloudd_that_is_killed_at_every_step_of_a_job_goes_on_with_it(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "network")
    points = ["retraining.begun", "retraining.stored:20", "retraining.received", "retraining.made", ""]
    for point in points:
        process, device = await serve(tmp_path / "cloudd", point)
        try:
            await device.begin(asked)
            await device.fill(asked)
            state = await device.until_ended(asked)
        except (aiohttp.ClientError, ConnectionError):
            assert point and await process.wait() == -signal.SIGKILL, point
            continue
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM if not point else signal.SIGKILL)
                await process.wait()
        assert not point, f"{point} was never reached"
    assert state.stage == "done", state
    assert {one.path for one in state.files} >= {"package.toml", "weights.safetensors", "retrained.json"}
    folder = tmp_path / "cloudd" / "DEVICE-A" / "jobs" / asked.job
    async with site(tmp_path / "cloudd") as url:
        assert await Device(url).state(asked) == state
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "record.json", "request.json", "result"]
