"""Admission against a virtual clock: places, order, fair shares, deadlines, and samples for which nobody waits."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from cloudd.answers.admission import FAIR_S, Admission, NotAdmitted, Question
from edgekit.dispatch.policy import PRIORITIES, Priority

RUN_S = 0.01


def ask(tenant: str, priority: Priority = "inline", deadline: float = math.inf, late: bool = False) -> Question[None]:
    return Question(tenant, "large", None, priority=priority, deadline=deadline, late=late)


def admission(workers: int = 1, places: int = 32) -> Admission[None]:
    return Admission(workers, places, guess_s=RUN_S)


def offered(one: Admission[None], *questions: Question[None], now: float = 0.0) -> None:
    for question in questions:
        one.offer(question, now)


def served(one: Admission[None], count: int, run_s: float = RUN_S, now: float = 0.0) -> list[Question[None]]:
    """So many questions, one after the other."""
    order = []
    for _ in range(count):
        question = one.take(now)
        if question is None:
            break
        now += run_s
        one.done(question, now)
        order.append(question)
    return order


# --- order -----------------------------------------------------------------------------------------------------------


def test_of_one_tenant_the_higher_class_goes_first_and_then_the_earlier_deadline() -> None:
    one = admission()
    offered(one, ask("a", "audit"), ask("a", "inline", 9.0), ask("a", "inline", 8.0), ask("a", "alarm", 99.0))
    assert [(PRIORITIES[q.rank], q.deadline) for q in served(one, 9)] == [
        ("alarm", 99.0),
        ("inline", 8.0),
        ("inline", 9.0),
        ("audit", math.inf),
    ]


def test_a_tenant_with_one_question_does_not_wait_behind_twenty_of_another() -> None:
    one = admission()
    offered(one, *(ask("greedy") for _ in range(20)), ask("modest"))
    assert [q.tenant for q in served(one, 9)].index("modest") <= FAIR_S / RUN_S + 1


def test_among_tenants_that_are_level_the_earliest_deadline_goes_first() -> None:
    one = admission()
    offered(one, ask("a", deadline=3.0), ask("b", deadline=1.0), ask("c", deadline=2.0))
    assert [q.deadline for q in served(one, 3)] == [1.0, 2.0, 3.0]


def test_idleness_earns_nothing() -> None:
    one = admission(places=200)
    offered(one, *(ask("busy") for _ in range(60)), ask("other"))
    served(one, 30)  # `other` had one question, and slept through the rest
    offered(one, *(ask("other") for _ in range(30)))
    slack = FAIR_S / RUN_S + 1
    assert 10 - slack <= Counter(q.tenant for q in served(one, 20))["other"] <= 10 + slack


def test_a_higher_class_of_another_tenant_goes_first_but_not_for_ever() -> None:
    one = admission(places=200)
    offered(one, *(ask("inline", "inline") for _ in range(50)), *(ask("alarms", "alarm") for _ in range(50)))
    order = [q.tenant for q in served(one, 60)]
    first = round(FAIR_S / RUN_S)
    assert order[: first - 1] == ["alarms"] * (first - 1)
    assert abs(order.count("alarms") - order.count("inline")) <= first + 1


def test_a_long_run_is_charged_for_its_time_and_not_as_one_question() -> None:
    one: Admission[None] = Admission(1, 200, guess_s=RUN_S)
    for _ in range(80):
        one.offer(Question("slow", "huge", None), 0.0)
        one.offer(Question("fast", "small", None), 0.0)
    now, used = 0.0, Counter[str]()
    for _ in range(60):
        question = one.take(now)
        assert question is not None
        seconds = 0.04 if question.model == "huge" else 0.01
        now += seconds
        used[question.tenant] += round(seconds * 1000)
        one.done(question, now)
    assert abs(used["slow"] - used["fast"]) <= 1000 * FAIR_S + 40  # milliseconds


# --- samples for which nobody waits ----------------------------------------------------------------------------------


def test_late_samples_are_taken_only_while_nobody_waits() -> None:
    one = admission()
    offered(one, ask("a", late=True), ask("b", "audit"))
    assert [q.late for q in served(one, 2)] == [False, True]


def test_late_samples_leave_one_of_several_workers_free() -> None:
    one = admission(workers=3)
    offered(one, *(ask("a", late=True) for _ in range(5)))
    taken = [one.take(0.0) for _ in range(3)]
    assert [q is not None for q in taken] == [True, True, False]
    offered(one, ask("b"))
    question = one.take(0.0)
    assert question is not None and not question.late


def test_late_samples_of_many_tenants_share_what_is_left() -> None:
    one = admission(places=64)
    offered(one, *(ask("a", late=True) for _ in range(20)), *(ask("b", late=True) for _ in range(12)))
    assert abs(Counter(q.tenant for q in served(one, 20))["a"] - 10) <= FAIR_S / RUN_S


def test_late_samples_have_places_of_their_own() -> None:
    one = admission(places=4)
    offered(one, ask("a", late=True), ask("a", late=True))
    with pytest.raises(NotAdmitted, match="2 samples from spools wait already"):
        one.check("b", late=True)
    with pytest.raises(NotAdmitted):
        one.offer(ask("b", late=True), 0.0)
    offered(one, *(ask("a") for _ in range(4)))


# --- places ----------------------------------------------------------------------------------------------------------


def test_a_tenant_alone_may_use_every_place_and_then_hears_when_to_come_again() -> None:
    one = admission(places=4)
    offered(one, *(ask("a") for _ in range(4)))
    with pytest.raises(NotAdmitted, match="4 samples wait for an answer already, 4 from here") as error:
        one.check("a")
    one.check("a", priority="alarm")
    assert error.value.retry_after_s == pytest.approx(0.1)  # four runs take less
    with pytest.raises(NotAdmitted):
        one.offer(ask("a"), 0.0)
    assert one.waiting == 4 and not one.dropped


def test_a_tenant_that_has_fewer_takes_a_place_from_the_one_that_has_most() -> None:
    one = admission(places=4)
    offered(one, ask("a", "alarm"), ask("a", "audit"), ask("a"), ask("a"))
    one.check("b")
    offered(one, ask("b"))
    ((victim, reason),) = one.dropped
    assert (victim.tenant, PRIORITIES[victim.rank]) == ("a", "audit")  # its least important
    assert "gave its place" in str(reason) and reason.retry_after_s > 0
    offered(one, ask("b"))
    with pytest.raises(NotAdmitted):  # two each: nobody has clearly fewer
        one.offer(ask("b"), 0.0)
    assert one.waiting == 4


def test_one_question_less_is_no_reason_to_take_a_place() -> None:
    one = admission(places=3)
    offered(one, ask("a"), ask("a"), ask("b"))
    with pytest.raises(NotAdmitted, match="3 samples wait for an answer already, 1 from here"):
        one.offer(ask("b"), 0.0)


def test_an_alarm_takes_the_place_of_an_audit_of_its_own_tenant() -> None:
    one = admission(places=2)
    offered(one, ask("a", "audit"), ask("a", "audit"), ask("a", "alarm"))
    assert [PRIORITIES[q.rank] for q, _ in one.dropped] == ["audit"]
    with pytest.raises(NotAdmitted):
        one.offer(ask("a", "audit"), 0.0)


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_a_question_that_would_be_late_is_refused_at_once_with_the_time_when_it_would_not() -> None:
    one = admission()
    offered(one, *(ask("a") for _ in range(20)))
    with pytest.raises(NotAdmitted, match="an answer would take 210 ms, and 100 ms are left") as error:
        one.offer(ask("a", "audit", deadline=0.1), 0.0)
    assert error.value.retry_after_s == pytest.approx(0.11)
    one.offer(ask("a", "alarm", deadline=0.1), 0.0)  # ahead of its own
    one.offer(ask("b", deadline=0.1), 0.0)  # another tenant's twenty do not stand before it


def test_more_workers_make_the_predicted_wait_shorter() -> None:
    waits = []
    for workers in (1, 2, 4):
        one = admission(workers)
        offered(one, *(ask("a") for _ in range(20)))
        waits.append(one.predicted_wait_s(ask("a"), 0.0))
    assert waits == pytest.approx([0.2, 0.1, 0.05])


def behind_after_a_long_run() -> Admission[None]:
    """`a` got 0.2 s for what it was charged 0.01 s, and `b` waits with 0.3 s of work."""
    one = admission(places=99)
    offered(one, Question("a", "huge", None), *(ask("b", deadline=99.0) for _ in range(30)))
    question = one.take(0.0)
    assert question is not None and question.tenant == "b"
    one.done(question, RUN_S)
    offered(one, Question("a", "huge", None, priority="alarm"))
    question = one.take(RUN_S)
    assert question is not None and question.tenant == "a"
    one.done(question, 0.2 + RUN_S)
    return one


def test_a_tenant_that_is_ahead_is_told_how_long_the_others_take_to_catch_up() -> None:
    one = behind_after_a_long_run()
    alarm = ask("a", "alarm")
    told = one.predicted_wait_s(alarm, 0.21)
    assert told == pytest.approx(0.2 - FAIR_S, abs=3 * RUN_S)
    one.offer(alarm, 0.21)
    assert served(one, 99, now=0.21).index(alarm) == pytest.approx(told / RUN_S, abs=1.5)


def test_when_all_work_is_done_nobody_is_behind_any_more() -> None:
    one = behind_after_a_long_run()
    served(one, 99, now=0.21)
    offered(one, ask("a", deadline=9.0), ask("b", deadline=8.0))  # b got 0.1 s more until now
    assert [q.tenant for q in served(one, 2)] == ["b", "a"]


def test_the_run_at_hand_counts_for_what_is_left_of_it() -> None:
    one = admission()
    offered(one, ask("a"))
    assert one.take(0.0) is not None
    assert one.predicted_wait_s(ask("b"), 0.004) == pytest.approx(0.006)


def test_predictions_follow_what_is_measured() -> None:
    one = admission()
    for number in range(40):
        offered(one, ask("a"), now=float(number))
        served(one, 1, run_s=0.2, now=float(number))
    assert one.run_s("large") == pytest.approx(1.15 * 0.2, rel=0.02)
    offered(one, ask("a", "alarm"), now=100.0)
    with pytest.raises(NotAdmitted, match="460 ms"):
        one.offer(ask("a", deadline=100.4), 100.0)
    assert one.run_s("unknown") == RUN_S


def test_a_run_that_failed_teaches_nothing() -> None:
    one = admission()
    offered(one, ask("a"))
    question = one.take(0.0)
    assert question is not None
    one.done(question, 60.0, measured=False)
    assert one.run_s("large") == RUN_S and one.running == 0


def test_a_question_that_has_become_late_is_dropped_when_its_turn_comes() -> None:
    one = admission()
    offered(one, ask("a", deadline=0.05), ask("a", deadline=9.0))
    question = one.take(0.045)
    assert question is not None and question.deadline == 9.0
    assert [str(reason) for _, reason in one.dropped] == ["the sample waited past its deadline"]


def test_a_question_nobody_waits_for_any_more_leaves_the_queue() -> None:
    one = admission()
    gone, kept, late = ask("a"), ask("a"), ask("a", late=True)
    offered(one, gone, kept, late)
    assert one.cancel(gone) and one.cancel(late) and not one.cancel(gone)
    assert one.waiting == 1 and one.take(0.0) is kept and not one.cancel(kept)


@pytest.mark.parametrize(("workers", "places"), [(0, 1), (1, 0)])
def test_without_worker_or_place_nothing_can_be_answered(workers: int, places: int) -> None:
    with pytest.raises(ValueError, match="1 at least"):
        Admission(workers, places)


def test_a_question_that_takes_several_runs_is_predicted_charged_and_measured_as_so_many() -> None:
    one: Admission[None] = Admission(1, 200, guess_s=RUN_S)
    large = Question("a", "large", None, runs=4)
    one.offer(large, 0.0)
    assert one.predicted_wait_s(ask("b", "audit"), 0.0) == pytest.approx(4 * RUN_S)
    assert one.backlog_s() == pytest.approx(4 * RUN_S)
    with pytest.raises(NotAdmitted, match="would take"):
        one.offer(Question("a", "large", None, runs=4, deadline=0.035), 0.0)
    assert one.take(0.0) is large and large.cost == pytest.approx(4 * RUN_S)
    one.done(large, 0.08)
    assert one.run_s("large") == pytest.approx(1.15 * 0.02)


def test_nobody_is_charged_for_the_loading_of_a_model() -> None:
    one = admission(places=200)
    offered(one, *(ask("first") for _ in range(9)), *(ask("second") for _ in range(9)))
    question = one.take(0.0)
    assert question is not None and question.tenant == "first"
    one.begun(question, 5.0)
    one.done(question, 5.0 + RUN_S, measured=False)
    slack = FAIR_S / RUN_S + 1
    assert abs(Counter(q.tenant for q in served(one, 10, now=5.1))["first"] - 5) <= slack / 2
    assert one.run_s("large") == pytest.approx(1.15 * RUN_S)


def test_a_model_that_was_slow_once_is_tried_again_when_nobody_else_waits() -> None:
    one = admission()
    now = 0.0
    offered(one, ask("a"))
    slow = one.take(now)
    assert slow is not None
    now += 60.0
    one.done(slow, now)
    assert one.run_s("large") > 1.0
    refused = 0
    for _ in range(60):
        now += 1.0
        offered(one, ask("a", "alarm", now + 0.1), now=now)
        with pytest.raises(NotAdmitted, match="would take"):  # that one would wait for the first
            one.offer(ask("a", "alarm", now + 0.1), now)
        refused += 1
        assert len(served(one, 9, now=now)) == 1
        if one.run_s("large") < 0.05:
            break
    assert refused < 60
    offered(one, ask("a", "alarm", now + 0.1), ask("b", "alarm", now + 0.1), now=now)


def test_what_is_late_already_is_not_tried_even_if_nobody_else_waits() -> None:
    one = admission()
    with pytest.raises(NotAdmitted, match="0 ms are left"):
        one.offer(ask("a", "alarm", 1.0), 1.0)
    offered(one, ask("a", "alarm", 1.02), now=1.0)
    assert one.take(1.03) is None
    assert [str(error) for _, error in one.dropped] == ["the sample waited past its deadline"]
