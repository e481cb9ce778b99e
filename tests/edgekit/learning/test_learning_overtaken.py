"""Candidates from elsewhere, jobs that somebody stops, models that others overtake, candidates that break."""

from __future__ import annotations

import pytest

from edgekit.learning.ladder import Means
from edgekit.learning.learner import (
    Settings,
    State,
    broken,
    consider,
    judge,
    made,
    offered,
    order,
    shadow,
    stopped,
    superseded,
)
from edgekit.learning.records import Fact
from edgekit.learning.tally import Tally
from edgekit.learning.trial import Expected, Verdict
from edgekit.learning.triggers import Evidence

SETTINGS = Settings()
GOOD = Verdict(accepted=True, reason="", dataset="d", facts=[Fact(name="accuracy", value=0.0, text="as good")])
MEANS = Means(pictures=100, fewest=100)


def found(now: float = 1e6, holes: int = 20) -> Evidence:
    return Evidence(now=now, known=["good"], labels={"good": 100, "hole": holes})


def started() -> State:
    step = consider(SETTINGS, State(), found(), MEANS)
    assert step.job is not None
    return step.state


def test_a_candidate_from_elsewhere_goes_the_same_way_and_is_recorded_as_such() -> None:
    step = offered(State(), "new", "old", "a federated job", 1.0, 60.0)
    (record,) = step.records
    assert (record.event, record.rung, record.cause) == ("offered", "federated", "federation")
    state = judge(SETTINGS, step.state, GOOD, Expected(), 2.0).state
    assert consider(SETTINGS, state, found(), MEANS).job is None, "one at a time"
    end = order(SETTINGS, order(SETTINGS, state, True, "anna", 3.0).state, True, "anna", 4.0)
    assert [one.event for one in end.records] == ["kept", "kept"]
    assert end.state.ladder.running is None and end.state.ladder.spent[-1].rung == "federated"


def test_beside_a_job_no_candidate_is_taken() -> None:
    with pytest.raises(ValueError, match="one job at a time"):
        offered(started(), "new", "old", "a federated job", 1.0, 60.0)


def test_a_job_that_somebody_stopped_is_not_started_again_by_the_same_labels() -> None:
    step = stopped(SETTINGS, started(), "anna", 1e6 + 9, 9.0)
    assert "anna stopped it" in step.sentence
    assert consider(SETTINGS, step.state, found(2e6), MEANS).job is None
    again = consider(SETTINGS, step.state, found(2e6, holes=30), MEANS).job
    assert again is not None and again.rung == "head", "more labels do"
    with pytest.raises(ValueError, match="no job is running"):
        stopped(SETTINGS, State(), "anna", 1.0, 0.0)


def test_another_model_voids_a_trial_and_is_no_rollback() -> None:
    state = judge(SETTINGS, made(started(), "new", "old", 1e6, 2.0), GOOD, Expected(), 1e6).state
    state = shadow(SETTINGS, state, Tally(items=500, agreeing=500, audits=100), 1e6).state
    step = superseded(SETTINGS, state, "small@2 decides now", 1e6 + 5, 0.0)
    (record,) = step.records
    assert (record.event, record.candidate) == ("superseded", "new")
    assert step.state.trial is None and step.state.ladder.running is None
    assert [one.outcome for one in step.state.ladder.spent] == ["refused"] and not step.state.ladder.tried


def test_another_model_voids_what_was_kept_even_if_nothing_is_under_way() -> None:
    step = superseded(SETTINGS, State(), "small@2 decides now", 5.0, 0.0)
    assert [one.event for one in step.records] == ["superseded"] and step.state == State()


def test_a_candidate_that_breaks_is_refused_or_taken_back_by_its_stage() -> None:
    state = judge(SETTINGS, made(started(), "new", "old", 1e6, 2.0), GOOD, Expected(), 1e6).state
    assert [one.event for one in broken(SETTINGS, state, "it is gone", 1e6).records] == ["refused", "refused"]
    state = order(SETTINGS, state, True, "anna", 1e6).state
    step = broken(SETTINGS, state, "it does not start", 1e6)
    assert [one.event for one in step.records] == ["rolled-back", "rolled-back"]
    assert "it does not start" in step.records[0].sentence
