"""How near the planner's choice of route comes to the best one, and what splitting gains where pixels may not leave.

    python -m benchmarks.planner [--quick] [--json FILE] [--edge-ms MS]

Every row says how it was found. "simulated" rows sum up cells of `edgekit.planning.simulation`: its links, clouds and
edges are models with the times and sizes of research/algorithms.md 2, the planner and its estimators are the real ones.
"shaped" rows are real: a MobileNetV2 of random weights split by `cloudd split`, a real cloudd, the client of edged, and
a relay with the link's bandwidth and round trip between them; the edge is slowed down by a known factor, until
the whole model takes `edge_ms` there (`benchmarks.planner_shaped`).

`planner_regret`: time by the chosen route above that by the best one that the policy allows, as a share; the best is
known from outside, by trying all. Simulated: of the 95th percentile, mean over the time after warming up; shaped: of
the median over rounds of the best of three. `split_speedup`: time of the whole model at the edge / time by the chosen
split, medians. The planner plans for the slow side of what it sees, so shaped rows of a busy machine show its caution.

Goals: planner_regret <= 0.05 in every cell and row; split_speedup >= 1.5 in every one with 50 Mbit/s or more, a slow
edge (8 times as slow, or 150 ms), at most 10 ms of round trip, and pixels that may not leave.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import planner_shaped, report
from edgekit.planning.simulation import Cell, grid, summary

GOAL_REGRET = 0.05
GOAL_SPEEDUP = 1.5
FROM_MBIT = 50.0
"""Where the speed-up is promised."""
EDGES_MS = (71.0, 200.0)
"""What the whole model takes on the shaped edges: on the board of research/algorithms.md 2, and on one nearly three
times as slow."""
SLOW_MS = 150.0
"""From here on a shaped edge counts as slow: a request costs some 10 ms in TLS, cloudd's queue and its store, whatever
it asks, which eats what splitting gains on a quicker one."""
LINKS = ((10.0, 2.0), (50.0, 2.0), (100.0, 2.0))
"""Mbit/s and round trip in ms of the shaped rows: cloudd stands in the plant, as it does where pixels may not leave."""
QUICK: dict[str, Any] = {"mbits": (5.0, 50.0, 1000.0), "rtts_ms": (10.0,), "clouds": (5.0,), "edges": (8.0,)}
"""The part of the grid that a quick run looks at."""
COLUMNS = [
    "how",
    "net",
    "may_leave",
    "slow",
    "edge_ms",
    "mbit",
    "rtt_ms",
    "cells",
    "chosen",
    "best",
    "planner_regret",
    "regret_max",
    "all_edge_ms",
    "chosen_ms",
    "split_speedup",
]


def simulated(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """One row for each network, policy, kind of service and speed of the edge."""

    def key(cell: Cell) -> tuple[str, bool, str, float]:
        return cell.net, cell.cascade, cell.may_leave, cell.slow

    rows = []
    for (net, cascade, may_leave, slow), group in groupby(sorted(cells, key=key), key):
        some = list(group)
        figures = summary(some)
        speedup = figures["split_speedup_min"]
        rows.append(
            {
                "how": "simulated",
                "net": f"small + {net}" if cascade else net,
                "may_leave": may_leave,
                "slow": slow,
                "cells": len(some),
                "planner_regret": figures["planner_regret_mean"],
                "regret_max": figures["planner_regret_max"],
                "within_5_percent": figures["within_5_percent"],
                "split_speedup": speedup if speedup == speedup else None,
                "replans": figures["replans"],
            }
        )
    return rows


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures that have goals, and whether they are met."""
    worst = max(row.get("regret_max", row["planner_regret"]) for row in rows)
    cells = sum(row.get("cells", 1) for row in rows)
    speedups = [_promised(row) for row in rows if _is_promised(row)]
    return {
        "planner_regret": sum(row["planner_regret"] * row.get("cells", 1) for row in rows) / cells,
        "planner_regret_max": worst,
        "split_speedup": min(speedups, default=None),
        "planner_regret_met": worst <= GOAL_REGRET,
        "split_speedup_met": all(one >= GOAL_SPEEDUP for one in speedups),
    }


def _is_promised(row: dict[str, Any]) -> bool:
    if row["may_leave"] != "features":
        return False
    if row["how"] == "simulated":
        return row["split_speedup"] is not None
    return bool(row["mbit"] >= FROM_MBIT and row["edge_ms"] >= SLOW_MS)


def _promised(row: dict[str, Any]) -> float:
    """A planner that does not split where it is promised to pay has gained nothing."""
    return float(row["split_speedup"] or 1.0)


def main(argv: list[str] | None = None) -> int:
    parser = report.arguments(__doc__ or "")
    parser.add_argument(
        "--edge-ms", type=float, metavar="MS", help="of the whole model at the shaped edge (71 and 200, quick 200)"
    )
    options = parser.parse_args(argv)
    cells = list(grid(**(QUICK if options.quick else {})))
    rows = simulated(cells)
    edges = (options.edge_ms,) if options.edge_ms else EDGES_MS[-1:] if options.quick else EDGES_MS
    rounds, steps = (1, 25) if options.quick else (15, 120)
    with tempfile.TemporaryDirectory(prefix="planner-") as folder:
        rows += planner_shaped.measure(Path(folder), LINKS, edges, rounds, steps)
    found = verdict(rows)
    print(report.table(rows, COLUMNS))
    print()
    print(report.transposed([{"goal": "found", **found}], "goal"))
    report.write_json(options.json, "planner", {"cases": rows, **found}, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
