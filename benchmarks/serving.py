"""How much of the model's own speed is left behind the network? edged beside raw onnxruntime and other servers.

    python -m benchmarks.serving [--quick] [--json FILE] [--peers DIR] [--only TEXT]

Two models (benchmarks/serving_models.py), each fed with float32 tensors and with JPEGs of its own size: a closed loop
of 1, 4 and 16 clients, and an open loop of 60 pictures a second, as a camera does. The floor is onnxruntime in a
process of its own with as many callers as there are clients and cores, one thread a run, no spinning, and for JPEGs the
shortest way through OpenCV. The load comes from one thread of this process on the same cores. All are loaded in bursts
in turn within one run (A B C A B C), in an order that turns too.

Every ratio and difference is taken within a round, and the median over the rounds is shown: a machine that changes its
speed changes both sides. Rounds in which other processes took more than a little are repeated, up to a limit; if there
are not enough quiet ones, all count, and `noise` tells: the share of all CPUs that others took in the worst burst of a
round. Plain figures are medians over the rounds; `best` in the JSON is the best round, the least disturbed one.

Keys per case: `ratio_to_raw` (rps / rps), `p50_added_ms, p99_added_ms` (over raw), `cpu_ratio` (CPU of supervisor and
worker / CPU of raw), `rss_mb` (the worker, after the case), `vs_mlserver, vs_litserve` (rps / rps), `rps, p50_ms,
p99_ms, server_cpu_us, client_cpu_us, raw_rps, raw_p50_ms, raw_p99_ms, failed, noise, first_answer_s`. Beside the cases:
`first_answer_s` (from the start of the daemon to its first inference), `worker_first_answer_s`, `rss_mb,
supervisor_rss_mb` (both models loaded and used), and `servers`: the same of the peers.
benchmarks/peers tells how to install them; one that is not there is left out and named.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import peers, report, turns
from benchmarks.daemons import Edge, Fleet
from benchmarks.raw_floor import Floor
from benchmarks.serving_models import MODELS, package
from benchmarks.serving_targets import (
    Burst,
    Case,
    EdgedTarget,
    PeerTarget,
    RawTarget,
    Target,
    first_answer_s,
    inference_address,
    set_up,
)
from edged.hardware.bench.timing import Others

RATE = 60.0
CASES = (
    *(Case(model, how, callers) for model in MODELS for how in ("tensor", "jpeg") for callers in (1, 4, 16)),
    *(Case(model, "jpeg", rate=RATE) for model in MODELS),
)
COLUMNS = (
    "case", "ratio_to_raw", "p50_added_ms", "p99_added_ms", "cpu_ratio", "vs_mlserver", "vs_litserve",
    "rps", "p50_ms", "p99_ms", "server_cpu_us", "client_cpu_us", "rss_mb", "failed", "noise",
)  # fmt: skip
NOT_INSTALLED = "not installed"
Round = Mapping[str, Burst]
"""One burst of each target, by name."""


@dataclass(frozen=True)
class Effort:
    """How long is measured."""

    rounds: int
    patience: int  # how many times as many rounds there may be until so many were quiet
    seconds: Mapping[str, float]  # a burst of the closed loop, by model
    open_s: float
    warm_s: float
    starts: int


FULL = Effort(rounds=7, patience=2, seconds={"tiny64": 1.0, "mnv2": 2.0}, open_s=5.0, warm_s=0.2, starts=5)
QUICK = Effort(rounds=2, patience=1, seconds={"tiny64": 0.15, "mnv2": 0.2}, open_s=0.5, warm_s=0.05, starts=1)
_PAUSE_S = 0.05  # what a burst left to do is done


def measure(case: Case, targets: Sequence[Target], effort: Effort) -> tuple[list[Round], float]:
    """Bursts of all targets in turn; the rounds that count, and the share of CPUs others took in the middle one."""
    seconds = effort.open_s if case.rate else effort.seconds[case.model]
    others = Others()

    def one_round(turn: int) -> tuple[Round, float]:
        at = turn % len(targets)
        bursts: dict[str, Burst] = {}
        taken = 0.0
        for target in (*targets[at:], *targets[:at]):
            time.sleep(_PAUSE_S)
            others.share()
            bursts[target.name] = target.burst(case, seconds, effort.warm_s)
            taken = max(taken, others.share())
        return bursts, taken

    return turns.until_quiet(one_round, effort.rounds, effort.patience)


def row(case: Case, rounds: Sequence[Round]) -> dict[str, Any]:
    """The figures of one case: medians over the rounds, of ratios within a round where two targets are compared."""

    def middle(value: Callable[[Round], float]) -> float | None:
        found = [got for one in rounds if math.isfinite(got := value(one))]
        return statistics.median(found) if found else None

    def times(other: str) -> float | None:
        if other not in rounds[0]:
            return None
        return middle(lambda one: one["edged"].rps / one[other].rps if one[other].rps else math.nan)

    figures: dict[str, Any] = {
        "case": case.name,
        "ratio_to_raw": times("raw"),
        "p50_added_ms": middle(lambda one: one["edged"].p50_ms - one["raw"].p50_ms),
        "p99_added_ms": middle(lambda one: one["edged"].p99_ms - one["raw"].p99_ms),
        "cpu_ratio": middle(lambda one: one["edged"].server_cpu_us / (one["raw"].server_cpu_us or math.nan)),
        "vs_mlserver": times("mlserver"),
        "vs_litserve": times("litserve"),
    }
    for key in ("rps", "p50_ms", "p99_ms", "server_cpu_us", "client_cpu_us"):
        figures[key] = middle(lambda one, key=key: getattr(one["edged"], key))  # type: ignore[misc]
    for name in rounds[0]:
        if name != "edged":
            for key in ("rps", "p50_ms", "p99_ms", "server_cpu_us"):
                figures[f"{name}_{key}"] = middle(lambda one, key=key, name=name: getattr(one[name], key))  # type: ignore[misc]
    figures["failed"] = sum(one["edged"].failed for one in rounds)
    figures["best"] = {name: _best([one[name] for one in rounds]) for name in rounds[0]}
    return figures


def _best(bursts: Sequence[Burst]) -> dict[str, float | None]:
    """The best burst by each measure."""
    least = {
        key: min((value for burst in bursts if math.isfinite(value := getattr(burst, key))), default=None)
        for key in ("p50_ms", "p99_ms", "server_cpu_us")
    }
    return {"rps": max(burst.rps for burst in bursts), **least}


@dataclass(frozen=True)
class Goal:
    """One figure and what it should be."""

    goal: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def met(self) -> bool | None:
        """None: it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def goals(rows: Sequence[Mapping[str, Any]], first_s: float | None, rss_mb: float | None) -> list[Goal]:
    """All goals; a case that is not in `rows` leaves its value None."""
    by_name = {one["case"]: one for one in rows}

    def figure(case: str, key: str) -> float | None:
        value: float | None = by_name.get(case, {}).get(key)
        return value

    def worst_peer(case: str) -> float | None:
        found = [value for key in ("vs_mlserver", "vs_litserve") if (value := figure(case, key)) is not None]
        return min(found, default=None)

    wanted = [
        Goal("tiny64 tensor c=1: of raw", figure("tiny64 tensor c=1", "ratio_to_raw"), 0.55, True),
        Goal("tiny64 tensor c=16: of raw", figure("tiny64 tensor c=16", "ratio_to_raw"), 0.55, True),
        Goal("tiny64 tensor c=1: p50 added, ms", figure("tiny64 tensor c=1", "p50_added_ms"), 0.20, False),
        Goal("mnv2 tensor c=1: of raw", figure("mnv2 tensor c=1", "ratio_to_raw"), 0.85, True),
    ]
    wanted += [
        Goal(f"mnv2 tensor c={c}: of raw", figure(f"mnv2 tensor c={c}", "ratio_to_raw"), 0.90, True) for c in (4, 16)
    ]
    wanted += [
        Goal(f"mnv2 tensor c={c}: CPU / raw", figure(f"mnv2 tensor c={c}", "cpu_ratio"), 1.12, False)
        for c in (1, 4, 16)
    ]
    wanted += [
        Goal("tiny64 jpeg c=4: times MLServer", figure("tiny64 jpeg c=4", "vs_mlserver"), 2.0, True),
        Goal("mnv2 jpeg c=4: times the best peer", worst_peer("mnv2 jpeg c=4"), 1.8, True),
        Goal("worker with two models: MiB", rss_mb, 160.0, False),
        Goal("first answer: s", first_s, 1.0, False),
    ]
    return wanted


