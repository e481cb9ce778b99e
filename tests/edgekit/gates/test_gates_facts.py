"""What gates tell the triggers of learning: counts and bounds since the certificate, nothing from before it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgekit.gates.audits import Since
from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.gates.classwise import ClasswiseGate, ClasswiseSettings, Group
from edgekit.gates.filter_gate import FilterGate, FilterSettings
from edgekit.gates.filters import Seen
from edgekit.gates.policy import Gate, GateSettings, GateSnapshot
from edgekit.messages import GateFacts, SendReason

RISK = GateSettings(mode="risk", risk=0.05, calibration=200, audit_share=0.2)


def run(gate: Gate, rng: np.random.Generator, n: int, differing: float = 0.0, audited: float | None = None) -> int:
    """n samples, two thirds of them sure; `audited`: share of the sure ones that differ from now on. The last id."""
    wrong = 0
    for index in range(n):
        score = float(rng.choice([0.01, 0.02, 0.9]))
        decision = gate.decide(1 - score, float(rng.random()), f"{n}-{index}")
        share = audited if audited is not None and score < 0.5 else differing
        differs = bool(rng.random() < share)
        wrong += differs and decision.reason in (None, "audit")
        if decision.reason is not None:
            gate.learn(decision.score, differs, decision.reason, f"{n}-{index}")
    return wrong


def certified(rng: np.random.Generator, settings: GateSettings = RISK) -> Gate:
    gate = Gate(settings)
    for index in range(settings.calibration):
        score = float(rng.choice([0.01, 0.02, 0.9]))
        gate.decide(1 - score, 0.5, str(index))
        gate.learn(score, score > 0.5, "calibrating", str(index))
    assert gate.status().state == "certified"
    return gate


def test_a_gate_that_calibrates_promises_a_risk_and_has_measured_nothing() -> None:
    assert Gate(RISK).facts() == GateFacts(alpha=0.05)
    assert Gate(GateSettings(mode="off")).facts() is None


def test_the_share_that_the_calibration_sends_has_the_audits_in_it() -> None:
    facts = certified(np.random.default_rng(1)).facts()
    assert facts is not None and facts.calibrated is not None
    assert (facts.seen, facts.audits, facts.audit_bound) == (0, 0, None)
    assert facts.calibrated == pytest.approx(1 / 3 + 2 / 3 * 0.2, abs=0.08)


def test_seen_and_audited_samples_are_counted_since_the_certificate_only() -> None:
    rng = np.random.default_rng(2)
    gate = certified(rng)
    run(gate, rng, 600)
    facts = gate.facts()
    assert facts is not None and facts.seen == 600 and facts.looks == 0 and facts.audit_bound is not None
    assert 40 < facts.audits < 120, "a fifth of what is decided here"
    assert facts.audit_bound == pytest.approx(2 / 3 * clopper_pearson_upper(0, facts.audits, 0.1), rel=0.1)
    gate.recalibrate()
    assert gate.facts() == GateFacts(alpha=0.05)


def test_the_bound_holds_for_the_traffic_since_the_certificate_as_often_as_it_says() -> None:
    held = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        gate = certified(rng)
        wrong = run(gate, rng, 300, audited=0.03)
        facts = gate.facts()
        assert facts is not None
        if facts.alarms or facts.audit_bound is None:
            held += 1
            continue
        held += wrong / 300 <= facts.audit_bound
    assert held >= 0.85 * 120, "with 90 % confidence"


def test_looks_are_those_in_a_row_that_certified_nothing_and_alarms_stay() -> None:
    rng = np.random.default_rng(3)
    gate = certified(rng)
    run(gate, rng, 400, audited=0.9)  # the audits say so
    facts = gate.facts()
    assert facts is not None and (facts.alarms, facts.calibrated, facts.seen, facts.audits) == (1, None, 0, 0)
    run(gate, rng, 1200, differing=0.9)
    facts = gate.facts()
    assert facts is not None and facts.looks >= 2 and facts.alarms == 1


def test_the_counts_go_on_after_a_restart_and_old_states_can_be_read() -> None:
    rng = np.random.default_rng(4)
    gate = certified(rng)
    run(gate, rng, 300)
    stored = msgspec.json.encode(gate.snapshot())
    again = Gate(RISK)
    assert again.restore(msgspec.json.decode(stored, type=GateSnapshot))
    assert again.facts() == gate.facts()
    run(again, rng, 50)
    assert gate.snapshot().since.seen == 300, "the copy does not count for the original"
    raw = msgspec.json.decode(stored)
    del raw["since"]
    old = Gate(RISK)
    assert old.restore(msgspec.convert(raw, GateSnapshot))
    facts = old.facts()
    assert facts is not None and (facts.seen, facts.audits) == (0, 0) and facts.calibrated is not None


def test_budget_mode_has_a_share_and_no_promise() -> None:
    gate = Gate(GateSettings(mode="budget", budget=0.4, audit_share=0.5))
    rng = np.random.default_rng(5)
    assert gate.facts() == GateFacts()
    for index in range(800):
        decision = gate.decide(float(rng.random()), float(rng.random()), str(index))
        if decision.reason is not None:
            gate.learn(decision.score, False, decision.reason, str(index))
    facts = gate.facts()
    assert facts is not None and (facts.alpha, facts.calibrated) == (None, 0.4)
    assert facts.audits > 0 and facts.audit_bound is not None and facts.audit_bound < 0.5


def test_a_filter_promises_nothing_and_tells_what_its_audits_say() -> None:
    gate = FilterGate(FilterSettings(filter="Threshold", parameters={"threshold": 0.5}, audit_share=0.5))
    rng = np.random.default_rng(6)
    for index in range(100):
        decision = gate.decide(0.9, float(rng.random()), str(index), Seen([0.9]))
        if decision.reason is not None:
            gate.learn(decision.score, False, decision.reason, str(index))
    facts = gate.facts()
    assert facts is not None and facts.seen == 100 and facts.audits > 20 and facts.audit_bound is not None
    assert (facts.alpha, facts.calibrated) == (None, None)
    assert FilterGate(FilterSettings(filter="EdgeOnly", parameters={})).facts() is None


def test_of_groups_the_one_that_is_nearest_to_its_risk_speaks() -> None:
    """The rare group's audits are bad; among all samples they would not be noticed."""
    settings = ClasswiseSettings(
        groups=[Group(name="good", labels=["ok"], good=True, gate=RISK), Group(name="defect", gate=RISK)]
    )
    gate = ClasswiseGate(settings)
    rng = np.random.default_rng(7)
    number = 0

    def feed(label: str, n: int, wrong: float, reason: SendReason = "calibrating") -> None:
        nonlocal number
        for _ in range(n):
            number += 1
            decision = gate.decide(label, 0.98, 0.1, str(number))
            answered = "other" if rng.random() < wrong else label
            gate.learn(label, answered, decision.score, decision.reason or reason, str(number))

    feed("ok", 200, 0.0)
    feed("short", 200, 0.0)
    feed("ok", 400, 0.0)
    feed("short", 30, 0.05)
    facts = gate.facts()
    assert facts is not None and facts.audits == 30 and facts.seen == 30
    assert facts.audit_bound is not None and facts.audit_bound > 0.05


def test_a_bound_needs_an_audit() -> None:
    assert Since().bound(0.9) is None and Since(seen=9, kept=9).bound(0.9) is None
    assert Since(seen=10, kept=10, audits=10, differing=10).bound(0.9) == 1.0
