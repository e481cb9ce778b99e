"""The rules: where a request of one class runs, given what running it here or in the cloud is predicted to take.

    local = wait for a thread + run
    cloud = uplink backlog + bytes / bandwidth + 1.4 RTT + cloud's wait + 1.2 cloud's run

`place` is asked when a request comes, and again while it waits: the request leaves for the cloud if it would end here
after a share F of its deadline, ends there in time, sooner than here (or here it is late), and the backlog of the
uplink is below what its class may see. `at_turn` is asked when a thread is free for it, `after_loss` when its answer
cannot be expected any more. What can be met nowhere is run late, spooled or refused, as its class says.

The rules are those of the research (`algorithms.md` section 5) with three changes, justified by simulation at twice the
load: what waits is asked again (audits in time: 87 -> 99 %, but a fuller uplink costs alarms 0.5 points), the uplink
sends by class (alarms 98.9 -> 99.5 %), and alarms leave from 0.85 of their deadline on, not 1 (99.8 %).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec

Priority = Literal["alarm", "inline", "audit"]
PRIORITIES: tuple[Priority, ...] = ("alarm", "inline", "audit")
"""The classes, the most important first."""
Place = Literal["local", "offload", "spool", "refuse"]


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """For each class a share of the deadline, 0 to 1."""

    alarm: float = 0.85
    inline: float = 0.5
    audit: float = 0.1


class Quotas(msgspec.Struct, frozen=True, kw_only=True):
    """For each class the milliseconds of uplink backlog at which it sends nothing more; 0: never, None: no limit."""

    alarm: float | None = None
    inline: float | None = 40.0
    audit: float | None = 20.0


class Endings(msgspec.Struct, frozen=True, kw_only=True):
    """For each class what becomes of a request that can be met nowhere. An alarm is worth nothing the day after."""

    alarm: Literal["run", "refuse"] = "run"
    inline: Literal["run", "refuse", "spool"] = "refuse"
    audit: Literal["run", "refuse", "spool"] = "spool"


class DispatchPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Every number of the rules. It has no state, so another may take its place at any time.

    Raises ValueError for a number that is out of range, NaN or infinite; the message names it.
    """

    offload_above: Shares = Shares()  # F: a request stays here while it is predicted to end within this share
    uplink_ms: Quotas = Quotas()
    hopeless: Endings = Endings()
    run_factor: float = 1.15  # times the mean of the runs
    steady_cv: float = 0.3  # runs that vary more (standard deviation / mean) are predicted by their 95th percentile
    rtt_factor: float = 1.4  # times the mean round trip, at most: less if it varies little
    cloud_run_factor: float = 1.2  # times the mean of the cloud's runs
    overdue_factor: float = 1.5  # times its prediction: an answer that takes longer is not waited for

    def __post_init__(self) -> None:
        for priority in PRIORITIES:
            share, quota = self.share(priority), self.quota_s(priority) * 1e3
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"offload_above.{priority} must lie between 0 and 1, not {share}")
            if not quota >= 0.0 or (quota == math.inf and getattr(self.uplink_ms, priority) is not None):
                raise ValueError(f"uplink_ms.{priority} must be a number of at least 0, not {quota}")
        for name in ("run_factor", "rtt_factor", "cloud_run_factor", "overdue_factor"):
            factor = getattr(self, name)
            if not 1.0 <= factor <= 10.0:
                raise ValueError(f"{name} must lie between 1 and 10, not {factor}")
        if not 0.0 < self.steady_cv <= 10.0:
            raise ValueError(f"steady_cv must be over 0 and at most 10, not {self.steady_cv}")

    def share(self, priority: Priority) -> float:
        """F of a class."""
        share: float = getattr(self.offload_above, priority)
        return share

    def quota_s(self, priority: Priority) -> float:
        """Seconds of uplink backlog at which a class sends nothing more; infinite: no limit."""
        quota: float | None = getattr(self.uplink_ms, priority)
        return math.inf if quota is None else quota / 1e3

    def largest_quota_s(self, priority: Priority) -> float:
        """The largest quota of a class and those below it."""
        return max(self.quota_s(one) for one in PRIORITIES[PRIORITIES.index(priority) :])

    def ending(self, priority: Priority) -> Place:
        """Where a request of a class goes that can be met nowhere."""
        ending: Literal["run", "refuse", "spool"] = getattr(self.hopeless, priority)
        return "local" if ending == "run" else ending


