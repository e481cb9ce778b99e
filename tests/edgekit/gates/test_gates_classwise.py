from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.gates.classwise import ClasswiseGate, ClasswiseSettings, ClasswiseSnapshot, Group
from edgekit.gates.policy import Gate, GateDecision, GateSettings

LABELS = ["clean", "open", "short"]


def settings_for(
    clean: float = 0.02, defect: float = 0.05, calibration: int = 200, compare: str = "label", confidence: float = 0.95
) -> ClasswiseSettings:
    """A missed defect may be rare, a false alarm less so."""
    shared = {"confidence": confidence, "calibration": calibration, "audit_share": 0.1}
    return ClasswiseSettings(
        groups=[
            Group(name="clean", labels=["clean"], good=True, gate=GateSettings(risk=clean, **shared)),
            Group(name="defect", gate=GateSettings(risk=defect, **shared)),
        ],
        compare=compare,  # type: ignore[arg-type]
    )


class Traffic:
    """Two models; "clean" is common. How often the cloud differs rises with the score, in each group in its own way."""

    def __init__(self, seed: int, clean: float = 0.8) -> None:
        self.rng = np.random.default_rng(seed)
        self.clean = clean
        self.steep = {"clean": 0.5, "open": 0.9, "short": 0.9}
        self.count = 0

    def next(self) -> tuple[str, str, float, str]:
        """Edge's label, cloud's, score, sample id."""
        self.count += 1
        label = "clean" if self.rng.random() < self.clean else str(self.rng.choice(LABELS[1:]))
        score = float(self.rng.beta(0.5, 2.0))
        others = [other for other in LABELS if other != label]
        differs = self.rng.random() < self.steep[label] * score**2
        return label, str(self.rng.choice(others)) if differs else label, score, f"s{self.count}"

    def risk(self, label: str, threshold: float, draws: int = 200_000) -> float:
        """The true share of a label's samples that a threshold answers locally and that differ."""
        scores = np.random.default_rng(0).beta(0.5, 2.0, draws)
        return float(np.mean(np.where(scores <= threshold, self.steep[label] * scores**2, 0.0)))


def feed(gate: ClasswiseGate, traffic: Traffic, n: int) -> list[tuple[GateDecision, str, str]]:
    seen = []
    for _ in range(n):
        label, answered, score, name = traffic.next()
        decision = gate.decide(label, 1 - score, float(traffic.rng.random()), name)
        seen.append((decision, label, answered))
        if decision.reason is not None:
            gate.learn(label, answered, decision.score, decision.reason, name)
    return seen


def test_each_group_is_calibrated_on_its_own_samples_and_keeps_its_own_risk() -> None:
    gate, traffic = ClasswiseGate(settings_for()), Traffic(1)
    feed(gate, traffic, 400)
    clean, defect = gate.status().groups
    assert (clean.gate.state, defect.gate.state) == ("certified", "calibrating")
    assert clean.share == pytest.approx(0.8, abs=0.05)
    feed(gate, traffic, 1000)
    clean, defect = gate.status().groups
    assert clean.gate.bound is not None and clean.gate.bound <= 0.02
    assert defect.gate.bound is not None and 0.02 < defect.gate.bound <= 0.05
    seen = feed(gate, traffic, 4000)
    assert all(d.reason == "hard" for d, label, _ in seen if label == "clean" and d.score > (clean.gate.threshold or 0))


