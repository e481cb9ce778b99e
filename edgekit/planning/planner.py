"""Chooses the route of a service's asked samples, and changes its mind seldom: a pure state machine.

Choice. Among the routes that are feasible under policy, deadline and capacity, those with the answer model's answer
come before the small model's, because the gate asked for a reason; then the cheapest counts. With none feasible, the
one whose limits are exceeded least (the edge's, if all others are closed): the line goes on, late.

Changing it. The routes are compared again only when a measured quantity has left a band of +-25 % around its value at
the last comparison (research: algorithms.md 2, "Planner"), when the link comes or goes, or when the present route
became infeasible. A feasible route is given up only for one that is at least 10 % cheaper, or of the better kind, and
that keeps 10 % away from its limits, so noise at a limit does not make the plan swing. While a link is still new the
plan has no such privilege: what was chosen on little evidence is chosen anew whenever the evidence has doubled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from edgekit.planning.estimates import LARGE, TOO_FAST
from edgekit.planning.recent import Freshness
from edgekit.planning.routes import Assessment, Estimates, Route, Terms, assess, disclosure, permitted

BAND = 0.25
"""Share by which a quantity may move before the routes are compared again."""
HYSTERESIS = 0.10
"""Share by which another route must be cheaper, and stay away from its limits, to be worth the change."""
PROBE_EVERY_S = 2.0
"""While a link is to be known, a device that sends nothing else probes it so often ..."""
IDLE_PROBE_S = 60.0
"""... and so often to find out that a known one has changed."""
MANY = 64
"""Transfers after which the link is known well enough to stay away from it."""

_FEW = 5  # transfers that are left when the link has changed
_HOPELESS = 1.5  # a route of so many times the plan's cost needs no closer look


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do with asked samples from now on."""

    route: Route  # with the figures of the moment it was chosen
    at: float  # `now` of that moment
    reason: str  # what made the planner look, in words


class Planner:
    """Of one service. `now` is the caller's monotonic clock in seconds. Not safe for threads."""

    def __init__(self, terms: Terms) -> None:
        """Knows nothing and has no plan yet."""
        self.terms = terms
        self.comparisons = 0
        """How often all routes were compared."""
        self.changes = 0
        """How often the route changed, the first plan not counted."""
        self._plan: Plan | None = None
        self._anchor: dict[str, float] = {}
        self._situation: _Situation = (False, "unknown", frozenset())
        self._evidence = 0
        self._probed_at = -math.inf

    @property
    def plan(self) -> Plan | None:
        """The plan in force, None before the first observation."""
        return self._plan

    def observe(self, estimates: Estimates, now: float) -> Plan | None:
        """Look at new estimates; the new plan if they make one, else None. Call it about once a second."""
        evidence = _evidence(estimates, self._evidence)
        provisional, self._evidence = evidence > self._evidence, evidence
        reason = "the link is known better" if provisional and self._plan is not None else self._why_compare(estimates)
        if not reason:
            return None
        self.comparisons += 1
        self._anchor = _quantities(estimates)
        self._situation = _situation(estimates)
        assessed = [assess(route, self.terms, estimates) for route in estimates.routes]
        present = self._plan.route.name if self._plan is not None else ""
        keep = None if provisional else next((one for one in assessed if one.route.name == present), None)
        chosen = choose(assessed, keep)
        if self._plan is not None:
            if chosen.route.name == present:
                return None
            self.changes += 1
        self._plan = Plan(route=chosen.route, at=now, reason=reason)
        return self._plan

    def form(self, estimates: Estimates) -> Route | None:
        """How a sample leaves that nobody waits for (an audit, a late one, a probe); None: it may not leave.

        The plan's route, if that leaves the device, else the cheapest that the policy permits, however late.
        """
        if self._plan is not None and self._plan.route.kind != "edge":
            return self._plan.route
        best = self._best_form(estimates)
        return best.route if best is not None else None

    def probe(self, estimates: Estimates, now: float) -> Route | None:
        """The form in which one sample should be sent now, in the background, to measure the link; mostly None.

        While the edge's route is taken, or one of few bytes, nothing else may show whether the link has become better.
        So this asks for one every PROBE_EVERY_S while the link is not measured, while it seems to change, and while a
        route that could be worth it is known by fewer than MANY transfers; else if there was none for IDLE_PROBE_S.
        """
        plan, link = self._plan, estimates.link
        if plan is None or plan.route.bytes >= LARGE or not estimates.up or now - self._probed_at < PROBE_EVERY_S:
            return None
        best = self._best_form(estimates, LARGE)
        if best is None and plan.route.kind == "edge":
            best = self._best_form(estimates)
        known = link.state == "measured" and not link.unusual and link.age_s < IDLE_PROBE_S
        if best is None or (known and not self._doubtful(best, plan, estimates)):
            return None
        self._probed_at = now
        return best.route

    def _best_form(self, estimates: Estimates, least: int = 1) -> Assessment | None:
        """The best of the permitted routes that send `least` bytes at least."""
        ways = [one for one in estimates.routes if one.bytes >= least and permitted(one, self.terms.may_leave)]
        return min((assess(route, self.terms, estimates) for route in ways), key=_preference, default=None)

    def _doubtful(self, best: Assessment, plan: Plan, estimates: Estimates) -> bool:
        """Whether more transfers could show that `best` is worth taking."""
        if estimates.link.samples >= MANY:
            return False
        if not plan.route.good:
            return best.strain <= _HOPELESS
        present = next((one for one in estimates.routes if one.name == plan.route.name), plan.route)
        return best.cost <= assess(present, self.terms, estimates).cost * _HOPELESS

    def _why_compare(self, estimates: Estimates) -> str:
        """What has happened since the last comparison that asks for another, "" for nothing."""
        if self._plan is None:
            return "the service began"
        if news := _news(self._situation, _situation(estimates)):
            return news
        for name, value in _quantities(estimates).items():
            was = self._anchor[name]
            if abs(value - was) > BAND * max(was, _LEAST[name.partition(" of ")[0]]):
                return f"{name} went from {was:.4g} to {value:.4g}"
        present = next(route for route in estimates.routes if route.name == self._plan.route.name)
        against = assess(present, self.terms, estimates).why
        return f"{present.name} is no longer possible: {against[0]}" if against else ""


