"""Simulated links and clouds for the planner: how far from the best possible route does it choose, and how steadily?

The figures of the models are those measured in research/algorithms.md 2 (224x224 pixels, milliseconds of one core of
the research machine); an edge is `slow` times as slow and a cloud `k` times as fast as its edge. Noise: bandwidth
lognormal with a sigma of .15, round trip .1, computing .05, and an exponential wait in cloudd of half a millisecond;
a world has it any number of times.

Pure: the seed is an argument. `python -m benchmarks.planner` prints what `grid` returns.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgekit.planning.estimates import CloudEstimator, LinkEstimator
from edgekit.planning.planner import Planner
from edgekit.planning.recent import quantile
from edgekit.planning.routes import Demand, Estimates, MayLeave, Route, Terms, permitted

MBITS = (1.0, 5.0, 20.0, 50.0, 100.0, 1000.0)
RTTS_MS = (1.0, 10.0, 50.0)
CLOUDS = (5.0, 20.0)
EDGES = (1.0, 8.0)

_HEADERS = 400  # bytes of envelope and HTTP around what is sent
_PING = 300
_FRAMES_PER_S = 5.0
_ASSUMED_CLOUD = 5.0  # what the planner thinks of the cloud's speed before its first answer
_DRAWS = 400
_BANDWIDTH_SIGMA, _RTT_SIGMA, _COMPUTE_SIGMA, _WAIT_MS = 0.15, 0.10, 0.05, 0.5


@dataclass(frozen=True)
class Cut:
    """A measured cut: milliseconds on the research machine, bytes as int8 + zstd-3."""

    name: str
    head_ms: float
    tail_ms: float
    bytes: int
    values: int

    @property
    def encode_ms(self) -> float:
        """int8 + zstd: 8.5 ns a value, which the totals of the research's second table contain."""
        return self.values * 8.5e-6


@dataclass(frozen=True)
class Net:
    """A measured model."""

    name: str
    full_ms: float
    cuts: tuple[Cut, ...]
    jpeg: int = 24_800  # bytes at quality 95
    jpeg_ms: float = 0.8


MOBILENET_V2 = Net(
    "mobilenet-v2",
    8.9,
    (
        Cut("block2", 1.5, 6.6, 56_000, 24 * 56 * 56),
        Cut("64x14x14", 3.8, 4.8, 11_500, 64 * 14 * 14),
        Cut("160x7x7", 6.2, 2.2, 7_200, 160 * 7 * 7),
        Cut("pooled", 7.8, 0.1, 1_200, 1280),
    ),
)
RESNET_18 = Net(
    "resnet-18",
    35.5,
    (
        Cut("maxpool", 2.6, 33.4, 109_000, 64 * 56 * 56),
        Cut("128x28x28", 14.2, 21.9, 52_000, 128 * 28 * 28),
        Cut("512x7x7", 30.3, 5.6, 14_000, 512 * 7 * 7),
    ),
)
NETS = (MOBILENET_V2, RESNET_18)


@dataclass(frozen=True, kw_only=True)
class World:
    """What really is, and the planner must find out."""

    net: Net
    mbit: float
    rtt_ms: float  # median
    k: float
    slow: float
    noise: float = 1.0  # times the noise of the module's docstring
    cascade: bool = False  # a small model at the edge, 1/8 of the work, asks about 30 % of the frames

    def routes(self, k: float) -> tuple[Route, ...]:
        """The routes as one would declare them who takes the cloud for `k` times as fast as the edge."""
        net, slow = self.net, self.slow
        full = net.full_ms * slow
        regions = 0.35  # of the pixels: 28 % of the regions with some context (research 1.3)
        remote = [
            Route(
                kind="frame",
                accuracy="exact",
                edge_ms=net.jpeg_ms * slow,
                bytes=net.jpeg + _HEADERS,
                cloud_ms=full / k,
            ),
            *(
                Route(
                    kind="split",
                    cut=cut.name,
                    accuracy="equal",
                    edge_ms=(cut.head_ms + cut.encode_ms) * slow,
                    bytes=cut.bytes + _HEADERS,
                    cloud_ms=cut.tail_ms * slow / k,
                )
                for cut in net.cuts
            ),
        ]
        if not self.cascade:
            return (Route(kind="edge", accuracy="exact", edge_ms=full), *remote)
        mosaic = Route(
            kind="regions",
            accuracy="equal",
            edge_ms=(net.jpeg_ms * regions + 0.2) * slow,
            bytes=int(net.jpeg * regions) + _HEADERS,
            cloud_ms=full / k * regions,
        )
        return (Route(kind="edge", accuracy="edge"), mosaic, *remote)

    @property
    def demand(self) -> Demand:
        """What the line brings: too little to fill edge or link, so that the times decide."""
        if not self.cascade:
            return Demand(frames_per_s=0.0)
        small = self.net.full_ms * self.slow / 8
        return Demand(frames_per_s=0.0, asked_share=0.3, before_ms=small, cpu_ms=small)


