"""One uplink's estimate for all services: fed by every exchange, and by small probes while too little is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from edged.collab.courier import Courier
from edged.collab.uplink import Exchange, UplinkError
from edgekit.planning.estimates import LinkEstimate, LinkEstimator

WARM_PROBES = 3
"""Round trips measured when a link comes up, over a connection that is open already."""
PROBE_EVERY_S = 2.0
"""While requests are out of the usual: it may be the round trip that has changed."""
IDLE_PROBE_S = 300.0
"""A round trip that was not seen for so long is measured again; the estimator forgets later."""

_OVERHEAD = 600  # bytes of HTTP's and TLS's own heads, which an exchange does not count
_TIMEOUT_S = 5.0


class LinkView(Protocol):
    """What a plan wants to know of the link."""

    @property
    def up(self) -> bool:
        """Whether live samples may be sent."""
        ...

    @property
    def changing(self) -> bool:
        """The newest requests were far from the usual, so nobody knows what is usual now."""
        ...

    def estimate(self) -> LinkEstimate:
        """What the link can be trusted with now."""
        ...


class LinkWatch:
    """Belongs to one event loop, as its courier does."""

    def __init__(self, courier: Courier, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds. Hears of every exchange of the courier's uplink from now on."""
        self._courier = courier
        self._clock = clock
        self._estimator = LinkEstimator()
        self._wanted = WARM_PROBES  # round trips to see because the link is new
        self._trips = 0  # seen so far
        self._trip_at = -math.inf  # when a round trip was seen last, or tried
        self._unanswered = False  # the newest request
        self._estimate = LinkEstimate()
        self._stale = True
        self._estimated_at = -math.inf
        courier.uplink.observers.append(self._heard)

    @property
    def up(self) -> bool:
        return self._courier.breaker.admit() is not None

    @property
    def changing(self) -> bool:
        return self._unanswered or self.estimate().unusual

    def estimate(self) -> LinkEstimate:
        """See LinkView; computed at most once a second unless something was heard."""
        now = self._clock()
        if self._stale or now - self._estimated_at >= 1.0:
            self._estimate, self._estimated_at, self._stale = self._estimator.estimate(now), now, False
        return self._estimate

    def link_is_new(self) -> None:
        """Measure the round trip anew."""
        self._wanted = WARM_PROBES

    async def probe(self) -> None:
        """Make the small probes that are due. Call it about once a second; it never raises."""
        ticket = self._courier.breaker.admit()
        if ticket is None or not self._due():
            return
        self._trip_at = self._clock()
        goal = self._trips + max(1, self._wanted)
        for _ in range(goal - self._trips + 1):  # one may have to open the connection, and shows no round trip
            if self._trips >= goal:
                break
            try:
                await self._courier.check(_TIMEOUT_S, ticket)
            except UplinkError:
                return  # the breaker has heard of it
        self._wanted = 0

    def _due(self) -> bool:
        since = self._clock() - self._trip_at
        return self._wanted > 0 or since >= IDLE_PROBE_S or (since >= PROBE_EVERY_S and self.changing)

    def _heard(self, exchange: Exchange) -> None:
        """An exchange that opened its connection took the handshake too, and one that was refused took no time."""
        self._unanswered = exchange.outcome in ("timeout", "down")
        if not exchange.reused or exchange.outcome not in ("answered", "timeout"):
            return
        now = self._clock()
        size = exchange.size + (0 if exchange.small else _OVERHEAD)
        if exchange.small and exchange.outcome == "answered":
            self._trip_at = now
            self._trips += 1
        self._estimator.observe(size, exchange.seconds, now, outcome=exchange.outcome, cloud_s=exchange.cloud_ms / 1e3)
        self._stale = True
