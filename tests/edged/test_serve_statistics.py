"""Counters, sliding percentiles and sample ids."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.serve.sample_id import file_id, timed_id
from edged.serve.statistics import LatencyWindow, ServiceStatistics
from edgekit.messages import LATENCY_BOUNDS_MS, Decision, Verdict

EDGE = Verdict(label="ok", score=0.9, margin=0.8, model="m@1")


def decision(**changes: object) -> Decision:
    fields: dict[str, object] = {
        "sample_id": "0" * 26,
        "service": "s",
        "label": "ok",
        "score": 0.9,
        "decided": "edge",
        "model": "m@1",
        "edge": EDGE,
    }
    return Decision(**(fields | changes))  # type: ignore[arg-type]


def test_percentiles_are_near_the_truth() -> None:
    rng = random.Random(4)
    values = [rng.lognormvariate(2, 1) for _ in range(5000)]
    window = LatencyWindow()
    for value in values:
        window.add(value, now=100.0)
    p50, p99 = window.percentiles((0.5, 0.99), now=101.0)
    values.sort()
    assert p50 == pytest.approx(values[2499], rel=0.06)
    assert p99 == pytest.approx(values[4949], rel=0.06)


def test_old_latencies_leave_the_window() -> None:
    window = LatencyWindow()
    window.add(1000.0, now=5.0)
    window.add(10.0, now=58.0)
    assert window.percentiles((0.99,), now=59.0)[0] == pytest.approx(1000, rel=0.06)
    assert window.percentiles((0.99,), now=65.0)[0] == pytest.approx(10, rel=0.06)
    assert window.percentiles((0.5, 0.99), now=500.0) == [None, None]


def test_report_counts_what_was_decided() -> None:
    statistics = ServiceStatistics(["ok", "bad"])
    cloud = Verdict(label="bad", score=0.99, margin=0.98, model="large@1")
    statistics.decided(decision(), 3.0, now=1.0, wall=50.0)
    statistics.decided(decision(decided="cloud", label="bad", cloud=cloud, sent="hard"), 80.0, now=1.0, wall=51.0)
    statistics.decided(decision(decided="cloud", cloud=EDGE, sent="hard"), 80.0, now=1.0, wall=52.0)
    statistics.decided(decision(decided="edge-degraded", sent="hard", spooled=True), 9000.0, now=1.0, wall=53.0)
    report = statistics.report("s", "m@1", "gate", waiting=2, now=2.0)
    assert (report.inspected, report.edge, report.cloud, report.degraded) == (4, 1, 2, 1)
    assert report.offload_share == pytest.approx(0.75)
    assert report.agreement == pytest.approx(0.5)
    assert report.labels == {"ok": 3, "bad": 1}
    assert (report.waiting, report.last_at, report.gate) == (2, 53.0, "gate")
    assert sum(report.latency_counts) == 4
    assert report.latency_counts[LATENCY_BOUNDS_MS.index(5)] == 1
    assert report.latency_counts[-1] == 1
    assert report.latency_sum_ms == pytest.approx(9163)


def test_offload_share_is_that_of_the_last_thousand() -> None:
    statistics = ServiceStatistics(["ok"])
    for _ in range(1000):
        statistics.decided(decision(sent="calibrating"), 1.0, now=1.0, wall=1.0)
    for _ in range(900):
        statistics.decided(decision(), 1.0, now=1.0, wall=1.0)
    assert statistics.report("s", "m", "", 0, now=1.0).offload_share == pytest.approx(0.1)


def test_unknown_labels_cannot_grow_a_report() -> None:
    statistics = ServiceStatistics(["ok"])
    for number in range(50):
        statistics.decided(decision(label=f"made-up-{number}"), 1.0, now=1.0, wall=1.0)
    assert statistics.report("s", "m", "", 0, now=1.0).labels == {}


@given(st.floats(0, 4e9), st.binary(min_size=10, max_size=10))
def test_timed_ids_have_the_shape_and_sort_by_time(now: float, randomness: bytes) -> None:
    sample_id = timed_id(now, randomness)
    assert len(sample_id) == 26
    assert set(sample_id) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
    assert timed_id(now + 1, bytes(10)) > timed_id(now, b"\xff" * 10)


def test_file_ids_follow_everything_that_makes_a_file() -> None:
    base = file_id("s", "a.jpg", 1, b"x")
    assert base == file_id("s", "a.jpg", 1, b"x")
    others = {
        file_id("t", "a.jpg", 1, b"x"),
        file_id("s", "b.jpg", 1, b"x"),
        file_id("s", "a.jpg", 2, b"x"),
        file_id("s", "a.jpg", 1, b"y"),
        file_id("sa", ".jpg", 1, b"x"),
        file_id("s", "\udcff.jpg", 1, b"x"),
    }
    assert len(others | {base}) == 7
    assert all(len(other) == 26 for other in others)