def run_all(
    folder: Path, cases: Sequence[Case], effort: Effort, peers_dir: Path | None, litserve_workers: int
) -> dict[str, Any]:
    """Start everything, measure the cases, stop everything; prints a line as soon as it is known."""
    (folder / "onnx").mkdir()
    for name, model in MODELS.items():
        package(folder / "packages" / name, model)
        (folder / "onnx" / f"{name}.onnx").hardlink_to(folder / "packages" / name / "model.onnx")
    files = {name: folder / "onnx" / f"{name}.onnx" for name in MODELS}
    servers: list[dict[str, Any]] = []
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(folder))
        port = peers.free_port()
        edge: Edge = fleet.start_edge("edge", address=f"127.0.0.1:{port}")
        set_up(edge, folder / "packages")
        starts = []
        for _ in range(effort.starts):
            edge.stop()
            starts.append(first_answer_s(edge, ("127.0.0.1", port)))
        first_s, worker_first_s = (statistics.median(column) for column in zip(*starts, strict=True))
        edged = EdgedTarget(edge)
        assert inference_address(edge) == ("127.0.0.1", port)
        floor = stack.enter_context(Floor(files))
        targets: list[Target] = [RawTarget(floor, len(os.sched_getaffinity(0))), edged]
        running: list[peers.Peer] = []
        for name in peers.NAMES:
            if peers_dir is None or not peers.installed(peers_dir, name):
                servers.append({"server": name, "state": NOT_INSTALLED})
                continue
            peer = peers.start(name, peers_dir, folder / "onnx", folder / name, litserve_workers)
            stack.callback(peer.stop)
            running.append(peer)
            targets.append(PeerTarget(peer))
        rows = []
        for case in cases:
            rounds, noise = measure(case, targets, effort)
            rows.append({**row(case, rounds), "rss_mb": edged.rss_mb()[0], "noise": noise})
            rows[-1]["first_answer_s"] = first_s
            print(report.table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
            for name in rounds[0]:
                if bad := [one[name] for one in rounds if one[name].failed]:
                    print(f"  {name}: {sum(burst.failed for burst in bad)} requests failed; {bad[-1].sample[:300]!r}")
        worker_mb, supervisor_mb = edged.rss_mb()
        servers.insert(
            0,
            {
                "server": "edged",
                "state": "measured",
                "first_answer_s": first_s,
                "rss_mb": worker_mb + supervisor_mb,
            },
        )
        for peer in running:
            told = {"first_answer_s": peer.first_answer_s, "rss_mb": peer.rss_mb()}
            servers.append({"server": peer.name, "state": "measured", **told})
    return {
        "first_answer_s": first_s,
        "worker_first_answer_s": worker_first_s,
        "rss_mb": worker_mb,
        "supervisor_rss_mb": supervisor_mb,
        "servers": servers,
        "cases": rows,
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals(rows, first_s, worker_mb)],
    }


