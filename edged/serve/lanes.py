"""What the scheduler knows: jobs, the lanes they wait in, and how long each lane's runs take."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from edgekit.dispatch.policy import Job
from edgekit.dispatch.policy import Priority as Priority

RANK: dict[Priority, int] = {"alarm": 0, "inline": 1, "audit": 2}

INLINE_S = 0.001
"""A lane whose runs take less may run in the event loop: two thread hops cost about as much."""
_SLOW_SHARE = 0.1
"""Of a quick lane's runs, so many may take longer: a busy machine interrupts one now and then for some milliseconds,
which says nothing about the model and would interrupt the loop as well."""

_SMOOTHING = 0.1
_RECENT = 256
_ENOUGH = 64  # run times that a lane must have before they are believed


@dataclass(slots=True)
class LaneCounts:
    """What became of a lane's jobs since the start. `runs` includes `inline_runs`; `run_s`, `queue_s` are sums."""

    runs: int = 0
    inline_runs: int = 0
    run_s: float = 0.0
    queue_s: float = 0.0
    full: int = 0
    overloaded: int = 0
    expired: int = 0
    stale: int = 0
    cancelled: int = 0
    offloaded: int = 0  # the cloud was asked instead (see `dispatching`)
    kept: int = 0  # on the disk, for the cloud to answer later


class RunTimes:
    """How long a lane's runs take: mean, mean deviation, and whether nearly all recent ones were below INLINE_S."""

    __slots__ = ("_recent", "_slow", "at", "deviation", "mean")

    def __init__(self, guess: float = 0.0) -> None:
        self.mean = guess  # 0.0: nothing is known
        self.deviation = 0.0
        self.at = -math.inf
        self._recent: deque[bool] = deque()
        self._slow = 0

    def add(self, seconds: float, now: float) -> None:
        """Count a run that has just ended."""
        first, self.at = self.at == -math.inf, now
        if first:
            self.mean, self.deviation = seconds, seconds / 2
        else:
            off = seconds - self.mean
            self.mean += _SMOOTHING * off
            self.deviation += _SMOOTHING * (abs(off) - self.deviation)
        slow = seconds >= INLINE_S
        self._recent.append(slow)
        self._slow += slow
        if len(self._recent) > _RECENT:
            self._slow -= self._recent.popleft()

    def forget(self) -> None:
        """Start anew: what was measured is old, and nothing but a run can show whether it still holds."""
        self.mean, self.deviation, self.at = 0.0, 0.0, -math.inf

    @property
    def quick(self) -> bool:
        """Are the mean and nine of ten of the recent runs known, and below INLINE_S?"""
        recent = len(self._recent)
        return recent >= _ENOUGH and self._slow <= _SLOW_SHARE * recent and self.mean < INLINE_S


class Entry:
    """One job as the policy sees it. `expires` (may not be answered later) and `start_by` may be infinite."""

    __slots__ = (
        "arrived",
        "at_once",
        "charged",
        "expires",
        "job",
        "key",
        "lane",
        "rank",
        "returned",
        "sequence",
        "start_by",
        "started",
        "state",
        "stream",
    )

    def __init__(self, lane: str, rank: int, deadline: float, expires: float, start_by: float, stream: str) -> None:
        self.lane, self.rank, self.stream = lane, rank, stream
        self.key, self.expires, self.start_by = deadline, expires, start_by
        self.sequence = 0
        self.arrived = self.started = self.charged = 0.0
        self.state: Literal["new", "waiting", "running", "over"] = "new"
        self.at_once = False  # nothing was ahead of it
        self.job: Job | None = None  # as the rules of dispatch see it; None: they are not asked
        self.returned = False  # the cloud was asked already, and its answer is not waited for


E = TypeVar("E", bound=Entry)


class Queue(Generic[E]):
    """A lane's waiting jobs of one class, best first, and the model time that they have used (virtual time)."""

    __slots__ = ("entries", "lane", "used")

    def __init__(self, lane: Lane[E]) -> None:
        self.lane = lane
        self.entries: list[tuple[float, int, E]] = []
        self.used = 0.0

    def work(self) -> float:
        return len(self.entries) * self.lane.times.mean


class Lane(Generic[E]):
    """One service's jobs. At most `limit` of them run at once."""

    __slots__ = ("counts", "limit", "name", "queues", "running", "times")

    def __init__(self, name: str, limit: int, guess: float = 0.0) -> None:
        self.name, self.limit = name, limit
        self.times = RunTimes(guess)
        self.queues = tuple(Queue(self) for _ in RANK)
        self.running: list[E] = []
        self.counts = LaneCounts()

    @property
    def waiting(self) -> int:
        return sum(len(queue.entries) for queue in self.queues)
