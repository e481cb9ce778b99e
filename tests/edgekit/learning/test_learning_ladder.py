"""The ladder: the right rung first, the next one when it fails, and never more than may be spent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.learning.ladder import ROUTES, Choice, LadderState, Limits, Means, choose, ended
from edgekit.learning.records import RUNGS, Cause, Rung
from edgekit.learning.triggers import Evidence, Finding

DAY = 86_400.0
ALL = Means(pictures=100, fewest=60)
FREE = Limits(cool_down={}, jobs=1000, seconds=1e9)


def finding(cause: Cause, rung: Rung | None = None) -> Finding:
    return Finding(cause=cause, sentence=f"{cause} was seen", rung=rung)


def pick(state: LadderState, *found: Finding, now: float = 0.0, means: Means = ALL, **other: Any) -> Choice:
    limits = other.pop("limits", FREE)
    return choose(limits, state, found, Evidence(now=now, **other), means)


def climb(cause: Cause, means: Means = ALL, **other: Any) -> list[Rung]:
    """The rungs that are tried when each one is refused."""
    state, rungs = LadderState(), []
    while True:
        choice = pick(state, finding(cause), means=means, **other)
        if choice.job is None:
            assert choice.exhausted == [cause]
            return rungs
        rungs.append(choice.job.rung)
        state, settled, _ = ended(FREE, choice.state, "refused", 0.0, 1.0)
        assert settled == []


@pytest.mark.parametrize("cause", list(ROUTES))
def test_every_cause_climbs_its_route_to_the_end(cause: Cause) -> None:
    assert climb(cause) == list(ROUTES[cause])


@pytest.mark.parametrize(
    ("cause", "first"),
    [
        ("new-class", "head"),
        ("labels", "head"),
        ("drift", "recalibrate"),
        ("audits", "recalibrate"),
        ("offload", "recalibrate"),
        ("unattainable", "batchnorm"),
        ("schedule", "head"),
    ],
)
def test_the_first_rung_is_the_cheapest_that_can_help(cause: Cause, first: Rung) -> None:
    choice = pick(LadderState(), finding(cause))
    assert choice.job is not None and choice.job.rung == first
    assert f"because {cause} was seen" in choice.job.sentence
    assert choice.records[0].event == "started" and choice.records[0].sentence == choice.job.sentence


def test_recalibrating_is_passed_over_when_it_just_failed() -> None:
    choice = pick(LadderState(), finding("drift"), looks=2)
    assert choice.job is not None and choice.job.rung == "batchnorm"
    assert "the last 2 calibrations certified nothing" in choice.job.sentence


def test_fine_tuning_needs_more_labels_than_a_head() -> None:
    assert climb("new-class", Means(fewest=20)) == ["head", "cloud"]
    assert climb("new-class", Means(fewest=3)) == ["cloud"]
    assert climb("drift", Means(pictures=31, fewest=20)) == ["recalibrate", "head", "cloud"]


def test_a_rung_that_the_package_cannot_climb_is_passed_over_with_its_reason() -> None:
    means = Means(pictures=100, never={"batchnorm": "the package carries no un-folded checkpoint"})
    choice = pick(LadderState(), finding("unattainable"), means=means)
    assert choice.job is not None and choice.job.rung == "cloud"
    assert "no un-folded checkpoint" in choice.job.sentence


def test_what_has_to_wait_waits_and_lets_others_go_first() -> None:
    means = Means(fewest=60, later={"head": "the sample store is being moved"})
    choice = pick(LadderState(), finding("new-class"), means=means)
    assert choice.job is None and choice.exhausted == []
    assert choice.sentence == "A new LDA head waits: the sample store is being moved."
    both = pick(LadderState(), finding("new-class"), finding("drift"), means=means)
    assert both.job is not None and both.job.rung == "recalibrate"


def test_one_job_serves_all_causes_that_it_can() -> None:
    choice = pick(LadderState(), finding("new-class"), finding("drift"), finding("labels"))
    assert choice.job is not None and choice.job.causes == ["new-class", "drift", "labels"]
    state, settled, record = ended(FREE, choice.state, "kept", 5.0, 2.0)
    assert settled == ["new-class", "drift", "labels"]
    assert state.running is None and state.tried == {}
    assert record.sentence == "A new LDA head (job 1) helped after 2 s."


def test_only_one_job_runs_at_a_time() -> None:
    state = pick(LadderState(), finding("drift")).state
    again = pick(state, finding("new-class"), finding("operator"))
    assert again.job is None and again.state.running == state.running and "under way" in again.sentence


def test_a_rung_cools_down_and_no_dearer_one_jumps_in() -> None:
    limits = Limits()
    state = pick(LadderState(), finding("new-class"), limits=limits).state
    state, _, _ = ended(limits, state, "failed", 100.0, 5.0, "the disk is full")
    waits = pick(state, finding("new-class"), now=200.0, limits=limits)
    assert waits.job is None and "28 min are left" in waits.sentence
    later = pick(state, finding("new-class"), now=1900.0, limits=limits)
    assert later.job is not None and later.job.rung == "head"


def test_a_job_that_keeps_failing_by_itself_gives_way_to_the_next_rung() -> None:
    state = LadderState()
    rungs = []
    for _ in range(3):
        choice = pick(state, finding("new-class"))
        assert choice.job is not None
        rungs.append(choice.job.rung)
        state, _, record = ended(FREE, choice.state, "failed", 0.0, 1.0, "out of memory")
        assert "broke off after 1 s: out of memory" in record.sentence
    assert rungs == ["head", "head", "last-blocks"]


def test_two_rollbacks_pause_learning_until_an_operator_asks() -> None:
    state = LadderState()
    for at in (0.0, DAY):
        state = pick(state, finding("drift"), now=at).state
        state, _, _ = ended(FREE, state, "rolled-back", at, 1.0)
    paused = pick(state, finding("drift"), now=2 * DAY)
    assert paused.job is None and "pauses until an operator" in paused.sentence
    asked = pick(state, finding("operator", "full"), now=2 * DAY)
    assert asked.job is not None and asked.job.rung == "full"
    assert pick(state, finding("drift"), now=9 * DAY).job is not None


def test_an_operator_is_not_refused_for_a_budget_but_for_what_is_missing() -> None:
    limits = Limits(jobs=1)
    state = pick(LadderState(), finding("labels"), limits=limits).state
    state, _, _ = ended(limits, state, "refused", 1.0, 1.0)
    assert pick(state, finding("labels"), now=2.0, limits=limits).job is None
    assert pick(state, finding("operator", "head"), now=2.0, limits=limits).job is not None
    missing = pick(state, finding("operator", "head"), means=Means(fewest=1), now=2.0, limits=limits)
    assert missing.job is None and missing.exhausted == ["operator"] and "the rarest has 1" in missing.sentence


def test_the_budget_counts_what_a_job_will_take() -> None:
    limits = Limits(cool_down={}, seconds=100.0)
    state = pick(LadderState(), finding("labels"), limits=limits).state
    state, _, _ = ended(limits, state, "refused", 0.0, 60.0)
    means = Means(fewest=60, seconds={"last-blocks": 50.0})
    assert "it will take 50 s" in pick(state, finding("labels"), means=means, limits=limits, now=1.0).sentence
    assert pick(state, finding("labels"), means=means, limits=limits, now=DAY + 1).job is not None


def test_an_end_without_a_job_is_an_error() -> None:
    with pytest.raises(ValueError, match="no job is running"):
        ended(FREE, LadderState(), "kept", 0.0, 1.0)


EVENTS = st.lists(
    st.tuples(
        st.floats(-7200, 12 * 3600),  # until the next look; clocks jump back, too
        st.sets(st.sampled_from(sorted(set(ROUTES) - {"operator"}))),
        st.sampled_from(["kept", "refused", "rolled-back", "failed"]),
        st.floats(0, 7200),
        st.integers(0, 80),
    ),
    max_size=40,
)


@given(EVENTS)
def test_budgets_and_cool_downs_hold_whatever_happens(events: list[Any]) -> None:
    limits, state, now, log = Limits(jobs=5), LadderState(), 1e6, []
    for wait, causes, outcome, seconds, fewest in events:
        now += wait
        found = [finding(cause) for cause in sorted(causes)]
        choice = choose(limits, state, found, Evidence(now=now), Means(pictures=fewest, fewest=fewest))
        state = choice.state
        assert set(choice.exhausted) <= causes
        if choice.job is None:
            continue
        assert state.running == choice.job and choice.job.causes[0] in causes
        log.append((choice.job.rung, now))
        state, settled, _ = ended(limits, state, outcome, now, seconds)
        assert (settled != []) == (outcome == "kept")
        assert msgspec.json.decode(msgspec.json.encode(state), type=LadderState) == state
    if all(wait >= 0 for wait, *_ in events):
        for at, (rung, start) in enumerate(log):
            assert sum(start <= other < start + DAY for _, other in log[at:]) <= limits.jobs
            same = [other for one, other in log[at + 1 :] if one == rung]
            assert not same or same[0] - start >= limits.cool_down[rung]


@given(st.sampled_from(sorted(ROUTES)), st.integers(0, 100), st.integers(0, 100), st.sets(st.sampled_from(RUNGS)))
def test_every_climb_ends_and_tries_no_rung_twice(cause: Cause, pictures: int, fewest: int, never: set[Rung]) -> None:
    rungs = climb(cause, Means(pictures=pictures, fewest=fewest, never=dict.fromkeys(never, "it cannot be")))
    assert len(rungs) == len(set(rungs)) and not never & set(rungs)
    assert rungs == [rung for rung in ROUTES[cause] if rung in rungs]
