"""How many requests of each class are answered within their deadlines when more comes than the device can do.

    python -m benchmarks.schedule [--quick] [--json FILE] [--requests N] [--seeds N]

Every row says how it was found. "simulated" rows come from `benchmarks.schedule_sim`: the rules are those of
`edgekit.dispatch`, everything else (device, link, cloud, clock) is a model of it, and no daemon, socket or model runs.

Cases: the work that comes, as a multiple of what the device can do alone; "down 30 %": the link is down for 18 s of
every minute; "CV 0.3": run times vary twice as much. Rules: `FIFO`; `priority`, strict by class; `priority + shed`
drops what is late by class; `queue > 4` is FIFO that offloads while more than four requests wait; `dispatch` is ours;
`dispatch, uplink in order` is ours with an uplink that sends in the order of coming instead of by class.

Per case and rules: `slo_alarm`, `slo_inline`, `slo_audit`: share answered within the deadline, here or by the cloud;
`goodput`: the same of all requests; `worst_alarm`: the least `slo_alarm` of the seeds; `offloaded`, `spooled` (kept for
later, and not in time), `refused`: shares of all requests; `lost`: offloads that were not waited for to the end.
Figures of `dispatch` are means over the seeds, those of the others are of the first one.

Goals of `dispatch`, for every seed: at 1.2x slo_alarm >= 0.99, slo_inline >= 0.99 and goodput >= 0.97; at 2.0x and at
1.2x with the link down 30 % of the time slo_alarm >= 0.99.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks import report
from benchmarks.schedule_sim import Baseline, Count, Scenario, goodput, simulate
from edgekit.dispatch.policy import DispatchPolicy, Priority

FIRST_SEED = 7
NOTE = 'Rows marked "simulated" are by a model of device, link and cloud: no daemon, socket or model of a service ran.'


@dataclass(frozen=True)
class Case:
    """`load`: times what the device can do alone; `down`: share of the time without link; `goals`: least figures."""

    name: str
    load: float
    down: float = 0.0
    cv: float = 0.15
    goals: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """What decides where requests go. `seeds`: run with every seed, not only the first."""

    name: str
    how: DispatchPolicy | Baseline
    uplink: Literal["by class", "in order"] = "by class"
    seeds: bool = False


CASES = (
    Case("0.8x", 0.8),
    Case("1.2x", 1.2, goals={"slo_alarm": 0.99, "slo_inline": 0.99, "goodput": 0.97}),
    Case("1.2x, down 30 %", 1.2, down=0.3, goals={"slo_alarm": 0.99}),
    Case("2.0x", 2.0, goals={"slo_alarm": 0.99}),
    Case("2.0x, down 30 %", 2.0, down=0.3),
    Case("1.2x, CV 0.3", 1.2, cv=0.3),
)
OURS = Rules("dispatch", DispatchPolicy(), seeds=True)
RULES = (
    Rules("FIFO", Baseline()),
    Rules("queue > 4", Baseline(offload_over=4)),
    Rules("priority", Baseline(by_class=True)),
    Rules("priority + shed", Baseline(by_class=True, shed=True)),
    Rules("dispatch, uplink in order", DispatchPolicy(), uplink="in order"),
    OURS,
)

Figures = dict[str, float]
Runner = Callable[[Case, Rules, int, int], Figures]
"""Finds the figures of one case under some rules, for so many requests and this seed."""


def simulated(case: Case, rules: Rules, requests: int, seed: int) -> Figures:
    """The figures by simulation."""
    scenario = Scenario(case.load, case.down, case.cv, requests=requests, seed=seed, uplink=rules.uplink)
    return figures(simulate(scenario, rules.how))


RUNNERS: dict[str, Runner] = {"simulated": simulated}
"""How figures are found, by the name that stands in their rows."""


def figures(counts: dict[Priority, Count]) -> Figures:
    """Shares of what became of the requests of each class."""
    requests = sum(count.requests for count in counts.values())
    return {
        **{f"slo_{priority}": count.slo for priority, count in counts.items()},
        "goodput": goodput(counts),
        "offloaded": sum(count.offloaded for count in counts.values()) / requests,
        "spooled": sum(count.spooled for count in counts.values()) / requests,
        "refused": sum(count.refused for count in counts.values()) / requests,
        "lost": sum(count.lost for count in counts.values()),
    }


def row(how: str, case: Case, rules: Rules, seen: Sequence[Figures]) -> dict[str, Any]:
    """One row: means over the seeds, and of what has a goal also the least."""
    means = {name: statistics.fmean(one[name] for one in seen) for name in seen[0]}
    least = {name: min(one[name] for one in seen) for name in case.goals}
    return {
        "how": how,
        "case": case.name,
        "rules": rules.name,
        **means,
        "worst_alarm": min(one["slo_alarm"] for one in seen),
        "seeds": len(seen),
        **({"met": all(least[name] >= goal for name, goal in case.goals.items())} if rules is OURS and least else {}),
    }


def measure(runners: dict[str, Runner], requests: int, seeds: int) -> list[dict[str, Any]]:
    """All rows, printed as they come."""
    rows = []
    for how, runner in runners.items():
        for case in CASES:
            print(f"{how}: {case.name}", flush=True)
            for rules in RULES:
                some = range(FIRST_SEED, FIRST_SEED + (seeds if rules.seeds else 1))
                rows.append(row(how, case, rules, [runner(case, rules, requests, seed) for seed in some]))
    return rows


def verdict(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """The goals of each case, met or not."""
    return {f"{row['how']} {row['case']}": row["met"] for row in rows if "met" in row}


def main() -> int:
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--requests", type=int, help="of each simulated trace (default 60,000, quick 12,000)")
    parser.add_argument("--seeds", type=int, help="traces of each case (default 3, quick 1)")
    options = parser.parse_args()
    requests = options.requests or (12_000 if options.quick else 60_000)
    rows = measure(RUNNERS, requests, options.seeds or (1 if options.quick else 3))
    goals = verdict(rows)
    print(f"\n{NOTE}\n")
    print(report.table(rows, [name for name in rows[-1] if name != "met"]))
    print()
    print(report.transposed([{"goals": "met", **goals}], "goals"))
    report.write_json(
        options.json, "schedule", {"requests": requests, "cases": rows, "met": goals}, quick=options.quick
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