def choose(assessed: Sequence[Assessment], present: Assessment | None = None) -> Assessment:
    """The route to take among all (at least one of the edge), when `present` is the one taken so far."""
    feasible = [one for one in assessed if one.feasible]
    if present is not None and present.feasible:
        better = [one for one in feasible if one.strain <= 1.0 - HYSTERESIS and _much_better(one, present)]
        return min(better, key=_preference, default=present)
    if feasible:
        return min(feasible, key=_preference)
    least = min(assessed, key=lambda one: (one.strain, *_preference(one)))
    if present is not None and least.strain > present.strain * (1.0 - HYSTERESIS):
        return present
    return least


def _evidence(estimates: Estimates, before: int) -> int:
    """Rises with every doubling of the transfers that a plan made now would rest on.

    It takes a link that has changed, not a quiet hour, to doubt again.
    """
    if estimates.link.state == "unknown":
        return 0
    doublings = estimates.link.samples.bit_length()
    return doublings if estimates.link.samples <= _FEW else max(before, doublings)


def _much_better(one: Assessment, present: Assessment) -> bool:
    if one.route.good != present.route.good:
        return one.route.good
    return one.cost < present.cost * (1.0 - HYSTERESIS)


def _preference(one: Assessment) -> tuple[bool, float, int, float, str]:
    """Smaller is better. Between equal costs, what discloses less; then what sends less; then whatever, but always."""
    return (not one.route.good, one.cost, disclosure(one.route), one.bytes, one.route.name)


_Situation: TypeAlias = tuple[bool, Freshness, frozenset[str]]


def _situation(estimates: Estimates) -> _Situation:
    """What has no value that could move within a band."""
    return estimates.up, estimates.link.state, frozenset(route.name for route in estimates.routes)


def _news(before: _Situation, now: _Situation) -> str:
    if before[0] != now[0]:
        return "the link came up" if now[0] else "the link went down"
    if before[1] != now[1]:
        return {
            "measured": "the link has been measured",
            "stale": "the link was not measured for some time",
            "unknown": "what was known of the link is too old",
        }[now[1]]
    return "other routes are possible than before" if before[2] != now[2] else ""


_LEAST = {
    "bandwidth": 0.0,
    "round trip": 1.0,
    "wait in cloudd": 1.0,
    "rate": 0.1,
    "asked share": 0.01,
    "time before": 1.0,
    "edge time": 1.0,
    "cloud time": 1.0,
    "size": 1000.0,
}
"""Below these values a quantity is as good as none, and a change counts as if it were so large."""


def _quantities(estimates: Estimates) -> dict[str, float]:
    """Everything measured, by what people call it: Mbit/s, ms, frames/s, bytes."""
    demand = estimates.demand
    quantities = {
        "bandwidth": min(estimates.link.bandwidth, TOO_FAST) * 8e-6,
        "round trip": estimates.link.rtt.slow,
        "wait in cloudd": estimates.wait.slow,
        "rate": demand.frames_per_s,
        "asked share": demand.asked_share,
        "time before": demand.before_ms,
    }
    for route in estimates.routes:
        quantities[f"edge time of {route.name}"] = route.edge_ms
        quantities[f"cloud time of {route.name}"] = route.cloud_ms
        quantities[f"size of {route.name}"] = route.bytes
    return quantities
