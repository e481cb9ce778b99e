"""A plan's explanation: every route with its figures and a reason, and one sentence."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from edgekit.planning.estimates import LinkEstimate, Span
from edgekit.planning.explain import MAX_ROWS, Explanation, explain
from edgekit.planning.planner import Plan, Planner
from edgekit.planning.routes import Demand, Estimates, Route, Terms

FRAME = Route(kind="frame", accuracy="exact", edge_ms=5.0, bytes=25_000, cloud_ms=8.0)
REGIONS = Route(kind="regions", accuracy="equal", edge_ms=3.0, bytes=9_000, cloud_ms=3.0)
SPLIT = Route(kind="split", cut="12", accuracy="equal", edge_ms=20.0, bytes=12_000, cloud_ms=4.0)
WHOLE = Route(kind="edge", accuracy="exact", edge_ms=70.0)
SMALL = Route(kind="edge", accuracy="edge")
LINK = LinkEstimate(state="measured", bandwidth=1.25e6, typical_bandwidth=1.25e6, rtt=Span(10.0, 12.0))


def explained(
    routes: tuple[Route, ...],
    terms: Terms,
    *,
    link: LinkEstimate = LINK,
    up: bool = True,
    plan: str = "",
    frames_per_s: float = 2.0,
) -> Explanation:
    estimates = Estimates(link=link, demand=Demand(frames_per_s=frames_per_s), routes=routes, up=up)
    planner = Planner(terms)
    planner.observe(estimates, 0.0)
    chosen = planner.plan
    assert chosen is not None
    if plan:
        chosen = Plan(route=next(one for one in routes if one.name == plan), at=0.0, reason="a test")
    return explain(chosen, terms, estimates)


def test_every_route_has_a_row_with_figures_and_a_reason() -> None:
    shown = explained((SMALL, FRAME, REGIONS, SPLIT), Terms(deadline_ms=300.0, may_leave="features"))
    assert [(row.plan, row.feasible, row.chosen, row.why) for row in shown.rows] == [
        ("split@12", True, True, "chosen"),
        ("edge", True, False, "only the small model's answer"),
        ("regions", False, False, "pixels may not leave the site"),
        ("frame", False, False, "pixels may not leave the site"),
    ]
    assert shown.rows[0].latency_ms == pytest.approx(45.6)
    assert (shown.rows[0].bytes, shown.rows[0].cpu_ms, shown.rows[0].accuracy) == (12_000, 20.0, "equal")
    assert shown.rows[0].what == "the model runs on this device up to 12 and ends in the cloud"
    assert (shown.plan, shown.reason, shown.link) == (
        "split@12", "the service began", "10 Mbit/s and 12 ms round trip",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("routes", "terms", "more", "sentence"),
    [
        (
            (SMALL, FRAME, REGIONS),
            Terms(deadline_ms=300.0),
            {},
            "Of asked frames, a mosaic of the uncertain regions goes to the cloud: 25.2 ms to the answer "
            "(deadline 300 ms), 9 kB each over 10 Mbit/s and 12 ms round trip.",
        ),
        (
            (SMALL, FRAME, REGIONS),
            Terms(deadline_ms=300.0, may_leave="nothing"),
            {},
            "The small model's own answer stands: nothing may leave the site.",
        ),
        (
            (SMALL, REGIONS, FRAME),
            Terms(deadline_ms=20.0),
            {},
            "The small model's own answer stands; the next is regions: over the deadline by 5.2 ms.",
        ),
        (
            (WHOLE, FRAME),
            Terms(deadline_ms=300.0),
            {"link": LinkEstimate()},
            "The whole model runs on this device, 70 ms to the answer (deadline 300 ms): "
            "the link has not been measured yet.",
        ),
        (
            (WHOLE, FRAME),
            Terms(deadline_ms=300.0),
            {"up": False},
            "The whole model runs on this device, 70 ms to the answer (deadline 300 ms): the link to cloudd is down.",
        ),
        (
            (SMALL, FRAME, REGIONS),
            Terms(deadline_ms=300.0),
            {"link": replace(LINK, bandwidth=1.25e10, typical_bandwidth=1.25e10)},
            "Of asked frames, a mosaic of the uncertain regions goes to the cloud: 18 ms to the answer "
            "(deadline 300 ms), 9 kB each over a link too fast to measure, 12 ms round trip.",
        ),
        (
            (WHOLE,),
            Terms(deadline_ms=50.0),
            {},
            "No plan does what is asked; nearest is that the whole model runs on this device "
            "(over the deadline by 20 ms; the edge manages 11.4 frames/s this way, 12 come).",
        ),
        ((SMALL,), Terms(deadline_ms=50.0), {}, "The small model's own answer stands: there is no other way."),
    ],
)
def test_one_sentence_says_what_happens_and_why(
    routes: tuple[Route, ...], terms: Terms, more: dict[str, object], sentence: str
) -> None:
    rate = 12.0 if routes == (WHOLE,) else 2.0
    assert explained(routes, terms, frames_per_s=rate, **more).sentence == sentence  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objective", "less", "more"),
    [
        ("latency", "24.8 ms quicker, which is not worth a change", "24.8 ms slower"),
        (
            "throughput",
            "keeps edge and link busy for 6.25 ms less, which is",
            "keeps edge or link busy for 6.25 ms more",
        ),
        ("efficiency", "takes 15 ms less of the CPU, which is not worth a change", "takes 15 ms more of the CPU"),
    ],
)
def test_what_is_better_or_worse_says_by_how_much_of_what(objective: str, less: str, more: str) -> None:
    terms = Terms(deadline_ms=300.0, objective=objective, uplink_share=1.0)  # type: ignore[arg-type]
    quick = Route(kind="split", cut="1", accuracy="equal", edge_ms=5.0, bytes=100, cloud_ms=3.7)
    slow = Route(kind="split", cut="2", accuracy="equal", edge_ms=20.0, bytes=100, cloud_ms=13.5)
    if objective == "throughput":
        slow = Route(kind="split", cut="2", accuracy="equal", edge_ms=10.0, bytes=100, cloud_ms=13.5)
    routes = (Route(kind="edge", accuracy="exact", edge_ms=250.0), quick, slow)
    why = {row.plan: row.why for row in explained(routes, terms, plan="split@2").rows}
    assert why["split@1"].startswith(less)
    why = {row.plan: row.why for row in explained(routes, terms, plan="split@1").rows}
    assert why["split@2"] == more


def test_of_many_cuts_the_best_are_shown_and_the_rest_counted() -> None:
    cuts = tuple(
        Route(kind="split", cut=str(number), accuracy="equal", edge_ms=20.0 + number, bytes=9_000, cloud_ms=4.0)
        for number in range(50)
    )
    shown = explained((WHOLE, *cuts), Terms(deadline_ms=300.0, may_leave="features"))
    assert len(shown.rows) == MAX_ROWS
    assert shown.omitted == 51 - MAX_ROWS
    assert [row.plan for row in shown.rows][:3] == ["split@0", "split@1", "split@2"]


def test_an_explanation_travels_as_json() -> None:
    shown = explained((SMALL, FRAME, REGIONS), Terms(deadline_ms=300.0))
    assert msgspec.json.decode(msgspec.json.encode(shown), type=Explanation) == shown
