"""Does the line notice that something trains beside it? Latency of pictures with and without a job that takes all CPU.

    python -m benchmarks.interference [--quick] [--json FILE]

A real edged with two models; pictures come 60 times a second (latencies count from when they were due), or one after
the other. Beside it runs nothing ("alone"), or benchmarks/busy_job.py: with the manners of a job of edged ("polite": in
a session of its own, of the lowest niceness, one CPU left to the line: edged.hardware.bench.manners), or with a thread
on every CPU and only the kernel's idle class to hold it back, in the session of the daemon ("idle": SCHED_IDLE, which
counts only between processes of one group). All in turn (A B C A B C). Ratios are taken within a round; a case's figure
is the median over the rounds, of which those that other processes disturbed are repeated. The goal: p99 beside the
polite job at most 1.2 times p99 alone.

Keys: `p99_ratio` (the worst case, "polite"), `p99_ratio_idle`; per case `case, alone_p50_ms, alone_p99_ms, p50_ratio,
p99_ratio, p99_ratio_idle, failed, noise` and how many steps a second the job made: `job_steps, job_steps_idle`. `noise`
is the share of all CPUs that others (not edged, not the job) took in the worst window of a round.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, serving_requests, turns
from benchmarks.daemons import Edge, Fleet
from benchmarks.load_generator import Client, Result, run
from benchmarks.serving_models import MODELS, package
from benchmarks.serving_targets import OPEN_LOOP_CONNECTIONS, Case, inference_address, set_up
from edged.hardware.bench.manners import give_way, leave_a_cpu
from edged.hardware.bench.timing import Others

REPOSITORY = Path(__file__).resolve().parents[1]
GOAL = 1.2
RATE = 60.0
WAYS = ("alone", "polite", "idle")
CASES = tuple(Case(model, "jpeg", rate=rate) for model in MODELS for rate in (RATE, 0.0))
_SETTLE_S = 1.0  # until the job has started and trains


def _be_polite() -> None:
    give_way(19)
    leave_a_cpu()


def _be_idle() -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


@contextlib.contextmanager
def job(way: str) -> Iterator[list[int]]:
    """The job beside what is done in the block; the list has its steps of each second when the block is over."""
    steps: list[int] = []
    if way == "alone":
        time.sleep(_SETTLE_S)  # the pauses are the same for all
        yield steps
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.busy_job"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=way == "polite",
        preexec_fn=_be_idle if way == "idle" else _be_polite,
    )
    try:
        time.sleep(_SETTLE_S)
        yield steps
    finally:
        process.kill()
        text, _ = process.communicate()
        steps += [int(line) for line in text.split()]


def measure(edge: Edge, case: Case, rounds: int, patience: int, seconds: float) -> dict[str, Any]:
    """All ways in turn, in an order that turns too, disturbed rounds again; the row of the case."""
    request = serving_requests.edged(MODELS[case.model], case.how)
    clients = [Client(request)] * (OPEN_LOOP_CONNECTIONS if case.rate else 1)
    address, others = inference_address(edge), Others()
    steps: dict[str, list[int]] = defaultdict(list)

    def one_round(turn: int) -> tuple[dict[str, Result], float]:
        at, worst, found = turn % len(WAYS), 0.0, {}
        for way in (*WAYS[at:], *WAYS[:at]):
            with job(way) as made:
                others.share()
                found[way] = run(address, clients, seconds, warm_s=0.2, rate=case.rate)
                worst = max(worst, others.share())
            steps[way] += made
        return found, worst

    counted, noise = turns.until_quiet(one_round, rounds, patience)
    return {**row(case.name, counted), "noise": noise, **_steps(steps)}


def _steps(steps: Mapping[str, Sequence[int]]) -> dict[str, float | None]:
    middle = {way: statistics.median(steps[way]) if steps[way] else None for way in WAYS[1:]}
    return {"job_steps": middle["polite"], "job_steps_idle": middle["idle"]}


def row(name: str, rounds: Sequence[Mapping[str, Result]]) -> dict[str, Any]:
    """Medians over the rounds; the ratios are of one round's windows."""

    def middle(value: Callable[[Mapping[str, Result]], float]) -> float:
        return statistics.median(value(one) for one in rounds)

    def ratio(way: str, share: float) -> float:
        return middle(lambda one: one[way].percentile_ms(share) / one["alone"].percentile_ms(share))

    return {
        "case": name,
        "alone_p50_ms": middle(lambda one: one["alone"].percentile_ms(0.5)),
        "alone_p99_ms": middle(lambda one: one["alone"].percentile_ms(0.99)),
        "p50_ratio": ratio("polite", 0.5),
        "p99_ratio": ratio("polite", 0.99),
        "p99_ratio_idle": ratio("idle", 0.99),
        "failed": sum(result.failed + result.unsent for one in rounds for result in one.values()),
    }


def main(argv: list[str] | None = None) -> int:
    options = report.arguments(__doc__ or "").parse_args(argv)
    rounds, patience, seconds = (1, 1, 2.0) if options.quick else (7, 2, 8.0)
    with tempfile.TemporaryDirectory(prefix="interference-") as folder, Fleet(Path(folder)) as fleet:
        for name, model in MODELS.items():
            package(Path(folder) / "packages" / name, model)
        edge = fleet.start_edge("edge")
        set_up(edge, Path(folder) / "packages")
        rows = [measure(edge, case, rounds, patience, seconds) for case in CASES]
    worst, worst_idle = (max(one[key] for one in rows) for key in ("p99_ratio", "p99_ratio_idle"))
    print(report.table(rows))
    print(turns.caution([one["noise"] for one in rows]))
    print(
        f"\np99 beside the job / alone, worst case: {worst:.3g} polite, {worst_idle:.3g} idle class "
        f"(goal <= {GOAL}: {report.format_value(worst <= GOAL)}, {report.format_value(worst_idle <= GOAL)})"
    )
    figures = {"p99_ratio": worst, "p99_ratio_idle": worst_idle, "met": worst <= GOAL, "cases": rows}
    report.write_json(options.json, "interference", figures, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
