from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import toml
from edgekit.dispatch.policy import (
    PRIORITIES,
    Cloud,
    DispatchPolicy,
    Endings,
    Job,
    Place,
    Priority,
    Quotas,
    Shares,
    after_loss,
    at_turn,
    place,
)

POLICY = DispatchPolicy()
DEADLINE: dict[Priority, float] = {"alarm": 0.1, "inline": 0.3, "audit": 5.0}


def job(priority: Priority, **changes: Any) -> Job:
    return replace(Job("any", priority, 0.0, DEADLINE[priority], 50_000), **changes)


# --- what is decided -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("priority", "local_s", "cloud", "expected"),
    [
        ("alarm", 0.08, Cloud(0.0, 0.01), "local"),  # it ends well within its deadline: the cloud is not needed
        ("alarm", 0.12, Cloud(0.0, 0.09), "offload"),
        ("alarm", 0.12, Cloud(3.0, 0.09), "offload"),  # however much waits: it goes first
        ("alarm", 0.12, Cloud(0.0, 0.11), "local"),  # late either way
        ("alarm", 0.12, None, "local"),
        ("inline", 0.14, Cloud(0.0, 0.01), "local"),
        ("inline", 0.16, Cloud(0.0, 0.07), "offload"),
        ("inline", 0.16, Cloud(0.04, 0.07), "local"),  # its quota of the uplink is used up
        ("inline", 0.16, Cloud(0.0, 0.17), "local"),  # in time there too, but not sooner
        ("inline", 0.31, Cloud(0.0, 0.29), "offload"),
        ("inline", 0.31, None, "local"),  # what is ahead of it may yet leave
        ("audit", 0.6, Cloud(0.019, 0.2), "offload"),
        ("audit", 0.6, Cloud(0.02, 0.2), "local"),
        ("audit", 5.1, Cloud(0.02, 0.2), "spool"),
        ("audit", 5.1, None, "spool"),
    ],
)
def test_a_request_that_comes_goes_where_the_predictions_say(
    priority: Priority, local_s: float, cloud: Cloud | None, expected: Place
) -> None:
    assert place(POLICY, job(priority), local_s, cloud, 0.0).place == expected


@pytest.mark.parametrize(
    ("priority", "cloud", "expected"),
    [
        ("alarm", Cloud(0.0, 0.01), "offload"),
        ("alarm", None, "local"),
        ("inline", Cloud(0.0, 0.01), "offload"),
        ("inline", Cloud(0.1, 0.01), "refuse"),
        ("inline", None, "refuse"),
        ("audit", None, "spool"),
    ],
)
def test_a_request_that_would_be_late_when_its_turn_comes_goes_to_the_cloud_or_ends_as_its_class_says(
    priority: Priority, cloud: Cloud | None, expected: Place
) -> None:
    now = DEADLINE[priority] - 0.02
    assert at_turn(POLICY, job(priority), 0.03, cloud, now).place == expected
    assert at_turn(POLICY, job(priority), 0.01, cloud, now).place == "local"


@pytest.mark.parametrize(("priority", "late"), [("alarm", "local"), ("inline", "refuse"), ("audit", "spool")])
def test_a_request_whose_answer_is_lost_runs_here_if_there_is_time_and_else_ends_as_its_class_says(
    priority: Priority, late: Place
) -> None:
    left = DEADLINE[priority] - 0.05
    assert after_loss(POLICY, job(priority), left, 0.05).place == "local"
    assert after_loss(POLICY, job(priority), left + 0.001, 0.05).place == late


def test_time_that_was_spent_waiting_counts_for_the_share_of_the_deadline() -> None:
    assert place(POLICY, job("inline"), 0.06, Cloud(0.0, 0.05), 0.0).place == "local"
    assert place(POLICY, job("inline"), 0.06, Cloud(0.0, 0.05), 0.1).place == "offload"


def test_what_may_not_leave_never_does() -> None:
    private = job("inline", may_leave=False)
    assert place(POLICY, private, 9.0, Cloud(0.0, 0.01), 0.0).place == "local"
    assert at_turn(POLICY, private, 9.0, Cloud(0.0, 0.01), 0.0).place == "refuse"


seconds = st.floats(0.0, 20.0)
clouds = st.none() | st.builds(Cloud, seconds, seconds)


