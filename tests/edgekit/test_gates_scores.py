from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.gates.budget import RecentScores, budget_threshold
from edgekit.gates.drift import WINDOWS, AuditAlarm, DriftAlarm, reference
from edgekit.gates.scores import hardness, margins


def test_margin_is_best_minus_second_best() -> None:
    assert margins(np.array([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4]])).tolist() == pytest.approx([0.5, 0.0])
    assert margins(np.array([0.25])).tolist() == 0.25


def test_hardness_of_nonsense_is_the_hardest() -> None:
    assert hardness(0.75) == 0.25
    assert [hardness(x) for x in (math.nan, math.inf, -0.1, 1.1)] == [1.0] * 4


scores = st.lists(st.floats(0, 1), min_size=1, max_size=300)


@given(scores, st.floats(0.01, 1))
def test_a_budget_is_never_exceeded_and_nearly_used_up(values: list[float], share: float) -> None:
    threshold = budget_threshold(values, share)
    above = sum(v > threshold for v in values)
    assert above <= share * len(values) + 1e-6
    ties = values.count(threshold)
    assert above + ties >= math.floor(share * len(values)) - 1e-6


@given(scores, st.integers(1, 50), st.floats(0.01, 1))
@settings(max_examples=60)
def test_recent_scores_hold_the_last_ones(values: list[float], size: int, share: float) -> None:
    recent = RecentScores(size)
    for value in values:
        recent.add(value)
    assert recent.arrived == values[-size:]
    assert recent.threshold(share) == budget_threshold(values[-size:], share)


def test_the_drift_alarm_keeps_silent_on_skewed_and_clustered_traffic() -> None:
    rng = np.random.default_rng(5)
    for _ in range(8):  # five joints a board, boards differ, few joints are hard
        board = np.repeat(rng.beta(0.3, 8, 1000), 5)
        stream = np.clip(board + rng.beta(0.2, 6, 5000) - 0.03, 0, 1)
        alarm = DriftAlarm(reference(stream[:1000].tolist()))
        assert not any(alarm.observe(float(s)) for s in stream[1000:])


def frames(rng: np.random.Generator, count: int, harder: float = 1.0) -> list[float]:
    """Frames of 169 tiles that resemble each other, one after the other."""
    board = np.repeat(rng.beta(4 * harder, 60, count), 169)
    return [float(score) for score in np.clip(board + rng.beta(0.2, 6, 169 * count) - 0.03, 0, 1)]


def test_the_drift_alarm_seldom_goes_off_while_a_window_lies_within_one_frame_and_hears_a_change_of_all() -> None:
    rng = np.random.default_rng(7)
    false = heard = 0
    for _ in range(20):
        ref = reference(frames(rng, 48))
        alarm, other = DriftAlarm(ref), DriftAlarm(ref)
        false += any(alarm.observe(score) for score in frames(rng, 40))
        heard += any(other.observe(score) for score in frames(rng, 20, harder=5))
    assert heard == 20
    assert false <= 3, "with the spread between tens alone it is each of them"


def test_a_set_too_short_for_batches_of_a_window_has_the_spread_of_tens() -> None:
    few = 10 * WINDOWS[0]
    for stream in ([0.0] * 150 + [1.0] * 150) * 5, ([1.0] * 150 + [0.0] * 150) * 5:
        assert reference(stream[: few - 1]).spread == pytest.approx(10**0.5 / 2, rel=0.01)
        assert reference(stream[:few]).spread == pytest.approx(150**0.5 / 2)


def test_the_drift_alarm_hears_both_directions() -> None:
    rng = np.random.default_rng(6)
    ref = reference(rng.beta(1, 6, 1000).tolist())
    for changed in (rng.beta(2, 6, 400), rng.beta(1, 40, 400)):
        alarm = DriftAlarm(ref)
        heard = [alarm.observe(float(s)) for s in changed]
        assert any(heard)
        assert heard.index(True) >= WINDOWS[0] - 1  # never before the window is full


def test_a_model_that_is_always_equally_sure_raises_no_alarm() -> None:
    alarm = DriftAlarm(reference([0.0] * 500))
    assert not any(alarm.observe(1e-4) for _ in range(2000))


def test_a_restored_drift_alarm_goes_on_where_it_was() -> None:
    rng = np.random.default_rng(7)
    ref = reference(rng.random(500).tolist())
    stream = [float(s) for s in rng.random(100) ** 0.9] * 15
    whole, first = DriftAlarm(ref), DriftAlarm(ref)
    expected = [whole.observe(s) for s in stream]
    [first.observe(s) for s in stream[:700]]
    second = DriftAlarm(ref, first.recent)
    assert [second.observe(s) for s in stream[700:]] == expected[700:]


def test_good_audits_buy_no_credit() -> None:
    alarm, fresh = AuditAlarm(0.03), AuditAlarm(0.03)
    for _ in range(10_000):
        assert not alarm.observe(False)
    for _ in range(50):
        assert alarm.observe(True) == fresh.observe(True)


def test_the_audit_alarm_is_rare_at_the_limit_and_quick_beyond() -> None:
    rng = np.random.default_rng(8)

    def audits_until_alarm(rate: float, most: int) -> int:
        alarm = AuditAlarm(0.03)
        return next((i for i in range(most) if alarm.observe(bool(rng.random() < rate))), most)

    assert np.mean([audits_until_alarm(0.03, 2000) == 2000 for _ in range(40)]) > 0.5
    assert np.median([audits_until_alarm(0.2, 2000) for _ in range(40)]) < 60
    assert np.median([audits_until_alarm(0.6, 2000) for _ in range(40)]) < 10


def test_the_long_window_hears_a_change_that_the_short_one_cannot() -> None:
    rng = np.random.default_rng(9)
    ref = reference(rng.beta(1, 3, 1000).tolist())
    heard = []
    for _ in range(20):
        alarm = DriftAlarm(ref)
        heard.append(next((i for i in range(3000) if alarm.observe(float(rng.beta(1.45, 3)))), 3000))
    assert max(heard) < 1500
