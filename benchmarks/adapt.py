"""Does adaptation choose well? `python -m benchmarks.adapt [--quick] [--json FILE] [--openvino PYTHON]`

For each model: edged's own adaptation chooses; then the runtime's default (nobody tells it anything), every setting of
an exhaustive grid and the choice are timed in turn in one process, with pauses in between. The best of that grid, the
default and the choice then run against each other once more, so that the winner of many noisy figures gets no bonus for
luck. Milliseconds are medians over windows of the median of a window, one caller, the model alone; rounds that other
processes disturbed are repeated, and `noise` is the share of the CPUs that others took in those that count.

    speedup_vs_default = default / chosen    regret = chosen / best - 1    control = chosen once more / chosen

each the median over the rounds of the ratio within a round (see benchmarks/turns.py). `control` times the very same
setting in a second session: how far it is from 1 is how far the other two can be trusted.

Goals: regret at most 5 %, never slower than the default (but for 3 % of noise), at most 60 s a model, and at most 1 s
for a second start. Two rows repeat a model with the process confined to one CPU and with a busy neighbour on one core.
The foreign models come from EDGED_REAL_DATA/models; without it the benchmark makes all of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime

from benchmarks import adapt_models, report, turns
from edged.hardware.adapt import Report, Surroundings, Timing, adapt
from edged.hardware.bench.subject import Subject
from edged.hardware.bench.timing import Others
from edged.hardware.candidates import CPU_FLOOR
from edged.hardware.facts import gather
from edged.hardware.host import RealHost
from edged.hardware.probing import Bench, open_bench
from edged.hardware.profiles import read_profiles
from edged.hardware.search import QUIET
from edged.hardware.settings import Setting
from edged.hardware.store import ChoiceStore
from edged.hardware.wire import Job
from edged.polite import Pace
from edgekit.packages import InputSpec, Manifest, OutputSpec, Package, Variant, seal_package
from edgekit.runtimes import Session, open_session
from edgekit.runtimes.onnxruntime_driver import OnnxSession

CONFINED = "mobilenet-v2-fp32"
"""The model of the rows with one CPU and with a busy neighbour."""
GOAL_REGRET = 0.05
GOAL_SECONDS = 60.0
GOAL_SECOND_START = 1.0
NOISE = 0.03
"""Two timings of the very same setting differ by so much on a machine that is not ours alone."""
COLUMNS = (
    "case", "chosen_ms", "default_ms", "best_ms", "speedup_vs_default", "regret", "control",
    "adapt_s", "second_s", "noise", "chosen", "best",
)  # fmt: skip


@dataclass(frozen=True)
class Effort:
    """How long things are timed."""

    timing: Timing
    window_s: float
    grid_rounds: int
    final_rounds: int
    patience: int  # how often a disturbed round is repeated
    quiet_s: float  # to wait for a quiet machine before a case


FULL = Effort(Timing(), window_s=0.1, grid_rounds=5, final_rounds=40, patience=2, quiet_s=20.0)
QUICK = Effort(
    Timing(warm_s=0.4, look_s=0.08, window_s=0.05, rounds=3),
    window_s=0.04,
    grid_rounds=2,
    final_rounds=12,
    patience=1,
    quiet_s=0.0,
)
QUICK_CASES = ("small-cnn-fp32", "mobilenet-v2-fp32", "mobilenet-v2-int8")


# --- the models -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Path], Package]  # into an empty directory
    quick: bool = False


def cases() -> list[Case]:
    """The models made here, then the foreign ones if they are there."""
    shapes = {"small-cnn": (adapt_models.small, 64), "mobilenet-v2": (adapt_models.mobilenet_v2, 224)}
    shapes["resnet-18"] = (adapt_models.residual, 128)
    found = [
        Case(f"{name}-{precision}", _own(shape, side, [precision]), f"{name}-{precision}" in QUICK_CASES)
        for name, (shape, side) in shapes.items()
        for precision in ("fp32", "int8")
    ]
    found.append(Case("mobilenet-v2-both", _own(adapt_models.mobilenet_v2, 224, ["fp32", "int8"])))
    root = Path(os.environ.get("EDGED_REAL_DATA", "/nonexistent")) / "models"
    tiny, coral, faces = "mlcommons-tiny/", "coral/", InputSpec(width=320, height=240, mean=[127.0], scale=[1 / 128])
    foreign = (
        ("vww-int8", tiny + "vww_96_int8.tflite", InputSpec(width=96, height=96, dtype="int8"), True),
        ("resnet-8-int8", tiny + "pretrainedResnet_quant.tflite", InputSpec(width=32, height=32, dtype="int8"), False),
        (
            "mobilenet-v1-int8",
            coral + "mobilenet_v1_0.25_128_quant.tflite",
            InputSpec(width=128, height=128, dtype="uint8"),
            False,
        ),
        ("faces-fp32", "linzaer/version-RFB-320.onnx", faces, False),
    )
    for name, path, spec, quick in foreign:
        if (root / path).is_file():
            found.append(Case(name, _foreign(root / path, spec), quick))
    return found


def _own(shape: Callable[[Path, int], None], side: int, precisions: list[str]) -> Callable[[Path], Package]:
    def make(directory: Path) -> Package:
        shape(directory / "fp32.onnx", side)
        if "int8" in precisions:
            adapt_models.quantise(directory / "fp32.onnx", directory / "int8.onnx", side)
        if "fp32" not in precisions:
            (directory / "fp32.onnx").unlink()
        variants = [Variant(file=f"{one}.onnx", precision=one) for one in precisions]  # type: ignore[arg-type]
        return _seal(directory, InputSpec(width=side, height=side, scale=[1 / 255]), variants)

    return make


def _foreign(path: Path, spec: InputSpec) -> Callable[[Path], Package]:
    def make(directory: Path) -> Package:
        (directory / path.name).write_bytes(path.read_bytes())
        if path.suffix == ".tflite":
            return _seal(directory, spec, [Variant(file=path.name, runtime="litert", precision="int8")])
        return _seal(directory, spec, [Variant(file=path.name)])

    return make


def _seal(directory: Path, spec: InputSpec, variants: list[Variant]) -> Package:
    """A package without labels: what is measured is the model alone."""
    manifest = Manifest(
        name="benchmark", version="1", task="benchmark", input=spec, output=OutputSpec(kind="none"), variants=variants
    )
    return seal_package(directory, manifest)


# --- one case -------------------------------------------------------------------------------------------------------


def measure(case: Case, effort: Effort, openvino: str) -> dict[str, Any]:
    """Adapt to one model, then time the choice against the default and the grid."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as directory:
        root = Path(directory)
        (root / "package").mkdir()
        package = case.make(root / "package")
        around = _politely(_surroundings(root, effort, openvino), effort.quiet_s)
        told = asyncio.run(adapt(package, around, "latency"))
        if told.choice is None:
            raise SystemExit(f"{case.name}: nothing runs it: {'; '.join(told.notes)}")
        second = _second_start(root, openvino)
        row = _race(package, around, told, effort)
    return {"case": case.name, **row, "adapt_s": told.seconds, "second_s": second, "chosen": told.choice.setting.text()}


