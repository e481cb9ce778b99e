"""`python -m edged.train` as the supervisor starts it: killed, asked to pause, orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import boxes_bench
import msgspec
import pytest
from train_bench import NEW, OLD, order

from edgekit.messages.learning import FromTraining, TrainDone, TrainOrder, TrainProgress, TrainStopped
from edgekit.packages import Package, open_package

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-P", "-m", "edged.train"]


def environment(crash_at: str = "") -> dict[str, str]:
    found = {**os.environ, "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}
    return {**found, "EDGED_CRASH_AT": crash_at} if crash_at else found


def start(job: TrainOrder, crash_at: str = "") -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(crash_at), cwd="/"
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(job))
    process.stdin.close()
    return process


def events(process: subprocess.Popen[bytes]) -> list[FromTraining]:
    assert process.stdout is not None
    found = [msgspec.json.decode(line, type=FromTraining) for line in process.stdout]
    process.wait(60)
    process.stdout.close()
    return found


Jobs = Callable[[str], TrainOrder]


@pytest.fixture(scope="module")
def job_of(base: Package, small: Path, place: Path) -> Jobs:
    """Trainings of few steps, each with a scratch folder of its own."""
    (place / "jobs").mkdir()

    def make(name: str) -> TrainOrder:
        return order(small, base, place / "jobs" / name, "last-blocks")

    return make


@pytest.fixture(scope="module")
def whole(job_of: Jobs) -> bytes:
    """The weights of a training that nobody disturbed."""
    process = start(job_of("whole"))
    found = events(process)
    assert process.returncode == 0 and isinstance(found[-1], TrainDone), found[-1]
    assert all(isinstance(one, TrainProgress) for one in found[:-1])
    assert {one.step for one in found[:-1] if isinstance(one, TrainProgress)} >= {"training", "judging", "sealing"}
    assert open_package(Path(found[-1].directory)).labels == [*OLD, NEW]
    return (Path(found[-1].directory) / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("crash_at", ["train.planned", "train.step:7", "train.saved:2", "train.sealed"])
def test_a_job_that_is_killed_goes_on_to_the_same_bits(crash_at: str, job_of: Jobs, whole: bytes) -> None:
    job = job_of(crash_at.replace(":", "-"))
    killed = start(job, crash_at)
    assert not any(isinstance(one, TrainDone | TrainStopped) for one in events(killed))
    assert killed.returncode == -signal.SIGKILL
    process = start(job)
    found = events(process)
    assert isinstance(found[-1], TrainDone), found[-1]
    assert (Path(found[-1].directory) / "weights.safetensors").read_bytes() == whole


def test_a_detectors_job_that_is_killed_goes_on_to_the_same_bits(detector: Package, tmp_path: Path) -> None:
    boxes_bench.device(tmp_path / "state", 8, 6, boxes_bench.OLD)
    jobs = [
        boxes_bench.order(tmp_path / "state", detector, tmp_path / name, "last-blocks") for name in ("whole", "killed")
    ]
    killed = start(jobs[1], "train.step:20")
    assert not any(isinstance(one, TrainDone | TrainStopped) for one in events(killed))
    assert killed.returncode == -signal.SIGKILL
    weights = []
    for job in jobs:
        found = events(start(job))
        assert isinstance(found[-1], TrainDone), found[-1]
        weights.append((Path(found[-1].directory) / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_sigterm_saves_and_ends_and_the_same_order_goes_on(job_of: Jobs, whole: bytes) -> None:
    job = job_of("paused")
    process = start(job)
    assert process.stdout is not None
    for line in process.stdout:
        event = msgspec.json.decode(line, type=FromTraining)
        if isinstance(event, TrainProgress) and event.step == "training" and event.done > 2:
            break
    process.send_signal(signal.SIGTERM)
    last = events(process)[-1]
    assert isinstance(last, TrainStopped) and (last.kind, last.resumable) == ("paused", True)
    assert process.returncode == 0
    found = events(start(job))
    assert isinstance(found[-1], TrainDone)
    assert (Path(found[-1].directory) / "weights.safetensors").read_bytes() == whole


def test_it_is_the_least_important_process_and_ends_with_its_parent(job_of: Jobs) -> None:
    job = job_of("orphan")
    (Path(job.scratch).parent / "order.json").write_bytes(msgspec.json.encode(job))
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            f"child = subprocess.Popen({COMMAND!r}, stdin=open({str(Path(job.scratch).parent / 'order.json')!r}),"
            " stdout=subprocess.DEVNULL)\n"
            "print(child.pid, flush=True)\ntime.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    end = time.monotonic() + 20
    while not (Path(job.scratch) / "checkpoint").exists() and time.monotonic() < end:
        time.sleep(0.05)
    import psutil

    process = psutil.Process(child)
    assert process.nice() == 19 and process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
    allowed = len(os.sched_getaffinity(0))
    assert len(process.cpu_affinity()) == max(1, allowed - 1)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        process.wait(5)
    finally:
        if process.is_running():
            process.kill()
    assert not process.is_running()


def test_two_processes_of_one_job_do_not_work_at_a_time(job_of: Jobs) -> None:
    job = job_of("twice")
    first = start(job)
    while not (Path(job.scratch) / "lock").exists():
        time.sleep(0.01)
    second = start(job)
    ends = [events(process)[-1] for process in (first, second)]
    assert all(isinstance(one, TrainDone) for one in ends), ends
    trained = [one.seconds for one in ends if isinstance(one, TrainDone)]
    assert (Path(job.scratch) / "checkpoint").exists() and all(one > 0 for one in trained)


@pytest.mark.parametrize("text", [b"", b"{}", b"[1, 2", b'{"type":"train"}', b"x" * (1 << 20) + b"y"])
def test_an_order_that_is_none_is_refused(text: bytes) -> None:
    process = subprocess.run(COMMAND, input=text, capture_output=True, env=environment(), cwd="/", timeout=60)
    event = msgspec.json.decode(process.stdout, type=FromTraining)
    assert isinstance(event, TrainStopped) and event.kind == "refused" and "the order cannot be read" in event.reason
    assert process.returncode == 1
