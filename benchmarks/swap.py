"""Do clients notice that a model is replaced? Swaps under load, and the death of the worker.

    python -m benchmarks.swap [--quick] [--swaps N] [--kills N] [--json FILE]

A real edged with one service; its definition is changed over the local API from one version of the model to the other
and back, as `edged service add` does, while clients go on: some with kept connections and a pause between requests (so
that most of them are idle at the moment of the switch), some with kept connections that are always busy, some with a
new connection for each request; half ask the service, half the model over the Open Inference Protocol. Then the worker
is ended with SIGKILL under the same load: what it was answering at that moment is lost, but no connection may be
refused, and the next answer must come soon.

Keys: `swaps, failed_requests` (any request during the swaps that was not answered with 200), `refused_connections,
closed_connections` (kept connections that the server ended), `answered, swap_s_p50, swap_s_p99` (from the request to
the local API until the new version serves and the old worker drains), `rss_mb_first, rss_mb_last,
rss_slope_mb_per_100` (of supervisor and worker together, least squares over all swaps but the first tenth),
`supervisor_slope_mb_per_100, supervisor_descriptors_added`; `kills, kill9_recovery_s` (the longest gap from the kill to
the next answer), `kill9_refused, kill9_lost` (requests that were under way).
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processes, report, serving_requests
from benchmarks.daemons import DaemonError, Edge, Fleet
from benchmarks.load_generator import Address, Client, Result, nearest_rank, run
from benchmarks.serving_models import MODELS, package
from benchmarks.serving_targets import definition, inference_address

MODEL = MODELS["tiny64"]
SERVICE = "line"
VERSIONS = ("1.0.0", "2.0.0")
DEADLINE_MS = 10_000.0
"""Two workers load side by side on few cores; a late answer is not a failed one here."""
PEACE_S = 61.0
"""Between two kills, so that the supervisor takes each for a single accident."""
ENOUGH_SWAPS = 100
"""For a slope of the memory that is not the allocator's noise."""
_FOREVER_S = 1e6
_BEFORE_KILL_S = 1.0
_AFTER_KILL_S = 5.0
GOALS: dict[str, float] = {
    "failed_requests": 0.0,
    "closed_connections": 0.0,
    "rss_slope_mb_per_100": 0.5,
    "kill9_refused": 0.0,
    "kill9_recovery_s": 3.0,
}


def clients(service: str = SERVICE) -> list[Client]:
    """Two of each kind: idle between requests, always busy, and with new connections."""
    requests = (serving_requests.inspect(service, MODEL.side), serving_requests.edged(MODEL, "jpeg"))
    return [
        *(Client(request, pause_s=0.02) for request in requests),
        *(Client(request, pause_s=0.5) for request in requests),
        Client(requests[0]),
        *(Client(request, fresh=True, pause_s=0.005) for request in requests),
    ]


class Load:
    """Clients that go on in a thread of their own until the block ends."""

    def __init__(self, address: Address, wanted: Sequence[Client]) -> None:
        self._stop = threading.Event()
        self.result = Result()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(address, wanted), daemon=True)

    def _work(self, address: Address, wanted: Sequence[Client]) -> None:
        try:
            self.result = run(address, wanted, _FOREVER_S, stop=self._stop)
        except BaseException as error:
            self._error = error

    @contextmanager
    def going(self) -> Iterator[Load]:
        """`result` is there after the block."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(30.0)
        if self._error is not None:
            raise self._error


@dataclass
class Swapped:
    """One swap: seconds, and the memory a moment later, MiB."""

    seconds: float
    supervisor_mb: float
    worker_mb: float


def swap(edge: Edge, version: str) -> Swapped:
    """Change the service to this version and wait until it serves. Raises DaemonError if it does not."""
    ref = f"{MODEL.name}@{version}"
    began = time.monotonic()
    edge.add_service(definition(SERVICE, ref, DEADLINE_MS), timeout_s=120.0)
    seconds = time.monotonic() - began
    if (serves := edge.service(SERVICE).report.model) != ref:
        raise DaemonError(f"the service says that it runs {serves}, not {ref}\n{edge.log_tail()}")
    worker = edge.status().worker.pid
    return Swapped(seconds, processes.rss_mb([edge.pid]), processes.rss_mb([worker] if worker else []))


def slope(values: Sequence[float]) -> float:
    """Growth from one value to the next by least squares; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope


