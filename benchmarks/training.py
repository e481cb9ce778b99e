"""Training on stock onnxruntime beside PyTorch: time and memory of one step, size and start of the artefact, gradients.

    python -m benchmarks.training [--quick] [--json FILE]

Each case runs in two processes with the same threads, pictures and weights: the product's derived step, and a
`torch.nn.Module` in its own environment (see `benchmarks.train_pair`; without it only our figures are shown). They are
timed in turn, ours and PyTorch's, again and again; `step_ratio` (wall) and `cpu_ratio` are ratios of the medians of
these windows, and `low` and `high` the quartiles of the ratios within a turn. Memory is the peak of each process.

Full steps train everything with the statistics of the batch; `last` the last blocks and `head` the head, with frozen
statistics. `max_grad_rel_error` compares our gradients with PyTorch's in double precision, frozen statistics: the
largest error in a tensor over its largest value (at least a thousandth of the largest of all). It is the least of four
pairs of pictures: in single precision an activation beside the kink of a ReLU may fall on its other side, in PyTorch
as well (`torch_grad_error`, of the same pair). With the statistics of the batch, deep networks with random weights are
ill-conditioned: `train_grad_error` is ours, `torch_train_grad_error` PyTorch's in single precision.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from benchmarks import report
from benchmarks.train_pair import bench_python
from benchmarks.training_child import CASE, DRAWS, MODES, STEP, WEIGHTS, gradients_folder
from benchmarks.training_networks import KINDS, network
from edgekit.architectures import Network
from edgekit.autodiff.losses import CrossEntropy
from edgekit.autodiff.optimisers import Sgd
from edgekit.autodiff.step import build_step

GOALS = {"full": 1.0, "last": 0.6, "head": 0.5}
"""Of `step_ratio`, by what is trained."""
GOAL_RSS, GOAL_GRADIENT = 0.5, 1e-4
ERRORS = ("max_grad_rel_error", "torch_grad_error", "train_grad_error", "torch_train_grad_error")
COLUMNS = ["case", "ms", "torch_ms", "step_ratio", "low", "high", "cpu_ratio", "rss_mb", "rss_ratio", "session_s",
           "artifact_mb", *ERRORS]  # fmt: skip
FULL_S, QUICK_S = 840.0, 32.0
ANSWER_S = 120.0
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Case:
    network: str
    variant: str  # full, last or head
    batch: int
    threads: int

    @property
    def name(self) -> str:
        return f"{KINDS[self.network].title}, {self.variant}, batch {self.batch}, {self.threads} thr"


@dataclass(frozen=True)
class Effort:
    """`seconds`: of timing for one case. `window_s`: of one side's turn. `rounds`: of turns at least.

    At most there are three times as many. `until_s`: no case is begun later than this.
    """

    seconds: float
    window_s: float
    rounds: int
    until_s: float


def cases(quick: bool) -> list[Case]:
    """All cases, the most telling ones first."""
    if quick:
        return [Case("tiny_cnn", "full", 8, 1), Case("mobilenet_v2", "head", 8, 1), Case("mobilenet_v2", "full", 8, 1)]
    full = [Case(name, "full", batch, threads) for threads in (1, 2) for batch in (8, 32) for name in KINDS]
    return full + [Case(name, variant, 8, 1) for variant in ("last", "head") for name in KINDS]


def trained(net: Network, case: Case) -> tuple[str, ...]:
    return net.parameters({"full": None, "last": KINDS[case.network].last, "head": 1}[case.variant])


def prepare(case: Case, folder: Path, with_gradients: bool) -> float:
    """Derive what the two processes need; returns the MB of the artefact that a device gets."""
    net = network(case.network)
    names, train_norms = trained(net, case), case.variant == "full"
    mode = "train" if train_norms else "frozen"
    build_step(net.model, CrossEntropy(), Sgd(momentum=0.9), names, batch_norm=mode).save(folder / STEP)
    if with_gradients:
        for other in MODES if train_norms else MODES[:1]:
            build_step(net.model, CrossEntropy(), None, names, batch_norm=other).save(folder / gradients_folder(other))
    weights = {one.name: numpy_helper.to_array(one) for one in net.model.graph.initializer}
    np.savez(folder / WEIGHTS, **{name: array for name, array in weights.items() if array.ndim and "." in name})
    settings = {"network": case.network, "trained": names, "train_norms": train_norms, "threads": case.threads,
                "batch": case.batch, "side": KINDS[case.network].side}  # fmt: skip
    (folder / CASE).write_text(json.dumps(settings), "utf-8")
    return sum(one.stat().st_size for one in (folder / STEP).iterdir()) / 1e6


class Child:
    """A process of one side; asked and answering in lines of JSON."""

    def __init__(self, python: Path, side: str, folder: Path, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ORT_DISABLE_TELEMETRY": "1"}
        environment["PYTHONPATH"] = str(_ROOT)
        command = [str(python), "-m", "benchmarks.training_child", side, str(folder)]
        self._side = side
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=environment
        )

    def ready(self) -> dict[str, float]:
        """Its next answer. Raises SystemExit when it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"The process of {self._side} has ended: {self._process.wait()}; what it said is above.")
        return dict(json.loads(line))

    def ask(self, **command: float) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self.ready()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def children(python: Path | None, folder: Path, threads: int) -> Iterator[tuple[Child, Child | None]]:
    """Ours and PyTorch's process of a case; the latter is None where PyTorch is not installed."""
    ours = Child(Path(sys.executable), "ours", folder, threads)
    torch = None
    try:
        torch = Child(python, "torch", folder, threads) if python is not None else None
        yield ours, torch
    finally:
        for one in (ours, torch):
            if one is not None:
                one.close()