@dataclass(frozen=True, slots=True)
class Job:
    """One request as the rules see it."""

    service: str
    priority: Priority
    arrived: float  # seconds of any monotonic clock
    deadline: float
    size: int  # bytes that would go to the cloud
    may_leave: bool = True  # the policy of its service lets it


@dataclass(frozen=True, slots=True)
class Cloud:
    """What asking the cloud would take, in seconds. The rules get None instead while the link is down."""

    backlog_s: float  # until the uplink has sent what it has now
    total_s: float  # until the answer is there


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a job goes, and the predictions by which it does, in seconds from now; infinite: no cloud to ask."""

    place: Place
    local_s: float
    cloud_s: float = math.inf

    def sentence(self, job: Job, now: float) -> str:
        """The decision and its reason for people, in one sentence."""
        cloud = "it could not be asked" if self.cloud_s == math.inf else f"{self.cloud_s * 1e3:.0f} ms"
        return (
            f"{_WORDS[self.place]}, with {max(0.0, job.deadline - now) * 1e3:.0f} ms left to its deadline "
            f"(here: {self.local_s * 1e3:.0f} ms; cloud: {cloud})"
        )


_WORDS: dict[Place, str] = {
    "local": "it runs here",
    "offload": "the cloud answers it",
    "spool": "it is kept on the disk for later",
    "refuse": "it is refused",
}


def place(policy: DispatchPolicy, job: Job, local_s: float, cloud: Cloud | None, now: float) -> Decision:
    """Where a job goes that has just come, or still waits for a thread; `local_s` until it would end here.

    One that is late here by now stays in the queue, because others may leave it and because predictions are cautious.
    Only what is spooled goes at once: it loses nothing.
    """
    left = job.deadline - now
    late = local_s > left
    if not late and now + local_s - job.arrived <= policy.share(job.priority) * (job.deadline - job.arrived):
        return Decision("local", local_s)
    if _cloud_is_better(policy, job, local_s, cloud, left):
        return Decision("offload", local_s, _total(cloud))
    spooled = late and policy.ending(job.priority) == "spool"
    return Decision("spool" if spooled else "local", local_s, _total(cloud))


def at_turn(policy: DispatchPolicy, job: Job, run_s: float, cloud: Cloud | None, now: float) -> Decision:
    """Where a job goes for which a thread is free now; `run_s` is its predicted run."""
    left = job.deadline - now
    if run_s <= left:
        return Decision("local", run_s)
    if _cloud_is_better(policy, job, run_s, cloud, left):
        return Decision("offload", run_s, _total(cloud))
    return Decision(policy.ending(job.priority), run_s, _total(cloud))


def after_loss(policy: DispatchPolicy, job: Job, local_s: float, now: float) -> Decision:
    """Where a job goes whose answer cannot be expected any more: the link dropped, or was silent for too long."""
    return Decision("local" if local_s <= job.deadline - now else policy.ending(job.priority), local_s)


def _cloud_is_better(policy: DispatchPolicy, job: Job, local_s: float, cloud: Cloud | None, left: float) -> bool:
    return (
        cloud is not None
        and job.may_leave
        and cloud.backlog_s < policy.quota_s(job.priority)
        and cloud.total_s <= left
        and (cloud.total_s < local_s or local_s > left)
    )


def _total(cloud: Cloud | None) -> float:
    return math.inf if cloud is None else cloud.total_s