def _surroundings(root: Path, effort: Effort, openvino: str) -> Surroundings:
    host = RealHost()
    profiles, _ = read_profiles()
    around = Surroundings(
        facts=gather(host, os.sched_getaffinity(0)),
        profiles=profiles,
        host=host,
        store=ChoiceStore(root / "choices.json"),
        timing=effort.timing,
    )
    return replace(around, interpreters={("onnxruntime", "openvino"): openvino}) if openvino else around


def _politely(around: Surroundings, limit_s: float) -> Surroundings:
    """Adaptation waits for quiet moments, as in the daemon; for `limit_s` in all, and that time does not count."""
    others, end = Others(), time.monotonic() + limit_s

    def busy() -> str:
        return "others are busy" if others.share() > QUIET and time.monotonic() < end else ""

    pace = Pace(busy, lambda step: None, look_s=0.25)

    async def at_our_priority(job: Job) -> Bench:
        return await open_bench(msgspec.structs.replace(job, nice=0))  # as the race is

    return replace(around, clock=pace.clock, open_bench=pace.opener(at_our_priority))


def _second_start(root: Path, openvino: str) -> float:
    """Seconds of a new process from its first line to the stored choice: facts, profiles, store."""
    code = (
        "import asyncio, sys, time\n"
        "begun = time.perf_counter()\n"
        "from pathlib import Path\n"
        "from benchmarks.adapt import FULL, _surroundings, adapt\n"
        "from edgekit.packages import open_package\n"
        "root = Path(sys.argv[1])\n"
        "around = _surroundings(root, FULL, sys.argv[2])\n"
        "told = asyncio.run(adapt(open_package(root / 'package'), around, 'latency'))\n"
        "assert told.stored\n"
        "print(time.perf_counter() - begun)\n"
    )
    command = [sys.executable, "-c", code, str(root), openvino]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(done.stdout.split()[-1])


