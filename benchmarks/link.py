"""Does the line wait for the cloud? Latency of local answers while the link to cloudd is healthy, hung, refused, slow.

    python -m benchmarks.link [--quick] [--json FILE]

A real edged and a real cloudd on loopback with a relay between them whose faults are switched while pictures of the
line simulator keep coming, healthy and faulty in turn (A B A B). About a tenth of the samples is hard and asks cloudd.
A local answer is one that the gate trusted at the edge. The goal: p99 with the cloud hung at most 1.2 times p99 with it
healthy. At the end the link is healthy again and every spooled sample must arrive, each exactly once.

Keys: `p99_ratio_hung, hard_samples, spooled, left_in_spool, answered_by_cloud, duplicates, drain_s`; per case
`case, samples, local_p50_ms, local_p99_ms, p99_ratio, hard_p50_ms, hard_p99_ms, degraded_share`. Times are
measured at the client.
For comparison: Sedna's joint inference blocks 12.0 s for every hard sample with the cloud refusing, and for ever with
it hung (measured on its library v0.7.0 without Kubernetes).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import report
from benchmarks.daemons import Edge, Fleet
from benchmarks.faulty_link import Fault, FaultyLink
from examples.feeds import Item, simulated

MODELS = Path(__file__).resolve().parents[1] / "examples" / "models"
FAULTS: tuple[Fault, ...] = ("hung", "refused", "slow", "reset")
DEFINITION = """
name = "solder"
model = "solder-small"
deadline_ms = 250
[hard_samples]
mode = "budget"
budget = 0.1
answer_model = "solder-large"
"""


class Sender:
    """One client with one connection; keeps what it measured by link state."""

    def __init__(self, edge: Edge, pictures: Iterator[Item]) -> None:
        self._edge, self._pictures = edge, pictures
        self.local: dict[str, list[float]] = defaultdict(list)
        self.hard: dict[str, list[float]] = defaultdict(list)
        self.degraded: dict[str, int] = defaultdict(int)

    def send(self, state: str, count: int, pause_s: float) -> None:
        """Send `count` pictures one after the other, as a line would, with a pause between them."""
        for item in islice(self._pictures, count):
            began = time.perf_counter()
            decision = self._edge.inspect("solder", item.data)
            elapsed = (time.perf_counter() - began) * 1e3
            if decision.sent is None:
                self.local[state].append(elapsed)
            else:
                self.hard[state].append(elapsed)
                self.degraded[state] += decision.decided == "edge-degraded"
            time.sleep(pause_s)


def percentile(values: list[float], share: float) -> float | None:
    """The value at `share` of the sorted list, None for an empty one."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def measure(sender: Sender, link: FaultyLink, count: int, rounds: int) -> None:
    """Healthy and each fault in turn, `rounds` times, `count` pictures each."""
    for _ in range(rounds):
        for fault in FAULTS:
            for state in ("healthy", fault):
                link.set(state)
                sender.send(state, count, 0.002)


def cases(sender: Sender) -> list[dict[str, object]]:
    """One row a link state."""
    healthy = percentile(sender.local["healthy"], 0.99) or 0.0
    rows = []
    for state in ("healthy", *FAULTS):
        local, hard = sender.local[state], sender.hard[state]
        p99 = percentile(local, 0.99)
        rows.append(
            {
                "case": state,
                "samples": len(local) + len(hard),
                "local_p50_ms": statistics.median(local) if local else None,
                "local_p99_ms": p99,
                "p99_ratio": p99 / healthy if p99 and healthy else None,
                "hard_p50_ms": percentile(hard, 0.5),
                "hard_p99_ms": percentile(hard, 0.99),
                "degraded_share": sender.degraded[state] / max(1, len(local) + len(hard)),
            }
        )
    return rows


def drain(edge: Edge, timeout_s: float) -> tuple[int, float]:
    """Wait until the spool is empty; returns what is left and how long it took."""
    began = time.monotonic()
    while True:
        spool = edge.status().spool
        left = spool.items if spool else 0
        if left == 0 or time.monotonic() - began > timeout_s:
            return left, time.monotonic() - began
        time.sleep(0.5)


def main() -> int:
    options = report.arguments(__doc__ or "").parse_args()
    count, rounds = (60, 1) if options.quick else (250, 3)
    with tempfile.TemporaryDirectory(prefix="link-") as folder, Fleet(Path(folder)) as fleet:
        cloud, edge = fleet.start_cloud(), fleet.start_edge("edge")
        for name in ("solder-small", "solder-large"):
            cloud.add_model(MODELS / name)
        target = urlsplit(cloud.url)
        link = FaultyLink(str(target.hostname), int(target.port or 0))
        try:
            edge.join(cloud, f"https://127.0.0.1:{link.port}")
            edge.add_service(DEFINITION)
            pictures = cycle([item for batch in islice(simulated("north", 3), 40) for item in batch])
            sender = Sender(edge, pictures)
            sender.send("warm-up", 200, 0.0)
            measure(sender, link, count, rounds)
            link.set("healthy")
            spooled = sum(sender.degraded.values())
            left, drain_s = drain(edge, 25 if options.quick else 120)
            totals = cloud.status()["totals"]
        finally:
            link.close()
    rows = cases(sender)
    hard = sum(len(values) for values in sender.hard.values())
    figures = {
        "p99_ratio_hung": rows[1]["p99_ratio"],
        "hard_samples": hard,
        "spooled": spooled,
        "left_in_spool": left,
        "answered_by_cloud": totals["answered"],
        "duplicates": max(0, totals["answered"] - hard),
        "drain_s": drain_s,
        "cases": rows,
    }
    print(report.table(rows))
    print(
        f"\np99 of local answers, cloud hung / healthy: {report.format_value(rows[1]['p99_ratio'])} (goal <= 1.2)\n"
        f"{hard} hard samples, {spooled} of them spooled; {left} left after {drain_s:.1f} s; "
        f"cloudd answered {totals['answered']}"
    )
    report.write_json(options.json, "link", figures, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
