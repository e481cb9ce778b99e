"""Adaptation end to end: real models and real children, a scripted accelerator beside the CPU, and a moved clock."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from support.models import make_package
from support.scripted import script

from edged.hardware.adapt import Report, Surroundings, Timing, adapt, store_key
from edged.hardware.candidates import CPU_FLOOR, Candidate
from edged.hardware.facts import CpuFacts, Facts, gather
from edged.hardware.gate import Accepted
from edged.hardware.host import RealHost
from edged.hardware.matching import Matched
from edged.hardware.profiles import Artefact, read_profiles
from edged.hardware.search import Search, _measurement, _settled
from edged.hardware.settings import Choice, ProbeResult, Setting
from edged.hardware.store import ChoiceStore, Need
from edged.hardware.wire import Done, Job, Probe, Run, Window
from edgekit.packages import Package, seal_package
from edgekit.packages.manifest import Variant
from edgekit.runtimes.fake_driver import Script

OTHER_PYTHON = os.environ.get("EDGED_OPENVINO_PYTHON", "")
QUICK = Timing(warm_s=0.3, look_s=0.08, window_s=0.05, rounds=4)
NEED = Need(objective="latency")
NPU = Candidate(
    id="soc/test#npu",
    runtime="fake",  # type: ignore[arg-type]
    provider="npu",
    precision=["int8"],
    artefact=Artefact(format="rknn"),
    prior=90,
    probe_timeout_s=3.0,
)


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGED_FAKE_RUNTIME", "1")


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    host = RealHost()
    return Surroundings(
        facts=gather(host, os.sched_getaffinity(0)),
        profiles=[],
        host=host,
        timing=QUICK,
        store=ChoiceStore(tmp_path / "choices.json"),
    )


def package(directory: Path, npu: Script | None = None, *, work: int = 8) -> Package:
    """A model for the CPU that takes some milliseconds, and a script that stands for its compiled sister."""
    made = make_package(directory / "package", kind="conv", work=work)
    if npu is not None:
        (made.root / "npu.json").write_bytes(msgspec.json.encode(npu))
    return seal_package(made.root, msgspec.structs.replace(made.manifest, files={}))


def accepted(npu: bool = True) -> list[Accepted]:
    floor = Accepted(candidate=CPU_FLOOR[0], variants=[Variant(file="model.onnx")])
    return [Accepted(candidate=NPU, variants=[Variant(file="npu.json", precision="int8")]), floor] if npu else [floor]


async def search(
    tmp_path: Path,
    made: Package,
    around: Surroundings,
    *,
    npu: bool = True,
    measure: bool = True,
    seconds: float = 60.0,
) -> tuple[Search, Choice | None]:
    key = store_key(made, around, Matched())
    now = around.clock()
    folder = tmp_path / "answers"
    folder.mkdir(exist_ok=True)
    run = Search(made, around, NEED, key, None, folder, look_until=now + seconds * 0.5, end_by=now + seconds)
    try:
        return run, await run.choose(accepted(npu), measure=measure)
    finally:
        await run.end()


# --- an accelerator beside the CPU -----------------------------------------------------------------------------------


async def test_a_quick_accelerator_with_right_answers_is_chosen(tmp_path: Path, around: Surroundings) -> None:
    made = package(tmp_path, script(latency_ms=0.3), work=16)
    run, choice = await search(tmp_path, made, around)
    assert choice is not None and choice.setting.provider == "npu"
    assert not choice.alternatives[-1].accelerated, "the CPU is what remains when it is lost"
    result = run.probes[1].result
    assert result.ok and result.samples == 2 and result.agreement is not None and result.agreement < 0.05


@pytest.mark.parametrize(
    ("failing", "kind"),
    [
        (script(latency_ms=0.3, crash_at=1), "crash"),
        (script(latency_ms=0.3, hang_at=2), "hang"),
        (script(latency_ms=0.3, wrong_at=1), "wrong"),
        (script(latency_ms=0.3, placement={"NPU": 1, "CPUExecutionProvider": 8}), "placement"),
        (script(latency_ms=0.3, crash_at=60), "crash"),  # only when it is measured
    ],
)
async def test_a_failing_accelerator_is_remembered_and_the_cpu_runs(
    tmp_path: Path, around: Surroundings, failing: Script, kind: str
) -> None:
    made = package(tmp_path, failing, work=0)
    run, choice = await search(tmp_path, made, around)
    assert choice is not None and not choice.setting.accelerated
    assert all(not one.accelerated for one in choice.alternatives)
    again = dataclasses.replace(around, store=ChoiceStore(tmp_path / "choices.json"))  # as after a restart
    [failure] = again.store.failures(run.key)
    assert failure.kind == kind and failure.setting.variant == "npu.json"
    rerun, choice = await search(tmp_path, made, again)
    assert choice is not None and [one.setting.provider for one in rerun.probes] == ["cpu"]
    assert any("failed before and was not tried" in note for note in rerun.notes)


@pytest.mark.parametrize(("sharpness", "usable"), [(66.0, True), (100.0, False)])
async def test_a_file_is_compared_with_a_more_precise_one_and_never_the_other_way(
    tmp_path: Path, around: Surroundings, sharpness: float, usable: bool
) -> None:
    """The 8-bit file stands first in the package, as `cloudd compress` puts it; 60 is what the float file has."""
    made = make_package(tmp_path / "package", kind="conv")
    other = make_package(tmp_path / "other", kind="conv", sharpness=sharpness)
    (made.root / "eight.onnx").write_bytes(other.path("model.onnx").read_bytes())
    variants = [Variant(file="eight.onnx", precision="int8"), Variant(file="model.onnx")]
    made = seal_package(made.root, msgspec.structs.replace(made.manifest, variants=variants, files={}))
    report = await adapt(made, around)
    assert report.choice is not None
    refused = {one.setting.variant: one.result.reason for one in report.probes if not one.result.ok}
    assert list(refused) == ([] if usable else ["eight.onnx"])
    assert usable or "differ from the CPU's" in refused["eight.onnx"]


async def test_an_accelerator_that_throttles_loses_in_the_final(tmp_path: Path, around: Surroundings) -> None:
    made = package(tmp_path, script(latency_ms=0.2, throttle_after_s=0.8, throttle_factor=400.0), work=8)
    _, choice = await search(tmp_path, made, around)
    assert choice is not None and choice.setting.provider == "cpu"


async def test_without_measuring_the_highest_rank_that_passes_is_taken(tmp_path: Path, around: Surroundings) -> None:
    _, choice = await search(tmp_path, package(tmp_path, script(), work=0), around, measure=False)
    assert choice is not None and choice.setting.provider == "npu" and not choice.measured
    assert choice.alternatives[-1].provider == "cpu"


# --- the whole way, on this machine ----------------------------------------------------------------------------------


async def test_a_choice_is_made_stored_and_found_again_within_a_second(tmp_path: Path, around: Surroundings) -> None:
    made = package(tmp_path)
    first = await adapt(made, around)
    assert first.choice is not None and not first.stored and first.seconds < 60
    assert first.choice.setting.threads <= len(os.sched_getaffinity(0))
    best = min(m.p50_ms for m in first.choice.measurements)
    chosen = next(m for m in first.choice.measurements if m.setting == first.choice.setting)
    assert chosen.p50_ms <= best * 1.05 + 1e-9
    assert all(m.n > 10 and m.p50_ms <= m.p95_ms and m.rss_mb > 20 for m in first.choice.measurements)
    begun = time.monotonic()
    second = await adapt(made, dataclasses.replace(around, store=ChoiceStore(tmp_path / "choices.json")))
    assert second.stored and second.choice == first.choice and time.monotonic() - begun < 10.0
    other = dataclasses.replace(around, facts=msgspec.structs.replace(around.facts, kernel="another"))
    assert around.store.find(store_key(made, other, Matched()), NEED) is None
    assert msgspec.json.decode(msgspec.json.encode(first), type=Report) == first


async def test_a_model_that_nothing_can_run_has_no_choice(tmp_path: Path, around: Surroundings) -> None:
    made = package(tmp_path)
    (made.root / "model.onnx").write_bytes(b"nonsense")
    report = await adapt(made, around)
    assert report.choice is None and "not an ONNX model" in report.probes[0].result.reason


@pytest.mark.parametrize("cpus", [1, 2])
def test_threads_follow_the_cpus_that_a_process_may_use(tmp_path: Path, cpus: int) -> None:
    """Confined before it starts, as by a unit file or a container; the children inherit it."""
    allowed_cpus = sorted(os.sched_getaffinity(0))[:cpus]
    if len(allowed_cpus) < cpus:
        pytest.skip("there are not that many CPUs")
    made = package(tmp_path)
    code = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        f"os.sched_setaffinity(0, {allowed_cpus!r})\n"
        "from edged.hardware.adapt import Surroundings, Timing, adapt\n"
        "from edged.hardware.facts import gather\n"
        "from edged.hardware.host import RealHost\n"
        "from edged.hardware.store import ChoiceStore\n"
        "from edgekit.packages import open_package\n"
        "host = RealHost()\n"
        "a = Surroundings(facts=gather(host, os.sched_getaffinity(0)), profiles=[], host=host,\n"
        "                 timing=Timing(0.3, 0.08, 0.05, 4),\n"
        f"                 store=ChoiceStore(Path({str(tmp_path / 'c.json')!r})))\n"
        f"r = asyncio.run(adapt(open_package(Path({str(made.root)!r})), a, 'throughput'))\n"
        "print(*(m.setting.threads * m.setting.workers for m in r.measurements))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    used = [int(word) for word in done.stdout.split()]
    assert used and max(used) <= cpus and (cpus > 1 or set(used) == {1})


@pytest.mark.skipif(not OTHER_PYTHON, reason="EDGED_OPENVINO_PYTHON names no interpreter with OpenVINO")
async def test_a_second_provider_in_its_own_interpreter_is_proved_and_measured(
    tmp_path: Path, around: Surroundings
) -> None:
    profiles, _ = read_profiles()
    both = dataclasses.replace(around, profiles=profiles, interpreters={("onnxruntime", "openvino"): OTHER_PYTHON})
    report = await adapt(package(tmp_path), both)
    if not any("openvino" in name for name in report.accepted):
        pytest.skip("no profile proposes OpenVINO on this CPU")
    found = next(one.result for one in report.probes if one.setting.provider == "openvino")
    assert found.ok and set(found.placement) == {"OpenVINOExecutionProvider"} and found.samples == 2
    assert found.agreement is not None and found.agreement < 0.01
    assert any(m.setting.provider == "openvino" for m in report.measurements)
    assert report.choice is not None


# --- the budget, by a clock that only the bench moves ----------------------------------------------------------------


class SlowBench:
    """A bench on which everything takes as long as it was asked to, and a model half a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.runs = 0

    async def probe(self, order: Probe, timeout_s: float) -> ProbeResult:
        self._clock.time += 3.0
        if order.write:
            Path(order.write).touch()
        return ProbeResult(ok=True)

    async def open(self, setting: Setting, warm_s: float) -> Done:
        self._clock.time += 1.0 + warm_s
        return Done(seconds=1.0 + warm_s, steady=False)

    async def run(self, order: Run) -> Window:
        self.runs += 1
        seconds = max(order.seconds, 1.5)
        self._clock.time += seconds
        p50 = 500.0 / order.setting.threads
        return Window(n=3, p50_ms=p50, p95_ms=p50, wall_s=seconds, cpu_s=1.0, rss_mb=200.0)

    async def close(self, setting: Setting) -> None:
        return None

    async def end(self) -> None:
        return None