def measure(case: Case, effort: Effort, python: Path | None, with_gradients: bool) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory(prefix="edged-training-") as name:
        folder = Path(name)
        row: dict[str, Any] = {"case": case.name, "network": case.network, "variant": case.variant,
                               "batch": case.batch, "threads": case.threads}  # fmt: skip
        row["artifact_mb"] = prepare(case, folder, with_gradients and python is not None)
        with children(python, folder, case.threads) as (ours, torch):
            row["session_s"] = ours.ready()["session_s"]
            if torch is not None:
                torch.ready()
            row |= figures(*interleaved(ours, torch, effort))
            row["rss_mb"] = ours.ask(peak=1)["rss_mb"]
            if torch is not None:
                row["torch_rss_mb"] = torch.ask(peak=1)["rss_mb"]
                row["rss_ratio"] = row["rss_mb"] / row["torch_rss_mb"]
                if with_gradients:
                    ours.ask(gradients=1)
                    torch.ask(gradients=1)
                    row |= gradient_errors(folder)
        return row


def interleaved(
    ours: Child, torch: Child | None, effort: Effort
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Windows of both in turn; the first of each warms up."""
    mine: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    end = time.monotonic() + effort.seconds
    while len(mine) <= effort.rounds or (time.monotonic() < end and len(mine) < 3 * effort.rounds):
        mine.append(ours.ask(run=effort.window_s))
        if torch is not None:
            theirs.append(torch.ask(run=effort.window_s))
    return mine[1:], theirs[1:]


def figures(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Of the windows of both sides (PyTorch's may be none): medians, their ratios, and quartiles over the turns."""
    wall, cpu = (statistics.median(one[key] for one in ours) for key in ("wall_s", "cpu_s"))
    found: dict[str, Any] = {"ms": wall * 1e3, "cpu_ms": cpu * 1e3, "turns": len(ours), "step_ratio": None}
    if theirs:
        torch_wall, torch_cpu = (statistics.median(one[key] for one in theirs) for key in ("wall_s", "cpu_s"))
        turns = [a["wall_s"] / b["wall_s"] for a, b in zip(ours, theirs, strict=True)]
        low, _, high = statistics.quantiles(turns, n=4, method="inclusive") if len(turns) > 1 else turns * 3
        found |= {"torch_ms": torch_wall * 1e3, "torch_cpu_ms": torch_cpu * 1e3, "step_ratio": wall / torch_wall,
                  "cpu_ratio": cpu / torch_cpu, "low": low, "high": high}  # fmt: skip
    return found


def gradient_errors(folder: Path) -> dict[str, float]:
    """See this module's text."""
    both = [(error(folder, "ours", "frozen", draw), error(folder, "single", "frozen", draw))
            for draw in range(len(DRAWS["frozen"]))]  # fmt: skip
    found = dict(zip(ERRORS[:2], min(both), strict=True))
    if (folder / "ours-train-0.npz").exists():
        found |= {ERRORS[2]: error(folder, "ours", "train", 0), ERRORS[3]: error(folder, "single", "train", 0)}
    return found


def error(folder: Path, side: str, mode: str, draw: int) -> float:
    """Largest relative error of the gradients of `side`. Raises SystemExit if other weights have gradients."""
    with np.load(folder / f"{side}-{mode}-{draw}.npz") as a, np.load(folder / f"double-{mode}-{draw}.npz") as b:
        own, exact = ({name: one[name] for name in one.files} for one in (a, b))
    if set(own) != set(exact):
        raise SystemExit(f"Gradients of other weights: {sorted(set(own) ^ set(exact))[:4]}")
    largest = {name: float(np.abs(array).max()) for name, array in exact.items()}
    floor = 1e-3 * max(largest.values())
    return max(float(np.abs(own[name] - exact[name]).max()) / max(largest[name], floor) for name in exact)


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """The goals that were measured, each met in all cases or not."""
    found: dict[str, bool] = {}
    for row in rows:
        goals = [(f"{row['variant']}_step_met", row.get("step_ratio"), GOALS[row["variant"]]),
                 ("rss_met", row.get("rss_ratio"), GOAL_RSS),
                 ("gradients_met", row.get("max_grad_rel_error"), GOAL_GRADIENT)]  # fmt: skip
        for name, value, bound in goals:
            if value is not None:
                found[name] = found.get(name, True) and value <= bound
    return found


def main(argv: list[str] | None = None) -> None:
    options = report.arguments((__doc__ or "").splitlines()[0]).parse_args(argv)
    effort = Effort(3.0, 0.2, 3, QUICK_S) if options.quick else Effort(16.0, 0.5, 5, FULL_S)
    try:
        python: Path | None = bench_python()
    except SystemExit as reason:
        python = None
        print(f"PyTorch: not installed. {reason}\n")
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    errors: dict[tuple[str, str], dict[str, float]] = {}
    left_out = []
    for case in cases(options.quick):
        if time.monotonic() - began > effort.until_s:
            left_out.append(case.name)
            continue
        key = (case.network, case.variant)
        row = measure(case, effort, python, key not in errors)
        known = {name: row[name] for name in ERRORS if name in row}
        rows.append(row | errors.setdefault(key, known))  # threads and batch do not change gradients
        print(report.table(rows[-1:], COLUMNS), flush=True)
    print()
    print(report.table(rows, COLUMNS))
    if left_out:
        print(f"\nNo time was left for: {'; '.join(left_out)}")
    goals = verdict(rows)
    if goals:
        print()
        print(report.transposed([{"goal": "met", **goals}], "goal"))
    torch = "not installed" if python is None else str(python)
    figures_of_all = {"torch": torch, "cases": rows, "left_out": left_out, **goals}
    report.write_json(options.json, "training", figures_of_all, quick=options.quick)


if __name__ == "__main__":
    main()
