"""One service's plan, told everything by hand: which way it takes, and what it says about it."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest

from edged.collab.plan.heads import Cut, HeadsInfo
from edged.collab.plan.service_plan import ServicePlan
from edgekit.messages import Answer, FeaturesHeader, HardSample, PlanReport, Verdict
from edgekit.planning.estimates import LinkEstimate, Span
from edgekit.planning.routes import Demand
from edgekit.services import HardSamples, Regions, Service, Split

PICTURE = bytes(40_000)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Wire:
    """A link as the test wants it."""

    up: bool = True
    changing: bool = False
    known: LinkEstimate = field(default_factory=LinkEstimate)

    def estimate(self) -> LinkEstimate:
        return self.known

    def measured(self, mbit: float, rtt_ms: float = 5.0) -> None:
        rate = mbit / 8e-6
        self.known = LinkEstimate(
            state="measured", bandwidth=rate, typical_bandwidth=rate, rtt=Span(rtt_ms, rtt_ms), age_s=1.0, samples=100
        )


HEADS = HeadsInfo(
    of="large@1",
    tail="large-tail@1",
    whole_ms=40.0,
    prepare_ms=2.0,
    cuts=[
        Cut(name="c5", whole=False, head_ms=10.0, wire_bytes=30_000, tail_ms=30.0),
        Cut(name="c20", whole=False, head_ms=60.0, wire_bytes=3_000, tail_ms=8.0),
        Cut(name="whole", whole=True, head_ms=400.0, wire_bytes=0, tail_ms=0.0),
    ],
)


def service(**changes: object) -> Service:
    made = Service(name="s", model="small", hard_samples=HardSamples(answer_model="large"), split=Split(heads="h"))
    return msgspec.structs.replace(made, **changes)


@dataclass
class Bench:
    wire: Wire
    clock: Clock
    plan: ServicePlan

    def look(self, seconds: float = 1.0) -> str:
        """A second later, with a picture meanwhile."""
        self.clock.now += seconds
        self.plan.came(PICTURE)
        self.plan.look()
        return self.plan.route().name

    def report(self) -> PlanReport:
        report = self.plan.report()
        assert report is not None
        return report


def bench(wanted: Service, heads: HeadsInfo | None = HEADS, answered_by: str = "") -> Bench:
    wire, clock = Wire(), Clock()
    plan = ServicePlan(wanted, wire, clock, heads, lambda: answered_by)
    plan.demand = lambda: Demand(frames_per_s=1.0, cores=2.0)
    return Bench(wire, clock, plan)


def sample(**changes: object) -> HardSample:
    header = HardSample(
        sample_id="1", service="s", answer_model="large", reason="hard", captured_at=0.0,
        edge=Verdict(label="x", score=0.5, margin=0.1, model="small@1"),
    )  # fmt: skip
    return msgspec.structs.replace(header, **changes)


def answer(compute_ms: float, waited_ms: float = 0.0, repeated: bool = False) -> Answer:
    verdict = Verdict(label="x", score=0.9, margin=0.8, model="large@1")
    return Answer(sample_id="1", verdict=verdict, compute_ms=compute_ms, waited_ms=waited_ms, repeated=repeated)


def test_only_features_leave_where_pixels_may_not_and_the_cut_follows_the_link() -> None:
    it = bench(service(may_leave="features"))
    it.wire.measured(100.0)
    assert it.look() == "split@c5"
    it.wire.measured(2.0)
    assert it.look() == "split@c20"
    rows = {row.name: row for row in it.report().routes}
    assert rows["frame"].why == "pixels may not leave the site" and not rows["frame"].feasible
    assert it.report().changes == 1


def test_the_picture_goes_where_it_may_and_is_cheaper() -> None:
    it = bench(service())
    it.wire.measured(1000.0)
    for _ in range(3):
        it.plan.answered(sample(), answer(15.0))
    assert it.look() == "frame"
    row = it.report().routes[0]
    assert (row.name, row.chosen, row.feasible, row.why) == ("frame", True, True, "chosen")
    assert row.bytes == pytest.approx(41_100) and row.latency_ms == pytest.approx(row.cost)


def test_without_a_link_the_whole_model_answers_here_if_it_is_quick_enough() -> None:
    it = bench(service(deadline_ms=1000.0))
    it.wire.measured(100.0)
    it.look()
    it.wire.up = False
    route = it.plan.route()  # no second has passed: the link counts at once
    assert (route.name, route.good) == ("edge-whole", True)
    it = bench(service(deadline_ms=300.0))
    it.wire.up = False
    assert it.plan.route().name == "edge"


def test_a_sample_stays_when_no_way_is_quick_enough_and_the_reason_is_told() -> None:
    it = bench(service(may_leave="features", deadline_ms=100.0))
    it.wire.measured(0.2, rtt_ms=80.0)
    assert it.look() == "edge"
    assert it.plan.why_here.startswith("split@c20: over the deadline by ")
    assert it.report().sentence.startswith("The small model's own answer stands")
    form = it.plan.form()
    assert form is not None and form.kind == "split", "what is sent later are features, however slow"


def test_a_sample_may_try_what_the_plan_does_not_promise() -> None:
    it = bench(service(may_leave="features", deadline_ms=200.0))
    it.wire.known = LinkEstimate(
        state="measured", bandwidth=40_000.0, typical_bandwidth=400_000.0, rtt=Span(10.0, 120.0), age_s=1.0, samples=100
    )
    assert it.look() == "edge"
    chance = it.plan.chance(0.2)
    assert chance is not None and chance.name == "split@c20", "usually it takes 90 ms"
    assert it.plan.chance(0.09) is None and it.plan.chance(0.0) is None
    it.wire.changing = True
    assert it.plan.chance(0.2) is None, "while the link changes nobody knows what is usual"
    it.wire.changing = False
    patient = it.plan.chance(3.0)
    assert patient is not None, "a client with more time than the service's deadline"
    it.plan.demand = lambda: Demand(frames_per_s=100.0, cores=2.0)
    it.look()
    assert it.plan.chance(3.0) is None, "what the link cannot carry is not tried"
    it.wire.up = False
    it.plan.route()
    assert it.plan.chance(0.2) is None


def test_what_is_measured_counts_from_then_on() -> None:
    it = bench(service(may_leave="features"))
    it.wire.measured(100.0)
    assert it.look() == "split@c5"
    for _ in range(3):
        it.plan.headed("c5", 2.0, 90.0, 29_000)
    assert it.look() == "split@c20"
    before = {row.name: row.latency_ms for row in it.report().routes}
    for _ in range(3):
        it.plan.headed("c20", 12.0, 60.0, 5_000)
    it.look()
    after = {row.name: row.latency_ms for row in it.report().routes}
    assert after["split@c5"] - before["split@c5"] == pytest.approx(10.0), "a picture is prepared alike for every cut"


def test_the_speed_of_the_cloud_is_learned_from_any_answer() -> None:
    it = bench(service(may_leave="features"))
    it.wire.measured(100.0)
    it.look()
    before = {row.name: row.latency_ms for row in it.report().routes}
    split = sample(features=FeaturesHeader(tail="large-tail@1", cut="c5"))
    for _ in range(3):
        it.plan.answered(split, answer(60.0))  # twice of what was declared
    it.look()
    after = {row.name: row.latency_ms for row in it.report().routes}
    assert after["split@c5"] - before["split@c5"] == pytest.approx(30.0)
    assert after["split@c20"] - before["split@c20"] == pytest.approx(8.0)


def test_an_answer_of_another_tail_or_from_memory_says_nothing_about_the_times() -> None:
    it = bench(service(may_leave="features"))
    it.wire.measured(100.0)
    it.look()
    before = it.report().routes
    for _ in range(5):
        it.plan.answered(sample(features=FeaturesHeader(tail="old-tail@1", cut="c5")), answer(500.0))
        it.plan.answered(sample(features=FeaturesHeader(tail="large-tail@1", cut="c5")), answer(500.0, repeated=True))
    it.look()
    assert [row.latency_ms for row in it.report().routes] == [row.latency_ms for row in before]


def test_late_samples_wait_for_others_so_their_wait_is_not_held_against_live_ones() -> None:
    it = bench(service(split=None), heads=None)
    it.wire.measured(100.0)
    for _ in range(10):
        it.plan.answered(sample(late=True), answer(10.0, waited_ms=20_000.0))
    assert it.look() == "frame"
    for _ in range(10):
        it.plan.answered(sample(), answer(10.0, waited_ms=20_000.0))
    assert it.look() == "edge"
    for _ in range(30):
        it.plan.answered(sample(late=True), answer(10.0, waited_ms=1.0))
    it.clock.now += 301.0
    for _ in range(30):
        it.plan.answered(sample(late=True), answer(10.0, waited_ms=1.0))
    assert it.look() == "frame", "a late sample that did not wait shows that nobody has to"


def test_a_head_of_another_version_than_the_one_that_answers_is_not_taken_for_pictures() -> None:
    it = bench(service(), answered_by="large@2")
    it.wire.measured(2.0)
    it.look()
    assert [row.name for row in it.report().routes] == ["frame", "edge"] or [
        row.name for row in it.report().routes
    ] == ["edge", "frame"]
    it = bench(service(may_leave="features"), answered_by="large@2")
    it.wire.measured(2.0)
    assert it.look() == "split@c20", "where only features leave, nobody else answers"


def test_a_service_with_regions_sends_those() -> None:
    it = bench(service(split=None, regions=Regions()), heads=None)
    it.wire.measured(100.0)
    it.plan.packed(7.0, 12_000)
    assert it.look() == "regions"
    row = it.report().routes[0]
    assert row.bytes == pytest.approx(13_100) and row.accuracy == "equal"


def test_an_idle_service_is_looked_at_seldom_but_a_link_that_comes_is_seen_at_once() -> None:
    it = bench(service(may_leave="features"))
    it.wire.up = False
    assert it.look() == "edge"
    it.wire.measured(100.0)
    looked = []
    it.plan.demand = lambda: looked.append(it.clock.now) or Demand(frames_per_s=0.0)  # type: ignore[func-returns-value]
    for _ in range(9):
        it.clock.now += 1.0
        it.plan.look()
    assert looked == []
    it.clock.now += 1.5
    it.plan.look()
    assert len(looked) == 1
    it.wire.up = True
    assert it.plan.route().name == "split@c5" and len(looked) == 2


def test_a_wait_of_zero_asks_nobody_in_time() -> None:
    hard = HardSamples(answer_model="large", wait_ms=0.0)
    it = bench(service(split=None, hard_samples=hard), heads=None)
    it.wire.measured(1000.0)
    assert it.look() == "edge"
    assert "longest wait" in it.plan.why_here
