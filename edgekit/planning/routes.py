"""The routes by which a sample gets the answer model's answer, and what each would cost under present estimates.

Two kinds of services, one mechanism. A *cascade* has a small model at the edge that looks at every frame; the gate asks
about a share of the frames, and the edge route of those is the small model's own answer, which is there already
(`accuracy = "edge"`, 0 ms). A *single* model has no small brother: every frame asks (`asked_share = 1`), and its edge
route runs the whole model here (`accuracy = "exact"`). Everything else is the same.

Predicted latency of an asked frame, 95th percentile or so (research: algorithms.md 2, "Planner"):

    before + edge work + bytes / bandwidth + round trip + wait in cloudd + compute in cloudd

The three in the middle vary by themselves and are hardly all slow at once: their medians are added, and the root of
the sum of the squares of what the 95th percentile of each lies above its median. Capacity counts with bandwidth p20.

Cost, by the service's objective, in milliseconds:

    latency     the latency above
    throughput  time of the busier of edge and uplink for one frame of the line (its inverse is the rate they hold)
    efficiency  CPU time of the edge for one frame of the line
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edgekit.planning.estimates import LinkEstimate, Span

Kind = Literal["edge", "frame", "regions", "split"]
Accuracy = Literal["exact", "equal", "edge"]
"""exact: what the answer model says about the frame. equal: the same but for the rounding of features, or for what
surrounds a region. edge: what the small model says. The first two are taken for equally good."""
Objective = Literal["latency", "throughput", "efficiency"]
MayLeave = Literal["raw", "features", "nothing"]

_LEAVES: dict[Kind, int] = {"edge": 0, "split": 1, "frame": 2, "regions": 2}
_MAY: dict[MayLeave, int] = {"nothing": 0, "features": 1, "raw": 2}


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way to answer an asked frame; every figure is of one asked frame, with all of its tiles or regions."""

    kind: Kind
    accuracy: Accuracy
    cut: str = ""  # of a split: what the cut is called
    edge_ms: float = 0.0  # until the bytes are ready to leave (or the answer is there), p95: cut out, encode, head
    cpu_ms: float | None = None  # CPU time of the same; None: as `edge_ms`, one thread
    bytes: int = 0  # that leave, headers included; a large picture's p80 is better than its mean
    cloud_ms: float = 0.0  # compute in cloudd, as CloudEstimator.compute_ms says; 0 on the edge

    def __post_init__(self) -> None:
        """Raises ValueError for a route that cannot be."""
        times = (self.edge_ms, self.cloud_ms, self.edge_ms if self.cpu_ms is None else self.cpu_ms)
        if not all(0.0 <= time < math.inf for time in times):
            raise ValueError(f"the times of route {self.name} are {times}; milliseconds from 0 belong there")
        if self.bytes < 0 or (self.bytes == 0) != (self.kind == "edge"):
            raise ValueError(f"route {self.name} sends {self.bytes} bytes; only the edge route sends none")
        if self.kind == "edge" and self.cloud_ms:
            raise ValueError(f"route {self.name} takes {self.cloud_ms} ms in the cloud, where it never is")
        if bool(self.cut) != (self.kind == "split"):
            raise ValueError(f"route {self.name} has the cut {self.cut!r}; a split has one, and nothing else")

    @property
    def name(self) -> str:
        """What the route is called, unique in a service but for several edge routes, which have an accuracy each."""
        if self.kind == "split":
            return f"split@{self.cut}"
        return self.kind if self.kind != "edge" or self.accuracy == "edge" else "edge-whole"

    @property
    def good(self) -> bool:
        """Whether it gives the answer model's answer."""
        return self.accuracy != "edge"


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What the line brings, measured."""

    frames_per_s: float  # at its usual pace
    asked_share: float = 1.0  # of the frames; with regions: of the frames with at least one asked region
    before_ms: float = 0.0  # decode, queue and small model, p95: what every frame has taken before its route begins
    cpu_ms: float = 0.0  # CPU time of the same
    cores: float = 1.0  # CPUs that serve

    def __post_init__(self) -> None:
        """Raises ValueError for a figure out of range."""
        amounts = (self.frames_per_s, self.before_ms, self.cpu_ms)
        if not all(0.0 <= amount < math.inf for amount in amounts) or not 0.0 < self.cores < math.inf:
            raise ValueError(f"the demand has figures out of range: {self}")
        if not 0.0 <= self.asked_share <= 1.0:
            raise ValueError(f"asked_share is {self.asked_share}; a share from 0 to 1 belongs there")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the service's definition demands. They never change: a new definition is a new planner."""

    deadline_ms: float
    may_leave: MayLeave = "raw"
    objective: Objective = "latency"
    wait_ms: float | None = None  # longest wait for the cloud; None: the deadline
    reserve_ms: float = 0.0  # of the deadline, kept to fall back in time if the cloud does not answer
    uplink_share: float = 0.5  # of the bandwidth for this service; the rest is for the others and for late samples
    edge_share: float = 0.8  # of the CPUs: beyond it, queues grow faster than they drain

    def __post_init__(self) -> None:
        """Raises ValueError for a figure out of range."""
        if not 0.0 < self.deadline_ms < math.inf or not 0.0 <= self.reserve_ms < math.inf:
            raise ValueError(f"the terms have times out of range: {self}")
        if not (0.0 < self.uplink_share <= 1.0 and 0.0 < self.edge_share <= 1.0):
            raise ValueError(f"the terms have shares out of range: {self}")


