"""The planner takes the best feasible route, keeps it while nothing changes, and changes it at once when it must."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.planning.estimates import LinkEstimate, Span
from edgekit.planning.planner import PROBE_EVERY_S, Planner
from edgekit.planning.routes import Demand, Estimates, Route, Terms, assess, permitted

FRAME = Route(kind="frame", accuracy="exact", edge_ms=5.0, bytes=25_000, cloud_ms=8.0)
REGIONS = Route(kind="regions", accuracy="equal", edge_ms=3.0, bytes=9_000, cloud_ms=3.0)
EARLY = Route(kind="split", cut="12", accuracy="equal", edge_ms=20.0, bytes=56_000, cloud_ms=6.0)
LATE = Route(kind="split", cut="40", accuracy="equal", edge_ms=50.0, bytes=7_000, cloud_ms=2.0)
WHOLE = Route(kind="edge", accuracy="exact", edge_ms=70.0)
SMALL = Route(kind="edge", accuracy="edge")
SINGLE = (WHOLE, FRAME, EARLY, LATE)
CASCADE = (SMALL, FRAME, REGIONS, EARLY, LATE)


def link(mbit: float, rtt_ms: float = 10.0, samples: int = 128) -> LinkEstimate:
    bandwidth = mbit / 8e-6
    return LinkEstimate(
        state="measured",
        bandwidth=bandwidth,
        typical_bandwidth=bandwidth,
        rtt=Span(rtt_ms, rtt_ms),
        age_s=0.1,
        samples=samples,
    )


def seen(
    routes: tuple[Route, ...] = SINGLE,
    at: LinkEstimate = link(100.0),  # noqa: B008 - frozen
    *,
    up: bool = True,
    frames_per_s: float = 1.0,
    asked_share: float = 1.0,
) -> Estimates:
    return Estimates(link=at, demand=Demand(frames_per_s=frames_per_s, asked_share=asked_share), routes=routes, up=up)


def planner(deadline_ms: float = 300.0, **terms: object) -> Planner:
    return Planner(Terms(deadline_ms=deadline_ms, **terms))  # type: ignore[arg-type]


def name(one: Planner) -> str:
    assert one.plan is not None
    return one.plan.route.name


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("may_leave", "mbit", "chosen"),
    [
        ("raw", 100.0, "frame"),
        ("raw", 1.0, "edge-whole"),
        ("features", 100.0, "split@12"),
        ("features", 10.0, "split@40"),
        ("features", 0.1, "edge-whole"),
        ("nothing", 1000.0, "edge-whole"),
    ],
)
def test_a_single_model_runs_where_it_is_quickest_under_its_policy(may_leave: str, mbit: float, chosen: str) -> None:
    one = planner(may_leave=may_leave)
    plan = one.observe(seen(at=link(mbit)), 5.0)
    assert plan is not None
    assert (plan.route.name, plan.at, plan.reason) == (chosen, 5.0, "the service began")


@pytest.mark.parametrize(
    ("may_leave", "deadline_ms", "chosen"),
    [
        ("raw", 300.0, "regions"),
        ("features", 300.0, "split@40"),
        ("features", 30.0, "edge"),
        ("nothing", 300.0, "edge"),
    ],
)
def test_in_a_cascade_the_small_models_answer_stands_only_where_the_cloud_cannot_help(
    may_leave: str, deadline_ms: float, chosen: str
) -> None:
    one = planner(deadline_ms, may_leave=may_leave)
    one.observe(seen(CASCADE, link(10.0)), 0.0)
    assert name(one) == chosen


def test_a_cascade_with_room_for_the_large_model_may_run_it_here() -> None:
    one = planner(may_leave="nothing")
    one.observe(seen((SMALL, replace(WHOLE, edge_ms=200.0))), 0.0)
    assert name(one) == "edge-whole"


def test_with_nothing_feasible_the_nearest_is_taken() -> None:
    one = planner(20.0)
    one.observe(seen(at=link(100.0)), 0.0)
    assert name(one) == "frame"
    closed = planner(20.0, may_leave="nothing")
    closed.observe(seen(), 0.0)
    assert name(closed) == "edge-whole"


def test_a_leaner_form_is_taken_where_the_link_cannot_carry_the_quickest() -> None:
    lean = replace(REGIONS, edge_ms=40.0, cpu_ms=2.0)
    taken = []
    for frames_per_s in (5.0, 60.0, 200.0):
        one = planner()
        one.observe(seen((SMALL, FRAME, lean), link(20.0), frames_per_s=frames_per_s), 0.0)
        taken.append(name(one))
    assert taken == ["frame", "regions", "edge"]


def test_between_equal_costs_less_is_disclosed() -> None:
    twin = Route(kind="split", cut="1", accuracy="equal", edge_ms=5.0, bytes=25_000, cloud_ms=8.0)
    one = planner()
    one.observe(seen((WHOLE, FRAME, twin)), 0.0)
    assert name(one) == "split@1"


# --- keeping it ------------------------------------------------------------------------------------------------------


def test_nothing_is_compared_while_every_quantity_stays_in_its_band() -> None:
    one = planner(may_leave="features")
    one.observe(seen(at=link(100.0)), 0.0)
    for number, mbit in enumerate((124.0, 76.0, 110.0)):
        assert one.observe(seen(at=link(mbit)), number) is None
    assert (one.comparisons, one.changes) == (1, 0)


def test_a_quantity_that_leaves_its_band_makes_the_routes_compared_once() -> None:
    one = planner(may_leave="features")
    one.observe(seen(at=link(100.0)), 0.0)
    for number in range(5):
        one.observe(seen(at=link(130.0)), number)
    assert (one.comparisons, one.changes) == (2, 0)


def test_figures_of_a_link_too_fast_to_measure_are_no_change_of_it() -> None:
    one = planner(may_leave="features")
    one.observe(seen(at=link(100_000.0)), 0.0)
    for number, mbit in enumerate((20_000.0, 100_000.0, 12_000.0)):
        one.observe(seen(at=link(mbit)), number)
    assert one.comparisons == 1
    one.observe(seen(at=link(1000.0)), 9.0)
    assert one.comparisons == 2


@pytest.mark.parametrize("gain", [0.05, 0.15])
def test_the_route_changes_only_for_one_that_is_a_tenth_cheaper(gain: float) -> None:
    quick = planner(may_leave="features")
    base = seen((replace(WHOLE, edge_ms=50.0), replace(LATE, bytes=1000, edge_ms=60.0)), link(1000.0, rtt_ms=1.0))
    quick.observe(base, 0.0)
    assert name(quick) == "edge-whole"
    split_ms = assess(base.routes[1], quick.terms, base).latency_ms
    changed = replace(base, routes=(replace(WHOLE, edge_ms=split_ms / (1 - gain)), base.routes[1]))
    quick.observe(changed, 1.0)
    assert name(quick) == ("edge-whole" if gain < 0.1 else "split@40")


def test_a_new_plan_says_what_made_it() -> None:
    one = planner(may_leave="features")
    one.observe(seen(at=link(100.0)), 0.0)
    plan = one.observe(seen(at=link(5.0)), 1.0)
    assert plan is not None
    assert plan.reason == "bandwidth went from 100 to 5"


# --- changing it at once ---------------------------------------------------------------------------------------------


def test_a_route_that_became_infeasible_is_left_at_once_though_all_is_within_its_band() -> None:
    one = planner(64.0, may_leave="features")
    one.observe(seen((SMALL, EARLY), link(20.0)), 0.0)
    assert name(one) == "split@12"
    plan = one.observe(seen((SMALL, EARLY), link(15.5)), 1.0)
    assert plan is not None
    assert plan.route.name == "edge"
    assert plan.reason.startswith("split@12 is no longer possible: over the deadline by")


def test_a_route_at_its_limit_does_not_make_the_plan_swing() -> None:
    one = planner(64.0, may_leave="features")
    for number in range(200):
        one.observe(seen((SMALL, EARLY), link(20.0 if number % 2 else 15.5)), number)
    assert one.changes <= 1


def test_the_link_going_and_coming_changes_the_plan_at_once() -> None:
    one = planner()
    one.observe(seen(), 0.0)
    down = one.observe(seen(up=False), 1.0)
    assert down is not None
    assert (down.route.name, down.reason) == ("edge-whole", "the link went down")
    back = one.observe(seen(), 2.0)
    assert back is not None
    assert (back.route.name, back.reason) == ("frame", "the link came up")


def test_a_route_that_is_no_longer_offered_is_replaced() -> None:
    one = planner()
    one.observe(seen(), 0.0)
    plan = one.observe(seen((WHOLE, LATE)), 1.0)
    assert plan is not None
    assert (plan.route.name, plan.reason) == ("split@40", "other routes are possible than before")


# --- a link that is new ----------------------------------------------------------------------------------------------


def test_a_single_model_stays_here_until_the_link_is_measured() -> None:
    one = planner()
    one.observe(seen(at=LinkEstimate()), 0.0)
    assert name(one) == "edge-whole"
    plan = one.observe(seen(at=link(100.0, samples=3)), 1.0)
    assert plan is not None
    assert (plan.route.name, plan.reason) == ("frame", "the link is known better")


def test_a_cascade_tries_an_unknown_link_because_it_loses_nothing() -> None:
    one = planner()
    one.observe(seen(CASCADE, LinkEstimate()), 0.0)
    assert name(one) == "regions"


def test_what_was_chosen_on_little_evidence_is_chosen_anew_when_it_has_doubled() -> None:
    whole = replace(WHOLE, edge_ms=36.0)
    one = planner()
    one.observe(seen((whole, FRAME), link(12.0, samples=4)), 0.0)
    assert name(one) == "edge-whole"
    narrow = seen((whole, FRAME), link(16.0, samples=7))  # 35.5 ms: better, but not by a tenth
    assert one.observe(narrow, 1.0) is None
    assert one.observe(replace(narrow, link=link(16.0, samples=8)), 2.0) is not None
    assert name(one) == "frame"


# --- probes and forms ------------------------------------------------------------------------------------------------


def test_a_device_that_sends_nothing_asks_for_a_probe_until_the_link_is_measured() -> None:
    one = planner()
    unknown = seen(at=LinkEstimate())
    one.observe(unknown, 0.0)
    probes = [one.probe(unknown, now / 2) for now in range(20)]
    assert {probe.name for probe in probes if probe} == {"frame"}
    assert sum(probe is not None for probe in probes) == 10 / PROBE_EVERY_S
    slow = seen(at=link(0.5))
    one.observe(slow, 20.0)
    assert (name(one), one.probe(slow, 30.0)) == ("edge-whole", None)


def test_a_close_choice_is_probed_until_it_is_known_well() -> None:
    one = planner()
    close = seen(at=link(4.0, samples=20))
    one.observe(close, 0.0)
    assert name(one) == "edge-whole"
    assert one.probe(close, 5.0) is not None
    assert one.probe(replace(close, link=link(4.0, samples=64)), 10.0) is None


def test_a_link_that_was_given_up_is_looked_at_once_a_minute_and_again_at_once_if_it_seems_to_change() -> None:
    one = planner()
    slow = seen(at=link(0.5))
    one.observe(slow, 0.0)
    assert name(one) == "edge-whole"
    assert one.probe(replace(slow, link=replace(slow.link, age_s=59.0)), 59.0) is None
    assert one.probe(replace(slow, link=replace(slow.link, age_s=61.0)), 61.0) is not None
    assert one.probe(replace(slow, link=replace(slow.link, unusual=True)), 63.0) is not None


def test_a_route_of_few_bytes_is_probed_past_until_the_larger_ones_are_known() -> None:
    one = planner(may_leave="features")
    few = seen((WHOLE, EARLY, replace(LATE, bytes=1500, edge_ms=45.0)), link(15.0, samples=20))
    one.observe(few, 0.0)
    assert name(one) == "split@40"
    assert one.probe(few, 5.0) == EARLY
    assert one.probe(replace(few, link=link(15.0, samples=64)), 10.0) is None


@pytest.mark.parametrize("hindrance", ["policy", "down", "sending"])
def test_no_probe_leaves_where_none_may_or_need(hindrance: str) -> None:
    one = planner(may_leave="nothing" if hindrance == "policy" else "raw")
    estimates = seen(at=link(100.0) if hindrance == "sending" else LinkEstimate(), up=hindrance != "down")
    one.observe(estimates, 0.0)
    assert one.probe(replace(estimates, link=LinkEstimate()), 10.0) is None


def test_a_sample_that_nobody_waits_for_leaves_in_the_plans_form_or_the_cheapest_permitted() -> None:
    one = planner(may_leave="features")
    one.observe(seen(), 0.0)
    assert one.form(seen()) == EARLY
    late = planner(20.0, may_leave="features")
    late.observe(seen(CASCADE), 0.0)
    assert name(late) == "edge"
    assert late.form(seen(CASCADE)) == EARLY
    closed = planner(may_leave="nothing")
    closed.observe(seen(), 0.0)
    assert closed.form(seen()) is None


# --- whatever happens ------------------------------------------------------------------------------------------------

moments = st.builds(
    seen,
    st.sampled_from([SINGLE, CASCADE, (WHOLE,), (SMALL, REGIONS), (SMALL, WHOLE, FRAME)]),
    st.one_of(
        st.just(LinkEstimate()),
        st.builds(link, st.floats(0.01, 1e4), st.floats(0.01, 1e3), st.integers(3, 128)),
        st.builds(lambda mbit: replace(link(mbit), state="stale"), st.floats(0.01, 1e4)),
    ),
    up=st.booleans(),
    frames_per_s=st.floats(0.0, 100.0),
    asked_share=st.floats(0.0, 1.0),
)


@given(
    st.sampled_from(["raw", "features", "nothing"]),
    st.floats(1.0, 1000.0),
    st.sampled_from(["latency", "throughput", "efficiency"]),
    st.lists(moments, min_size=1, max_size=12),
)
def test_whatever_happens_the_plan_keeps_the_policy_and_is_feasible_if_any_is(
    may_leave: str, deadline_ms: float, objective: str, history: list[Estimates]
) -> None:
    one, twin = (planner(deadline_ms, may_leave=may_leave, objective=objective) for _ in range(2))
    for now, estimates in enumerate(history):
        assert one.observe(estimates, now) == twin.observe(estimates, now)
        assert one.plan is not None
        route = next(route for route in estimates.routes if route.name == name(one))
        assert permitted(route, one.terms.may_leave)
        assert estimates.up or route.kind == "edge"
        if not assess(route, one.terms, estimates).feasible:
            assert not any(assess(other, one.terms, estimates).feasible for other in estimates.routes)
        for sent in (one.form(estimates), one.probe(estimates, now)):
            assert sent is None or permitted(sent, one.terms.may_leave)
        twin.probe(estimates, now)
