"""What a route costs and what speaks against it, in figures and in words."""

from __future__ import annotations

import math

import pytest

from edgekit.planning.estimates import LinkEstimate, Span
from edgekit.planning.routes import Assessment, Demand, Estimates, MayLeave, Route, Terms, assess

FRAME = Route(kind="frame", accuracy="exact", edge_ms=5.0, bytes=25_000, cloud_ms=8.0)
REGIONS = Route(kind="regions", accuracy="equal", edge_ms=3.0, bytes=9_000, cloud_ms=3.0)
SPLIT = Route(kind="split", cut="12", accuracy="equal", edge_ms=20.0, bytes=12_000, cloud_ms=4.0)
WHOLE = Route(kind="edge", accuracy="exact", edge_ms=70.0)
SMALL = Route(kind="edge", accuracy="edge")
LINK = LinkEstimate(
    state="measured", bandwidth=1.25e6, typical_bandwidth=1.25e6, rtt=Span(10.0, 13.0), age_s=1.0, samples=60
)


def look(
    route: Route,
    *,
    link: LinkEstimate = LINK,
    up: bool = True,
    wait: Span = Span(0.0, 4.0),  # noqa: B008 - frozen
    terms: Terms = Terms(deadline_ms=300.0),  # noqa: B008
    demand: Demand = Demand(frames_per_s=1.0),  # noqa: B008
    cascade: bool = False,
) -> Assessment:
    edge = SMALL if cascade else WHOLE
    routes = tuple({one.name: one for one in (edge, FRAME, REGIONS, SPLIT, route)}.values())
    return assess(route, terms, Estimates(link=link, demand=demand, routes=routes, up=up, wait=wait))


def test_latency_adds_medians_and_the_root_of_the_squared_spreads() -> None:
    link = LinkEstimate(state="measured", bandwidth=1e6, typical_bandwidth=1.25e6, rtt=Span(10.0, 13.0))
    one = look(FRAME, link=link, demand=Demand(frames_per_s=1.0, before_ms=2.0))
    spread = (25.0 - 20.0) * 1.645 / 0.842
    assert one.latency_ms == pytest.approx(2 + 5 + 20 + 10 + 8 + math.sqrt(spread**2 + 3**2 + 4**2))
    assert one.feasible


def test_a_cascade_and_a_single_model_are_the_same_mechanism() -> None:
    asked = Demand(frames_per_s=10.0, asked_share=0.25, before_ms=9.0, cpu_ms=8.0)
    small = look(SMALL, demand=asked, cascade=True)
    assert (small.latency_ms, small.bytes, small.cpu_ms) == (9.0, 0.0, 8.0)
    split = look(SPLIT, demand=asked, cascade=True)
    assert (split.bytes, split.cpu_ms) == (3_000.0, 8.0 + 0.25 * 20.0)
    whole = look(WHOLE)
    assert (whole.latency_ms, whole.bytes, whole.cpu_ms) == (70.0, 0.0, 70.0)


@pytest.mark.parametrize(
    ("may_leave", "closed"),
    [
        ("raw", {}),
        ("features", {"frame": "pixels may not leave the site", "regions": "pixels may not leave the site"}),
        ("nothing", dict.fromkeys(("frame", "regions", "split@12"), "nothing may leave the site")),
    ],
)
def test_the_policy_closes_routes_in_words(may_leave: MayLeave, closed: dict[str, str]) -> None:
    terms = Terms(deadline_ms=300.0, may_leave=may_leave)
    against = {route.name: look(route, terms=terms).why for route in (WHOLE, FRAME, REGIONS, SPLIT)}
    assert against == {name: (closed[name],) if name in closed else () for name in against}


def test_what_is_late_says_by_how_much() -> None:
    assert look(WHOLE, terms=Terms(deadline_ms=30.0)).why == ("over the deadline by 40 ms",)
    late = look(FRAME, terms=Terms(deadline_ms=60.0, reserve_ms=20.0))
    assert late.why == ("over the deadline by 8 ms (20 ms of it are kept to fall back)",)
    assert late.strain == pytest.approx(48.0 / 40.0)


def test_the_longest_wait_counts_without_the_time_at_the_edge() -> None:
    assert look(FRAME, terms=Terms(deadline_ms=300.0, wait_ms=43.0)).feasible
    assert look(FRAME, terms=Terms(deadline_ms=300.0, wait_ms=40.0)).why == (
        "over the longest wait for the cloud by 3 ms",
    )


def test_a_link_that_is_too_narrow_says_what_it_carries() -> None:
    why = look(FRAME, terms=Terms(deadline_ms=300.0, uplink_share=0.06), demand=Demand(frames_per_s=10.0)).why
    assert why == ("the link carries 3 frames/s of this size, 10 are needed",)
    half = Demand(frames_per_s=10.0, asked_share=0.25)
    assert look(FRAME, terms=Terms(deadline_ms=300.0, uplink_share=0.06), demand=half).feasible


