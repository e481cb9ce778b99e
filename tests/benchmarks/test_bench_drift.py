"""The drift benchmark's streams and goals; its figures are its own."""

from __future__ import annotations

import pytest

from benchmarks import drift


def test_the_simulated_stream_has_the_figures_of_the_research() -> None:
    calm, changed = drift.simulated(False), drift.simulated(True)
    assert (calm.edge_right, calm.cloud_right) == pytest.approx((0.86, 0.95), abs=0.01)
    assert (changed.edge_right, changed.cloud_right) == pytest.approx((0.55, 0.91), abs=0.01)
    order = sorted(zip(1 - calm.margin, calm.differs, strict=True))
    wrong, threshold = 0, 0.0
    for score, differs in order:
        wrong += differs
        if wrong > 0.0195 * len(order):
            break
        threshold = score
    sent, local = (1 - changed.margin) > threshold, (1 - changed.margin) <= threshold
    assert ((1 - calm.margin) > threshold).mean() == pytest.approx(0.365, abs=0.015)
    assert (local & changed.differs).mean() == pytest.approx(0.175, abs=0.01)
    assert sent.mean() == pytest.approx(0.459, abs=0.015)


@pytest.mark.parametrize("stream", ["pcb-bare faded", "simulated"])
def test_the_gate_comes_back_under_its_risk_and_a_kept_threshold_does_not(stream: str) -> None:
    start, change = drift.STREAMS[stream]
    calm, changed = drift.CALM[start](), change()
    rows = [
        drift.summary(stream, policy, [drift.run(policy, calm, changed, 500, seed) for seed in range(3)])
        for policy in ("gate", "fixed")
    ]
    verdict = drift.verdict(rows, 3)
    assert verdict["risk_met"] and verdict["alarms_met"]
    assert rows[0]["alarms"] >= 1 and rows[0]["risk_last"] < rows[1]["risk_last"]


def test_the_verdict_is_that_of_the_worst_stream_of_the_gate() -> None:
    row = {"policy": "gate", "risk_all": 0.01, "offload_last": 0.9, "false_alarms": 0}
    cases = [
        {**row, "stream": "a", "calm": "x", "risk_last": 0.01, "false_alarms": 1},
        {**row, "stream": "b", "calm": "x", "risk_last": 0.05, "false_alarms": 1},  # the same clean phases as a's
        {**row, "stream": "c", "calm": "y", "risk_last": 0.02},
        {**row, "stream": "d", "calm": "y", "risk_last": 0.9, "policy": "fixed"},
    ]
    verdict = drift.verdict(cases, 8)
    assert (verdict["stream"], verdict["risk_last"], verdict["false_alarms"], verdict["clean_runs"]) == (
        "b",
        0.05,
        1,
        16,
    )
    assert not verdict["risk_met"] and not verdict["alarms_met"]
