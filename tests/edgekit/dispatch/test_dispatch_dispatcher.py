from __future__ import annotations

import math

import pytest

from edgekit.dispatch.dispatcher import Dispatcher
from edgekit.dispatch.policy import DispatchPolicy, Job, Priority, Quotas, Shares
from edgekit.dispatch.uplink import UplinkAccount

RUN_S: dict[Priority, float] = {"alarm": 0.025, "inline": 0.04, "audit": 0.06}
DEADLINE: dict[Priority, float] = {"alarm": 0.1, "inline": 0.3, "audit": 5.0}
RTT_S = 0.03
TRIP_S = RTT_S * (1 + 2 * 0.2 * 0.9)
"""As predicted after one heartbeat: two deviations above the mean; they began with 0.2 of it and fell by a tenth."""


def dispatcher(policy: DispatchPolicy | None = None, *, up: bool = True) -> Dispatcher[str]:
    made: Dispatcher[str] = Dispatcher(policy or DispatchPolicy(), UplinkAccount(2.5e6), RTT_S)
    for priority, run_s in RUN_S.items():
        made.service(priority, run_s, run_s / 6)
    if up:
        made.heartbeat(0.0, RTT_S)
    return made


def job(priority: Priority = "inline", arrived: float = 0.0, size: int = 50_000) -> Job:
    return Job(priority, priority, arrived, arrived + DEADLINE[priority], size)


def on_its_way(one: Dispatcher[str], key: str, priority: Priority = "inline", now: float = 0.0) -> None:
    """Offload and send it at once."""
    one.offload(key, job(priority, now))
    assert one.begin(now) == key
    one.sent(key, now + one.uplink.sending_s(50_000))


def test_the_prediction_adds_backlog_sending_round_trip_wait_and_run() -> None:
    one = dispatcher()
    cloud = one.cloud(job("inline"), 0.0)
    assert cloud is not None and cloud.backlog_s == 0.0
    assert cloud.total_s == pytest.approx(0.02 + TRIP_S + 1.2 * 0.04 / 6)
    one.offload("ahead", job("inline"))
    cloud = one.cloud(job("inline"), 0.0)
    assert cloud is not None and cloud.backlog_s == pytest.approx(0.02)
    assert cloud.total_s == pytest.approx(0.04 + TRIP_S + 1.2 * 0.04 / 6)
    alarm = one.cloud(job("alarm"), 0.0)
    assert alarm is not None and alarm.total_s == pytest.approx(0.02 + TRIP_S + 1.2 * 0.025 / 6)  # it goes first


def test_nothing_is_offloaded_before_the_link_is_known_to_be_up() -> None:
    one = dispatcher(up=False)
    assert one.arrives(job(), 9.0, 0.0).place == "local"
    one.heartbeat(0.0, RTT_S)
    assert one.arrives(job(), 9.0, 0.0).place == "offload"


def test_a_link_that_is_known_to_be_down_gives_everything_back_to_be_decided_anew() -> None:
    one = dispatcher()
    on_its_way(one, "sent")
    one.offload("sending", job())
    one.begin(0.02)
    one.offload("waiting", job("audit"))
    assert sorted(one.link_down()) == ["sending", "sent", "waiting"]
    assert one.uplink.backlog_s(0.02) == 0.0 and one.begin(0.02) is None and one.next_check == math.inf
    assert one.lost(job("inline"), 0.2, 0.02).place == "local"
    assert one.lost(job("inline"), 0.29, 0.02).place == "refuse"
    assert one.lost(job("audit"), 9.0, 0.02).place == "spool"
    assert one.lost(job("alarm"), 9.0, 0.02).place == "local"
    assert one.arrives(job("alarm"), 9.0, 0.02).place == "local"


def test_an_overdue_answer_without_a_sign_of_life_makes_the_link_suspect_and_takes_back_what_has_not_left() -> None:
    one = dispatcher()
    on_its_way(one, "silent")
    one.offload("sending", job())
    one.offload("waiting", job())
    assert one.begin(0.02) == "sending"
    stuck = one.next_check  # 20 ms of sending should take no longer than one and a half of them and a round trip
    assert stuck == pytest.approx(0.02 + 0.03 + 0.03)
    assert one.overdue(stuck - 0.001) == [] and one.usable
    assert one.overdue(stuck) == ["sending", "waiting"]
    assert not one.usable and one.arrives(job(), 9.0, stuck).place == "local"
    assert one.next_check == pytest.approx(0.02 + 1.5 * (TRIP_S + 1.2 * 0.04 / 6))
    assert one.overdue(one.next_check) == ["silent"]
    one.heartbeat(0.5, RTT_S)
    assert one.usable


def test_an_overdue_answer_while_others_come_is_only_that() -> None:
    one = dispatcher()
    on_its_way(one, "slow")
    on_its_way(one, "quick", now=0.02)
    one.answered("quick", 0.08, 0.007)
    assert one.overdue(0.2) == ["slow"]
    assert one.usable
    one.answered("slow", 0.25, 0.007)  # after all; the caller counts whichever answer was first
    assert not one.on_its_way("slow")


def test_a_message_that_does_not_get_away_is_overdue_too() -> None:
    one = dispatcher()
    one.offload("stuck", job())
    one.begin(0.0)
    assert one.next_check == pytest.approx(1.5 * 0.02 + RTT_S)
    assert one.overdue(one.next_check) == ["stuck"]
    assert not one.usable and one.uplink.backlog_s(0.1) == 0.0