def _race(package: Package, around: Surroundings, told: Report, effort: Effort) -> dict[str, Any]:
    assert told.choice is not None
    chosen = _alone(told.choice.setting)
    runs: dict[str, Callable[[int], object]] = {}
    subjects: dict[str, Subject] = {}
    texts = {"default": "default"}
    for setting in [chosen, *_exhaustive(package, around)]:
        setting = _alone(setting)
        if setting.key not in runs:
            subject = subjects[setting.key] = Subject(package, setting, "", 8, strict=False)
            runs[setting.key] = _runner(subject.session, subject.feeds)
            texts[setting.key] = setting.text()
    default = _default(package, package.manifest.variants[0])
    runs["default"] = _runner(default, subjects[chosen.key].feeds)
    twin = subjects["control"] = Subject(package, chosen, "", 8, strict=False)
    control = _runner(twin.session, twin.feeds)
    for run in [*runs.values(), control]:
        run(0)
    time.sleep(0.2)  # until every thread has set its own affinity, which is then overruled
    _keep_to(os.sched_getaffinity(0))
    try:
        first = turns.interleaved(runs, effort.grid_rounds, effort.window_s, patience=effort.patience)
        best = min((key for key in runs if key != "default"), key=lambda key: first.ratio(key, "default"))
        names = dict.fromkeys((chosen.key, best, "default"))
        last = turns.interleaved(
            {**{key: runs[key] for key in names}, "control": control},
            effort.final_rounds,
            effort.window_s,
            patience=effort.patience,
        )
    finally:
        for subject in subjects.values():
            subject.close()
    best = min(names, key=lambda key: last.ratio(key, chosen.key))
    return {
        "chosen_ms": last.ms(chosen.key),
        "default_ms": last.ms("default"),
        "best_ms": last.ms(best),
        "speedup_vs_default": last.ratio("default", chosen.key),
        "regret": last.ratio(chosen.key, best) - 1,
        "control": last.ratio("control", chosen.key),
        "noise": last.noise,
        "grid": len(runs) - 1,
        "best": texts[best],
        "looked_at": len({m.setting.key for m in told.measurements}),
    }


def _keep_to(cpus: set[int]) -> None:
    """Hold every thread to the CPUs that this process may use, as a container does; onnxruntime's own would leave."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cpus)


def _exhaustive(package: Package, around: Surroundings) -> Iterator[Setting]:
    """Every file with every number of threads, spinning and not, with and without the arena; and OpenVINO's."""
    for variant in package.manifest.variants:
        floor = next(one for one in CPU_FLOOR if one.runtime == variant.runtime)
        base = Setting(candidate=floor.id, variant=variant.file, runtime=variant.runtime, precision=variant.precision)
        roads: list[tuple[str, dict[str, str], str]] = [("cpu", {}, "")]
        if variant.runtime == "onnxruntime" and ("onnxruntime", "openvino") in around.interpreters:
            roads.append(("openvino", {"device_type": "CPU"}, around.interpreters["onnxruntime", "openvino"]))
        for provider, options, interpreter in roads:
            for threads in range(1, around.cpus.usable + 1):
                one = msgspec.structs.replace(
                    base, provider=provider, provider_options=options, interpreter=interpreter, threads=threads
                )
                yield one
                if variant.runtime == "onnxruntime" and provider == "cpu":
                    yield msgspec.structs.replace(one, arena=False)
                    if threads > 1:
                        yield msgspec.structs.replace(one, spinning=True)
                        yield msgspec.structs.replace(one, spinning=True, arena=False)