NO_WAIT = Span()


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """Everything measured that a plan rests on."""

    link: LinkEstimate
    demand: Demand
    routes: tuple[Route, ...]  # at least one of kind edge
    up: bool = True  # live samples may be sent: joined, heartbeat arrives, breaker closed
    wait: Span = NO_WAIT  # CloudEstimator.wait

    def __post_init__(self) -> None:
        """Raises ValueError without an edge route, or with two routes of one name."""
        names = [route.name for route in self.routes]
        if not any(route.kind == "edge" for route in self.routes):
            raise ValueError("no route ends at the edge; the line never waits for the cloud, so one must")
        if len(set(names)) != len(names):
            raise ValueError(f"two routes have one name: {', '.join(names)}")
        if not (0.0 <= self.wait.typical < math.inf and 0.0 <= self.wait.slow < math.inf):
            raise ValueError(f"the wait in cloudd is {self.wait}; milliseconds from 0 belong there")

    @property
    def has_answer(self) -> bool:
        """Whether a sample that gets no answer in time has one of the edge all the same."""
        return any(not route.good for route in self.routes)


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """One route under one set of terms and estimates."""

    route: Route
    latency_ms: float  # of an asked frame, p95 or so; by priors while the link is unknown
    bytes: float  # uplink bytes a frame of the line
    cpu_ms: float  # of the edge, a frame of the line
    cost: float  # see the module's docstring
    strain: float  # the worst of need / limit; feasible up to 1, infinite where no measurement could help
    why: tuple[str, ...]  # what speaks against it, in words; empty: feasible

    @property
    def feasible(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.why


def permitted(route: Route, may_leave: MayLeave) -> bool:
    """Whether the policy lets the route send what it sends."""
    return _LEAVES[route.kind] <= _MAY[may_leave]


def disclosure(route: Route) -> int:
    """0 nothing leaves, 1 features, 2 pixels."""
    return _LEAVES[route.kind]


def assess(route: Route, terms: Terms, estimates: Estimates) -> Assessment:
    """What the route would cost, and what speaks against it."""
    demand, link = estimates.demand, estimates.link
    away = (link.transfer(route.bytes), link.rtt, estimates.wait) if route.kind != "edge" else ()
    remote_ms = sum(one.typical for one in away) + math.hypot(*(one.spread for one in away)) + route.cloud_ms
    latency_ms = demand.before_ms + route.edge_ms + remote_ms
    cpu_ms = demand.cpu_ms + demand.asked_share * (route.edge_ms if route.cpu_ms is None else route.cpu_ms)
    edge_ms = cpu_ms / (demand.cores * terms.edge_share)
    uplink_ms = demand.asked_share * route.bytes / (link.bandwidth * terms.uplink_share) * 1e3
    closed = _closed(route, terms, estimates)
    if closed:
        limits = [(math.inf, closed)]
    else:
        limits = [
            *_time_limits(route, terms, latency_ms, remote_ms),
            _rate_limit(demand.frames_per_s, edge_ms, 1.0, "the edge manages {} frames/s this way, {} come"),
            _rate_limit(
                demand.frames_per_s,
                uplink_ms,
                demand.asked_share,
                "the link carries {} frames/s of this size, {} are needed",
            ),
        ]
    return Assessment(
        route=route,
        latency_ms=latency_ms,
        bytes=demand.asked_share * route.bytes,
        cpu_ms=cpu_ms,
        cost={"latency": latency_ms, "throughput": max(edge_ms, uplink_ms), "efficiency": cpu_ms}[terms.objective],
        strain=max(strain for strain, _ in limits),
        why=tuple(text for strain, text in limits if strain > 1.0),
    )


def _closed(route: Route, terms: Terms, estimates: Estimates) -> str:
    """Why the route cannot be taken whatever it costs, "" if it can."""
    if not permitted(route, terms.may_leave):
        return "nothing may leave the site" if terms.may_leave == "nothing" else "pixels may not leave the site"
    if route.kind == "edge":
        return ""
    if not estimates.up:
        return "the link to cloudd is down"
    # Who has an answer of the edge to fall back on loses nothing by trying; others do not bet on a guess.
    if estimates.link.state != "measured" and not estimates.has_answer:
        if estimates.link.state == "unknown":
            return "the link has not been measured yet"
        return f"the link was measured {estimates.link.age_s / 60:.0f} minutes ago and may have changed"
    return ""


def _time_limits(route: Route, terms: Terms, latency_ms: float, remote_ms: float) -> list[tuple[float, str]]:
    if route.kind == "edge":
        over = latency_ms - terms.deadline_ms
        return [(latency_ms / terms.deadline_ms, f"over the deadline by {_round(over)} ms")]
    left = terms.deadline_ms - terms.reserve_ms
    kept = f" ({_round(terms.reserve_ms)} ms of it are kept to fall back)" if terms.reserve_ms else ""
    limits = [(_ratio(latency_ms, left), f"over the deadline by {_round(latency_ms - left)} ms{kept}")]
    if terms.wait_ms is not None:
        over = remote_ms - terms.wait_ms
        limits.append((_ratio(remote_ms, terms.wait_ms), f"over the longest wait for the cloud by {_round(over)} ms"))
    return limits


def _rate_limit(frames_per_s: float, busy_ms: float, share: float, text: str) -> tuple[float, str]:
    """`busy_ms` of a resource for one frame of the line; `share` of the frames use it."""
    load = frames_per_s * busy_ms / 1e3
    possible = share * 1e3 / busy_ms if busy_ms > 0.0 else math.inf
    return load, text.format(_round(possible), _round(share * frames_per_s))


def _ratio(need: float, limit: float) -> float:
    return need / limit if limit > 0.0 else math.inf


def _round(value: float) -> str:
    """Three digits that matter, no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