def test_the_certificates_hold_for_each_group_and_what_follows_for_all_traffic() -> None:
    """Monte Carlo: how often is a group's true risk above its target, and the total above the weighted bounds?"""
    runs, broken, total_broken, above = 150, {"clean": 0, "defect": 0}, 0, 0
    confidence = 0.9
    grid = np.linspace(0, 1, 401)
    risks = {label: [Traffic(0).risk(label, t, 20_000) for t in grid] for label in ("clean", "open")}
    for seed in range(runs):
        gate, traffic = ClasswiseGate(settings_for(0.02, 0.05, 150, confidence=confidence)), Traffic(seed, clean=0.6)
        while gate.status().bound is None:
            feed(gate, traffic, 50)
        clean, defect = gate.status().groups
        true = {
            name: float(np.interp(one.gate.threshold or 0.0, grid, risks[label]))
            for name, label, one in (("clean", "clean", clean), ("defect", "open", defect))
        }
        broken["clean"] += true["clean"] > 0.02
        broken["defect"] += true["defect"] > 0.05
        total = 0.6 * true["clean"] + 0.4 * true["defect"]
        total_broken += total > 0.6 * 0.02 + 0.4 * 0.05
        above += total > (gate.status().bound or 0.0)
    spread = 3 * (confidence * (1 - confidence) / runs) ** 0.5
    assert all(0 < count / runs <= 1 - confidence + spread for count in broken.values())
    assert total_broken / runs <= 2 * (1 - confidence) + spread
    assert above / runs <= 2 * (1 - confidence) + spread


def test_a_groups_risk_is_a_share_of_the_group_not_of_all_traffic() -> None:
    """With one certificate for all, the rare group may differ far more often than the target says."""
    traffic = Traffic(3, clean=0.95)
    traffic.steep = {"clean": 0.05, "open": 1.0, "short": 1.0}
    shared = GateSettings(risk=0.02, calibration=600)
    plain = ClasswiseGate(ClasswiseSettings(groups=[Group(name="all", gate=shared)]))
    apart = ClasswiseGate(settings_for(0.02, 0.02, 600))
    for gate in (plain, apart):
        while gate.status().bound is None:
            feed(gate, traffic, 200)
    one, own = plain.status().groups[0].gate.threshold, apart.status().groups[1].gate.threshold
    assert one is not None and own is not None
    assert traffic.risk("open", one) > 3 * 0.02
    assert traffic.risk("open", own) <= 0.02


def test_one_group_is_the_plain_gate() -> None:
    config = GateSettings(risk=0.03, calibration=150, audit_share=0.1)
    whole, plain = ClasswiseGate(ClasswiseSettings(groups=[Group(name="all", gate=config)])), Gate(config)
    one, other = Traffic(4), Traffic(4)
    for _ in range(1500):
        label, answered, score, name = one.next()
        decision = whole.decide(label, 1 - score, float(one.rng.random()), name)
        _, _, same, _ = other.next()
        assert decision == plain.decide(1 - same, float(other.rng.random()), name)
        if decision.reason is not None:
            whole.learn(label, answered, decision.score, decision.reason, name)
            plain.learn(decision.score, label != answered, decision.reason, name)
    assert whole.status().groups[0].gate == plain.status()


def test_escapes_and_overkill_are_counted_from_audits_and_bounded() -> None:
    gate = ClasswiseGate(settings_for(compare="group"))
    rows = [("clean", "clean")] * 90 + [("clean", "open")] * 2 + [("open", "clean")] * 3 + [("open", "short")] * 7
    for i, (label, answered) in enumerate(rows):
        gate.learn(label, answered, 0.1, "audit", f"a{i}")
        gate.learn(label, answered, 0.9, "hard", f"h{i}")  # hard ones were not answered here
    clean, defect = gate.status().groups
    assert (clean.escape.count, clean.escape.audits, clean.overkill.count) == (2, 92, 0)
    assert clean.escape.bound == clopper_pearson_upper(2, 92, 1 - 0.95)
    assert (defect.overkill.count, defect.overkill.audits, defect.escape.count) == (3, 10, 0)
    sentence = gate.status().sentence
    assert "2 of 92 audits were escaped" in sentence and "3 of 10 audits were overkill" in sentence


