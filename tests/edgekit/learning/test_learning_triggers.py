"""Triggers fire on what they are for, say why, and fire again on more evidence only."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.learning.band import Band, BandState
from edgekit.learning.triggers import Evidence, NewClass, NewClassState, Request, Schedule
from edgekit.learning.watch import Triggers, TriggerStates, look, settle

HOUR = 3600.0


def evidence(**other: Any) -> Evidence:
    return Evidence(**{"now": 0.0, "known": ["good", "bridge"], "labels": {"good": 60, "bridge": 30}, **other})


def causes(states: TriggerStates, found: Evidence, triggers: Triggers | None = None) -> list[str]:
    return [finding.cause for finding in look(triggers or Triggers(), states, found)[1]]


def test_nothing_fires_while_nothing_happens() -> None:
    assert causes(TriggerStates(), evidence()) == []


@pytest.mark.parametrize(
    ("quiet", "loud", "cause"),
    [
        ({"labels": {"hole": 19}}, {"labels": {"hole": 20}}, "new-class"),
        ({"labels": {"good": 299}}, {"labels": {"good": 300}}, "labels"),
        ({"alarms": 0}, {"alarms": 1}, "drift"),
        ({"looks": 1, "alpha": 0.02}, {"looks": 2, "alpha": 0.02}, "unattainable"),
        (
            {"alpha": 0.02, "audit_bound": 0.02, "audits": 500},
            {"alpha": 0.02, "audit_bound": 0.021, "audits": 500},
            "audits",
        ),
        (
            {"request": None},
            {"request": Request(number=1, by="Ada", rung="head")},
            "operator",
        ),
    ],
)
def test_a_trigger_fires_at_its_limit_and_not_below(quiet: Any, loud: Any, cause: str) -> None:
    assert causes(TriggerStates(), evidence(**quiet)) == []
    assert causes(TriggerStates(), evidence(**loud)) == [cause]


def test_every_finding_is_one_clause_with_its_numbers() -> None:
    found = evidence(
        labels={"good": 400, "hole": 22, "scratch": 3},
        alarms=2,
        looks=3,
        alpha=0.02,
        audit_bound=0.05,
        audits=600,
        request=Request(number=1, by="Ada"),
    )
    sentences = {one.cause: one.sentence for one in look(Triggers(), TriggerStates(), found)[1]}
    assert list(sentences) == ["operator", "new-class", "unattainable", "audits", "drift", "labels"]
    assert '"hole" has 22' in sentences["new-class"] and "scratch" not in sentences["new-class"]
    assert "425 labels" in sentences["labels"] and "2 times" in sentences["drift"] and "Ada" in sentences["operator"]
    assert "600 audits" in sentences["audits"] and "2.0%" in sentences["unattainable"]


def test_few_audits_do_not_condemn_a_faultless_model() -> None:
    assert causes(TriggerStates(), evidence(alpha=0.02, audit_bound=0.03, audits=110)) == []


def test_a_settled_new_class_fires_again_when_its_labels_have_grown_by_half() -> None:
    trigger = NewClass()
    state = trigger.settle(NewClassState(), evidence(labels={"hole": 20}))
    assert trigger.look(state, evidence(labels={"hole": 29}))[1] is None
    assert trigger.look(state, evidence(labels={"hole": 30}))[1] is not None
    assert trigger.look(state, evidence(labels={"hole": 20, "crack": 20}))[1] is not None


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_counts_that_begin_anew_never_silence_a_trigger(alarms: list[int]) -> None:
    triggers, states = Triggers(), TriggerStates()
    for count in alarms:
        states, found = look(triggers, states, evidence(alarms=count))
        states = settle(triggers, states, evidence(alarms=count), [one.cause for one in found])
    assert causes(states, evidence(alarms=alarms[-1])) == []
    assert causes(states, evidence(alarms=alarms[-1] + 1)) == ["drift"]


def run(values: list[tuple[float, float]], band: Band) -> list[bool]:
    state, out = BandState(), []
    for now, value in values:
        state, is_out = band.look(state, value, now)
        out.append(is_out)
    return out


BAND = Band(leave=1.5, back=1.25, seconds=HOUR)


def test_offload_must_stay_out_of_its_band_for_an_hour() -> None:
    triggers, states, fired = Triggers(), TriggerStates(), []
    for minute in range(0, 75, 5):
        found = evidence(now=minute * 60.0, offload=0.5, calibrated=0.3)
        states, findings = look(triggers, states, found)
        fired.append([one.cause for one in findings])
    assert fired.index(["offload"]) == 12
    assert "50% of the samples are sent instead of 30%" in findings[0].sentence


def test_a_figure_that_trembles_between_the_limits_stays_where_it_was() -> None:
    minutes = [60.0 * 10 * i for i in range(13)]
    inside = [(now, 1.4) for now in minutes]
    outside = [(now, 1.6 if not now else 1.3) for now in minutes]
    back = [(now, 1.2 if now == 1800 else 1.6) for now in minutes]
    assert not any(run(inside, BAND))
    assert run(outside, BAND).index(True) == 6
    assert run(back, BAND).index(True) == 10


@pytest.mark.parametrize("jump", [50_000.0, -50_000.0])
def test_a_clock_that_jumps_makes_no_hour_pass(jump: float) -> None:
    values = [(1e6 + 60.0 * i, 2.0) for i in range(10)]
    after = [(1e6 + jump + 60.0 * i, 2.0) for i in range(61)]
    out = run(values + after, BAND)
    assert out.index(True) == 10 + 60


def test_the_schedule_waits_for_something_new() -> None:
    triggers = Triggers(labels=None, schedule=Schedule(every=100.0))
    states, _ = look(triggers, TriggerStates(), evidence())
    assert causes(states, evidence(now=99.0), triggers) == []
    assert causes(states, evidence(now=100.0), triggers) == ["schedule"]
    states = settle(triggers, states, evidence(now=100.0), ["schedule"])
    assert causes(states, evidence(now=300.0), triggers) == []
    assert causes(states, evidence(now=300.0, labels={"good": 91}), triggers) == ["schedule"]


def test_a_request_is_served_once() -> None:
    asked = evidence(request=Request(number=3, by="Ada"))
    states = settle(Triggers(), TriggerStates(), asked, ["operator"])
    assert causes(states, asked) == []
    assert causes(states, evidence(request=Request(number=4, by="Ada"))) == ["operator"]


def test_a_trigger_that_is_switched_off_never_fires() -> None:
    assert causes(TriggerStates(), evidence(alarms=5), Triggers(drift=None)) == []


def test_the_states_survive_being_stored() -> None:
    found = evidence(labels={"hole": 25}, alarms=4, offload=0.9, calibrated=0.1)
    states, findings = look(Triggers(), TriggerStates(), found)
    states = settle(Triggers(), states, found, [one.cause for one in findings])
    assert msgspec.json.decode(msgspec.json.encode(states), type=TriggerStates) == states


@pytest.mark.parametrize("bad", [{"now": float("nan")}, {"offload": 1.5}, {"alarms": -1}, {"labels": {"good": -2}}])
def test_impossible_evidence_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"evidence"):
        evidence(**bad)