Noise = tuple[float, float, float, float, float]
"""One request's luck: bandwidth, round trip, edge, cloud (normal) and wait (exponential), all standard."""


def draw(rng: random.Random) -> Noise:
    """Draw one."""
    return rng.gauss(0, 1), rng.gauss(0, 1), rng.gauss(0, 1), rng.gauss(0, 1), rng.expovariate(1.0)


@dataclass(frozen=True)
class Passage:
    """One request by one route in a world: where its milliseconds went."""

    edge_ms: float
    link_ms: float
    wait_ms: float
    compute_ms: float

    @property
    def total_ms(self) -> float:
        return self.edge_ms + self.link_ms + self.wait_ms + self.compute_ms


def pass_through(world: World, route: Route, luck: Noise) -> Passage:
    """Let one request go by `route` (one of `world.routes(world.k)`)."""
    amount = world.noise
    edge_ms = route.edge_ms * math.exp(_COMPUTE_SIGMA * amount * luck[2])
    if route.kind == "edge":
        return Passage(edge_ms, 0.0, 0.0, 0.0)
    link_ms = route.bytes * 8e-3 / (
        world.mbit * math.exp(_BANDWIDTH_SIGMA * amount * luck[0])
    ) + world.rtt_ms * math.exp(_RTT_SIGMA * amount * luck[1])
    return Passage(
        edge_ms, link_ms, _WAIT_MS * amount * luck[4], route.cloud_ms * math.exp(_COMPUTE_SIGMA * amount * luck[3])
    )


def true_ms(world: World, share: float, draws: Sequence[Noise]) -> dict[str, float]:
    """By route: what `share` of its requests do not exceed, the time before the route included."""
    before = world.demand.before_ms
    return {
        route.name: before + quantile((pass_through(world, route, luck).total_ms for luck in draws), share)
        for route in world.routes(world.k)
    }