def main(argv: list[str] | None = None) -> int:
    parser = report.arguments(__doc__ or "")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", default=os.environ.get("EDGED_PEERS"), help="default: $EDGED_PEERS"
    )
    parser.add_argument("--only", metavar="TEXT", default="", help='cases that contain it, e.g. "mnv2 jpeg"')
    parser.add_argument("--litserve-workers", type=int, metavar="N", default=1, help="processes a model of LitServe")
    options = parser.parse_args(argv)
    chosen = [case for case in CASES if options.only in case.name]
    if not chosen:
        raise SystemExit(f"no case contains {options.only!r}; there are {', '.join(case.name for case in CASES)}")
    peers_dir = Path(options.peers) if options.peers else None
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        figures = run_all(Path(folder), chosen, QUICK if options.quick else FULL, peers_dir, options.litserve_workers)
    print("\nMedians over the rounds; ratios and differences within a round.\n")
    print(report.table(figures["cases"], COLUMNS))
    print(turns.caution([one["noise"] for one in figures["cases"]]))
    print()
    print(report.table(figures["servers"], ("server", "state", "first_answer_s", "rss_mb")))
    print(
        f"\nedged: first answer {figures['first_answer_s']:.2f} s after the start of the daemon, "
        f"{figures['worker_first_answer_s']:.2f} s after that of its worker; "
        f"worker {figures['rss_mb']:.0f} MiB, supervisor {figures['supervisor_rss_mb']:.0f} MiB\n"
    )
    shown = [
        {"goal": one["goal"], "found": one["value"], "limit": (">= " if one["at_least"] else "<= ") + str(one["limit"]),
         "met": one["met"]}
        for one in figures["goals"]
    ]  # fmt: skip
    print(report.table(shown))
    report.write_json(options.json, "serving", figures, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