def test_answers_teach_round_trip_and_run_times() -> None:
    one = dispatcher()
    for number in range(60):
        now = number * 1.0
        on_its_way(one, str(number), now=now)
        one.answered(str(number), now + 0.02 + 0.05 + 0.012, run_s=0.012)
    assert one.rtt_s == pytest.approx(0.05, rel=0.05)
    assert one.times("inline")[1].mean == pytest.approx(0.012, rel=0.05)


def test_what_a_cloud_says_that_cannot_be_is_not_believed() -> None:
    one = dispatcher()
    for number, (run_s, wait_s) in enumerate([(math.nan, 0.0), (1e9, 0.0), (-1.0, -1.0), (0.01, math.inf)]):
        on_its_way(one, str(number), now=number)
        one.answered(str(number), number + 0.1, run_s, wait_s)
    assert one.rtt_s < 1.0 and math.isfinite(one.rtt_s)
    one.heartbeat(9.0, math.nan)
    assert math.isfinite(one.rtt_s)


def test_a_cloud_that_asks_for_a_rest_gets_it_and_is_asked_again_afterwards() -> None:
    one = dispatcher()
    one.offload("refused", job())
    one.begin(0.0)
    one.busy("refused", 0.1, retry_after_s=2.0)
    assert not one.on_its_way("refused")
    assert one.arrives(job(arrived=0.2), 9.0, 0.2).place == "local"
    assert one.arrives(job(arrived=2.05), 9.0, 2.05).place == "offload"


def test_the_wait_in_the_cloud_counts_and_fades_when_nobody_asks() -> None:
    one = dispatcher()
    on_its_way(one, "a")
    one.answered("a", 0.1, 0.007, wait_s=0.5)
    before, after = one.cloud(job(), 0.1), one.cloud(job(), 0.4)
    assert before is not None and after is not None
    assert before.total_s - after.total_s == pytest.approx(0.3, abs=0.01)


def test_a_policy_is_exchanged_while_everything_known_stays() -> None:
    one = dispatcher()
    for _ in range(50):
        one.ran_here("inline", 0.08)
    on_its_way(one, "a")
    assert one.arrives(job(), 0.0, 0.05).place == "local"
    one.policy = DispatchPolicy(offload_above=Shares(inline=0.1), run_factor=1.0)
    assert one.run_s("inline") == pytest.approx(0.08, rel=0.01)
    assert one.arrives(job(), 0.05, 0.05).place == "offload"
    assert one.on_its_way("a")


def test_what_waits_leaves_when_the_uplink_has_room_by_class_and_within_the_quotas() -> None:
    one = dispatcher()
    waiting = [(f"i{n}", job("inline"), 0.15 + 0.05 * n) for n in range(3)] + [
        (f"a{n}", job("audit"), 0.6 + 0.05 * n) for n in range(3)
    ]
    leaving = one.review(waiting, 0.0)
    # 20 ms of sending each: two inline requests find less than 40 ms ahead, and audits then more than their 20 ms
    assert [key for key, _ in leaving] == ["i0", "i1"]
    assert all(decision.place == "offload" for _, decision in leaving)
    one.link_down()
    assert one.review(waiting, 0.0) == []


def test_what_leaves_makes_what_waits_behind_it_wait_less() -> None:
    one = dispatcher(DispatchPolicy(uplink_ms=Quotas(inline=1000.0)))
    waiting = [("first", job(), 0.14), ("second", job(), 0.14)]  # 0.14 + 0.046 is over, 0.094 + 0.046 under 0.15
    assert [key for key, _ in one.review(waiting, 0.0)] == ["first"]


def test_an_alarm_on_the_edge_of_its_deadline_leaves_early() -> None:
    one = dispatcher()
    assert one.arrives(job("alarm"), 0.05, 0.0).place == "local"
    assert one.arrives(job("alarm"), 0.06, 0.0).place == "offload"  # 60 + 29 ms: over 85 ms, and the cloud is sooner


def test_a_steady_link_is_promised_its_round_trip_and_an_unsteady_one_no_more_than_the_factor() -> None:
    steady, unsteady = dispatcher(), dispatcher()
    for beat in range(100):
        steady.heartbeat(0.0, RTT_S)
        unsteady.heartbeat(0.0, RTT_S * (0.2 if beat % 2 else 1.8))
    rest = 0.02 + 1.2 * 0.04 / 6
    calm, wild = (one.cloud(job("inline"), 0.0) for one in (steady, unsteady))
    assert calm is not None and calm.total_s == pytest.approx(rest + RTT_S, rel=1e-3)
    assert wild is not None and wild.total_s == pytest.approx(rest + 1.4 * unsteady.rtt_s)


def test_a_job_that_is_called_off_leaves_the_uplink_to_the_next() -> None:
    one = dispatcher()
    one.offload("first", job())
    one.offload("second", job())
    assert one.begin(0.0) == "first"
    one.cancel("first")
    assert not one.on_its_way("first") and one.begin(0.0) == "second"
    one.cancel("unknown")


def test_a_body_that_had_to_open_its_connection_says_nothing_about_the_bandwidth() -> None:
    one = dispatcher()
    one.offload("first", job())
    assert one.begin(0.0) == "first"
    before = one.uplink.bytes_per_s
    one.sent("first", 1.0, measured=False)
    assert one.uplink.bytes_per_s == before