def test_an_edge_that_is_too_slow_says_what_it_manages() -> None:
    why = look(WHOLE, terms=Terms(deadline_ms=300.0, edge_share=0.7), demand=Demand(frames_per_s=20.0)).why
    assert why == ("the edge manages 10 frames/s this way, 20 come",)
    two = Demand(frames_per_s=20.0, cores=2.0)
    assert look(WHOLE, terms=Terms(deadline_ms=300.0, edge_share=0.7), demand=two).feasible


def test_cpu_time_counts_for_capacity_and_wall_time_for_latency() -> None:
    threads = Route(kind="edge", accuracy="exact", edge_ms=20.0, cpu_ms=80.0)
    one = look(threads, demand=Demand(frames_per_s=20.0))
    assert one.latency_ms == 20.0
    assert one.why == ("the edge manages 10 frames/s this way, 20 come",)


def test_a_link_that_is_down_closes_every_way_to_the_cloud_but_not_the_edge() -> None:
    assert look(FRAME, up=False).why == ("the link to cloudd is down",)
    assert look(WHOLE, up=False).feasible


def test_only_who_has_an_answer_to_fall_back_on_bets_on_a_guess() -> None:
    unknown = LinkEstimate()
    assert look(FRAME, link=unknown).why == ("the link has not been measured yet",)
    assert look(FRAME, link=unknown, cascade=True).feasible
    stale = LinkEstimate(state="stale", age_s=780.0)
    assert look(FRAME, link=stale).why == ("the link was measured 13 minutes ago and may have changed",)
    assert look(FRAME, link=stale, cascade=True).feasible


def test_the_objective_says_what_cost_is() -> None:
    demand = Demand(frames_per_s=1.0, asked_share=0.5, before_ms=4.0, cpu_ms=4.0)
    costs = {
        objective: look(SPLIT, demand=demand, terms=Terms(deadline_ms=300.0, objective=objective)).cost
        for objective in ("latency", "throughput", "efficiency")
    }
    assert costs["latency"] == pytest.approx(4 + 20 + 9.6 + 10 + 5 + 4)
    assert costs["throughput"] == pytest.approx(14.0 / 0.8)
    assert costs["efficiency"] == pytest.approx(14.0)


def test_throughput_is_set_by_the_uplink_where_that_is_the_busier() -> None:
    terms = Terms(deadline_ms=300.0, objective="throughput")
    assert look(FRAME, terms=terms).cost == pytest.approx(20.0 / 0.5)


def test_routes_are_named_so_that_none_is_taken_for_another() -> None:
    assert [one.name for one in (SMALL, WHOLE, FRAME, REGIONS, SPLIT)] == [
        "edge", "edge-whole", "frame", "regions", "split@12",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "frame", "accuracy": "exact"},
        {"kind": "edge", "accuracy": "exact", "bytes": 5},
        {"kind": "edge", "accuracy": "exact", "cloud_ms": 5.0},
        {"kind": "split", "accuracy": "equal", "bytes": 5},
        {"kind": "frame", "accuracy": "exact", "bytes": 5, "cut": "3"},
        {"kind": "frame", "accuracy": "exact", "bytes": 5, "edge_ms": math.nan},
        {"kind": "frame", "accuracy": "exact", "bytes": 5, "cloud_ms": math.inf},
        {"kind": "frame", "accuracy": "exact", "bytes": 5, "cpu_ms": -1.0},
    ],
)
def test_a_route_that_cannot_be_is_an_error(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="route"):
        Route(**fields)  # type: ignore[arg-type]


def test_estimates_without_an_edge_route_or_with_a_name_twice_are_an_error() -> None:
    demand = Demand(frames_per_s=1.0)
    with pytest.raises(ValueError, match="no route ends at the edge"):
        Estimates(link=LINK, demand=demand, routes=(FRAME,))
    with pytest.raises(ValueError, match="one name"):
        Estimates(link=LINK, demand=demand, routes=(WHOLE, FRAME, FRAME))
    with pytest.raises(ValueError, match="wait in cloudd"):
        Estimates(link=LINK, demand=demand, routes=(WHOLE,), wait=Span(math.nan, 1.0))


@pytest.mark.parametrize(
    "fields",
    [{"frames_per_s": math.nan}, {"frames_per_s": 1.0, "asked_share": 1.5}, {"frames_per_s": 1.0, "cores": 0.0}],
)
def test_a_demand_out_of_range_is_an_error(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"out of range|a share"):
        Demand(**fields)


@pytest.mark.parametrize("fields", [{"deadline_ms": 0.0}, {"deadline_ms": 5.0, "uplink_share": 0.0}])
def test_terms_out_of_range_are_an_error(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Terms(**fields)
