from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edgekit.gates.policy import SAFE_MODE_SAMPLES, WARM_UP, Gate, GateDecision, GateSettings, GateSnapshot

RISK = GateSettings(mode="risk", risk=0.02, calibration=300, audit_share=0.05)


class Traffic:
    """A synthetic edge and cloud: the share of differing answers rises with the score's square."""

    def __init__(self, seed: int, hard: float = 1.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.hard = hard
        self.count = 0

    def next(self) -> tuple[str, float, bool]:
        self.count += 1
        score = float(self.rng.beta(0.4 * self.hard, 2.0))
        return f"s{self.count}", score, bool(self.rng.random() < 0.8 * score**2)


def feed(gate: Gate, traffic: Traffic, n: int, *, answer: bool = True) -> list[tuple[GateDecision, str, float, bool]]:
    seen = []
    for _ in range(n):
        name, score, differs = traffic.next()
        decision = gate.decide(1 - score, float(traffic.rng.random()), name)
        seen.append((decision, name, score, differs))
        if decision.send and answer:
            gate.learn(decision.score, differs, decision.reason, name)
    return seen


def risk_of(seen: list[tuple[GateDecision, str, float, bool]]) -> float:
    """Audits are answered locally too."""
    return float(np.mean([differs and (not d.send or d.reason == "audit") for d, _, _, differs in seen]))


def test_it_sends_everything_until_it_is_certified() -> None:
    gate, traffic = Gate(RISK), Traffic(1)
    seen = feed(gate, traffic, 299)
    assert {d.reason for d, *_ in seen} == {"calibrating"}
    assert not any(d.certified for d, *_ in seen)
    status = gate.status()
    assert (status.state, status.missing, status.threshold, status.bound) == ("calibrating", 1, None, None)
    assert "1 answers are missing" in status.sentence
    feed(gate, traffic, 1)
    status = gate.status()
    assert status.state == "certified" and status.bound is not None and status.bound <= RISK.risk
    after = feed(gate, traffic, 1000)
    local = [d for d, *_ in after if not d.send]
    assert len(local) > 300 and all(d.certified and d.reason is None for d in local)
    assert risk_of(after) <= 0.03


def test_few_samples_cannot_be_asked_for() -> None:
    gate = Gate(GateSettings(risk=0.01, calibration=10))
    assert gate.status().missing >= 230  # whatever the user typed, fewer could not certify anything


def test_audits_are_drawn_from_accepted_samples_only() -> None:
    gate, traffic = Gate(RISK), Traffic(2)
    feed(gate, traffic, 300)
    threshold = gate.status().threshold
    assert threshold is not None
    audits = [d for d, *_ in feed(gate, traffic, 3000) if d.reason == "audit"]
    assert 60 < len(audits) < 150
    assert all(d.score <= threshold and d.certified and d.send for d in audits)


def test_no_number_of_good_audits_loosens_the_threshold() -> None:
    gate, traffic = Gate(RISK), Traffic(3)
    feed(gate, traffic, 300)
    before = gate.status()
    for i in range(5000):
        gate.learn(0.0, False, "audit", f"a{i}")
        gate.learn(0.9, False, "hard", f"h{i}")
    assert gate.status() == before


def test_bad_audits_raise_an_alarm_and_safe_mode_ends_with_a_new_certificate() -> None:
    gate, traffic = Gate(RISK), Traffic(4)
    feed(gate, traffic, 300)
    for i in range(10):
        gate.learn(0.0, True, "audit", f"a{i}")
    status = gate.status()
    assert (status.state, status.missing, status.alarms) == ("safe-mode", SAFE_MODE_SAMPLES, 1)
    assert "audited answers" in status.sentence and "uncertified" in status.sentence
    seen = feed(gate, traffic, SAFE_MODE_SAMPLES)
    assert {d.reason for d, *_ in seen} == {"safe-mode"} and not any(d.certified for d, *_ in seen)
    assert gate.status().state == "certified"


def test_a_gate_whose_neighbours_resemble_each_other_takes_a_longer_set_after_an_alarm() -> None:
    gate, traffic = Gate(replace(RISK, safe_mode=900)), Traffic(4)
    feed(gate, traffic, 300)
    for i in range(10):
        gate.learn(0.0, True, "audit", f"a{i}")
    assert (gate.status().state, gate.status().missing) == ("safe-mode", 900)
    feed(gate, traffic, 899)
    assert gate.status().state == "safe-mode"
    feed(gate, traffic, 1)
    assert gate.status().state == "certified"
    with pytest.raises(ValueError, match="safe_mode"):
        GateSettings(safe_mode=0)


def test_drift_without_a_link_makes_local_answers_uncertified_until_the_spool_is_delivered() -> None:
    gate, calm = Gate(RISK), Traffic(5)
    feed(gate, calm, 300)
    drifted = Traffic(6, hard=4)
    seen = feed(gate, drifted, 1500, answer=False)
    assert gate.status().state == "safe-mode" and gate.status().alarms == 1
    alarm = next(i for i, (d, *_) in enumerate(seen) if d.reason == "safe-mode")
    assert alarm < 200
    assert all(d.send and not d.certified for d, *_ in seen[alarm:])
    gate.learn(0.1, True, "hard", seen[0][1])  # an answer from before the alarm changes nothing
    assert gate.status().missing == SAFE_MODE_SAMPLES
    for decision, name, score, differs in sorted(seen[alarm:], key=lambda x: -x[2]):  # the spool: hardest first
        gate.learn(score, differs, decision.reason, name)
    assert gate.status().state in ("certified", "uncertified")
    assert risk_of(feed(gate, drifted, 2000)) <= 1.7 * RISK.risk


def test_late_answers_do_not_bias_the_calibration() -> None:
    """However the answers are ordered, the certificate is the one of the samples that were sent."""
    results = []
    for order in ("arrival", "hardest first", "easiest first", "random"):
        gate, traffic = Gate(RISK), Traffic(7)
        seen = feed(gate, traffic, 450, answer=False)
        assert gate.status().state == "calibrating"
        keys = {"arrival": lambda x: 0, "hardest first": lambda x: -x[2], "easiest first": lambda x: x[2]}
        ordered = sorted(seen, key=keys[order]) if order != "random" else list(seen)
        if order == "random":
            np.random.default_rng(0).shuffle(ordered)
        for decision, name, score, differs in ordered:
            gate.learn(score, differs, decision.reason, name)
        results.append(gate.snapshot().certificate)
    assert results[0] is not None
    assert results[0].n == 300
    assert all(r == results[0] for r in results)


def test_a_lost_sample_counts_as_one_that_differs() -> None:
    kept, losing = Gate(RISK), Gate(RISK)
    seen = feed(kept, Traffic(8), 300)
    again = feed(losing, Traffic(8), 300, answer=False)
    surest = min(range(300), key=lambda i: seen[i][2])
    for i, (decision, name, score, differs) in enumerate(again):
        if i == surest:
            losing.lost(name)
        else:
            losing.learn(score, differs, decision.reason, name)
    a, b = kept.snapshot().certificate, losing.snapshot().certificate
    assert a is not None and b is not None
    assert b.threshold <= a.threshold and b.differing <= a.differing + 1


def test_too_many_lost_samples_drop_the_block_without_a_look() -> None:
    gate, traffic = Gate(RISK), Traffic(9)
    seen = feed(gate, traffic, 300, answer=False)
    for _, name, *_ in seen[:20]:
        gate.lost(name)
    status = gate.status()
    assert (status.state, status.missing) == ("calibrating", 300)
    assert gate.snapshot().looks == 0
    for decision, name, score, differs in seen:  # the dropped block's answers mean nothing now
        gate.learn(score, differs, decision.reason, name)
    assert gate.status().missing == 300
    feed(gate, traffic, 300)
    assert gate.status().state == "certified"


def test_a_forgotten_sample_does_not_block_the_certificate_for_ever() -> None:
    gate, traffic = Gate(RISK), Traffic(10)
    forgotten = feed(gate, traffic, 1, answer=False)
    assert forgotten[0][0].value == 2.0
    feed(gate, traffic, 299)
    feed(gate, traffic, 2900)
    assert gate.status().missing == 1
    feed(gate, traffic, 200)
    assert gate.status().state == "certified"


def test_repeated_answers_count_once() -> None:
    gate, traffic = Gate(RISK), Traffic(11)
    (decision, name, score, differs), *_ = feed(gate, traffic, 1)
    for _ in range(50):
        gate.learn(score, differs, decision.reason, name)
    assert gate.status().missing == 299


def test_a_pair_that_never_agrees_stays_uncertified_and_sends_everything() -> None:
    gate = Gate(RISK)
    for i in range(2000):
        decision = gate.decide(1.0, 0.5, f"s{i}")
        assert decision.send and not decision.certified
        gate.learn(decision.score, i % 3 == 0, decision.reason, f"s{i}")
    assert gate.status().state == "uncertified"
    assert "Every sample is sent" in gate.status().sentence


def test_every_further_look_is_stricter() -> None:
    """The confidence of all looks together is what the user asked for."""
    gate = Gate(RISK)
    spent = 0.0
    for _ in range(30):
        spent += gate._delta()
        gate._looks += 1
    assert spent == pytest.approx(0.1)


def test_not_a_number_is_hard() -> None:
    gate, traffic = Gate(RISK), Traffic(12)
    feed(gate, traffic, 300)
    decision = gate.decide(float("nan"), 0.5, "x")
    assert (decision.send, decision.reason, decision.score) == (True, "hard", 1.0)


@given(st.integers(0, 700), st.integers(0, 2**32 - 1), st.sampled_from(["risk", "budget"]))
@settings(max_examples=25, deadline=None)
def test_a_restored_gate_goes_on_as_if_nothing_had_happened(cut: int, seed: int, mode: str) -> None:
    config = msgspec.structs.replace(RISK, mode=mode)
    whole, first = Gate(config), Gate(config)
    one, two = Traffic(seed), Traffic(seed)
    feed(whole, one, cut)
    feed(first, two, cut)
    stored = msgspec.json.encode(first.snapshot())
    second = Gate(config)
    assert second.restore(msgspec.json.decode(stored, type=GateSnapshot))
    assert feed(second, two, 500) == feed(whole, one, 500)
    assert second.status() == whole.status()


def test_a_restart_forgets_samples_that_went_down_with_the_power_but_not_those_in_the_spool() -> None:
    gate, traffic = Gate(RISK), Traffic(13)
    feed(gate, traffic, 100)
    spooled = feed(gate, traffic, 20, answer=False)
    feed(gate, traffic, 5, answer=False)  # neither answered nor spooled
    stored = gate.snapshot()
    gate = Gate(RISK)
    assert gate.restore(stored, {name for _, name, *_ in spooled})
    assert gate.status().missing == 200
    for decision, name, score, differs in spooled:
        gate.learn(score, differs, decision.reason, name)
    assert gate.status().missing == 180


def test_a_snapshot_of_other_settings_or_models_is_worth_nothing() -> None:
    gate = Gate(RISK)
    feed(gate, Traffic(14), 300)
    for other in (msgspec.structs.replace(RISK, risk=0.01), msgspec.structs.replace(RISK, pair="a@2>b@1")):
        fresh = Gate(other)
        assert not fresh.restore(gate.snapshot())
        assert fresh.status().state == "calibrating"


def test_a_snapshot_does_not_change_with_the_gate() -> None:
    gate, traffic = Gate(RISK), Traffic(15)
    feed(gate, traffic, 50)
    stored = gate.snapshot()
    before = msgspec.json.encode(stored)
    feed(gate, traffic, 50)
    assert msgspec.json.encode(stored) == before


def test_recalibrate_begins_anew() -> None:
    gate, traffic = Gate(RISK), Traffic(16)
    feed(gate, traffic, 300)
    gate.recalibrate()
    assert (gate.status().state, gate.status().missing) == ("calibrating", 300)
    feed(gate, traffic, 300)
    assert gate.status().state == "certified"


def test_off_sends_nothing() -> None:
    gate = Gate(GateSettings(mode="off"))
    assert not any(gate.decide(0.0, 0.0, str(i)).send for i in range(100))
    assert gate.status().state == "off"


@pytest.mark.parametrize("budget", [0.05, 0.3, 0.7])
def test_a_budget_is_kept_and_spent_on_the_hardest(budget: float) -> None:
    gate, traffic = Gate(GateSettings(mode="budget", budget=budget)), Traffic(17)
    warm = feed(gate, traffic, WARM_UP)
    assert all(d.reason == "calibrating" for d, *_ in warm)
    assert gate.status().threshold is not None
    seen = feed(gate, traffic, 4000)
    assert np.mean([d.send for d, *_ in seen]) == pytest.approx(budget, abs=0.03)
    hard = [d.score for d, *_ in seen if d.reason == "hard"]
    local = [d.score for d, *_ in seen if not d.send]
    assert np.mean(hard) > np.mean(local) + 0.1
    assert not any(d.certified for d, *_ in seen)


def test_the_whole_budget_and_none_at_all() -> None:
    everything, nothing = (Gate(GateSettings(mode="budget", budget=b)) for b in (1.0, 0.0))
    assert all(d.send for d, *_ in feed(everything, Traffic(21), 500))
    assert not any(d.send for d, *_ in feed(nothing, Traffic(21), 500))


def test_a_budget_holds_when_the_traffic_changes() -> None:
    gate = Gate(GateSettings(mode="budget", budget=0.3))
    feed(gate, Traffic(18), 2000)
    harder = Traffic(19, hard=5)
    feed(gate, harder, 1000)
    assert np.mean([d.send for d, *_ in feed(gate, harder, 2000)]) == pytest.approx(0.3, abs=0.04)
    assert gate.status().alarms >= 1


def test_a_budget_reports_the_risk_that_its_audits_support() -> None:
    gate, traffic = Gate(GateSettings(mode="budget", budget=0.3, audit_share=0.1)), Traffic(20)
    seen = feed(gate, traffic, 5000)
    bound = gate.status().bound
    assert bound is not None
    assert risk_of(seen[WARM_UP:]) <= bound < 0.05
    assert "audits" in gate.status().sentence


@pytest.mark.parametrize(
    "wrong", [{"risk": 0.0}, {"confidence": 1.0}, {"budget": 1.5}, {"audit_share": -1.0}, {"calibration": 0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GateSettings(**wrong)