def test_the_reported_escape_bound_covers_the_true_share_of_escapes() -> None:
    kept, runs = 0, 40
    for seed in range(runs):
        gate, traffic = ClasswiseGate(settings_for(0.05, 0.1, 150, confidence=0.9)), Traffic(seed)
        while gate.status().bound is None:
            feed(gate, traffic, 100)
        seen = [one for one in feed(gate, traffic, 2500) if one[1] == "clean" and one[0].reason in (None, "audit")]
        bound = gate.status().groups[0].escape.bound
        kept += bound is not None and float(np.mean([answered != "clean" for *_, answered in seen])) <= bound
    assert kept / runs >= 0.9 - 0.12


def test_what_differs_is_another_label_or_only_another_group() -> None:
    by_label, by_group = ClasswiseGate(settings_for()), ClasswiseGate(settings_for(compare="group"))
    assert by_label.differs("open", "short") and not by_group.differs("open", "short")
    assert by_label.differs("open", "clean") and by_group.differs("open", "clean")
    assert not by_label.differs("open", "open")
    assert by_group.differs("clean", "a label that only the cloud knows")


def test_a_lost_sample_counts_in_its_own_group_only() -> None:
    gate, traffic = ClasswiseGate(settings_for()), Traffic(6)
    for _ in range(100):
        label, _, score, name = traffic.next()
        gate.decide(label, 1 - score, 0.5, name)
    before = [one.gate.missing for one in gate.status().groups]
    gate.decide("open", 0.5, 0.5, "gone")
    gate.lost("gone")
    assert [one.gate.missing for one in gate.status().groups] == [before[0], before[1] - 1]


def test_the_sentence_says_whose_share_it_is() -> None:
    gate, traffic = ClasswiseGate(settings_for()), Traffic(7)
    sentence = gate.status().sentence
    assert "clean (0% of the samples): calibrating: all of them are sent, 200 answers are missing." in sentence
    assert "Together" not in sentence
    feed(gate, traffic, 2000)
    status = gate.status()
    assert status.bound is not None and status.expected is not None and status.expected < status.bound
    assert status.confidence == pytest.approx(0.9)
    assert f"Together: at most {status.bound:.1%} of all samples" in status.sentence
    assert "of them are answered here" in status.sentence


@given(st.integers(0, 900), st.integers(0, 2**32 - 1))
@settings(max_examples=12)
def test_a_restored_gate_goes_on_as_if_nothing_had_happened(cut: int, seed: int) -> None:
    whole, first, second = (ClasswiseGate(settings_for(0.05, 0.1, 120)) for _ in range(3))
    one, two = Traffic(seed), Traffic(seed)
    feed(whole, one, cut)
    feed(first, two, cut)
    stored = msgspec.json.encode(first.snapshot())
    assert second.restore(msgspec.json.decode(stored, type=ClasswiseSnapshot))
    assert feed(second, two, 400) == feed(whole, one, 400)
    assert second.status() == whole.status()


def test_a_snapshot_of_other_groups_is_worth_nothing() -> None:
    gate = ClasswiseGate(settings_for())
    feed(gate, Traffic(8), 500)
    other = ClasswiseGate(settings_for(clean=0.01))
    assert not other.restore(gate.snapshot())
    assert [one.gate.state for one in other.status().groups] == ["calibrating"] * 2
    gate.recalibrate()
    assert gate.status().groups == ClasswiseGate(settings_for()).status().groups


def test_groups_that_cannot_be_told_apart_are_refused() -> None:
    rest, clean = Group(name="rest"), Group(name="clean", labels=["clean"])
    for groups, said in (
        ([], "0 groups"),
        ([clean], "0 groups have no labels"),
        ([rest, Group(name="other")], "2 groups have no labels"),
        ([rest, clean, Group(name="clean", labels=["x"])], "name 'clean'"),
        ([rest, clean, Group(name="good", labels=["clean"])], "label 'clean'"),
    ):
        with pytest.raises(ValueError, match=said):
            ClasswiseSettings(groups=groups)
