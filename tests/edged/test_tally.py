"""Counters never fall: not at a swap, not after a crash, not while a predecessor drains."""

from __future__ import annotations

import random

import msgspec

from edged.tally import MAX_MODELS, Tally, add, add_model
from edgekit.messages import GateFacts, ModelStatistics, OutputReport, ServiceReport, ShadowReport


def report(scale: int, *, name: str = "solder", outputs: int = 1) -> ServiceReport:
    """A report whose every counter is a multiple of `scale`."""
    return ServiceReport(
        name=name, model="m@1", state="ready", inspected=10 * scale, edge=7 * scale, cloud=2 * scale, degraded=scale,
        refused=scale, shed=2 * scale, errors=3 * scale, runs=9 * scale, inline_runs=4 * scale,
        labels={"ok": 8 * scale, f"l{scale}": 2 * scale}, verdicts={"pass": 8 * scale, "review": 2 * scale},
        latency_counts=[scale, 0, 9 * scale], latency_sum_ms=1.5 * scale,
        regions={"asked": 6 * scale, "cloud": scale},
        stage_counts={"infer": [scale, scale]}, stage_sums_ms={"infer": 0.5 * scale},
        not_run={"stale": scale, "full": 0}, p50_ms=float(scale), waiting=scale, last_at=float(scale),
        outputs=[OutputReport(name="/o", kind="csv", delivered=scale, dropped=scale, waiting=scale)] * outputs,
        audited=3 * scale, audited_differing=scale, gate_facts=GateFacts(audits=scale), shadow=shadow(scale),
    )  # fmt: skip


def shadow(scale: int, candidate: str = "m.solder@1-1") -> ShadowReport:
    """All of its counters are multiples of `scale`."""
    return ShadowReport(
        candidate=candidate, items=9 * scale, agreeing=7 * scale, unusable=scale, audits=4 * scale, lost=scale,
        gained=2 * scale, sent=3 * scale, would_send=2 * scale, skipped=scale, p95_ms=float(scale),
    )  # fmt: skip


def test_every_counter_is_added_and_nothing_else() -> None:
    tally = Tally()
    tally.retire([report(1)], 100)
    tally.retire([report(2)], 50)
    total = tally.total(report(4))
    assert tally.uplink_bytes == 150
    expected = msgspec.structs.replace(
        report(7), p50_ms=4.0, waiting=4, last_at=4.0, labels={"ok": 56, "l1": 2, "l2": 4, "l4": 8},
        gate_facts=GateFacts(audits=4), shadow=msgspec.structs.replace(shadow(7), p95_ms=4.0),
        outputs=[OutputReport(name="/o", kind="csv", delivered=7, dropped=7, waiting=4)],
    )  # fmt: skip
    assert total == expected


def test_a_new_counter_of_a_report_cannot_be_forgotten() -> None:
    """Whoever adds a field to ServiceReport has to say here that it is no counter, or add it up."""
    states = {
        "name", "model", "state", "detail", "offload_share", "agreement", "p50_ms", "p99_ms", "infer_p95_ms", "gate",
        "waiting", "last_at", "recent_p50_ms", "recent_p99_ms", "recent_per_s", "preview", "plan", "gate_facts",
    }  # fmt: skip
    once, twice = report(1), add(report(1), report(1))
    for field in set(ServiceReport.__struct_fields__) - states:
        assert getattr(once, field) != getattr(twice, field), field
    assert once.shadow is not None and twice.shadow is not None
    for field in set(ShadowReport.__struct_fields__) - {"candidate", "p95_ms", "failure"}:
        assert getattr(twice.shadow, field) == 2 * getattr(once.shadow, field), field


def test_what_one_candidate_counted_is_not_anothers() -> None:
    tally = Tally()
    tally.retire([report(1)], 0)
    other = msgspec.structs.replace(report(2), shadow=shadow(2, "m.solder@1-2"))
    assert tally.total(other).shadow == other.shadow
    gone = msgspec.structs.replace(report(2), shadow=None)
    assert tally.total(gone).shadow is None, "the service has no candidate any more"


def test_a_candidate_keeps_its_counts_over_a_worker_that_could_not_load_the_service() -> None:
    tally = Tally()
    tally.retire([report(1)], 0)
    tally.retire([ServiceReport(name="solder", model="m@1", state="failed")], 0)
    total = tally.total(report(1)).shadow
    assert total is not None and (total.items, total.would_send) == (18, 4)


def test_a_service_without_outputs_and_a_new_histogram_lose_nothing() -> None:
    total = add(report(1, outputs=0), report(1))
    assert total.outputs == []
    bare = ServiceReport(name="solder", model="m@1", state="loading")
    assert add(bare, report(3)).stage_counts == {"infer": [3, 3]}
    assert add(bare, report(3)).state == "loading" and add(bare, report(3)).last_at == 3.0


def test_forgotten_services_begin_at_zero() -> None:
    tally = Tally()
    tally.retire([report(1), report(2, name="other")], 0)
    tally.forget(["other"])
    assert tally.total(report(1)) == report(1)
    assert tally.total(report(1, name="other")).inspected == 30


def test_models_are_added_by_version_and_bounded() -> None:
    tally = Tally()
    tally.retire([], 0, [ModelStatistics(name="m", version="1", success=3, request_us=10, pending=2, last_at=5.0)])
    now = ModelStatistics(name="m", version="1", success=1, queue_us=7, pending=1)
    total = tally.total_model(now)
    assert (total.success, total.request_us, total.queue_us, total.pending, total.last_at) == (4, 10, 7, 1, 5.0)
    assert tally.total_model(ModelStatistics(name="m", version="2", success=1)).success == 1
    tally.retire([], 0, [ModelStatistics(name="n", version=str(number)) for number in range(MAX_MODELS + 9)])
    assert tally.total_model(now) == now, "the oldest one made room"
    fields = set(ModelStatistics.__struct_fields__) - {"name", "version", "pending", "last_at"}
    one = ModelStatistics(name="m", version="1", **dict.fromkeys(fields, 1))
    assert all(getattr(add_model(one, one), field) == 2 for field in fields)


def test_a_long_series_of_workers_never_goes_back() -> None:
    tally, rng, highest = Tally(), random.Random(4), 0
    for _ in range(50):
        live = 0
        for _ in range(5):
            live += rng.randrange(3)
            inspected = tally.total(report(live)).inspected
            assert inspected >= highest
            highest = inspected
        tally.retire([report(live)], 0)
    assert highest > 500
