"""What link and cloud can do, estimated from the requests that are made anyway.

One request takes `round trip + bytes / bandwidth + wait in cloudd + compute in cloudd`. cloudd reports the last two
with its answer. A request of one packet shows the round trip, a larger one the rest: its bandwidth. The planner must
not promise what holds half of the time, so it gets the slow side of each: bandwidth at its 20th percentile, times at
their 95th (research: algorithms.md 2, "Planner").

Pure and bounded: 128 values a quantity; the caller passes its clock. Not safe for threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from edgekit.planning.recent import LEAST, Freshness, Recent, quantile, weighted_quantile

SMALL = 1500
"""Bytes. What fits into one packet shows the round trip and says nothing about bandwidth."""
LARGE = 8192
"""Bytes. A smaller one shows a little, and counts only where no larger one is known."""
PRIOR_BANDWIDTH = 1.25e6
"""Bytes a second (10 Mbit/s): a modest factory uplink, assumed until the first transfers."""
MAX_BANDWIDTH = 1.25e10
"""Bytes a second (100 Gbit/s). Faster is not told apart, and no transfer takes no time at all."""
TOO_FAST = 1.25e9
"""Bytes a second (10 Gbit/s). From here on the figure says that bytes take no time beside the round trip, not how fast
the link is: loopback, or a short wire with requests that are small for it."""

_SLOW, _HIGH, _TYPICAL = 0.95, 0.80, 0.50
_HIGH_TO_SLOW = 1.645 / 0.842  # from the 80th to the 95th percentile, in distances from the median (normal)
_STEP = 1.5  # beyond the usual range by this factor ...
_STEP_RUN = 5  # ... so many times in a row is a change of the link, not noise
_REFRESH = 8  # requests after which the usual range is computed anew
_LONGEST_S = 3600.0
_SHORTEST_S = 1e-5
_SHORTEST_WORK_MS = 0.01  # what is declared to take less shows nothing about the cloud's speed
_MAX_WORKS = 64

T = TypeVar("T")

Outcome = Literal["answered", "timeout"]


@dataclass(frozen=True)
class Span:
    """A time that varies, in milliseconds: its median and its 95th percentile."""

    typical: float = 0.0
    slow: float = 0.0

    @property
    def spread(self) -> float:
        """How much slower than typical it can be."""
        return max(0.0, self.slow - self.typical)


PRIOR_RTT = Span(30.0, 50.0)
"""Assumed until the first small requests: a cloud on the same continent."""


@dataclass(frozen=True, kw_only=True)
class LinkEstimate:
    """What the uplink can be trusted with at one moment. Every number is finite and positive, but `age_s`."""

    state: Freshness = "unknown"  # of the less known of the two; unknown: priors
    bandwidth: float = PRIOR_BANDWIDTH  # bytes a second, 20th percentile
    typical_bandwidth: float = PRIOR_BANDWIDTH  # median
    rtt: Span = PRIOR_RTT
    age_s: float = math.inf  # since the newest transfer
    samples: int = 0  # transfers that the bandwidth rests on
    unusual: bool = False  # the newest transfer was far outside of the usual range: the link may be changing

    @property
    def mbit(self) -> float:
        """The bandwidth in Mbit/s, for people."""
        return self.bandwidth * 8e-6

    def transfer(self, size: int) -> Span:
        """What `size` bytes take, the round trip not included."""
        typical, high = size / self.typical_bandwidth * 1e3, size / self.bandwidth * 1e3
        return Span(typical, typical + max(0.0, high - typical) * _HIGH_TO_SLOW)


class LinkEstimator:
    """Separates bandwidth and round trip of one link.

    A transfer's time minus the median round trip is what its bytes took, give or take the noise of the round trip. The
    median over many transfers hardly minds that noise, and how large it is shows in the small requests; so what it can
    explain is taken out of the transfers' spread, and what remains is the bandwidth's own. Large transfers tell more
    than small ones: they count by their bytes, and those below LARGE not at all while larger ones are known.

    Five requests in a row far outside of the usual range mean that the link has changed; older ones are forgotten then.
    """

    def __init__(self) -> None:
        # A round trip changes with the route, not with the load, so its values last longer.
        self._rtts = _Stepping[float](Recent(horizon_s=900.0))
        self._transfers = _Stepping[tuple[int, float]](Recent())
        self._known = _Usual()
        self._unseen = 0

    def observe(
        self, size: int, seconds: float, now: float, *, outcome: Outcome = "answered", cloud_s: float = 0.0
    ) -> None:
        """Take one request of `size` bytes (body and headers) that was under way for `seconds`.

        `cloud_s`: seconds of these that cloudd says it waited and computed; a value that cannot be is cut to what can.
        `timeout`: no answer within `seconds`; counts only if that is longer than such a request usually takes, because
        one given up early says nothing. Raises ValueError for a size or time that no request can have.
        """
        if size < 0 or not (math.isfinite(seconds) and seconds >= 0.0) or not math.isfinite(now):
            raise ValueError(f"no request has {size} bytes and takes {seconds} s (at {now})")
        spent = min(max(cloud_s, 0.0), seconds) if math.isfinite(cloud_s) else 0.0
        took = min(max(seconds - spent, _SHORTEST_S), _LONGEST_S)
        low, high = self._usual(now).of(size)
        if outcome == "timeout" and took <= high:
            return
        way = 1 if high and took > high * _STEP else -1 if took < low / _STEP else 0
        if size <= SMALL:
            stepped = self._rtts.add(took, now, way)
        else:
            telling = size >= LARGE or self._largest(now) < LARGE
            stepped = self._transfers.add((size, took), now, way, keep=telling)
        self._unseen = _REFRESH if stepped else self._unseen + 1

    def estimate(self, now: float) -> LinkEstimate:
        """What is known at `now` (monotonic seconds)."""
        rtts, transfers = self._rtts.recent, self._transfers.recent
        trips = sorted(rtts.values(now)) if rtts.freshness(now) != "unknown" else []
        rtt = Span(quantile(trips, _TYPICAL) * 1e3, quantile(trips, _SLOW) * 1e3) if trips else PRIOR_RTT
        telling = transfers.values(now)
        # Small transfers are not kept beside large ones, but they do show that the link is as it was.
        latest = self._transfers.latest
        bare = LinkEstimate(rtt=rtt, age_s=latest.age(now), samples=len(telling), unusual=self._transfers.run != 0)
        if not trips or transfers.freshness(now) == "unknown":
            return bare
        typical, high = _slowness(telling, trips)
        return replace(
            bare,
            state="stale" if "stale" in (rtts.freshness(now), latest.freshness(now)) else "measured",
            bandwidth=1.0 / high,
            typical_bandwidth=1.0 / typical,
        )

    def _largest(self, now: float) -> int:
        """The size that LEAST transfers reach at least."""
        sizes = sorted((size for size, _ in self._transfers.recent.values(now)), reverse=True)
        return sizes[LEAST - 1] if len(sizes) >= LEAST else 0

    def _usual(self, now: float) -> _Usual:
        """What requests take at present; looked at anew after some, because sorting takes a tenth of a millisecond.

        Not while unusual ones come in a row: they must not make themselves usual.
        """
        calm = not (self._rtts.run or self._transfers.run)
        if (calm and self._unseen >= _REFRESH) or self._known.per_byte is None:
            trips, transfers = sorted(self._rtts.recent.values(now)), self._transfers.recent.values(now)
            self._known, self._unseen = _Usual(), 0
            if len(trips) >= LEAST:
                span = quantile(trips, 1 - _SLOW), quantile(trips, _SLOW)
                per_byte = _slowness(transfers, trips) if len(transfers) >= LEAST else None
                self._known = _Usual(span, per_byte)
        return self._known


@dataclass(frozen=True)
class _Usual:
    """The usual range of round trips (seconds), and the median and 80th percentile of seconds a byte."""

    rtt: tuple[float, float] | None = None
    per_byte: tuple[float, float] | None = None

    def of(self, size: int) -> tuple[float, float]:
        """The usual range of seconds of a request of this size; (0, 0) while nothing is known about it."""
        if self.rtt is None or (size > SMALL and self.per_byte is None):
            return 0.0, 0.0
        low, high = self.rtt
        if size <= SMALL or self.per_byte is None:
            return low, high
        typical, slow = self.per_byte
        return low + max(0.0, 2 * typical - slow) * size, high + slow * size


class _Stepping(Generic[T]):
    """Recent values that begin anew when the newest few were all unusual in the same way."""

    def __init__(self, recent: Recent[T]) -> None:
        self.recent = recent
        self.latest: Recent[T] = Recent(size=_STEP_RUN)
        self.run = 0

    def add(self, value: T, now: float, way: int, *, keep: bool = True) -> bool:
        """Take a value that was unusually high (`way` 1), low (-1) or neither (0); True if the quantity has changed."""
        self.latest.add(value, now)
        if keep:
            self.recent.add(value, now)
        self.run = self.run + way if way and self.run * way >= 0 else way
        if abs(self.run) < _STEP_RUN:
            return False
        self.recent.begin_with(self.latest)
        self.run = 0
        return True


def _slowness(transfers: Sequence[tuple[int, float]], trips: Sequence[float]) -> tuple[float, float]:
    """Seconds a byte, the median and the 80th percentile, of transfers (size, seconds) and round trips (seconds).

    What could be the noise of the round trip is not charged to the bandwidth, its error of estimation included: about
    1.25 sigma / sqrt(n) for the median of n values, and so much of a variance.
    """
    trip = quantile(trips, _TYPICAL)
    pairs = sorted(((took - trip) / size, size) for size, took in transfers)
    usual_size = sum(size * size for size, _ in transfers) / sum(size for size, _ in transfers)
    noise = (quantile(trips, _HIGH) - trip) / usual_size
    error = 1.0 / math.sqrt(len(transfers))
    median = weighted_quantile(pairs, _TYPICAL)
    spread = weighted_quantile(pairs, _HIGH) - median
    typical = min(max(median - 1.5 * noise * error, 1.0 / MAX_BANDWIDTH), _LONGEST_S)
    own = math.sqrt(max(0.0, spread * spread - noise * noise * (1.0 + 3.0 * error)))
    return typical, min(typical + own, _LONGEST_S)


class CloudEstimator:
    """How long answers wait in cloudd, and how long each kind of work takes there.

    A work that was never tried is guessed: its declared time times what the other works took in terms of theirs. So the
    first few answers of one plan already tell how fast this cloud would do the others.
    """

    def __init__(self) -> None:
        self._waits: Recent[float] = Recent()
        self._speed: Recent[float] = Recent()
        self._works: dict[str, Recent[float]] = {}

    def observe(self, work: str, declared_ms: float, compute_ms: float, wait_ms: float, now: float) -> None:
        """Take the times of one answer. `work` names what was computed (a plan's name), `declared_ms` what it was
        thought to take. A time from cloudd that is none (negative, not a number) makes the whole answer not count.
        """
        if not (0.0 <= compute_ms < math.inf and 0.0 <= wait_ms < math.inf):
            return
        self._waits.add(min(wait_ms, _LONGEST_S * 1e3), now)
        compute_ms = min(compute_ms, _LONGEST_S * 1e3)
        mine = self._works.pop(work, None) or Recent()
        self._works[work] = mine  # the newest last, so that the first is the one to give up
        if len(self._works) > _MAX_WORKS:
            del self._works[next(iter(self._works))]
        mine.add(compute_ms, now)
        if _SHORTEST_WORK_MS <= declared_ms < math.inf:
            self._speed.add(compute_ms / declared_ms, now)

    def wait(self, now: float) -> Span:
        """Wait in cloudd besides computing; none while nothing is known."""
        if self._waits.freshness(now) == "unknown":
            return Span()
        values = self._waits.values(now)
        return Span(quantile(values, _TYPICAL), quantile(values, _SLOW))

    def compute_ms(self, work: str, declared_ms: float, now: float) -> float:
        """Milliseconds that cloudd takes for `work`, 95th percentile, measured or guessed."""
        mine = self._slow(self._works[work], now) if work in self._works else None
        if mine is not None:
            return mine
        speed = self._slow(self._speed, now)
        return declared_ms if speed is None else min(declared_ms * speed, _LONGEST_S * 1e3)

    @staticmethod
    def _slow(recent: Recent[float], now: float) -> float | None:
        return quantile(recent.values(now), _SLOW) if recent.freshness(now) != "unknown" else None
