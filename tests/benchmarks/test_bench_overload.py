"""The overload benchmark's figures, from answers made up for the purpose."""

from __future__ import annotations

import pytest

from benchmarks.load_generator import Result
from benchmarks.overload import SERVICES, Seen, row, verdict

FALL = 10.0
BEGAN = 100.0


def seen(number: int, answers: list[tuple[float, float]], refusals: list[tuple[float, float]], broken: int = 0) -> Seen:
    """(due, latency) from the start of the load, in seconds."""
    result = Result(broken=broken, seconds=15.0)
    for due, latency in answers:
        result.latencies.append(latency)
        result.done_at.append(BEGAN + due + latency)
    for due, latency in refusals:
        result.statuses[503] += 1
        result.other_latencies.append(latency)
        result.other_at.append(BEGAN + due + latency)
    return Seen(SERVICES[number], result, BEGAN, FALL)


def test_shares_latencies_and_recovery() -> None:
    alarm = seen(0, [(1.0, 0.05)] * 98 + [(2.0, 0.15), (9.99, 0.05)], [])  # one late; one answered after the fall
    inline = seen(1, [(3.0, 0.2)] * 50 + [(10.4, 0.31)], [(4.0, 0.002)] * 49 + [(5.0, 0.25)])
    audit = seen(2, [(12.0, 0.5)] * 5, [(6.0, 0.001)] * 50 + [(10.7, 0.001)])
    memory = [(at / 2, 100.0 + at / 2 / 60) for at in range(30)]
    figures = row([alarm, inline, audit], memory, capacity=20.0, factor=2.0)
    assert figures["slo_alarm"] == pytest.approx(0.99)
    assert figures["slo_inline"] == pytest.approx(0.5) and figures["slo_audit"] == 0.0
    assert figures["goodput"] == pytest.approx((99 + 50) / FALL / 20.0)
    assert figures["answered_or_refused"] == 1.0
    assert figures["worst_refusal_ms"] == pytest.approx(250) and figures["waited"] == pytest.approx(0.01)
    assert figures["recovery_s"] == pytest.approx(0.7)
    assert figures["rss_slope_mb_min"] == pytest.approx(1.0)
    assert all(verdict([figures]).values())


def test_a_request_without_an_answer_is_neither_answered_nor_refused() -> None:
    alarm = seen(0, [(1.0, 0.05)] * 99, [], broken=1)
    figures = row([alarm, seen(1, [], []), seen(2, [], [])], [], capacity=20.0, factor=1.2)
    assert figures["answered_or_refused"] == pytest.approx(0.99)
    assert not verdict([figures])["answered_or_refused_met"]