@given(st.sampled_from(PRIORITIES), seconds, seconds, clouds)
def test_no_request_is_offloaded_that_the_cloud_would_answer_late_or_that_exceeds_its_quota(
    priority: Priority, now: float, local_s: float, cloud: Cloud | None
) -> None:
    for decision in (
        place(POLICY, job(priority), local_s, cloud, now),
        at_turn(POLICY, job(priority), local_s, cloud, now),
    ):
        if decision.place == "offload":
            assert cloud is not None and now + cloud.total_s <= DEADLINE[priority] + 1e-9
            assert cloud.backlog_s < POLICY.quota_s(priority)
            assert decision.cloud_s == cloud.total_s


@given(seconds, seconds, clouds)
def test_an_alarm_is_never_spooled_or_refused(now: float, local_s: float, cloud: Cloud | None) -> None:
    alarm = job("alarm")
    decisions = (
        place(POLICY, alarm, local_s, cloud, now),
        at_turn(POLICY, alarm, local_s, cloud, now),
        after_loss(POLICY, alarm, local_s, now),
    )
    assert all(decision.place in ("local", "offload") for decision in decisions)


@given(st.sampled_from(PRIORITIES), seconds, seconds, clouds)
def test_a_shorter_wait_never_makes_a_request_leave(
    priority: Priority, now: float, local_s: float, cloud: Cloud | None
) -> None:
    if place(POLICY, job(priority), local_s, cloud, now).place == "local" and now + local_s <= DEADLINE[priority]:
        assert place(POLICY, job(priority), local_s / 2, cloud, now).place == "local"


def test_a_decision_explains_itself() -> None:
    decision = place(POLICY, job("inline"), 0.31, Cloud(0.0, 0.07), 0.0)
    assert decision.sentence(job("inline"), 0.0) == (
        "the cloud answers it, with 300 ms left to its deadline (here: 310 ms; cloud: 70 ms)"
    )
    assert "cloud: it could not be asked" in place(POLICY, job("audit"), 9.0, None, 0.0).sentence(job("audit"), 0.0)


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_a_table_changes_only_what_it_names() -> None:
    table = toml.read(b"[offload_above]\ninline = 0.3\n[uplink_ms]\naudit = 0\n[hopeless]\naudit = 'refuse'\n", 1000)
    policy = toml.convert(table, DispatchPolicy)
    assert policy == DispatchPolicy(
        offload_above=Shares(inline=0.3), uplink_ms=Quotas(audit=0.0), hopeless=Endings(audit="refuse")
    )
    assert toml.convert(toml.read(toml.dump(policy).encode(), 1000), DispatchPolicy) == policy
    assert policy.quota_s("alarm") == math.inf and policy.quota_s("inline") == 0.04


def test_a_class_without_quota_sends_nothing() -> None:
    policy = DispatchPolicy(uplink_ms=Quotas(audit=0.0))
    assert place(policy, job("audit"), 3.0, Cloud(0.0, 0.1), 0.0).place == "local"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[offload_above]\naudit = 1.5", "offload_above.audit must lie between 0 and 1"),
        (b"[offload_above]\naudit = nan", '"offload_above.audit" is nan'),
        (b"[uplink_ms]\ninline = -1", "uplink_ms.inline must be"),
        (b"[uplink_ms]\ninline = inf", '"uplink_ms.inline" is inf'),
        (b"run_factor = 0.9", "run_factor must lie between 1 and 10, not 0.9"),
        (b"steady_cv = 0", "steady_cv must be over 0"),
        (b"[hopeless]\nalarm = 'spool'", '"hopeless.alarm" is "spool"'),
        (b"[uplink]\ninline = 3", 'did you mean "uplink_ms"?'),
    ],
)
def test_a_number_that_cannot_be_used_is_named(text: bytes, message: str) -> None:
    with pytest.raises(toml.TomlError) as error:
        toml.convert(toml.read(text, 1000), DispatchPolicy)
    assert message in str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_a_policy_made_in_code_is_checked_too(bad: float) -> None:
    with pytest.raises(ValueError, match="audit"):
        DispatchPolicy(uplink_ms=Quotas(audit=bad))
    with pytest.raises(ValueError, match="alarm"):
        DispatchPolicy(offload_above=Shares(alarm=bad))
    with pytest.raises(ValueError, match="overdue_factor"):
        DispatchPolicy(overdue_factor=bad)
