"""The schedule benchmark's rows and goals, from counts made up for the purpose, and one small simulated case."""

from __future__ import annotations

import pytest

from benchmarks.schedule import CASES, OURS, RULES, RUNNERS, figures, row, verdict
from benchmarks.schedule_sim import Count


def test_figures_are_shares_of_what_became_of_the_requests() -> None:
    counts = {
        "alarm": Count(requests=100, met=99, offloaded=10),
        "inline": Count(requests=200, met=150, offloaded=40, refused=20, lost=2),
        "audit": Count(requests=100, met=51, offloaded=50, spooled=49),
    }
    assert figures(counts) == pytest.approx(  # type: ignore[arg-type]
        {
            "slo_alarm": 0.99,
            "slo_inline": 0.75,
            "slo_audit": 0.51,
            "goodput": 0.75,
            "offloaded": 0.25,
            "spooled": 0.1225,
            "refused": 0.05,
            "lost": 2,
        }
    )


def test_a_goal_is_met_only_if_every_seed_meets_it() -> None:
    case = next(case for case in CASES if case.name == "1.2x")
    good = {"slo_alarm": 0.995, "slo_inline": 0.995, "slo_audit": 1.0, "goodput": 0.99}
    bad = good | {"slo_alarm": 0.985}
    rows = [row("simulated", case, OURS, [good, good]), row("simulated", case, RULES[0], [bad])]
    assert verdict(rows) == {"simulated 1.2x": True}
    rows = [row("simulated", case, OURS, [good, bad])]
    assert rows[0]["slo_alarm"] == pytest.approx(0.99) and rows[0]["worst_alarm"] == 0.985
    assert verdict(rows) == {"simulated 1.2x": False}


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules.name)
def test_every_row_says_how_it_was_found_and_has_the_figures_of_the_case(rules: object) -> None:
    figures_ = RUNNERS["simulated"](CASES[2], rules, 600, 7)  # type: ignore[arg-type]
    found = row("simulated", CASES[2], rules, [figures_])  # type: ignore[arg-type]
    assert found["how"] == "simulated" and found["case"] == "1.2x, down 30 %"
    assert all(0.0 <= found[key] <= 1.0 for key in ("slo_alarm", "slo_inline", "slo_audit", "goodput"))
