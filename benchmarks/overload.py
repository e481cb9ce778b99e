"""What happens when more is asked than the machine can do: who is answered, who is refused, how soon, what it costs.

    python -m benchmarks.overload [--quick] [--json FILE] [--seconds S]

A real edged serves one model (MobileNetV2, random weights) to three services: alarms (a quarter of the requests),
inline inspection (45 %) and audits (30 %). What one caller waits for a picture, and the capacity, are measured in a
closed loop. The deadlines are 8, 20 and 150 times the former, but at least 100 ms, 300 ms and 2 s, so that a slow
machine has the same task. Then real HTTP clients send pictures in an open loop, at random (Poisson) times, 1.2 and 2
times as many as the capacity; after `--seconds` the load falls to half of it and is watched for 5 s more. A latency
counts from when the request was due, whatever the client or the server was doing then.

Per case: `slo_alarm`: share of the alarms that were answered within their deadline; `goodput`: answers within their
deadlines a second, as a share of the capacity; `answered_or_refused`: share of the requests with an answer of status
200 or 503, and nothing else counts; `worst_refusal_ms`, and `refusal_p50_ms`, `refusal_p99_ms`: until a refusal was
there; `waited`: share of the refusals that were not given at once but to requests that had waited (displaced by a
higher class); `rss_slope_mb_min`: growth of the daemon's memory over the second half of the overload, by least squares;
`alarm_refused`: share of the alarms; `recovery_s`: from the fall until the last request was sent that was refused or
late.

Goals: slo_alarm >= 0.99, answered_or_refused = 1, recovery_s <= 1, memory flat.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import processes, report
from benchmarks.daemons import Edge, Fleet
from benchmarks.load_generator import Address, Client, Result, nearest_rank, post, run
from benchmarks.serving_models import MODELS, package, picture

MODEL = MODELS["mnv2"]
FACTORS = (1.2, 2.0)
AFTER = 0.5
"""Load after the fall, as a share of the capacity."""
AFTER_S = 5.0
AT_ONCE_S = 0.05
"""A refusal that takes longer came after a wait in the queue. The client's own delays are below."""
GOAL_ALARM = 0.99
GOAL_RECOVERY_S = 1.0


@dataclass(frozen=True)
class Service:
    name: str
    share: float  # of the requests
    deadline_ms: float  # at least
    times: float  # the deadline in times that one picture takes alone
    connections: int

    @property
    def definition(self) -> str:
        return (
            f'name = "{self.name}"\nmodel = "{MODEL.name}"\npriority = "{self.name}"\n'
            f'deadline_ms = {self.deadline_ms}\n[hard_samples]\nmode = "off"\n'
        )

    def request(self) -> bytes:
        path = f"/v1/services/{self.name}/inspect?deadline_ms={self.deadline_ms}"
        return post(path, picture(MODEL.side), {"Content-Type": "image/jpeg"})

    def adjusted(self, alone_ms: float) -> Service:
        return replace(self, deadline_ms=round(max(self.deadline_ms, self.times * alone_ms)))


SERVICES = (
    Service("alarm", 0.25, 100, 8, 64),
    Service("inline", 0.45, 300, 20, 160),
    Service("audit", 0.30, 2000, 150, 300),
)


@dataclass(frozen=True)
class Seen:
    """What one service's clients saw. Times are seconds from the start of the load."""

    service: Service
    result: Result
    began: float
    fall: float

    def answers(self, *, after: bool) -> list[tuple[float, float]]:
        """(due, latency) of the answers of status 200 to requests due before, or after, the load's fall."""
        return self._pairs(self.result.done_at, self.result.latencies, after)

    def refusals(self, *, after: bool) -> list[tuple[float, float]]:
        """The same of all other answers."""
        return self._pairs(self.result.other_at, self.result.other_latencies, after)

    def _pairs(self, at: Any, latencies: Any, after: bool) -> list[tuple[float, float]]:
        pairs = ((end - self.began - latency, latency) for end, latency in zip(at, latencies, strict=True))
        return [pair for pair in pairs if (pair[0] >= self.fall) is after]

    def in_time(self) -> int:
        return sum(latency * 1000 <= self.service.deadline_ms for _, latency in self.answers(after=False))

    def bad_after(self) -> list[float]:
        """When each request that was refused or late after the fall was due, from the fall on."""
        late = [due for due, latency in self.answers(after=True) if latency * 1000 > self.service.deadline_ms]
        return [due - self.fall for due in [*late, *(due for due, _ in self.refusals(after=True))]]


def poisson(rate: Callable[[], float], seed: int) -> Callable[[], float]:
    """Random gaps between requests, at the rate that is asked for just then."""
    generator = random.Random(seed)
    return lambda: generator.expovariate(rate())


def overloaded(
    edge: Edge, address: Address, services: list[Service], capacity: float, factor: float, seconds: float
) -> dict[str, Any]:
    """One case: so many times the capacity for so long, then less; one row."""
    began = time.perf_counter()

    def load(service: Service, seed: int) -> Seen:
        def rate() -> float:
            now = time.perf_counter() - began
            return capacity * service.share * (factor if now < seconds else AFTER)

        clients = [Client(service.request())] * service.connections
        result = run(address, clients, seconds + AFTER_S, rate=rate(), gap=poisson(rate, seed))
        return Seen(service, result, began, seconds)

    with watched_memory(edge) as memory, ThreadPoolExecutor(len(services)) as pool:
        seen = list(pool.map(load, services, range(len(services))))
    return row(seen, memory, capacity, factor)