class Trial:
    """A planner in a world: it sees only what a daemon would see, at five frames a second."""

    def __init__(self, world: World, terms: Terms, seed: str) -> None:
        self.world = world
        self.planner = Planner(terms)
        self.link = LinkEstimator()
        self.cloud = CloudEstimator()
        self.now = 0.0
        self._rng = random.Random(seed)  # noqa: S311 - noise, no secret
        self._declared = {route.name: route.cloud_ms for route in world.routes(_ASSUMED_CLOUD)}

    def estimates(self) -> Estimates:
        """What the planner is told now."""
        routes = tuple(
            Route(
                kind=route.kind,
                accuracy=route.accuracy,
                cut=route.cut,
                edge_ms=route.edge_ms
                * math.exp(1.645 * _COMPUTE_SIGMA * self.world.noise),  # p95, measured at the edge beforehand
                bytes=route.bytes,
                cloud_ms=self.cloud.compute_ms(route.name, self._declared[route.name], self.now)
                if route.kind != "edge"
                else 0.0,
            )
            for route in self.world.routes(self.world.k)
        )
        return Estimates(
            link=self.link.estimate(self.now),
            demand=self.world.demand,
            routes=routes,
            wait=self.cloud.wait(self.now),
        )

    def run(self, frames: int) -> Iterator[str]:
        """The name of the route of each frame. A small request each second shows the round trip."""
        for number in range(frames):
            self.now += 1.0 / _FRAMES_PER_S
            if number % 5 == 0:
                self._ping()
                estimates = self.estimates()
                self.planner.observe(estimates, self.now)
                probe = self.planner.probe(estimates, self.now)
                if probe is not None:
                    self._send(probe.name)
            plan = self.planner.plan
            assert plan is not None
            if plan.route.kind != "edge":
                self._send(plan.route.name)
            yield plan.route.name

    def _ping(self) -> None:
        rtt_ms = self.world.rtt_ms * math.exp(_RTT_SIGMA * self.world.noise * self._rng.gauss(0, 1))
        self.link.observe(_PING, rtt_ms / 1e3, self.now)

    def _send(self, name: str) -> None:
        route = next(one for one in self.world.routes(self.world.k) if one.name == name)
        went = pass_through(self.world, route, draw(self._rng))
        on_the_way = went.total_ms - went.edge_ms
        self.link.observe(route.bytes, on_the_way / 1e3, self.now, cloud_s=(went.wait_ms + went.compute_ms) / 1e3)
        self.cloud.observe(name, self._declared[name], went.compute_ms, went.wait_ms, self.now)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One world and how the planner did in it."""

    net: str
    mbit: float
    rtt_ms: float
    k: float
    slow: float
    may_leave: str
    cascade: bool
    chosen: str  # at the end
    best: str
    planner_regret: float  # p95 of what was taken above that of the best, as a share; mean after warm-up
    split_speedup: float | None  # all-edge / chosen, typical time; where pixels may not leave and a split was chosen
    replans: int  # changes of the route after warm-up; nothing really changes, so each is noise


def try_cell(world: World, terms: Terms, *, seed: str, frames: int = 1000, warm_up: int = 800) -> Cell:
    """Run one world and compare with the best route that its policy allows, known only from outside.

    Times are the 95th percentiles, as the planner's objective is; `split_speedup` compares medians.
    """
    rng = random.Random(f"{seed} truth")  # noqa: S311
    draws = [draw(rng) for _ in range(_DRAWS)]
    slow_side, typical = true_ms(world, 0.95, draws), true_ms(world, 0.5, draws)
    allowed = [route for route in world.routes(world.k) if permitted(route, terms.may_leave)]
    wanted = [route for route in allowed if route.good] or allowed
    best = min((route.name for route in wanted), key=slow_side.__getitem__)
    trial = Trial(world, terms, seed)
    taken = list(trial.run(warm_up))
    before = trial.planner.changes
    taken = list(trial.run(frames - warm_up))
    regret = max(0.0, sum(slow_side[name] / slow_side[best] - 1.0 for name in taken) / len(taken))
    chosen = taken[-1]
    whole = world.demand.before_ms + world.net.full_ms * world.slow
    split = terms.may_leave == "features" and chosen.startswith("split@")
    return Cell(
        net=world.net.name,
        mbit=world.mbit,
        rtt_ms=world.rtt_ms,
        k=world.k,
        slow=world.slow,
        may_leave=terms.may_leave,
        cascade=world.cascade,
        chosen=chosen,
        best=best,
        planner_regret=regret,
        split_speedup=whole / typical[chosen] if split else None,
        replans=trial.planner.changes - before,
    )


def grid(
    *,
    seed: int = 0,
    nets: Sequence[Net] = NETS,
    mbits: Sequence[float] = MBITS,
    rtts_ms: Sequence[float] = RTTS_MS,
    clouds: Sequence[float] = CLOUDS,
    edges: Sequence[float] = EDGES,
    policies: Sequence[MayLeave] = ("raw", "features"),
    cascades: Sequence[bool] = (False, True),
    noise: float = 1.0,
) -> Iterator[Cell]:
    """Every combination, with a deadline that all keep: what is compared is the choice, not the deadline."""
    for cell in itertools.product(nets, mbits, rtts_ms, clouds, edges, policies, cascades):
        net, mbit, rtt_ms, k, slow, may_leave, cascade = cell
        name = " ".join(map(str, (seed, net.name, *cell[1:])))
        world = World(net=net, mbit=mbit, rtt_ms=rtt_ms, k=k, slow=slow, cascade=cascade, noise=noise)
        yield try_cell(world, Terms(deadline_ms=60_000.0, may_leave=may_leave), seed=name)


def summary(cells: Sequence[Cell]) -> dict[str, float]:
    """The figures of a benchmark: `planner_regret` and its kin over all cells, `split_speedup` over those that have it
    on a slow edge with 50 Mbit/s or more and at most 10 ms of round trip, where it is promised.
    """
    regrets = [cell.planner_regret for cell in cells]
    promised = [
        cell.split_speedup or 1.0
        for cell in cells
        if cell.may_leave == "features" and not cell.cascade and cell.slow > 1 and cell.mbit >= 50 and cell.rtt_ms <= 10
    ]
    return {
        "cells": len(cells),
        "planner_regret_mean": sum(regrets) / len(regrets),
        "planner_regret_max": max(regrets),
        "within_5_percent": sum(regret <= 0.05 for regret in regrets) / len(regrets),
        "split_speedup_min": min(promised, default=math.nan),
        "split_speedup_max": max(promised, default=math.nan),
        "replans": sum(cell.replans for cell in cells),
    }