@dataclasses.dataclass
class Clock:
    time: float = 0.0

    def __call__(self) -> float:
        return self.time


async def test_a_slow_model_keeps_the_budget(tmp_path: Path, around: Surroundings) -> None:
    clock = Clock()

    async def open_bench(job: Job) -> SlowBench:
        return SlowBench(clock)

    eight = Facts(cpu=CpuFacts(count=8, allowed=list(range(8))), memory_total=4 << 30)
    slow = dataclasses.replace(around, clock=clock, open_bench=open_bench, facts=eight)
    report = await adapt(package(tmp_path), slow)
    assert report.choice is not None and report.choice.setting.threads == 8
    assert report.seconds <= 60.0 and any("for lack of time" in note or "cut short" in note for note in report.notes)


async def test_a_final_that_gets_too_hot_is_cut_short(tmp_path: Path, around: Surroundings) -> None:
    clock = Clock()

    async def open_bench(job: Job) -> SlowBench:
        return SlowBench(clock)

    heat: Callable[[], float] = lambda: 40.0 + clock.time  # noqa: E731
    warm = dataclasses.replace(around, clock=clock, open_bench=open_bench, temperature=heat)
    made = package(tmp_path)
    run = Search(made, warm, NEED, store_key(made, warm, Matched()), 60.0, tmp_path, look_until=1000.0, end_by=1000.0)
    choice = await run.choose(accepted(npu=False), measure=True)
    assert choice is not None and any("cut short" in note for note in run.notes)


def windows(*pairs: tuple[float, float]) -> list[Window]:
    return [Window(n=9, p50_ms=p50, p95_ms=p50, wall_s=1.0, cpu_s=1.0, rss_mb=1.0, others=o) for p50, o in pairs]


def test_what_others_disturbed_does_not_count_unless_all_is_disturbed() -> None:
    mixed = windows(*[(10.0, 0.0)] * 5, *[(30.0, 0.6)] * 20)
    measured = _measurement(Setting(candidate="t#x", variant="m"), mixed, mixed, None, None)
    assert measured.p50_ms == 10.0 and _settled(mixed)
    always = windows(*[(30.0, 0.6)] * 20)
    assert _measurement(Setting(candidate="t#x", variant="m"), always, always, None, None).p50_ms == 30.0
    assert not _settled(always), "the usual rounds may just have been a bad moment"
    assert not _settled(windows((10.0, 0.0), (20.0, 0.0), (10.0, 0.0), (20.0, 0.0), (15.0, 0.0)))


async def test_cancelling_leaves_no_child(tmp_path: Path, around: Surroundings) -> None:
    import psutil

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    task = asyncio.create_task(adapt(package(tmp_path), around))
    while {child.pid for child in psutil.Process().children(recursive=True)} <= before:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
