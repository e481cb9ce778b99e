"""One service's plan: what its planner is told, the route of its asked samples, and the account of why."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace

from edged.collab.asking import reserve_s
from edged.collab.plan.heads import Cut, HeadsInfo
from edged.collab.plan.link import LinkView
from edgekit.messages import Answer, HardSample, PlanReport, RouteReport
from edgekit.planning.estimates import CloudEstimator, Span
from edgekit.planning.explain import explain
from edgekit.planning.planner import Plan, Planner, choose
from edgekit.planning.recent import Recent, quantile
from edgekit.planning.routes import Demand, Estimates, Route, Terms, assess
from edgekit.services import Service

QUIET_S = 10.0
"""While no sample comes and the link stays as it is, the plan is looked at so often only."""

_P80, _P95 = 0.80, 0.95
_HEADER = 1100  # bytes before a payload, with HTTP's own
_LIKELY_PICTURE = 50_000  # bytes, until the first one has come
_LIKELY_MOSAIC = 20_000


def local_demand() -> Demand:
    """What a line brings of which nothing is known yet."""
    return Demand(frames_per_s=0.0, cores=float(len(os.sched_getaffinity(0))))


class ServicePlan:
    """Belongs to one event loop. `demand` may be replaced by what the service's statistics say."""

    def __init__(
        self,
        service: Service,
        link: LinkView,
        clock: Callable[[], float],
        heads: HeadsInfo | None = None,
        answered_by: Callable[[], str] = lambda: "",
    ) -> None:
        """`clock`: monotonic seconds. `answered_by`: name@version that cloudd answers with, "" while unknown."""
        deadline_ms = service.deadline_ms
        self.terms = Terms(
            deadline_ms=deadline_ms,
            may_leave=service.may_leave,
            objective=service.objective,
            wait_ms=service.hard_samples.wait_ms,
            reserve_ms=reserve_s(deadline_ms / 1e3) * 1e3,
        )
        self.demand: Callable[[], Demand] = local_demand
        self._service, self._link, self._clock = service, link, clock
        self._heads, self._answered_by = heads, answered_by
        self._planner = Planner(self.terms)
        self._cloud = CloudEstimator()
        self._pictures: Recent[int] = Recent()
        self._mosaics: Recent[int] = Recent()
        self._packing: Recent[float] = Recent()
        self._preparing: Recent[float] = Recent()
        self._heading: dict[str, Recent[float]] = {}
        self._features: dict[str, Recent[int]] = {}
        self._probe: Route | None = None
        self._estimates: Estimates | None = None
        self._looked_at = -math.inf
        self._busy = True  # something came since the last look
        self._report: PlanReport | None = None
        self._why_here = ""

    # --- what it says ------------------------------------------------------------------------------------------------

    def route(self) -> Route:
        """How an asked sample goes now. Looks anew first if the link has come or gone."""
        if self._estimates is None or self._estimates.up != self._link.up:
            self.look()
        plan = self._plan()
        return plan.route

    def chance(self, left_s: float) -> Route | None:
        """The best way by which a sample with so many seconds left has its answer in time more often than not.

        For samples that the plan would keep here. It goes by what is slow (95th percentile) and by the service's
        deadline; but a sample may have more time, and who has an answer to fall back on loses nothing by trying. Not
        while the link seems to change, when nobody knows what is usual.
        """
        estimates = self._estimates
        if estimates is None or left_s <= 0.0 or self._link.changing:
            return None
        link, wait = estimates.link, estimates.wait
        usual = replace(
            estimates,
            link=replace(link, bandwidth=link.typical_bandwidth, rtt=Span(link.rtt.typical, link.rtt.typical)),
            wait=Span(wait.typical, wait.typical),
        )
        left = replace(
            self.terms, deadline_ms=left_s * 1e3 + estimates.demand.before_ms, reserve_ms=reserve_s(left_s) * 1e3
        )
        best = choose([assess(route, left, usual) for route in estimates.routes])
        return best.route if best.feasible and best.route.good else None

    def form(self) -> Route | None:
        """How a sample leaves for which nobody waits; None: it may not leave. A probe of the link goes first."""
        self.route()
        probe, self._probe = self._probe, None
        assert self._estimates is not None, "route has looked"
        return probe or self._planner.form(self._estimates)

    @property
    def up(self) -> bool:
        """Whether live samples may be sent."""
        return self._link.up

    @property
    def why_here(self) -> str:
        """Why the plan keeps asked samples on this device, "" if it does not."""
        return self._why_here

    def report(self) -> PlanReport | None:
        """The account of the last look, None before the first."""
        return self._report

    def look(self) -> None:
        """Look at the estimates. Call it once a second: it does nothing while nothing has happened."""
        now = self._clock()
        up = self._link.up
        known = self._estimates is not None and self._estimates.up == up
        if known and not self._busy and now - self._looked_at < QUIET_S:
            return
        self._busy, self._looked_at = False, now
        estimates = self._estimates = Estimates(
            link=self._link.estimate(),
            demand=self.demand(),
            routes=tuple(self._routes(now)),
            up=up,
            wait=self._cloud.wait(now),
        )
        self._planner.observe(estimates, now)
        self._probe = self._planner.probe(estimates, now) or self._probe
        self._report = self._account(estimates)

    # --- what it is told ---------------------------------------------------------------------------------------------

    def came(self, picture: bytes) -> None:
        """The service has looked at this picture."""
        self._pictures.add(len(picture), self._clock())
        self._busy = True

    def packed(self, milliseconds: float, size: int) -> None:
        """The regions of a frame have been cut out, as a mosaic of so many bytes."""
        now = self._clock()
        self._packing.add(milliseconds, now)
        self._mosaics.add(size, now)

    def headed(self, cut: str, prepare_ms: float, head_ms: float, size: int) -> None:
        """A head has made features of so many bytes; 0 for the whole model."""
        now = self._clock()
        self._preparing.add(prepare_ms, now)
        self._heading.setdefault(cut, Recent()).add(head_ms, now)
        if size:
            self._features.setdefault(cut, Recent()).add(size, now)

    def answered(self, header: HardSample, answer: Answer) -> None:
        """cloudd has answered. One that was answered before took no time."""
        self._busy = True
        if answer.repeated:
            return
        now = self._clock()
        waited = answer.waited_ms
        if header.late:  # it lets all others go first, so it shows at most that the wait is shorter than was thought
            waited = min(waited, self._cloud.wait(now).slow)
        work, declared = _work(header), self._whole_ms()
        if header.features is not None:
            cut = self._cut(header.features.cut)
            if cut is None or self._heads is None or header.features.tail != self._heads.tail:
                return
            declared = cut.tail_ms
        self._cloud.observe(work, declared, answer.compute_ms, waited, now)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        plan = self._planner.plan
        assert plan is not None, "the first look makes one"
        return plan

    def _routes(self, now: float) -> list[Route]:
        """Every way that this service has, whether its policy lets it or not."""
        found = [Route(kind="edge", accuracy="edge")]
        whole_ms = self._whole_ms()
        if self._service.regions is not None:
            found.append(
                Route(
                    kind="regions",
                    accuracy="equal",
                    edge_ms=_at(self._packing, _P95, now, 0.0),
                    bytes=_HEADER + int(_at(self._mosaics, _P80, now, _LIKELY_MOSAIC)),
                    cloud_ms=self._cloud.compute_ms("regions", whole_ms, now),
                )
            )
            return found
        found.append(
            Route(
                kind="frame",
                accuracy="exact",
                bytes=_HEADER + int(_at(self._pictures, _P80, now, _LIKELY_PICTURE)),
                cloud_ms=self._cloud.compute_ms("frame", whole_ms, now),
            )
        )
        if self._heads is not None and self._is_theirs(self._heads.of):
            prepare_ms = _at(self._preparing, _P95, now, self._heads.prepare_ms)
            found += [self._split(cut, prepare_ms, now) for cut in self._heads.cuts]
        return found

    def _split(self, cut: Cut, prepare_ms: float, now: float) -> Route:
        heading, features = self._heading.get(cut.name), self._features.get(cut.name)
        edge_ms = prepare_ms + (_at(heading, _P95, now, cut.head_ms) if heading is not None else cut.head_ms)
        if cut.whole:
            return Route(kind="edge", accuracy="exact", edge_ms=edge_ms)
        size = _at(features, _P80, now, cut.wire_bytes) if features is not None else cut.wire_bytes
        work = f"split@{cut.name}"
        return Route(
            kind="split",
            accuracy="equal",
            cut=cut.name,
            edge_ms=edge_ms,
            bytes=_HEADER + int(size),
            cloud_ms=self._cloud.compute_ms(work, cut.tail_ms, now),
        )

    def _is_theirs(self, of: str) -> bool:
        """Whether the head's model is the one that cloudd answers with.

        Two versions that answer by turns would never let a gate be certified. Where only features may leave, the head
        is the only one that asks.
        """
        return self._service.may_leave == "features" or self._answered_by() in ("", of)

    def _whole_ms(self) -> float:
        """Of the answer model on cloudd's host as far as it was declared; without, nothing is held against trying."""
        return self._heads.whole_ms if self._heads is not None else 0.0

    def _cut(self, name: str) -> Cut | None:
        cuts = self._heads.cuts if self._heads is not None else ()
        return next((cut for cut in cuts if cut.name == name), None)

    def _account(self, estimates: Estimates) -> PlanReport:
        told = explain(self._plan(), self.terms, estimates)
        costs = {route.name: assess(route, self.terms, estimates).cost for route in estimates.routes}
        rows = [
            RouteReport(
                name=row.plan,
                what=row.what,
                feasible=row.feasible,
                chosen=row.chosen,
                accuracy=row.accuracy,
                latency_ms=row.latency_ms,
                bytes=row.bytes,
                cost=round(costs[row.plan], 3),
                why=row.why,
            )
            for row in told.rows
        ]
        route = self._plan().route
        others = [row for row in rows if row.accuracy != "edge"]
        self._why_here = ""
        if route.kind == "edge" and not route.good:
            self._why_here = f"{others[0].name}: {others[0].why}" if others else "there is no other way"
        return PlanReport(
            route=told.plan,
            sentence=told.sentence,
            reason=told.reason,
            link=told.link,
            objective=self.terms.objective,
            changes=self._planner.changes,
            routes=rows,
            omitted=told.omitted,
        )


def _work(header: HardSample) -> str:
    """What cloudd computed for a sample, as CloudEstimator names it."""
    if header.features is not None:
        return f"split@{header.features.cut}"
    return "regions" if header.mosaic is not None else "frame"


def _at(recent: Recent[float] | Recent[int], share: float, now: float, otherwise: float) -> float:
    values = recent.values(now)
    return quantile(values, share) if values else otherwise