def _alone(setting: Setting) -> Setting:
    """The same for one caller: how many may run at once makes no difference to one."""
    return msgspec.structs.replace(setting, candidate="", workers=1)


def _default(package: Package, variant: Variant) -> Session:
    """A session as the runtime makes it when nobody tells it anything, behind the same driver as all others."""
    path = package.path(variant.file)
    session = open_session(path, variant.runtime)
    if isinstance(session, OnnxSession):
        onnxruntime.set_default_logger_severity(4)
        session._session = onnxruntime.InferenceSession(str(path))
    return session  # LiteRT's own default is one thread, as is the driver's


def _runner(session: Session, feeds: Sequence[dict[str, Any]]) -> Callable[[int], object]:
    return lambda number: session.run(feeds[number % len(feeds)])


# --- all of them ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _neighbour(cpu: int) -> Iterator[None]:
    """Another process that keeps one CPU busy."""
    code = (
        "import os\n"
        f"os.sched_setaffinity(0, [{cpu}])\n"
        "os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))\n"
        "while True: pass\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _confined(name: str, label: str, cpus: Sequence[int], arguments: Sequence[str]) -> dict[str, Any]:
    """One case in a process that may use only `cpus`."""
    code = (
        "import os, sys\n"
        f"os.sched_setaffinity(0, {list(cpus)!r})\n"
        "from benchmarks.adapt import main\n"
        "main(sys.argv[1:])\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.json"
        command = [sys.executable, "-c", code, "--only", name, "--json", str(path), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
        row: dict[str, Any] = json.loads(path.read_text())["cases"][0]
    return {**row, "case": f"{name}, {label}"}


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The goals, each met or not."""
    return {
        "worst_regret": max(row["regret"] for row in rows),
        "worst_speedup_vs_default": min(row["speedup_vs_default"] for row in rows),
        "regret_met": all(row["regret"] <= GOAL_REGRET for row in rows),
        "never_slower_met": all(row["speedup_vs_default"] >= 1 - NOISE for row in rows),
        "adaptation_met": all(row["adapt_s"] <= GOAL_SECONDS for row in rows),
        "second_start_met": all(row["second_s"] <= GOAL_SECOND_START for row in rows),
    }


def main(argv: list[str] | None = None) -> None:
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--only", metavar="CASE", help='one model; or "one CPU" or "busy neighbour"')
    parser.add_argument(
        "--openvino", metavar="PYTHON", default="", help="an interpreter whose onnxruntime has OpenVINO"
    )
    options = parser.parse_args(argv)
    effort = QUICK if options.quick else FULL
    rows = []
    for case in cases():
        if case.name == options.only or (options.only is None and (case.quick or not options.quick)):
            rows.append(measure(case, effort, options.openvino))
            print(report.table(rows[-1:], COLUMNS), flush=True)
    cpus = sorted(os.sched_getaffinity(0))
    for label, allowed, condition in (
        ("one CPU", cpus[:1], contextlib.nullcontext()),
        ("busy neighbour", cpus, _neighbour(cpus[-1])),
    ):
        if options.only == label or (options.only is None and not options.quick):
            with condition:
                rows.append(_confined(CONFINED, label, allowed, []))
    if not rows:
        raise SystemExit(f"there is no case {options.only}; there are {', '.join(case.name for case in cases())}")
    print()
    print(report.table(rows, COLUMNS))
    goals = verdict(rows)
    print()
    print(report.transposed([{"goal": "found", **goals}], "goal"))
    report.write_json(options.json, "adapt", {"cases": rows, **goals}, quick=options.quick)


if __name__ == "__main__":
    main()
