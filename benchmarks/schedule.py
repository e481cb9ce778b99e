"""How many requests of each class are answered within their deadlines when more comes than the device can do.

    python -m benchmarks.schedule [--how simulated|daemons] [--case NAME] [--rules NAME] [--requests N] [--seeds N]
                                  [--seed N] [--quick] [--json FILE]

Every row says how it was found. "simulated" rows come from `benchmarks.schedule_sim`: the rules are those of
`edgekit.dispatch`, everything else (device, link, cloud, clock) is a model of it, and no daemon, socket or model runs.
"daemons" rows come from `benchmarks.schedule_daemons`: the same trace on edged and cloudd with a shaped uplink.

Cases: the work that comes, as a multiple of what the device can do alone; "down 30 %": the link is down for 18 s of
every minute; "CV 0.3": run times vary twice as much. Rules: `FIFO`; `priority`, strict by class; `priority + shed`
drops what is late by class (on daemons: what edged does without `[dispatch]`); `queue > 4` is FIFO that offloads while
more than four requests wait; `dispatch` is ours;
`dispatch, uplink in order` is ours with an uplink that sends in the order of coming instead of by class.

Per case and rules: `slo_alarm`, `slo_inline`, `slo_audit`: share answered within the deadline, here or by the cloud;
`goodput`: the same of all requests; `worst_alarm`: the least `slo_alarm` of the seeds; `offloaded`, `spooled` (kept for
later, and not in time), `refused`: shares of all requests; `lost`: offloads that were not waited for to the end.
Figures of `dispatch` are means over the seeds, those of the others are of the first one.

Goals of `dispatch`, for every seed: at 1.2x slo_alarm >= 0.99, slo_inline >= 0.99 and goodput >= 0.97; at 2.0x and at
1.2x with the link down 30 % of the time slo_alarm >= 0.99. On daemons their mean counts: a trace that they work off in
a minute has a hundred alarms.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks import report, schedule_daemons
from benchmarks.schedule_daemons import Setup
from benchmarks.schedule_sim import Baseline, Count, Scenario, goodput, simulate
from edgekit.dispatch.policy import DispatchPolicy, Priority

FIRST_SEED = 7
NOTES = {
    "simulated": "Simulated: device, link and cloud are a model; no daemon, socket or model of a service ran.",
    "daemons": "Daemons: edged and cloudd with models that wait, a relay that shapes the uplink; time is stretched.",
}


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

SETUPS = {
    "FIFO": Setup(classes=False, deadlines=False),
    "priority": Setup(deadlines=False),
    "priority + shed": Setup(),
    "dispatch": Setup(dispatch=True),
}
"""What daemons can be set up for."""
DAEMON_CASES = ("1.2x", "1.2x, down 30 %", "2.0x")

Figures = dict[str, float]
Runner = Callable[[Case, Rules, int, int], Figures]
"""Finds the figures of one case under some rules, for so many requests and this seed."""


def simulated(case: Case, rules: Rules, requests: int, seed: int) -> Figures:
    """The figures by simulation."""
    scenario = Scenario(case.load, case.down, case.cv, requests=requests, seed=seed, uplink=rules.uplink)
    return figures(simulate(scenario, rules.how))


def on_daemons(case: Case, rules: Rules, requests: int, seed: int) -> Figures:
    """The figures by real daemons; `requests` of them count."""
    warm, block = schedule_daemons.WARM, schedule_daemons.BLOCK
    scenario = Scenario(case.load, case.down, case.cv, requests=requests + warm, seed=seed, block=block)
    counts, measured = schedule_daemons.run(scenario, SETUPS[rules.name])
    found = figures(counts)
    del found["lost"]  # only the daemon knows
    return {**found, **measured}


RUNNERS: dict[str, Runner] = {"simulated": simulated, "daemons": on_daemons}
"""How figures are found, by the name that stands in their rows."""
REQUESTS = {"simulated": (60_000, 12_000), "daemons": (600, 200)}
"""Of each trace, and if it has to be quick."""


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
    # A trace that daemons can work off in a minute has a hundred alarms: no single one can show 0.99.
    least = {name: means[name] if how == "daemons" else min(one[name] for one in seen) for name in case.goals}
    return {
        "how": how,
        "case": case.name,
        "rules": rules.name,
        **means,
        "worst_alarm": min(one["slo_alarm"] for one in seen),
        "seeds": len(seen),
        **({"met": all(least[name] >= goal for name, goal in case.goals.items())} if rules is OURS and least else {}),
    }


def measure(
    how: str, cases: Sequence[Case], some: Sequence[Rules], requests: int, seeds: int, first: int = FIRST_SEED
) -> list[dict[str, Any]]:
    """All rows, named as they come."""
    rows = []
    for case in cases:
        print(f"{how}: {case.name}", flush=True)
        for rules in some:
            traces = range(first, first + (seeds if rules.seeds else 1))
            rows.append(row(how, case, rules, [RUNNERS[how](case, rules, requests, seed) for seed in traces]))
    return rows


def verdict(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """The goals of each case, met or not."""
    return {f"{row['how']} {row['case']}": row["met"] for row in rows if "met" in row}


def main() -> int:
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--how", choices=sorted(RUNNERS), default="simulated", help="how figures are found")
    parser.add_argument("--case", choices=[case.name for case in CASES], help="only this one")
    parser.add_argument("--rules", choices=[rules.name for rules in RULES], help="only these")
    parser.add_argument("--requests", type=int, help="of each trace (simulated 60,000 or 12,000, daemons 600 or 200)")
    parser.add_argument("--seeds", type=int, help="traces of each case (default 3, quick 1)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help=f"of the first trace (default {FIRST_SEED})")
    options = parser.parse_args()
    how = options.how
    cases = [case for case in CASES if options.case in (None, case.name)]
    some = [rules for rules in RULES if options.rules in (None, rules.name)]
    if how == "daemons":
        cases = [case for case in cases if case.name in DAEMON_CASES]
        some = [rules for rules in some if rules.name in SETUPS]
    if not cases or not some:
        raise SystemExit(f"daemons have the cases {', '.join(DAEMON_CASES)} and the rules {', '.join(SETUPS)}")
    requests = options.requests or REQUESTS[how][options.quick]
    rows = measure(how, cases, some, requests, options.seeds or (1 if options.quick else 3), options.seed)
    goals = verdict(rows)
    print(f"\n{NOTES[how]}\n")
    print(report.table(rows, [name for name in rows[-1] if name != "met"]))
    print()
    print(report.transposed([{"goals": "met", **goals}], "goals"))
    report.write_json(
        options.json, "schedule", {"requests": requests, "cases": rows, "met": goals}, quick=options.quick
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
