"""The pure rules of adaptation: the ladder of settings, what a change is worth, the book of lost accelerators, pace."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import msgspec
import pytest
from support.board import CPU, NPU, measured

from edged import config, inventory, ladder
from edged.config import Flags
from edged.hardware.profiles import parse_profile
from edged.hardware.settings import Choice, ProbeResult, Setting
from edged.hardware.thermal import Reading
from edged.hardware.wire import Done, Job, Probe, Run, Window
from edged.lost import PEACE_S, LostBook
from edged.polite import NICE, Pace
from edged.serve import settings as run_settings
from edgekit.messages import RunSetting
from edgekit.services import parse_service

ONE = msgspec.structs.replace(CPU, threads=1, workers=2)
SPINNING = msgspec.structs.replace(CPU, spinning=True)
SMALL = msgspec.structs.replace(CPU, variant="small.onnx", threads=1)


def choice(setting: Setting = NPU, *others: Setting, **changes: object) -> Choice:
    made = Choice(
        setting=setting,
        objective="latency",
        reasons=["tests"],
        alternatives=list(others or (CPU,)),
        measurements=[
            measured(NPU, 1.0, 0.2),
            measured(CPU, 5.0, 9.0),
            measured(ONE, 8.0, 8.0),
            measured(SMALL, 6.0, 4.0),
        ],
    )
    return msgspec.structs.replace(made, **changes)


def test_what_is_broken_is_skipped_and_at_last_the_safe_way_remains() -> None:
    assert ladder.usable(choice(), ()) == NPU
    assert ladder.usable(choice(), {NPU.key}) == CPU
    assert ladder.usable(choice(), {NPU.key, CPU.key}) is None
    assert ladder.usable(None, ()) is None
    assert ladder.pick(None, (), 3, alone=True) is None


def test_the_ladder_goes_to_less_cpu_time_and_then_to_fewer_threads() -> None:
    assert ladder.steps(choice(CPU, ONE), ())[1] == NPU
    found = ladder.steps(choice(CPU, ONE), {NPU.key})
    assert found[0] == CPU
    assert found[1] == SMALL, "clearly less CPU a picture"
    assert found[-1].threads == 1 and found[-1].workers == 1 and not found[-1].spinning
    keys = [one.key for one in found]
    assert len(keys) == len(set(keys))
    four = msgspec.structs.replace(CPU, threads=4, workers=2, spinning=True)
    alone = ladder.steps(choice(four, measurements=[]), ())
    assert [(one.threads, one.workers, one.spinning) for one in alone] == [
        (4, 2, True), (2, 2, False), (1, 2, False), (1, 1, False),
    ]  # fmt: skip
    assert ladder.pick(choice(four, measurements=[]), (), 99, alone=True) == alone[-1]


def test_threads_spin_only_without_a_neighbour() -> None:
    chosen = choice(SPINNING, measurements=[])
    assert ladder.pick(chosen, (), 0, alone=True) == SPINNING
    assert ladder.pick(chosen, (), 0, alone=False) == CPU


def test_a_change_must_be_worth_it() -> None:
    assert ladder.is_worth(choice(), CPU)
    assert ladder.gain(choice(), CPU) == pytest.approx(0.8)
    near = choice(measurements=[measured(NPU, 9.2), measured(CPU, 10.0)])
    assert not ladder.is_worth(near, CPU), "8 % is no reason to restart the worker"
    assert not ladder.is_worth(choice(), NPU), "it runs already"
    safe = choice(ONE, measurements=[measured(ONE, 9.5), measured(CPU, 10.0)])
    assert ladder.gain(safe, None, "model.onnx") == pytest.approx(0.0), "the safe way is one thread with this file"
    assert not ladder.is_worth(safe, None, "model.onnx")
    assert ladder.is_worth(safe, SPINNING), "what was never measured cannot be compared"


@pytest.mark.parametrize(("objective", "expected"), [("throughput", 0.8), ("efficiency", 1 - 0.2 / 9.0)])
def test_the_gain_is_of_the_objective(objective: str, expected: float) -> None:
    assert ladder.gain(choice(objective=objective), CPU) == pytest.approx(expected)


def test_the_book_keeps_models_apart_and_doubles_the_wait() -> None:
    book = LostBook(10.0)
    entry = book.lose("a@1", NPU, "gone", 0.0, 1000.0)
    assert book.broken("a@1", choice()) == {NPU.key}
    assert book.broken("b@1", choice()) == set(), "it may work for another model"
    assert book.due(9.0) is None and book.due(10.0) is entry
    book.lose("a@1", NPU, "still gone", 10.0, 1010.0)
    assert book.due(29.0) is None and book.due(30.0) is entry
    assert entry.since == 1000.0
    book.found(entry, 30.0)
    assert book.now() == [] and book.broken("a@1", choice()) == set()
    again = book.lose("a@1", NPU, "gone again", 60.0, 1060.0)
    assert again.retry.failures == 3, "what comes and goes is tried less and less"
    book.found(again, 100.0)
    fresh = book.lose("a@1", NPU, "much later", 100.0 + PEACE_S + 1, 9000.0)
    assert fresh.retry.failures == 1
    (state,) = book.states(lambda ref: ["solder"])
    assert (state.candidate, state.services, state.reason) == (NPU.candidate, ["solder"], "much later")


class Child:
    """A bench that notes its orders."""

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.job: Job | None = None

    async def start(self, job: Job) -> Child:
        self.job = job
        return self

    async def probe(self, order: Probe, timeout_s: float) -> ProbeResult:
        self.orders.append("probe")
        return ProbeResult(ok=True)

    async def open(self, setting: Setting, warm_s: float) -> Done:
        self.orders.append("open")
        return Done()

    async def run(self, order: Run) -> Window:
        self.orders.append("run")
        return Window(n=1, p50_ms=1, p95_ms=1, wall_s=1, cpu_s=1, rss_mb=1)

    async def close(self, setting: Setting) -> None:
        self.orders.append("close")

    async def end(self) -> None:
        self.orders.append("end")


async def test_measuring_waits_while_it_is_busy_and_the_wait_costs_no_budget() -> None:
    busy, said, child = "pictures are waiting", [], Child()
    pace = Pace(lambda: busy, said.append, look_s=0.01)
    bench = await pace.opener(child.start)(Job(package="/p", memory_bytes=1))
    assert child.job is not None and child.job.nice == NICE
    before = pace.clock()
    waiting = asyncio.create_task(bench.run(Run(setting=CPU, seconds=1)))
    await asyncio.sleep(0.2)
    assert child.orders == [] and said[-1] == "waits: pictures are waiting"
    assert pace.clock() - before < 0.15
    busy = ""
    await waiting
    assert child.orders == ["run"] and "measures model.onnx" in said[-1]
    busy = "hot"
    pace.hurry = True
    begun = time.monotonic()
    await bench.open(CPU, 1.0)
    await bench.probe(Probe(setting=CPU), 1.0)
    await bench.close(CPU)
    await bench.end()
    assert child.orders == ["run", "open", "probe", "close", "end"] and time.monotonic() - begun < 20


def test_model_threads_follow_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    count = run_settings.engine_threads
    assert count(0, {}, 2) == 4, "as before without settings"
    assert count(7, {"a": ONE}, 1) == 7, "what is configured counts"
    assert count(0, {"a": CPU}, 1) == 1, "two threads in each run, one run at a time"
    assert count(0, {"a": ONE}, 1) == 2
    assert count(0, {"a": CPU, "b": CPU}, 2) == 2
    assert count(0, {"a": msgspec.structs.replace(NPU, workers=6)}, 1) == 6, "an accelerator that wants six at a time"
    assert count(0, {"a": CPU}, 2) == 4, "a service in the safe way may use all CPUs"


def test_a_setting_survives_the_way_to_the_worker() -> None:
    full = msgspec.structs.replace(
        NPU, provider_options={"core_mask": "auto"}, threads=3, workers=2, arena=False, interpreter="/usr/bin/python3"
    )
    over = msgspec.json.decode(msgspec.json.encode(run_settings.sent(full)), type=RunSetting)
    assert run_settings.applied({"solder": over}) == {"solder": full}
    assert RunSetting.__struct_fields__ == Setting.__struct_fields__, "no field is lost"


def test_the_temperature_that_counts() -> None:
    readings = [Reading("npu-thermal", 61.0), Reading("nvme/Composite", 83.0), Reading("cpu-thermal", 70.0)]
    assert inventory.hottest(readings, {"npu": ["npu-thermal", "soc-thermal"]}) == 61.0
    assert inventory.hottest(readings, {}) == 70.0, "a disk's heat is not ours"
    assert inventory.hottest(readings, {"gpu": ["absent"]}) == 70.0
    assert inventory.hottest([], {}) is None


def test_what_a_service_needs_of_its_hardware() -> None:
    def need(text: str) -> inventory.Need:
        return inventory.need_of(parse_service(f'name = "a"\nmodel = "b"\n{text}', "test"))

    assert need("") == need("deadline_ms = 50"), "another deadline is no reason to measure the quickest way anew"
    assert need('objective = "efficiency"\ndeadline_ms = 100').deadline_ms == 50
    assert need('objective = "throughput"').objective == "throughput"


def test_without_a_daemon_doctor_still_knows_the_hardware(tmp_path: Path) -> None:
    report = inventory.without_daemon(tmp_path)
    assert report.state.known and report.facts.architecture and len(report.fingerprint) == 64
    assert report.state.models == [] and report.state.explanations


def test_the_documented_profile_and_configuration_are_accepted(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "hardware.md").read_text("utf-8")
    (profile,) = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    parsed = parse_profile(profile.encode(), "docs/hardware.md")
    assert parsed.id == "board/example" and parsed.candidate[0].requires.group == ["render"]
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "edged.toml").write_text(text)
    settings = config.load(Flags(state=str(tmp_path)), {})
    assert settings.interpreters == {("onnxruntime", "qnn"): "/opt/qnn/bin/python"}
    assert settings.adapt == "background"
    assert config.load(Flags(state=str(tmp_path), adapt=False), {}).adapt == "never"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('mode = "sometimes"', "background"),
        ('interpreters = { "onnxruntime/qmm" = "/p" }', "onnxruntime/qnn"),
        ('interpreters = { "onnxruntime/qnn" = "python" }', "absolute path"),
    ],
)
def test_a_wrong_configuration_says_what_is_allowed(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "edged.toml").write_text(f"[adapt]\n{line}\n")
    with pytest.raises(config.ConfigError, match=words):
        config.load(Flags(state=str(tmp_path)), {})
