"""What every process weighs: memory, start, and what it burns when nothing happens.

    python -m benchmarks.footprint [--quick] [--json FILE]

Starts cloudd and one joined edged with one service on loopback, as a service manager would, and lets them settle. RSS
counts shared pages fully, PSS its share of them (/proc/PID/smaps_rollup); medians over the idle time. `ready_s` and
`ready_cpu_s` are wall and CPU time of the process from its start to READY=1; idle CPU is in percent of one core.

Keys: `supervisor_rss_mb, supervisor_ready_cpu_s`; per case `case, rss_mb, pss_mb, threads, idle_cpu_percent,
ready_s, ready_cpu_s` (the last two for the daemons that a service manager starts).
Peers, measured elsewhere (their own figures): Greengrass nucleus lite 14.6 MB PSS for 9 daemons in C; Flower SuperNode
1.41 130 MiB RSS and 125 MiB for its second process; Sedna's joint-inference worker 93 MB without any ML framework.
"""

from __future__ import annotations

import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from benchmarks.daemons import Cloud, Edge, Fleet
from examples.line_simulator.line import boards

MODELS = Path(__file__).resolve().parents[1] / "examples" / "models"
MB = 1 << 20
DEFINITION = 'name = "solder"\nmodel = "solder-small"\n[hard_samples]\nanswer_model = "solder-large"\n'


@dataclass
class Watched:
    """One process and what was seen of it."""

    case: str
    process: psutil.Process
    ready_s: float | None = None
    ready_cpu_s: float | None = None
    rss: list[float] = field(default_factory=list)
    pss: list[float] = field(default_factory=list)
    cpu_before: float = 0.0
    began: float = 0.0

    def begin(self) -> None:
        times = self.process.cpu_times()
        self.cpu_before, self.began = times.user + times.system, time.monotonic()

    def sample(self) -> None:
        memory = self.process.memory_full_info()
        self.rss.append(memory.rss / MB)
        self.pss.append(memory.pss / MB)

    def row(self) -> dict[str, Any]:
        times = self.process.cpu_times()
        idle = (times.user + times.system - self.cpu_before) / (time.monotonic() - self.began)
        return {
            "case": self.case,
            "rss_mb": statistics.median(self.rss),
            "pss_mb": statistics.median(self.pss),
            "threads": self.process.num_threads(),
            "idle_cpu_percent": idle * 100,
            "ready_s": self.ready_s,
            "ready_cpu_s": self.ready_cpu_s,
        }


def start_timed(daemon: Cloud | Edge) -> Watched:
    """Start a daemon as systemd does, with a notify socket, and note wall and CPU time until it says READY=1."""
    address = daemon.folder / "notify"
    daemon.environ["NOTIFY_SOCKET"] = str(address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(address))
        notify.settimeout(60)
        began = time.monotonic()
        daemon.start(wait=False)
        while b"READY=1" not in notify.recv(4096):
            pass
        process, wall = psutil.Process(daemon.pid), time.monotonic() - began
        times = process.cpu_times()
    daemon.wait_for(daemon.is_ready, "to become ready")
    return Watched(daemon.module.partition(".")[0], process, wall, times.user + times.system)


def watch(folder: Path, settle_s: int, idle_s: int) -> list[dict[str, Any]]:
    """Start everything, let it settle, look at it for `idle_s` seconds; one row a process."""
    with Fleet(folder) as fleet:
        cloud, edge = Cloud(folder / "cloud"), Edge(folder / "edge")
        fleet.cloud, fleet.edges = cloud, [edge]
        watched = [start_timed(cloud), start_timed(edge)]
        for name in ("solder-small", "solder-large"):
            cloud.add_model(MODELS / name)
        edge.join(cloud)
        edge.add_service(DEFINITION)
        for joint in next(boards("north", 1)).joints:  # the first question starts cloudd's model
            edge.inspect("solder", joint.jpeg())
        time.sleep(settle_s)  # also until the worker that the service's one replaced has ended
        for parent in list(watched):
            watched += [Watched(f"{parent.case} worker", child) for child in parent.process.children(recursive=True)]
        for one in watched:
            one.begin()
        for _ in range(idle_s):
            time.sleep(1)
            for one in watched:
                one.sample()
        return [one.row() for one in watched]


def main() -> int:
    options = report.arguments(__doc__ or "").parse_args()
    settle_s, idle_s = (5, 15) if options.quick else (30, 120)
    with tempfile.TemporaryDirectory(prefix="footprint-") as folder:
        rows = watch(Path(folder), settle_s, idle_s)
    supervisor = next(row for row in rows if row["case"] == "edged")
    print(report.table(rows))
    print(
        f"\nedged's supervisor: {supervisor['rss_mb']:.1f} MiB RSS (goal <= 64), "
        f"ready after {supervisor['ready_cpu_s']:.2f} s CPU (goal <= 1)"
    )
    figures = {
        "supervisor_rss_mb": supervisor["rss_mb"],
        "supervisor_ready_cpu_s": supervisor["ready_cpu_s"],
        "cases": rows,
    }
    report.write_json(options.json, "footprint", figures, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