def row(seen: list[Seen], memory: list[tuple[float, float]], capacity: float, factor: float) -> dict[str, Any]:
    """The case's figures."""
    offered = {one.service.name: _offered(one) for one in seen}
    refusals = sorted(latency for one in seen for _, latency in one.refusals(after=False))
    fall = seen[0].fall
    all_requests = sum(_all(one.result) for one in seen)
    half = [(at / 60, rss) for at, rss in memory if fall / 2 <= at <= fall]
    return {
        "case": f"{factor:g}x",
        "slo_alarm": _share(seen[0].in_time(), offered["alarm"]),
        "slo_inline": _share(seen[1].in_time(), offered["inline"]),
        "slo_audit": _share(seen[2].in_time(), offered["audit"]),
        "goodput": sum(one.in_time() for one in seen) / fall / capacity,
        "answered_or_refused": _share(
            sum(len(one.result.latencies) + one.result.statuses[503] for one in seen), all_requests
        ),
        "refused": _share(len(refusals), sum(offered.values())),
        "worst_refusal_ms": max(refusals, default=0.0) * 1000,
        "refusal_p50_ms": nearest_rank(refusals, 0.5) * 1000,
        "refusal_p99_ms": nearest_rank(refusals, 0.99) * 1000,
        "waited": _share(sum(latency > AT_ONCE_S for latency in refusals), len(refusals)),
        "alarm_refused": _share(len(seen[0].refusals(after=False)), offered["alarm"]),
        "alarm_p99_ms": nearest_rank(sorted(latency for _, latency in seen[0].answers(after=False)), 0.99) * 1000,
        "recovery_s": max((due for one in seen for due in one.bad_after()), default=0.0),
        "rss_mb": memory[-1][1] if memory else math.nan,
        "rss_slope_mb_min": statistics.linear_regression(*zip(*half, strict=True)).slope if len(half) > 2 else 0.0,
        "requests": all_requests,
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _offered(one: Seen) -> int:
    """Requests due before the fall. Those without any answer are not known by their time: all are counted here."""
    lost = one.result.broken + one.result.timed_out + one.result.refused + one.result.unsent
    return len(one.answers(after=False)) + len(one.refusals(after=False)) + lost


def _all(result: Result) -> int:
    return len(result.latencies) + result.failed + result.unsent


@contextmanager
def watched_memory(edge: Edge) -> Iterator[list[tuple[float, float]]]:
    """Collects (seconds, MiB of the daemon and its workers) twice a second."""
    seen: list[tuple[float, float]] = []
    done, began = threading.Event(), time.perf_counter()

    def watch() -> None:
        while not done.wait(0.5):
            seen.append((time.perf_counter() - began, processes.rss_mb(processes.tree(edge.pid))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def measure(folder: Path, seconds: float, capacity_s: float) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Start a daemon, find its capacity, overload it; what was found and one row a case."""
    package(folder / "package", MODEL)
    with Fleet(folder) as fleet:
        edge = fleet.start_edge("edge")
        edge.add_model(folder / "package")
        for service in SERVICES:
            edge.add_service(service.definition)
        host, _, port = edge.status().addresses.inference.rpartition(":")
        address = (host, int(port))
        alone, four = (_closed_loop(address, callers, capacity_s) for callers in (1, 4))
        services = [service.adjusted(alone.percentile_ms(0.5)) for service in SERVICES]
        found = {"capacity": four.rps, "alone_ms": alone.percentile_ms(0.5)}
        found |= {f"{service.name}_deadline_ms": service.deadline_ms for service in services}
        print(report.transposed([{"found": "", **found}], "found"), flush=True)
        rows = []
        for factor in FACTORS:
            rows.append(overloaded(edge, address, services, four.rps, factor, seconds))
            print(report.transposed(rows[-1:], "case"), flush=True)
            time.sleep(1.0)
        return found, rows


def _closed_loop(address: Address, callers: int, seconds: float) -> Result:
    patient = replace(SERVICES[-1], deadline_ms=60_000)
    result = run(address, [Client(patient.request())] * callers, seconds, warm_s=1.0)
    if result.failed or not result.latencies:
        raise SystemExit(f"the capacity could not be measured: {result.statuses} {result.sample!r}")
    return result


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The goals, each met or not."""
    return {
        "slo_alarm_met": all(row["slo_alarm"] >= GOAL_ALARM for row in rows),
        "answered_or_refused_met": all(row["answered_or_refused"] == 1.0 for row in rows),
        "recovery_met": all(row["recovery_s"] <= GOAL_RECOVERY_S for row in rows),
    }


def main() -> int:
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--seconds", type=float, help="overload for so long a case (default 180, quick 10)")
    options = parser.parse_args()
    seconds = options.seconds or (10.0 if options.quick else 180.0)
    with tempfile.TemporaryDirectory(prefix="overload-") as folder:
        found, rows = measure(Path(folder), seconds, 3.0 if options.quick else 10.0)
    goals = verdict(rows)
    print()
    print(report.transposed(rows, "case"))
    print(report.transposed([{"goal": "found", **goals}], "goal"))
    report.write_json(options.json, "overload", {**found, "cases": rows, **goals}, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
