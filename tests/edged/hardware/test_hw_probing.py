"""Bench children and what a runtime can do to them: every way of failing is an answer, and none reaches the parent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
from support.models import make_package
from support.scripted import script, scripted_package

from edged.hardware.bench.answers import Answers, disagreement, save_answers
from edged.hardware.bench.timing import Others, quantile, warm_up, window
from edged.hardware.probing import BenchFailed, ProcessBench
from edged.hardware.settings import ProbeResult, Setting
from edged.hardware.wire import Job, Probe, Run
from edgekit.packages import Package
from edgekit.runtimes.fake_driver import Script

MEMORY = 1 << 30
Try = Callable[[Script], "Package"]


def fake(file: str = "model.json", **more: object) -> Setting:
    return Setting(candidate="test#fake", variant=file, runtime="fake", provider="npu", **more)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGED_FAKE_RUNTIME", "1")


@pytest_asyncio.fixture
async def benches() -> AsyncIterator[Callable[[Package], ProcessBench]]:
    opened: list[ProcessBench] = []

    def make(package: Package) -> ProcessBench:
        opened.append(ProcessBench(Job(package=str(package.root), memory_bytes=MEMORY)))
        return opened[-1]

    yield make
    for bench in opened:
        await bench.end()


async def probe(bench: ProcessBench, setting: Setting, timeout_s: float = 20.0, **more: object) -> ProbeResult:
    return await bench.probe(Probe(setting=setting, **more), timeout_s)  # type: ignore[arg-type]


async def test_a_good_setting_passes_and_can_be_measured(tmp_path: Path, benches) -> None:  # type: ignore[no-untyped-def]
    package = scripted_package(tmp_path / "p", {"model.json": script(latency_ms=4.0, parallel=2, placement={"NPU": 9})})
    bench = benches(package)
    result = await probe(bench, fake())
    assert result.ok and result.samples == 2 and result.placement == {"NPU": 9}
    setting = fake(workers=2)
    assert (await bench.open(setting, 2.0)).steady
    single = await bench.run(Run(setting=setting, seconds=0.3))
    double = await bench.run(Run(setting=setting, seconds=0.3, callers=2))
    assert 4.0 <= single.p50_ms <= single.p95_ms and single.rss_mb > 10
    assert double.n > 0 and single.cpu_s < single.wall_s, "a sleeping device takes no CPU"
    await bench.close(setting)


@pytest.mark.parametrize(
    ("failing", "kind", "words"),
    [
        (script(crash_at_load=True), "crash", "SIGSEGV"),
        (script(crash_at=2), "crash", "SIGSEGV"),
        (script(exit_at=1), "crash", "by itself with the status 3"),
        (script(hang_at=1), "hang", "did not answer within 2 s"),
        (script(load_s=60.0), "hang", "did not answer within 2 s"),
        (script(allocate_at=1), "memory", "1024 MiB"),
        (script(load_error="no such chip"), "load", "no such chip"),
        (script(wrong_at=1), "wrong", 'should be "dark"'),
        (script(nan_at=3), "wrong", "not numbers"),
        (script(placement={"NPU": 5, "CPUExecutionProvider": 2}), "placement", "2 of 7 operators would run on the CPU"),
    ],
)
async def test_every_failure_is_an_answer(  # type: ignore[no-untyped-def]
    tmp_path: Path, benches, failing: Script, kind: str, words: str
) -> None:
    package = scripted_package(tmp_path / "p", {"model.json": failing, "good.json": script()})
    bench = benches(package)
    result = await probe(bench, fake("good.json"))  # the child is up: what follows is the library's time alone
    assert result.ok
    begun = time.monotonic()
    result = await probe(bench, fake(), timeout_s=2.0)
    assert not result.ok and result.kind == kind, result
    assert words in result.reason
    assert time.monotonic() - begun < 30
    assert (await probe(bench, fake("good.json"))).ok, "the next setting is none the worse for it"


async def test_a_library_that_prints_disturbs_nothing(tmp_path: Path, benches) -> None:  # type: ignore[no-untyped-def]
    noise = '{"answer":"probed"}\n' * 3 + "\x00garbage" * 100_000
    package = scripted_package(tmp_path / "p", {"model.json": script(print_at_load=noise)})
    assert (await probe(benches(package), fake())).ok


async def test_a_library_that_allocates_takes_its_own_process_only(tmp_path: Path, benches) -> None:  # type: ignore[no-untyped-def]
    package = scripted_package(tmp_path / "p", {"model.json": script(allocate_at=1), "good.json": script()})
    bench = benches(package)
    assert (await probe(bench, fake("good.json"))).ok
    child = psutil.Process(bench.pid)
    assert int(Path(f"/proc/{child.pid}/oom_score_adj").read_text()) == 1000
    most = 0

    def watch() -> None:
        nonlocal most
        while child.is_running() and not done.is_set():
            try:
                most = max(most, child.memory_info().rss)
            except psutil.NoSuchProcess:
                return
            time.sleep(0.005)

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    result = await probe(bench, fake())
    done.set()
    watcher.join()
    assert result.kind == "memory" and most <= MEMORY + (256 << 20)


async def test_wrong_numbers_show_against_the_cpu_where_there_are_no_samples(tmp_path: Path, benches) -> None:  # type: ignore[no-untyped-def]
    package = scripted_package(
        tmp_path / "p",
        {"right.json": script(), "same.json": script(), "wrong.json": script(gain=(31.0, 80.0))},
        samples=False,
    )
    bench, reference = benches(package), tmp_path / "reference.npz"
    unproved = await probe(bench, fake("right.json"))
    assert not unproved.ok and "no samples and no variant for the CPU" in unproved.reason
    floor = Setting(candidate="floor#x", variant="right.json", runtime="fake", provider="npu")
    # The scripted runtime stands for the CPU here, with itself as the reference.
    from edged.hardware.bench.subject import Subject

    save_answers(reference, Subject(package, floor, "", 8, strict=False).answers())
    right = await probe(bench, fake("same.json"), reference=str(reference), same_file=True)
    assert right.ok and right.agreement == pytest.approx(0.0, abs=1e-6)
    wrong = await probe(bench, fake("wrong.json"), reference=str(reference), same_file=True)
    assert wrong.kind == "wrong" and "differ from the CPU's" in wrong.reason


async def test_silent_fallback_of_onnxruntime_is_caught(tmp_path: Path, benches) -> None:  # type: ignore[no-untyped-def]
    """A provider that is not in this build: onnxruntime itself would warn and use the CPU."""
    package = make_package(tmp_path / "p")
    bench = benches(package)
    for provider in ("cuda", "openvino", "qnn"):
        setting = Setting(candidate="test#x", variant="model.onnx", provider=provider)
        result = await probe(bench, setting)
        if provider != "openvino" or not result.ok:  # the plug-in may be installed, and work on Intel's CPUs
            assert not result.ok and result.kind in ("load", "placement")
        else:
            assert set(result.placement) == {"OpenVINOExecutionProvider"}
    assert (await probe(bench, Setting(candidate="floor#x", variant="model.onnx"))).placement.keys() == {
        "CPUExecutionProvider"
    }


async def test_onnxruntimes_own_fallback_guard_is_on_in_a_probe(tmp_path: Path) -> None:
    """The guard itself, with a provider that takes no operator: the Azure one in the plain wheel."""
    import onnxruntime

    from edgekit.runtimes.base import SessionOptions
    from edgekit.runtimes.onnxruntime_driver import _settings

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider beside the CPU")
    path = make_package(tmp_path / "p").path("model.onnx")
    relaxed = _settings(SessionOptions(provider="cuda"))
    onnxruntime.InferenceSession(str(path), relaxed, providers=["AzureExecutionProvider"])
    strict = _settings(SessionOptions(provider="cuda", strict=True))
    with pytest.raises(Exception, match="fallback to CPU"):
        onnxruntime.InferenceSession(str(path), strict, providers=["AzureExecutionProvider"])


async def test_a_package_that_cannot_be_read_is_an_answer(tmp_path: Path) -> None:
    bench = ProcessBench(Job(package=str(tmp_path), memory_bytes=MEMORY))
    assert (await probe(bench, fake())).kind == "load"
    await bench.end()


async def test_the_child_ends_with_its_parent_even_while_it_hangs(tmp_path: Path) -> None:
    package = scripted_package(tmp_path / "p", {"model.json": script(hang_at=1)})
    code = (
        "import asyncio\n"
        "from edged.hardware.probing import ProcessBench\n"
        "from edged.hardware.settings import Setting\n"
        "from edged.hardware.wire import Job, Probe\n"
        "async def main():\n"
        f"    bench = ProcessBench(Job(package={str(package.root)!r}, memory_bytes=1 << 30))\n"
        "    s = Setting(candidate='t#f', variant='model.json', runtime='fake', provider='npu')\n"
        "    task = asyncio.ensure_future(bench.probe(Probe(setting=s), 60))\n"
        "    while bench.pid is None:\n"
        "        await asyncio.sleep(0.01)\n"
        "    await asyncio.sleep(1.5)\n"
        "    print(bench.pid, flush=True)\n"
        "    await task\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    child.wait(10)


async def test_a_cancelled_question_ends_the_child(tmp_path: Path, benches) -> None:  # type: ignore[no-untyped-def]
    import asyncio

    package = scripted_package(tmp_path / "p", {"model.json": script(hang_at=1), "good.json": script()})
    bench = benches(package)
    assert (await probe(bench, fake("good.json"))).ok
    pid = bench.pid
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await probe(bench, fake(), timeout_s=60)
    assert not psutil.pid_exists(pid)


async def test_a_crash_while_measuring_names_itself(tmp_path: Path, benches) -> None:  # type: ignore[no-untyped-def]
    package = scripted_package(tmp_path / "p", {"model.json": script(crash_at=200, latency_ms=0.5)})
    bench, setting = benches(package), fake()
    await bench.open(setting, 0.05)
    with pytest.raises(BenchFailed, match="SIGSEGV"):
        await bench.run(Run(setting=setting, seconds=5.0))
    with pytest.raises(BenchFailed, match="the process that held the model ended"):
        await bench.run(Run(setting=setting, seconds=0.1))


async def test_onnxruntime_under_the_limits_of_a_child(tmp_path: Path, benches) -> None:  # type: ignore[no-untyped-def]
    package = make_package(tmp_path / "p", work=2)
    bench = benches(package)
    setting = Setting(candidate="floor#onnxruntime", variant="model.onnx", threads=2, spinning=True)
    assert (await probe(bench, setting)).ok
    await bench.open(setting, 1.0)
    assert (await bench.run(Run(setting=setting, seconds=0.1, pause_s=0.005))).n >= 3


def test_the_supervisors_side_imports_no_numpy() -> None:
    code = (
        "import sys\n"
        "import edged.hardware.adapt, edged.hardware.probing, edged.hardware.store\n"
        "assert not {'numpy', 'onnxruntime', 'cv2'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


# --- timing, by a clock that the test moves --------------------------------------------------------------------------


class Clock:
    """A model whose runs take the given seconds, the last value for ever."""

    def __init__(self, *seconds: float) -> None:
        self.time = 0.0
        self.seconds = list(seconds)
        self.runs = 0

    def __call__(self) -> float:
        return self.time

    def run(self, number: int) -> None:
        assert number == self.runs
        self.runs += 1
        self.time += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]


def test_warm_up_ends_when_the_speed_has_settled() -> None:
    clock = Clock(*[1.0 - 0.005 * i for i in range(100)], 0.5)
    assert warm_up(clock.run, 1000.0, clock)
    assert clock.runs >= 10 and clock.seconds[0] < 0.99
    level = Clock(0.02)
    assert warm_up(level.run, 1000.0, level) and level.runs == 15, "three windows of five"


def test_warm_up_gives_up_when_its_time_is_over() -> None:
    clock = Clock(*[1.1**i for i in range(60)])
    assert not warm_up(clock.run, 30.0, clock)
    assert clock.time < 60


def test_a_model_of_seconds_is_warmed_by_few_runs() -> None:
    clock = Clock(10.0)
    assert not warm_up(clock.run, 2.0, clock)
    assert clock.runs == 1


def test_windows_count_every_caller_and_raise_what_a_run_raised() -> None:
    times, wall, cpu = window(lambda number: time.sleep(0.002), 0.1, callers=3)
    assert len(times) > 3 * 20 and times == sorted(times) and wall >= 0.1 and cpu >= 0.0
    with pytest.raises(ZeroDivisionError):
        window(lambda number: 1 // 0, 0.1, callers=2)


def test_a_busy_neighbour_is_seen() -> None:
    command = f"'{sys.executable}' -c 'while True: pass' >/dev/null 2>&1 & echo $!"
    started = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    neighbour = psutil.Process(int(started.stdout))  # no child of ours: its shell is gone
    try:
        time.sleep(0.2)
        others = Others()
        time.sleep(0.6)
        assert others.share() >= 0.3 / (psutil.cpu_count() or 1)
    finally:
        neighbour.kill()


def test_our_own_work_is_nobody_elses() -> None:
    others = Others()
    end = time.monotonic() + 0.6
    used = time.process_time()
    while time.monotonic() < end:
        pass
    used = time.process_time() - used
    assert others.share() <= 1.0 - used / (0.6 * (psutil.cpu_count() or 1)) + 0.1


def test_quantiles_are_by_nearest_rank() -> None:
    values = [float(i) for i in range(1, 101)]
    assert quantile(values, 0.5) == 50 and quantile(values, 0.95) == 95 and quantile([3.0], 0.95) == 3.0


def test_disagreement_is_a_share_of_the_range() -> None:
    def said(*values: float) -> Answers:
        return Answers([np.array(values, np.float32)])

    assert disagreement(said(0.0, 9.0), said(0.0, 10.0)) == pytest.approx(0.1)
    assert disagreement(said(0.0), said(0.0, 10.0)) == float("inf")
    assert disagreement(said(7.0), said(7.0)) == 0.0
