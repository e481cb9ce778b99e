"""A plan explained: every route with its figures and what speaks for or against it, and one sentence for people."""

from __future__ import annotations

import msgspec

from edgekit.planning.estimates import TOO_FAST
from edgekit.planning.planner import HYSTERESIS, Plan
from edgekit.planning.routes import Assessment, Estimates, Kind, Terms, assess

MAX_ROWS = 8
"""Routes explained one by one; a model may have fifty cuts, of which nobody reads the worst forty."""


class RouteRow(msgspec.Struct, frozen=True, kw_only=True):
    """One route."""

    plan: str  # its name: edge, edge-whole, frame, regions, split@CUT
    what: str  # the same in words
    latency_ms: float  # of an asked frame, 95th percentile or so
    bytes: float  # on the uplink, a frame of the line
    cpu_ms: float  # of the edge, a frame of the line
    accuracy: str  # exact, equal, edge
    feasible: bool
    chosen: bool
    why: str  # why it was chosen, or not


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What the status page and `edged` show of one service's plan."""

    plan: str = ""  # "" while there is none
    sentence: str = ""
    reason: str = ""  # what made the planner choose it
    link: str = ""  # what the plan thinks of the link
    rows: list[RouteRow] = []  # the chosen one first, then the feasible ones, cheapest first
    omitted: int = 0  # further routes, all of them worse


def explain(plan: Plan, terms: Terms, estimates: Estimates) -> Explanation:
    """Explain `plan` with present figures; its route must be among those of `estimates`."""
    assessed = [assess(route, terms, estimates) for route in estimates.routes]
    chosen = next(one for one in assessed if one.route.name == plan.route.name)
    others = sorted((one for one in assessed if one is not chosen), key=_order)
    shown = [chosen, *others[: MAX_ROWS - 1]]
    return Explanation(
        plan=plan.route.name,
        sentence=_sentence(chosen, others, terms, estimates),
        reason=plan.reason,
        link=_link(estimates),
        rows=[_row(one, chosen, terms) for one in shown],
        omitted=len(assessed) - len(shown),
    )


def _order(one: Assessment) -> tuple[bool, bool, float, float, str]:
    """Of what is not feasible, what comes nearest to it first."""
    return (not one.feasible, not one.route.good, 0.0 if one.feasible else one.strain, one.cost, one.route.name)


def _row(one: Assessment, chosen: Assessment, terms: Terms) -> RouteRow:
    return RouteRow(
        plan=one.route.name,
        what=_WHAT[one.route.kind, one.route.good].format(one.route.cut),
        latency_ms=round(one.latency_ms, 3),
        bytes=round(one.bytes, 1),
        cpu_ms=round(one.cpu_ms, 3),
        accuracy=one.route.accuracy,
        feasible=one.feasible,
        chosen=one is chosen,
        why=_why(one, chosen, terms),
    )


_WHAT: dict[tuple[Kind, bool], str] = {
    ("edge", False): "the small model's own answer stands",
    ("edge", True): "the whole model runs on this device",
    ("frame", True): "the whole frame goes to the cloud",
    ("regions", True): "a mosaic of the uncertain regions goes to the cloud",
    ("split", True): "the model runs on this device up to {} and ends in the cloud",
}
"""By kind, and whether it gives the answer model's answer."""
_MORE = {
    "latency": ("{} ms slower", "{} ms quicker"),
    "throughput": ("keeps edge or link busy for {} ms more", "keeps edge and link busy for {} ms less"),
    "efficiency": ("takes {} ms more of the CPU", "takes {} ms less of the CPU"),
}


def _why(one: Assessment, chosen: Assessment, terms: Terms) -> str:
    if one.why:
        return "; ".join(one.why)
    if one is chosen:
        return "chosen"
    if one.route.good != chosen.route.good:
        near = f"possible again, but within {HYSTERESIS:.0%} of a limit"
        return near if one.route.good else "only the small model's answer"
    more, less = _MORE[terms.objective]
    difference = one.cost - chosen.cost
    if difference >= 0.0:
        return more.format(number(difference))
    return f"{less.format(number(-difference))}, which is not worth a change"


def _sentence(chosen: Assessment, others: list[Assessment], terms: Terms, estimates: Estimates) -> str:
    route = chosen.route
    what = _WHAT[route.kind, route.good].format(route.cut)
    if chosen.why:
        return f"No plan does what is asked; nearest is that {what} ({'; '.join(chosen.why)})."
    took = f"{number(chosen.latency_ms)} ms to the answer (deadline {number(terms.deadline_ms)} ms)"
    if route.kind != "edge":
        return f"Of asked frames, {what}: {took}, {size(route.bytes)} each over {_link(estimates)}."
    remote = [one for one in others if one.route.kind != "edge"]
    reasons = {_why(one, chosen, terms) for one in remote}
    if len(reasons) == 1:
        because = f": {reasons.pop()}"
    elif remote:
        because = f"; the next is {remote[0].route.name}: {_why(remote[0], chosen, terms)}"
    else:
        because = ": there is no other way"
    return f"{what.capitalize()}, {took}{because}." if route.good else f"{what.capitalize()}{because}."


def _link(estimates: Estimates) -> str:
    link = estimates.link
    # Loopback, or a wire whose time for bytes drowns in the noise of the round trip: any figure would be invented.
    width = "a link too fast to measure," if link.bandwidth >= TOO_FAST else f"{number(link.mbit)} Mbit/s and"
    figures = f"{width} {number(link.rtt.slow)} ms round trip"
    if not estimates.up:
        return "a link that is down"
    guess = {"unknown": "assumed ", "stale": "formerly ", "measured": ""}[link.state]
    return guess + figures


def number(value: float) -> str:
    """Three digits that matter, no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes for people."""
    return (
        f"{number(count / 1e6)} MB"
        if count >= 1e6
        else f"{number(count / 1e3)} kB"
        if count >= 1e3
        else f"{count:.0f} B"
    )
