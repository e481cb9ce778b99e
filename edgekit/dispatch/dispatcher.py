"""The rules together with what they go by: measured times, the account of the uplink, and what is on its way.

The caller owns queue, threads and sockets; it says what happens and is told where each request goes:

    comes or still waits   `arrives`, `review`     a thread is free for it   `turn`
    goes to the cloud      `offload`, then `begin` gives what is to be sent now, `sent`, `answered`
    link                   `heartbeat`, `link_down`; `overdue` at `next_check`, then `lost` for each key it gave

An answer is overdue after 1.5 times its prediction. It is not waited for then: the request runs here if there is time
(should the answer come after all, the first one counts). If the link gave no sign of life meanwhile, it is suspected:
nothing is offloaded until it gives one, and what has not left yet is taken back at once. So a dead link costs each
request that is on its way its own prediction and a half, and not the seconds until a heartbeat is missed.

Not safe for threads. Times are seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgekit.dispatch.policy import Cloud, Decision, DispatchPolicy, Job, after_loss, at_turn, place
from edgekit.dispatch.service_times import ServiceTimes
from edgekit.dispatch.uplink import UplinkAccount

K = TypeVar("K", bound=Hashable)

_RTT_WEIGHT = 0.1
_RTT_DEVIATIONS = 2.0  # mean deviations above the mean: the 95th percentile, about
_RTT_DEVIATION = 0.2  # of the mean, before any was measured
_LONGEST_WAIT_S = 300.0  # a cloud that says a day is in error


@dataclass(slots=True)
class _Service:
    here: ServiceTimes
    there: ServiceTimes


@dataclass(slots=True)
class _Flight:
    """An offload. `began` and `left`: when its message began to be sent, and had left the device."""

    job: Job
    began: float = math.inf
    left: float = math.inf
    due: float = math.inf

    @property
    def since(self) -> float:
        """When the link last did something for it."""
        return self.began if self.left == math.inf else self.left


class Dispatcher(Generic[K]):
    """See the module's docstring. Keys name requests; they are the caller's and unique."""

    def __init__(self, policy: DispatchPolicy, uplink: UplinkAccount[K], rtt_s: float, threads: int = 1) -> None:
        """`rtt_s` is believed until something was measured. Give `policy` another value at any time."""
        self.policy = policy
        self.uplink = uplink
        self.rtt_s = rtt_s
        self._rtt_deviation_s = _RTT_DEVIATION * rtt_s
        self._threads = threads
        self._services: dict[str, _Service] = {}
        self._flights: dict[K, _Flight] = {}
        self._up = self._suspected = False
        self._alive_at = -math.inf
        self._cloud_wait = (0.0, 0.0)  # seconds, as told at this time

    def service(self, name: str, here_s: float, there_s: float) -> None:
        """A service may send jobs from now on, or has another model: its runs are guessed until some are measured.

        Raises ValueError for a guess that is no time. A job of a service that was never named is a KeyError.
        """
        self._services[name] = _Service(ServiceTimes(here_s), ServiceTimes(there_s))

    def knows(self, service: str) -> bool:
        """Whether `service` was called for this one."""
        return service in self._services

    def times(self, service: str) -> tuple[ServiceTimes, ServiceTimes]:
        """The measured runs of a service here and in the cloud."""
        known = self._services[service]
        return known.here, known.there

    # --- predictions ------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """The link is up as far as is known."""
        return self._up and not self._suspected

    def run_s(self, service: str) -> float:
        """Seconds that a run of this service is predicted to take here."""
        return self._services[service].here.predicted(self.policy.run_factor, self.policy.steady_cv)

    def cloud(self, job: Job, now: float) -> Cloud | None:
        """What the cloud is predicted to take for a job; None while the link is not usable."""
        if not self.usable:
            return None
        ahead = self.uplink.backlog_s(now, job.priority)
        total = ahead + self.uplink.sending_s(job.size) + self._after_sending_s(job, now)
        return Cloud(self.uplink.backlog_s(now), total)

    def _after_sending_s(self, job: Job, now: float) -> float:
        """From the last byte sent to the answer."""
        policy, (wait, told_at) = self.policy, self._cloud_wait
        run = self._services[job.service].there.predicted(policy.cloud_run_factor, policy.steady_cv)
        # A queue that nobody asks about is taken to get shorter, or an hour-old "full" would forbid asking for ever.
        # On a steady link the factor would promise alarms less than it can keep.
        rtt = min(policy.rtt_factor * self.rtt_s, self.rtt_s + _RTT_DEVIATIONS * self._rtt_deviation_s)
        return rtt + max(0.0, wait - (now - told_at)) + run

    # --- decisions --------------------------------------------------------------------------------------------------

    def arrives(self, job: Job, wait_s: float, now: float) -> Decision:
        """A job has come; `wait_s` until a thread would be free for it."""
        return place(self.policy, job, wait_s + self.run_s(job.service), self.cloud(job, now), now)

    def turn(self, job: Job, now: float) -> Decision:
        """A thread is free for a job."""
        return at_turn(self.policy, job, self.run_s(job.service), self.cloud(job, now), now)

    def lost(self, job: Job, wait_s: float, now: float) -> Decision:
        """The answer to an offloaded job is not waited for any more."""
        return after_loss(self.policy, job, wait_s + self.run_s(job.service), now)

    def review(self, waiting: Iterable[tuple[K, Job, float]], now: float) -> list[tuple[K, Decision]]:
        """Jobs that wait, in the order of the queue and each with its wait, that should leave for the cloud after all.

        Ask when a thread or the uplink became free. They count as offloaded already; take them out of the queue.
        """
        leaving: list[tuple[K, Decision]] = []
        saved = 0.0
        for key, job, wait_s in waiting:
            if not self.usable or self.uplink.backlog_s(now) >= self.policy.largest_quota_s(job.priority):
                break  # nor can any of those behind it
            if key in self._flights:
                continue
            decision = self.arrives(job, wait_s - saved, now)
            if decision.place == "offload":
                saved += self.run_s(job.service) / self._threads
                self.offload(key, job)
                leaving.append((key, decision))
        return leaving

    # --- on the way -------------------------------------------------------------------------------------------------

    def offload(self, key: K, job: Job) -> None:
        """A job goes to the cloud: its message waits for the uplink."""
        self.uplink.queue(key, job.priority, job.size)
        self._flights[key] = _Flight(job)

    def begin(self, now: float) -> K | None:
        """The job whose message is to be sent now, if there is one."""
        key = self.uplink.begin(now)
        if key is not None and (flight := self._flights.get(key)) is not None:
            flight.began = now
            flight.due = now + self.policy.overdue_factor * self.uplink.sending_s(flight.job.size) + self.rtt_s
        return key

    def sent(self, key: K, now: float, measured: bool = True) -> None:
        """The message of this job has left the device (see `uplink`)."""
        self.uplink.sent(key, now, measured)
        self._alive(now)
        if (flight := self._flights.get(key)) is not None:
            flight.left = now
            flight.due = now + self.policy.overdue_factor * self._after_sending_s(flight.job, now)

    def answered(self, key: K, now: float, run_s: float, wait_s: float = 0.0) -> None:
        """An answer came. It says what the cloud took to run it, and how long it had waited there."""
        self._alive(now)
        flight = self._flights.pop(key, None)
        if flight is None:  # it was overdue: its times say nothing about the next one
            return
        self.uplink.forget(key)  # an answer may be here before anybody saw the last byte leave
        self._services[flight.job.service].there.add(run_s)
        self._cloud_waits(wait_s, now)
        if flight.left < math.inf:
            self._round_trip(now - flight.left - run_s - wait_s)

    def busy(self, key: K, now: float, retry_after_s: float) -> None:
        """The cloud did not take this job, and asked for a rest of so many seconds: ask `lost` for it."""
        self._alive(now)
        self._give_up([key])
        self._cloud_waits(retry_after_s, now)

    def cancel(self, key: K) -> None:
        """Nobody waits for this job's answer any more, or it could not be sent. A key that is not here is ignored."""
        self._give_up([key])

    def ran_here(self, service: str, seconds: float) -> None:
        """A run on this device ended."""
        self._services[service].here.add(seconds)

    def on_its_way(self, key: K) -> bool:
        """The cloud was asked, and its answer is waited for."""
        return key in self._flights

    # --- the link ---------------------------------------------------------------------------------------------------

    def heartbeat(self, now: float, rtt_s: float) -> None:
        """The cloud answered a heartbeat."""
        self._up = True
        self._alive(now)
        self._round_trip(rtt_s)

    def link_down(self) -> list[K]:
        """The link is known to be down. Gives the jobs that were on their way: ask `lost` for each."""
        self._up = False
        return self._give_up(list(self._flights))

    @property
    def next_check(self) -> float:
        """When to ask `overdue`; infinite: not before something else happens."""
        return min((flight.due for flight in self._flights.values()), default=math.inf)

    def overdue(self, now: float) -> list[K]:
        """Jobs on their way that are not waited for any more: ask `lost` for each."""
        late = [key for key, flight in self._flights.items() if flight.due <= now]
        if any(self._alive_at <= self._flights[key].since for key in late):
            self._suspected = True
            late += [key for key in self.uplink.unsent() if key not in late]
        return self._give_up(late)

    def _give_up(self, keys: list[K]) -> list[K]:
        for key in keys:
            self._flights.pop(key, None)
            self.uplink.forget(key)
        return keys

    def _cloud_waits(self, seconds: float, now: float) -> None:
        if 0.0 <= seconds < math.inf:
            self._cloud_wait = (min(seconds, _LONGEST_WAIT_S), now)

    def _alive(self, now: float) -> None:
        self._alive_at = now
        self._suspected = False

    def _round_trip(self, seconds: float) -> None:
        if 0.0 <= seconds < math.inf:
            off = seconds - self.rtt_s
            self.rtt_s += _RTT_WEIGHT * off
            self._rtt_deviation_s += _RTT_WEIGHT * (abs(off) - self._rtt_deviation_s)
