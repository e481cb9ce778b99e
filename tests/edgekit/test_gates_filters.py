"""Sedna's filters: equal to Sedna where its formula is defined, hard where it is not, and a gate that only measures."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import sedna_rules
from edgekit.gates.filter_gate import AUDITS, WINDOW, FilterGate, FilterSettings, FilterSnapshot
from edgekit.gates.filters import FILTERS, FilterParameters, Seen, complete, cross_entropy, ibt, is_hard, threshold

FIXTURE = Path(__file__).parents[1] / "fixtures" / "pcb_bare_logits.npz"

anything = st.lists(st.floats(), max_size=12)
share = st.floats(0.0, 1.0)
shares = st.lists(share, min_size=1, max_size=12)
names = st.sampled_from(list(FILTERS))


def parameters(name: str, value: float | None = None) -> dict[str, float]:
    return {key: default if value is None else value for key, default in FILTERS[name].items()}


def settings(name: str = "IBT", value: float | None = None, **changes: object) -> FilterSettings:
    return FilterSettings(filter=name, parameters=parameters(name, value), **changes)


# --- the rules ------------------------------------------------------------------------------------------------------


@given(names, share, anything, anything, st.floats(0.0, 1.0, exclude_max=True))
def test_no_output_of_a_model_makes_a_filter_raise(
    name: str, value: float, scores: list[float], probabilities: list[float], u: float
) -> None:
    assert is_hard(name, parameters(name, value), Seen(scores, probabilities), u) in (True, False)
    arrays = Seen(np.array(scores), np.array(probabilities))
    assert is_hard(name, parameters(name, value), arrays, u) == is_hard(
        name, parameters(name, value), Seen(scores, probabilities), u
    )


@given(shares, share, share)
def test_ibt_is_sednas(scores: list[float], t_img: float, t_box: float) -> None:
    assert ibt(scores, t_img, t_box) == (len([s for s in scores if s <= t_box]) / len(scores) >= (1 - t_img))


@given(shares, share)
def test_threshold_is_sednas(scores: list[float], t: float) -> None:
    image_score = 0.0
    for score in scores:
        image_score += score
    assert threshold(scores, t) == (image_score / len(scores) < t)


@given(st.lists(st.floats(0.0, 1.0, exclude_min=True), min_size=2, max_size=12), share)
def test_cross_entropy_is_sednas(probabilities: list[float], t: float) -> None:
    log_sum = 0.0
    for p in probabilities:
        log_sum += p * math.log(p)
    assert cross_entropy(probabilities, t) == (1 + 1.0 * log_sum / math.log(len(probabilities)) < t)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_benchmark_measures_the_filters_that_run(dtype: type[np.floating]) -> None:
    with np.load(FIXTURE) as archive:
        logits = archive["edge"].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = (powers / powers.sum(axis=1, keepdims=True)).astype(dtype)
    for name, t, measured in (
        ("IBT", 0.5, sedna_rules.ibt(p)),
        ("IBT", 0.9, sedna_rules.ibt(p, 0.9, 0.9)),
        ("CrossEntropy", 0.5, sedna_rules.cross_entropy(p)),
        ("Threshold", 0.5, sedna_rules.threshold(p)),
    ):
        ours = [is_hard(name, parameters(name, t), Seen([row.max()], row), 0.5) for row in p]
        assert ours == measured.tolist()
        assert 0.05 < np.mean(ours) < 0.8


@pytest.mark.parametrize("name", ["IBT", "Threshold"])
@pytest.mark.parametrize(
    "scores",
    [[], [math.nan], [0.9, math.nan], [math.inf], [0.99, -0.1], [0.99, 1.1]],
    ids=["no box", "nan", "one nan", "infinite", "negative", "over one"],
)
def test_boxes_that_cannot_be_judged_are_hard(name: str, scores: list[float]) -> None:
    for t in (0.0, 0.5, 0.9):
        assert is_hard(name, parameters(name, t), Seen(scores), 0.5)


@pytest.mark.parametrize(
    "probabilities",
    [[], [1.0], [0.3], [0.0, 0.0], [math.nan, 0.9], [math.inf, 0.0], [7.5, -3.0], [1.2, 0.0]],
    ids=["none", "one class, sure", "one class", "no mass", "nan", "infinite", "logits", "over one"],
)
def test_probabilities_that_cannot_be_judged_are_hard(probabilities: list[float]) -> None:
    assert cross_entropy(probabilities, 0.0)
    assert cross_entropy(probabilities, 0.5)


def test_a_probability_of_zero_is_the_limit_of_small_ones() -> None:
    for t in (0.1, 0.5, 0.9):
        assert cross_entropy([0.8, 0.2, 0.0], t) == cross_entropy([0.8, 0.2, 1e-300], t)
    assert not cross_entropy([1.0, 0.0], 1.0), "certain is as easy as can be"
    # With two classes the default of 0.5 is crossed where the better one has about 0.89.
    assert not cross_entropy([0.9, 0.1], 0.5) and cross_entropy([0.88, 0.12], 0.5)


@given(shares, share, share)
def test_a_higher_threshold_never_sends_less(scores: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    for name in ("IBT", "Threshold", "CrossEntropy", "Random"):
        seen = Seen(scores, scores)
        easy = not is_hard(name, parameters(name, high), seen, one)
        assert not (easy and is_hard(name, parameters(name, low), seen, one))


def test_random_edge_only_and_cloud_only() -> None:
    seen = Seen([0.5])
    drawn = [is_hard("Random", parameters("Random"), seen, u / 1000) for u in range(1000)]
    assert sum(drawn) == 300
    assert not is_hard("Random", parameters("Random", 0.0), seen, 0.0)
    assert is_hard("Random", parameters("Random", 1.0), seen, 1.0 - 2**-53)
    assert not is_hard("EdgeOnly", {}, Seen([]), 0.0)
    assert is_hard("CloudOnly", {}, Seen([1.0], [1.0, 0.0]), 0.999)
    with pytest.raises(ValueError, match="no filter 'ibt'"):
        is_hard("ibt", {}, seen, 0.5)


def test_what_is_not_given_has_sednas_default() -> None:
    assert complete("IBT", None) == {"threshold_img": 0.5, "threshold_box": 0.5}
    assert complete("IBT", FilterParameters(threshold_box=0.9)) == {"threshold_img": 0.5, "threshold_box": 0.9}
    assert complete("Random", None) == {"random_ratio": 0.3}
    assert complete("Random", FilterParameters(random_ratio=0.0)) == {"random_ratio": 0.0}
    assert complete("EdgeOnly", None) == {}


# --- the gate -------------------------------------------------------------------------------------------------------


def test_hard_samples_are_sent_and_the_others_audited() -> None:
    gate = FilterGate(settings("IBT", 0.9, audit_share=0.1))
    hard = gate.decide(0.2, 0.05, "a", Seen([0.6]))
    assert (hard.send, hard.reason, hard.certified, hard.score) == (True, "hard", False, pytest.approx(0.8))
    audit = gate.decide(0.99, 0.05, "b", Seen([0.995]))
    assert (audit.send, audit.reason, audit.certified, audit.value) == (True, "audit", False, 1.0)
    easy = gate.decide(0.99, 0.15, "c", Seen([0.995]))
    assert (easy.send, easy.reason, easy.certified) == (False, None, False)
    assert gate.decide(math.nan, 0.5, "d", Seen([])).score == 1.0


def test_edge_only_sends_not_even_audits_and_cloud_only_everything() -> None:
    edge, cloud = FilterGate(settings("EdgeOnly", audit_share=1.0)), FilterGate(settings("CloudOnly"))
    for number in range(50):
        assert not edge.decide(0.0, 0.0, f"s{number}", Seen([], [])).send
        decision = cloud.decide(1.0, 0.5, f"s{number}", Seen([1.0], [1.0, 0.0]))
        assert (decision.send, decision.reason) == (True, "hard")
    assert edge.status().state == "off" and cloud.status().state == "filter"
    for gate in (edge, cloud):
        assert "promises no risk" in gate.status().sentence and 'mode "risk"' in gate.status().sentence
        assert gate.status().bound is None


def test_the_status_promises_nothing_and_names_what_does() -> None:
    gate = FilterGate(settings("IBT", 0.9))
    assert gate.status().sentence == (
        "IBT (threshold_img 0.9, threshold_box 0.9): no sample has come yet. It promises no risk,"
        ' mode "risk" would; nothing is known yet about the answers made here.'
    )
    silent = FilterGate(settings("Threshold", audit_share=0.0))
    silent.decide(0.1, 0.0, "a", Seen([0.4]))
    silent.decide(0.9, 0.0, "b", Seen([0.95]))
    sentence = silent.status().sentence
    assert "50% of the last 2 samples were hard and sent" in sentence and "audit_share is 0" in sentence


def test_only_audits_that_this_gate_asked_for_are_counted() -> None:
    gate = FilterGate(settings("Threshold", audit_share=1.0))
    assert gate.decide(0.9, 0.0, "mine", Seen([0.95])).reason == "audit"
    assert gate.decide(0.1, 0.0, "hard", Seen([0.4])).reason == "hard"
    for other in ("hard", "another"):
        gate.learn(0.1, True, "audit", other)
    assert gate.status().bound is None
    gate.learn(0.1, True, "audit", "mine")
    gate.learn(0.1, False, "audit", "mine")
    assert gate.snapshot().audits == [True]
    gate.decide(0.9, 0.0, "gone", Seen([0.95]))
    gate.lost("gone")
    gate.lost("never heard of")
    gate.learn(0.1, True, "audit", "gone")
    assert gate.snapshot().audits == [True] and gate.snapshot().waiting == []


def traffic(gate: FilterGate, rng: np.random.Generator, n: int) -> tuple[int, int]:
    """Samples whose label differs the more often the less sure they are; local answers that differ, samples sent."""
    wrong = sent = 0
    for _ in range(n):
        best = 0.5 + 0.5 * float(rng.beta(3.0, 1.0))
        differs = bool(rng.random() < 0.4 * (1 - best))
        name = str(rng.integers(2**60))
        decision = gate.decide(2 * best - 1, float(rng.random()), name, Seen([best], [best, 1 - best]))
        wrong += differs and decision.reason in (None, "audit")
        sent += decision.reason == "hard"
        if decision.reason is not None:
            gate.learn(decision.score, differs, decision.reason, name)
    return wrong, sent


@pytest.mark.parametrize("name", ["Threshold", "CrossEntropy", "Random"])
def test_the_bound_that_audits_support_holds(name: str) -> None:
    broken, bounds = 0, []
    value = 0.8 if name == "Threshold" else None
    truth = FilterGate(settings(name, value, audit_share=0.0))
    wrong, _ = traffic(truth, np.random.default_rng(7), 60_000)
    risk = wrong / 60_000
    for seed in range(40):
        gate = FilterGate(settings(name, value, audit_share=0.2, confidence=0.9))
        traffic(gate, np.random.default_rng(seed), 1500)
        bound = gate.status().bound
        assert bound is not None
        bounds.append(bound)
        broken += bound < risk
    assert broken <= 40 * 0.1
    assert np.mean(bounds) < 3 * risk, "and it says something"


def test_random_is_its_own_audit() -> None:
    gate = FilterGate(settings("Random", audit_share=1.0))
    _, sent = traffic(gate, np.random.default_rng(1), 1000)
    assert 250 < sent < 350, "no further samples are sent for audits"
    assert len(gate.snapshot().audits) == min(sent, AUDITS)
    assert "audits)" in gate.status().sentence


def test_a_drift_makes_the_old_audits_worthless() -> None:
    gate = FilterGate(settings("Threshold", 0.3, audit_share=0.5))
    for number in range(700):
        decision = gate.decide(0.95, (number % 10) / 10, f"s{number}", Seen([0.9]))
        if decision.reason == "audit":
            gate.learn(decision.score, False, "audit", f"s{number}")
    assert gate.status().bound is not None and gate.status().alarms == 0
    for number in range(150):
        gate.decide(0.5, 0.99, f"d{number}", Seen([0.9]))
        if gate.status().alarms:
            break
    status = gate.status()
    assert status.alarms == 1 and status.bound is None
    assert "nothing is known yet" in status.sentence


@pytest.mark.parametrize("name", list(FILTERS))
def test_a_restart_changes_nothing(name: str) -> None:
    gate = FilterGate(settings(name, audit_share=0.1, pair="a b"))
    rng = np.random.default_rng(3)
    traffic(gate, rng, 900)
    for number in range(20):
        gate.decide(0.9, 0.0, f"out{number}", Seen([0.95], [0.95, 0.05]))
    stored = msgspec.json.decode(msgspec.json.encode(gate.snapshot()), type=FilterSnapshot)
    again = FilterGate(gate.settings)
    assert again.restore(stored, [*gate.snapshot().waiting])
    assert again.snapshot() == gate.snapshot() and again.status() == gate.status()
    kept = FilterGate(gate.settings)
    assert kept.restore(stored, [])
    assert kept.snapshot().waiting == [], "what neither waits nor was answered went down with the power"
    for changed in (
        settings(name, audit_share=0.2, pair="a b"),
        settings(name, audit_share=0.1, pair="a c"),
        *([settings(name, 0.7, audit_share=0.1, pair="a b")] if FILTERS[name] else []),
    ):
        other = FilterGate(changed)
        assert not other.restore(stored, [])
        assert other.snapshot() == FilterGate(changed).snapshot()


def test_recalibrating_forgets_what_was_measured_and_keeps_the_filter() -> None:
    gate = FilterGate(settings("Threshold", audit_share=0.5))
    traffic(gate, np.random.default_rng(5), 500)
    assert gate.status().bound is not None
    gate.recalibrate()
    assert gate.snapshot() == FilterGate(gate.settings).snapshot()
    assert gate.decide(0.1, 0.9, "x", Seen([0.4])).send


def test_what_the_gate_remembers_is_bounded() -> None:
    gate = FilterGate(settings("Threshold", audit_share=1.0))
    for number in range(3 * WINDOW):
        gate.decide(0.9, 0.0, f"s{number}", Seen([0.95]))
    snapshot = gate.snapshot()
    assert len(snapshot.hard) == WINDOW and len(snapshot.waiting) == AUDITS
    assert snapshot.waiting[-1] == f"s{3 * WINDOW - 1}", "the newest are kept"
    assert len(snapshot.drift_scores) <= 600 and not snapshot.scores


@pytest.mark.parametrize(
    "wrong",
    [
        {"filter": "ibt", "parameters": {}},
        {"filter": "IBT", "parameters": {"threshold_img": 0.5}},
        {"filter": "IBT", "parameters": {"threshold_img": 0.5, "threshold_box": 1.5}},
        {"filter": "Random", "parameters": {"random_ratio": math.nan}},
        {"filter": "EdgeOnly", "parameters": {"threshold": 0.5}},
        {"filter": "EdgeOnly", "parameters": {}, "audit_share": -0.1},
        {"filter": "EdgeOnly", "parameters": {}, "confidence": 1.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"filter|threshold|random_ratio|audit_share|confidence"):
        FilterSettings(**wrong)
