"""A candidate's way through shadow and probation: what is worse goes, what is as good stays, with the numbers."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.learning.records import Fact, Record
from edgekit.learning.tally import Tally
from edgekit.learning.trial import (
    ENDED,
    Expected,
    Trial,
    TrialLimits,
    Verdict,
    Watch,
    begin,
    exact_mcnemar,
    judged,
    ordered,
    shadowed,
    watched,
)

LIMITS = TrialLimits()
DAY = 86_400.0
GOOD = Verdict(accepted=True, reason="", dataset="d" * 64, facts=[Fact(name="accuracy", value=0.004, text="it may")])
EXPECTED = Expected(differing=0.05, offload=0.3, p95_ms=20.0)
FINE = Tally(items=500, agreeing=480, audits=120, lost=2, gained=3, sent=150, would_send=152)


def shadow(now: float = 0.0) -> Trial:
    return judged(begin("new", "old", "head", "new-class", 3.0, now), GOOD, EXPECTED, now)[0]


def probation(now: float = 0.0) -> Trial:
    trial, record = shadowed(LIMITS, shadow(now), FINE, now)
    assert record is not None and record.event == "promoted"
    return trial


def watch(trial: Trial, *reports: tuple[float, Watch]) -> tuple[Trial, Record | None]:
    record = None
    for now, report in reports:
        trial, record = watched(LIMITS, trial, report, now)
        if record is not None:
            break
    return trial, record


def test_a_candidate_that_the_held_out_items_refuse_never_sees_the_line() -> None:
    verdict = Verdict(accepted=False, reason="refused: it is worse", dataset="d", facts=GOOD.facts)
    trial, record = judged(begin("new", "old", "head", "labels", 1.0, 5.0), verdict, Expected(), 6.0)
    assert trial.stage == "refused" and record.event == "refused"
    assert record.sentence == "The candidate is refused: it is worse." and record.facts == GOOD.facts
    assert (record.candidate, record.rung, record.cause, record.at) == ("new", "head", "labels", 6.0)


def test_the_shadow_phase_goes_on_until_there_are_enough_items_and_audits() -> None:
    for tally in (
        msgspec.structs.replace(FINE, items=499),
        msgspec.structs.replace(FINE, audits=99),
    ):
        trial, record = shadowed(LIMITS, shadow(), tally, 3600.0)
        assert trial.stage == "shadow" and record is None
    assert probation().stage == "probation"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"unusable": 1}, "no usable answer for 1 of 500"),
        ({"lost": 12, "gained": 2}, "points worse"),
        ({"audits": 2000, "items": 4000, "agreeing": 3900, "lost": 40, "gained": 10}, "with a probability of 1.2e-05"),
        ({"agreeing": 300}, "agrees with the present model on 60.0%"),
        ({"would_send": 200}, "10.00 points more of the items"),
    ],
)
def test_what_does_worse_in_the_shadow_is_refused_with_the_numbers(change: Any, word: str) -> None:
    trial, record = shadowed(LIMITS, shadow(), msgspec.structs.replace(FINE, **change), 10.0)
    assert trial.stage == "refused" and record is not None and word in record.sentence
    assert any(not fact.passed for fact in record.facts)


def test_a_model_that_differs_much_passes_where_the_audits_are_on_its_side() -> None:
    tally = msgspec.structs.replace(FINE, agreeing=300, lost=3, gained=40)
    assert shadowed(LIMITS, shadow(), tally, 10.0)[0].stage == "probation"


def test_a_shadow_phase_without_audits_ends_refused_and_not_never() -> None:
    tally = Tally(items=9000, agreeing=9000)
    assert shadowed(LIMITS, shadow(), tally, 6.9 * DAY)[1] is None
    trial, record = shadowed(LIMITS, shadow(), tally, 7 * DAY)
    assert trial.stage == "refused" and record is not None and "9000 live items with 0 audits" in record.sentence


def test_a_service_that_nobody_audits_is_judged_by_agreement() -> None:
    limits = TrialLimits(shadow_audits=0)
    assert shadowed(limits, shadow(), Tally(items=500, agreeing=400), 1.0)[0].stage == "probation"
    assert shadowed(limits, shadow(), Tally(items=500, agreeing=399), 1.0)[0].stage == "refused"


def test_the_tally_counts_what_it_is_told() -> None:
    tally = Tally()
    tally = tally.item("a", "a", sent=False, would_send=False)
    tally = tally.item("a", "b", "b", sent=True, would_send=False)
    tally = tally.item("a", "b", "a", sent=False, would_send=True)
    tally = tally.item("a", "b", "c", sent=False, would_send=False)
    tally = tally.item("a", None, "a", sent=True, would_send=True)
    assert tally == Tally(items=5, agreeing=1, unusable=1, audits=3, lost=1, gained=1, sent=2, would_send=2)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_exact_test_is_the_binomial_tail(lost: int, gained: int) -> None:
    n = lost + gained
    expected = math.fsum(math.comb(n, k) * 0.5**n for k in range(lost, n + 1))
    assert exact_mcnemar(lost, gained) == pytest.approx(expected)
    assert exact_mcnemar(lost, gained) + exact_mcnemar(gained + 1, lost - 1 if lost else 0) >= 0.999 or not lost


def test_probation_ends_after_enough_items_and_time() -> None:
    few = Watch(items=1999, audits=[False] * 60, offload=0.31, p95_ms=21.0)
    trial, record = watch(probation(), (DAY, few))
    assert trial.stage == "probation" and record is None
    trial, record = watch(trial, (DAY + 60, Watch(items=1)))
    assert trial.stage == "kept" and record is not None
    assert "2,000 items" in record.sentence and "0 of 60 audits differed" in record.sentence
    early, record = watch(probation(), (DAY - 1, Watch(items=9000)))
    assert early.stage == "probation" and record is None


def test_audits_beyond_the_certificate_take_the_model_back() -> None:
    trial, record = watch(probation(), (60.0, Watch(items=100, audits=[False] * 20 + [True] * 8)))
    assert trial.stage == "rolled-back" and record is not None and record.event == "rolled-back"
    assert trial.before == "old" and "28 audits differ" in record.sentence and "5.0%" in record.sentence


def test_audits_within_the_certificate_do_not() -> None:
    audits = [i % 20 == 0 for i in range(2000)]
    trial, _ = watch(
        probation(), *((60.0 * i, Watch(items=20, audits=audits[20 * i : 20 * i + 20])) for i in range(100))
    )
    assert trial.stage == "probation" and (trial.audits, trial.differing) == (2000, 100)


@pytest.mark.parametrize(
    ("figures", "seconds", "word"),
    [({"offload": 0.5}, 3600, "50% of the samples are sent instead of 30%"), ({"p95_ms": 31.0}, 600, "31 ms instead")],
)
def test_a_model_out_of_its_band_for_long_is_taken_back(figures: Any, seconds: int, word: str) -> None:
    steps = [(60.0 * i, Watch(items=1, **figures)) for i in range(100)]
    trial, record = watch(probation(), *steps)
    assert trial.stage == "rolled-back" and record is not None and word in record.sentence
    assert record.at == seconds


def test_a_model_that_is_back_in_its_band_in_time_stays() -> None:
    steps = [(60.0 * i, Watch(items=1, offload=0.3 if i % 50 == 49 else 0.5)) for i in range(500)]
    assert watch(probation(), *steps)[0].stage == "probation"


def test_a_model_that_is_out_of_its_band_is_not_kept_yet() -> None:
    trial, record = watch(probation(), (DAY, Watch(items=5000, offload=0.5)), (DAY + 60, Watch(offload=0.5)))
    assert trial.stage == "probation" and record is None


def test_a_model_that_breaks_is_taken_back() -> None:
    trial, record = watch(probation(), (1.0, Watch(failures=2)), (2.0, Watch(failures=1)))
    assert trial.stage == "rolled-back" and record is not None and "broke 3 times" in record.sentence


def test_an_operator_may_end_a_stage_but_not_skip_the_judgement() -> None:
    assert ordered(shadow(), True, "Ada", 1.0)[0].stage == "probation"
    assert ordered(shadow(), False, "Ada", 1.0)[0].stage == "refused"
    assert ordered(probation(), True, "Ada", 1.0)[0].stage == "kept"
    trial, record = ordered(probation(), False, "Ada", 1.0)
    assert trial.stage == "rolled-back" and "Ada" in record.sentence
    with pytest.raises(ValueError, match="judging"):
        ordered(begin("new", "old", "head", "labels", 1.0, 0.0), True, "Ada", 1.0)
    with pytest.raises(ValueError, match="kept"):
        ordered(ordered(probation(), True, "Ada", 1.0)[0], False, "Ada", 2.0)


def test_no_stage_takes_what_belongs_to_another() -> None:
    with pytest.raises(ValueError, match="probation"):
        watched(LIMITS, shadow(), Watch(), 1.0)
    with pytest.raises(ValueError, match="shadow"):
        shadowed(LIMITS, probation(), FINE, 1.0)
    with pytest.raises(ValueError, match="judging"):
        judged(probation(), GOOD, EXPECTED, 1.0)


def test_a_clock_that_jumps_back_begins_the_stage_anew() -> None:
    trial, record = watch(probation(now=1e6), (10.0, Watch(items=3000)), (10.0 + DAY - 1, Watch()))
    assert record is None
    assert watch(trial, (10.0 + DAY, Watch()))[0].stage == "kept"


REPORTS = st.lists(
    st.tuples(
        st.floats(0, 4000),
        st.builds(
            Watch,
            items=st.integers(0, 500),
            audits=st.lists(st.booleans(), max_size=10),
            failures=st.integers(0, 1),
            offload=st.none() | st.floats(0, 1),
            p95_ms=st.none() | st.floats(0.1, 100),
        ),
    ),
    max_size=60,
)


@given(REPORTS)
def test_a_restart_at_any_report_changes_nothing(reports: list[tuple[float, Watch]]) -> None:
    straight = stored = probation()
    now = 0.0
    for wait, report in reports:
        now += wait
        straight, one = watched(LIMITS, straight, report, now)
        stored, other = watched(LIMITS, msgspec.json.decode(msgspec.json.encode(stored), type=Trial), report, now)
        assert straight == stored and one == other
        if straight.stage in ENDED:
            assert one is not None and msgspec.json.decode(msgspec.json.encode(one), type=Record) == one
            assert straight.stage == "rolled-back" or (straight.items >= 2000 and now >= DAY and straight.failures < 3)
            break


@pytest.mark.parametrize("bad", [{"differing": 1.0}, {"offload": 0.0}, {"p95_ms": float("inf")}])
def test_nothing_impossible_is_expected(bad: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        Expected(**bad)


def test_a_fact_is_a_finite_number() -> None:
    with pytest.raises(ValueError, match="recall"):
        Fact(name="recall", value=float("nan"), text="")