def swaps(edge: Edge, count: int) -> dict[str, Any]:
    """Swap `count` times under load; the figures."""
    before = processes.descriptors(edge.pid)
    done: list[Swapped] = []
    with Load(inference_address(edge), clients()).going() as load:
        for number in range(count):
            done.append(swap(edge, VERSIONS[(number + 1) % 2]))
            if (number + 1) % 100 == 0:
                print(f"{number + 1} swaps", flush=True)
        time.sleep(1.0)
    result, seconds = load.result, sorted(one.seconds for one in done)
    steady = done[max(1, count // 10) :]  # the allocator's first growth is none that goes on
    if result.sample:
        print(f"an answer that was none: {result.sample[:300]!r}")
    return {
        "swaps": count,
        "failed_requests": result.failed,
        "statuses": {str(status): times for status, times in result.statuses.items()},
        "refused_connections": result.refused,
        "broken_requests": result.broken,
        "closed_connections": result.closed,
        "answered": len(result.latencies),
        "request_p50_ms": result.percentile_ms(0.5),
        "request_max_ms": result.percentile_ms(1.0),
        "swap_s_p50": nearest_rank(seconds, 0.5),
        "swap_s_p99": nearest_rank(seconds, 0.99),
        "rss_mb_first": done[0].supervisor_mb + done[0].worker_mb,
        "rss_mb_last": done[-1].supervisor_mb + done[-1].worker_mb,
        "rss_slope_mb_per_100": 100 * slope([one.supervisor_mb + one.worker_mb for one in steady]),
        "supervisor_slope_mb_per_100": 100 * slope([one.supervisor_mb for one in steady]),
        "supervisor_descriptors_added": processes.descriptors(edge.pid) - before,
    }


def kills(edge: Edge, count: int, peace_s: float = PEACE_S) -> dict[str, Any]:
    """End the worker `count` times with SIGKILL under load; the figures."""
    recoveries, refused, lost, closed = [], 0, 0, 0
    for number in range(count):
        if number:
            time.sleep(peace_s)
            edge.wait_for(edge.is_ready, "to become ready")
        worker = edge.status().worker.pid
        assert worker is not None
        with Load(inference_address(edge), clients()).going() as load:
            time.sleep(_BEFORE_KILL_S)
            killed = time.perf_counter()
            os.kill(worker, signal.SIGKILL)
            time.sleep(_AFTER_KILL_S)
        recoveries.append(recovery_s(load.result.done_at, killed))
        refused += load.result.refused
        lost += load.result.broken + sum(load.result.statuses.values()) + load.result.timed_out
        closed += load.result.closed
    return {
        "kills": count,
        "kill9_recovery_s": max(recoveries),
        "kill9_refused": refused,
        "kill9_lost": lost,
        "kill9_closed": closed,
    }


def recovery_s(done_at: Sequence[float], killed: float) -> float:
    """Seconds from the kill to the first answer that the dead worker did not give.

    What it had sent before it died may still arrive a moment later, so that is the longest time without any answer
    after the kill. Infinite if none came.
    """
    after = [at - killed for at in done_at if at > killed]
    gaps = [(late - early, late) for early, late in zip([0.0, *after], after, strict=False)]
    return max(gaps)[1] if gaps else float("inf")


def verdict(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals, each met or not; a slope over few swaps says nothing, and is not judged."""
    rows: list[dict[str, Any]] = []
    for key, limit in GOALS.items():
        judged = not key.startswith("rss_slope") or figures["swaps"] >= ENOUGH_SWAPS
        met = figures[key] <= limit if judged else None
        rows.append({"goal": key, "found": figures[key], "limit": f"<= {limit:g}", "met": met})
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--swaps", type=int, metavar="N", help="default: 1000, quick: 15")
    parser.add_argument("--kills", type=int, metavar="N", help="default: 3, quick: 1")
    options = parser.parse_args(argv)
    swap_count = options.swaps or (15 if options.quick else 1000)
    kill_count = options.kills or (1 if options.quick else 3)
    with tempfile.TemporaryDirectory(prefix="swap-") as folder, Fleet(Path(folder)) as fleet:
        edge = fleet.start_edge("edge")
        for seed, version in enumerate(VERSIONS):
            package(Path(folder) / version, MODEL, version, seed)
            edge.add_model(Path(folder) / version)
        edge.add_service(definition(SERVICE, f"{MODEL.name}@{VERSIONS[0]}", DEADLINE_MS))
        figures = swaps(edge, swap_count)
        edge.wait_for(edge.is_ready, "to become ready")
        figures |= kills(edge, kill_count)
    print(report.transposed([{"figure": "found", **figures}], "figure"))
    print()
    print(report.table(verdict(figures)))
    report.write_json(options.json, "swap", figures, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
