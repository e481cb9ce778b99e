"""The dispatcher's hands: sends one body after the other, watches the link, and takes back what is not answered.

Pictures leave through the same courier as the gate's (recorded first, with the breaker's leave), and the gate's own
pictures wait for the uplink in the same order, so that an alarm waits for the rest of one message whoever sends it.

A heartbeat a second, at most, while something is away or waits for a thread, and for a while after: it is the sign of
life that `edgekit.dispatch` goes by. It also opens the breaker when cloudd is silent and closes it when it answers
again, because a backoff of half a minute would be as long as the outage. A rest that cloudd asked for is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from edged.collab.collaboration import Collaboration
from edged.collab.courier import RecordError
from edged.collab.uplink import Exchange, UplinkError
from edged.serve.engine import Engine
from edgekit.dispatch.dispatcher import Dispatcher
from edgekit.dispatch.policy import DispatchPolicy
from edgekit.dispatch.uplink import UplinkAccount
from edgekit.messages import Answer, HardSample

log = logging.getLogger("edged.serve")

HEARTBEAT_S = 1.0
LEAST_PAUSE_S = 0.2
HEARTBEAT_TIMEOUT_S = 0.5
ROUND_TRIPS = 5
"""A heartbeat that takes longer than both, so many usual round trips, is taken for none."""
SPARE = 3
"""Connections that are kept warm beside those in use: a handshake takes an alarm two round trips and its deadline."""
CONNECT_TIMEOUT_S = 2.0
"""The same on a fresh connection, with the handshake; and in any case."""
ACTIVE_S = 5.0
"""Heartbeats go on for so long after the last job that waited or was away."""
PRIOR_RTT_S = 0.05
PRIOR_BYTES_PER_S = 1.25e6
"""Believed until something was sent: 10 Mbit/s."""
LEAST_STORE_S = 1.0
"""A sample that is to be kept is waited for so long at least: its deadline cannot be met any more anyway."""
REST_S = 60.0
"""cloudd is not asked about a service for so long after it did not take one of its samples (an unknown model, say)."""
KEPT_VALUE = 1.0
"""Of a sample in the spool that nobody looked at: it may be as hard as any."""
EXTRA_S = 2.0
"""An answer is taken for so long after the deadline: it teaches what the cloud takes, and nobody has to reconnect."""


class Flight:
    """One sample on its way to the cloud."""

    def __init__(self, key: object, task: asyncio.Task[Answer]) -> None:
        self.key, self.task = key, task
        self.lost = asyncio.Event()
        """Its answer is not to be waited for any more."""
        self.has_left = False

    async def outcome(self) -> Answer | None:
        """The answer, or None as soon as it is lost or failed. It may still come, if `alive`."""
        lost = asyncio.create_task(self.lost.wait())
        try:
            await asyncio.wait([self.task, lost], return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
        if not self.task.done() and not self.has_left:
            self.task.cancel()  # the rest of it must not keep the uplink busy
        return self.answer()

    def answer(self) -> Answer | None:
        """The answer, if it is there."""
        return self.task.result() if self.task.done() and _well(self.task) else None

    @property
    def alive(self) -> bool:
        """All of it has left, and no answer came yet."""
        return self.has_left and not self.task.done()

    def forget(self) -> None:
        """Nobody wants its answer. What has left may as well be answered; the rest does not leave."""
        if not self.has_left:
            self.task.cancel()


class Offloader:
    """Belongs to one event loop, one engine and one collaboration. It is the uplink's `Turns`."""

    def __init__(self, engine: Engine, hub: Collaboration, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: that of the engine."""
        self._engine, self._hub, self._clock = engine, hub, clock
        self._uplink = hub.courier.uplink
        self._rules: Dispatcher[Any] | None = None
        self._flights: dict[str, Flight] = {}  # by sample
        self._away: dict[object, Flight] = {}  # by key
        self._turns: dict[object, asyncio.Event] = {}
        self._resting: dict[str, float] = {}  # until when, by service
        self._check: asyncio.TimerHandle | None = None
        self._now = asyncio.Event()  # a heartbeat is wanted at once
        self._active_at = -math.inf
        self._rest_wanted = False  # the last thing that cloudd said is that it wants a rest
        self._warm = False  # the last heartbeat went over a kept connection
        self._warming: asyncio.Task[None] | None = None
        self._uplink.observers.append(self._observe)

    @property
    def policy(self) -> DispatchPolicy | None:
        """The rules that hold now; None: nothing leaves for want of time."""
        return self._rules.policy if self._rules is not None else None

    def set_policy(self, policy: DispatchPolicy | None) -> None:
        """Go by these rules from the next request on. Without any, what is on its way comes back."""
        rules = self._rules
        if policy is not None and rules is not None:
            with self._engine.reviewing():
                rules.policy = policy
        elif policy is not None:
            self._rules = Dispatcher(policy, UplinkAccount(PRIOR_BYTES_PER_S), PRIOR_RTT_S, self._engine.threads)
            self._engine.set_rules(self._rules)
            self._uplink.turns = self
            self.link_changed()
        elif rules is not None:
            self._down()
            self._rules = self._uplink.turns = None
            self._engine.set_rules(None)
            for turn in self._turns.values():
                turn.set()

    async def close(self) -> None:
        """Call everything back that is on its way, and wait until the books are kept."""
        self.set_policy(None)
        if self._warming is not None:
            self._warming.cancel()
        flights = [flight.task for flight in self._away.values()]
        for task in flights:
            task.cancel()
        if flights:
            await asyncio.wait(flights)

    # --- samples ------------------------------------------------------------------------------------------------------

    def takes(self, service: str) -> bool:
        """Whether cloudd can be expected to answer for this service."""
        return self._resting.get(service, -math.inf) <= self._clock()

    async def keep(self, header: HardSample, picture: bytes, deadline: float) -> str:
        """Store a sample for later, by its deadline; "" once it is durable, else why it is not."""
        storing = self._hub.store(header, picture, KEPT_VALUE)
        done, _ = await asyncio.wait([storing], timeout=max(LEAST_STORE_S, deadline - self._clock()))
        return storing.result() if done else "the disk is too slow"

    def send(self, key: object, header: HardSample, picture: bytes, deadline: float) -> Flight:
        """Ask the cloud about a sample that the rules have offloaded under this key."""
        flight = Flight(key, asyncio.create_task(self._deliver(key, header, picture, deadline)))
        flight.task.add_done_callback(_well)  # whoever waits for it may have gone
        self._flights[header.sample_id] = self._away[key] = flight
        self._active_at = self._clock()
        self._pump()
        return flight

    async def _deliver(self, key: object, header: HardSample, picture: bytes, deadline: float) -> Answer:
        rules, hub = self._rules, self._hub
        try:
            ticket = hub.breaker.admit()
            if ticket is None or rules is None:
                self._down()
                raise UplinkError("down", hub.why_closed())
            patience = max(0.0, deadline - self._clock()) + EXTRA_S
            with hub.drain.live():
                answer = await hub.courier.deliver(header, picture, patience, ticket, slow_s=math.inf)
            with self._engine.reviewing():
                rules.answered(key, self._clock(), answer.compute_ms / 1e3, answer.waited_ms / 1e3)
            return answer
        except UplinkError as error:
            if error.kind == "busy" and rules is not None:
                with self._engine.reviewing():
                    rules.busy(key, self._clock(), error.retry_after_s)
            elif error.kind == "rejected" and error.status == 404:
                hub.rejected(header, error)
            if error.kind == "rejected" and error.status != 422:  # else it is the picture's fault: the edge will see
                self._resting[header.service] = self._clock() + REST_S
            raise
        finally:
            if self._flights.get(header.sample_id) is self._away.get(key):
                self._flights.pop(header.sample_id, None)
            self._away.pop(key, None)
            self._turns.pop(key, None)
            if rules is not None:
                with self._engine.reviewing():
                    rules.cancel(key)
            self._pump()

    def _lose(self, keys: Iterable[object]) -> None:
        """These are not waited for any more; what waits for the uplink without being a flight fails."""
        for key in keys:
            flight = self._away.get(key)
            if flight is not None:
                flight.lost.set()
            elif (turn := self._turns.pop(key, None)) is not None:
                turn.set()

    # --- the uplink -------------------------------------------------------------------------------------------------

    async def begin(self, header: HardSample, size: int) -> object:
        """See Turns."""
        flight = self._flights.get(header.sample_id)
        key = flight.key if flight is not None else object()
        rules = self._rules
        if rules is None:
            return key
        turn = self._turns.setdefault(key, asyncio.Event())
        if flight is None:
            with self._engine.reviewing():
                rules.uplink.queue(key, header.priority, size)
            self._pump()
        try:
            await turn.wait()
        except BaseException:
            self.end(key)
            raise
        if self._rules is not None and key not in self._turns:
            raise UplinkError("down", "the link to cloudd gives no sign of life")
        return key

    def sent(self, key: object, fresh: bool) -> None:
        """See Turns."""
        flight = self._away.get(key)
        if flight is not None:
            flight.has_left = True
        if self._rules is not None:
            with self._engine.reviewing():
                self._rules.sent(key, self._clock(), measured=not fresh)
            self._pump()

    def end(self, key: object) -> None:
        """See Turns."""
        self._turns.pop(key, None)
        if self._rules is not None and key not in self._away:
            with self._engine.reviewing():
                self._rules.uplink.forget(key)
            self._pump()

    def _pump(self) -> None:
        """Let the next body go if none is going, and see to it that overdue answers are noticed."""
        rules = self._rules
        if rules is None:
            return
        with self._engine.reviewing():
            key = rules.begin(self._clock())
            due = rules.next_check
        if key is not None:
            self._turns.setdefault(key, asyncio.Event()).set()
        if self._check is not None:
            self._check.cancel()
            self._check = None
        if due < math.inf:
            self._check = asyncio.get_running_loop().call_later(max(0.0, due - self._clock()), self._overdue)

    def _overdue(self) -> None:
        rules = self._rules
        self._check = None
        if rules is None:
            return
        with self._engine.reviewing():
            keys = rules.overdue(self._clock())
            suspected = not rules.usable
        self._lose(keys)
        if suspected:
            self._now.set()  # a sign of life is what is missing
        self._pump()

    # --- the link -----------------------------------------------------------------------------------------------------

    def link_changed(self) -> None:
        """There is another link, or the supervisor thinks otherwise of it: see for ourselves."""
        self._active_at = self._clock()
        self._now.set()

    async def run(self) -> None:
        """Heartbeats, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._now.wait()
            self._now.clear()
            began = self._clock()
            if self._away or self._engine.crowded:
                self._active_at = began
            if self._rules is None or began - self._active_at > ACTIVE_S:
                continue
            try:
                await self._beat(self._rules)
            except Exception:  # a fault of ours must not leave the line without signs of life for good
                log.exception("a heartbeat failed in a way it should not")
            # No storm of them if suspicion follows suspicion.
            await asyncio.sleep(max(0.0, began + LEAST_PAUSE_S - self._clock()))

    async def _beat(self, rules: Dispatcher[Any]) -> None:
        try:
            rtt = await self._round_trip(min(CONNECT_TIMEOUT_S, max(HEARTBEAT_TIMEOUT_S, ROUND_TRIPS * rules.rtt_s)))
        except UplinkError as error:
            if self._rules is rules:
                self._down()
            if error.kind in ("down", "timeout"):
                self._hub.breaker.link_down()
                self._uplink.renew()
                self._warm = False
            return
        self._revive()
        if self._hub.breaker.state != "closed" or self._rules is not rules:
            return
        with self._engine.reviewing():
            rules.heartbeat(self._clock(), rtt)
        self._pump()
        if self._warming is None or self._warming.done():
            self._warming = asyncio.create_task(self._keep_warm())

    async def _round_trip(self, timeout_s: float) -> float:
        """Seconds of an empty request, without the handshake of a fresh connection. Raises UplinkError."""
        for last_try in (False, True):
            started = self._clock()
            self._warm = await self._uplink.check(timeout_s if self._warm else CONNECT_TIMEOUT_S)
            if self._warm or last_try:
                break
        return self._clock() - started

    async def _keep_warm(self) -> None:
        """Use spare connections, or open them."""
        checks = (self._uplink.check(CONNECT_TIMEOUT_S) for _ in range(SPARE))
        await asyncio.gather(*checks, return_exceptions=True)

    def _revive(self) -> None:
        """cloudd answers: that is the probe the breaker waits for, unless cloudd wants to be left alone."""
        breaker = self._hub.breaker
        if breaker.state == "closed" or (self._rest_wanted and breaker.retry_in > 0):
            return
        if breaker.state == "half-open":
            breaker.link_down()  # a probe that was sent while the link was down may hang for long: it is called off
        breaker.link_up()
        ticket = breaker.probe()
        if ticket is not None:
            breaker.success(ticket)

    def _down(self) -> None:
        if self._rules is not None:
            with self._engine.reviewing():
                keys = self._rules.link_down()
            self._lose(keys)
            self._pump()

    def _observe(self, exchange: Exchange) -> None:
        if not exchange.small:
            self._rest_wanted = exchange.outcome == "busy"


def _well(task: asyncio.Task[Answer]) -> bool:
    """Whether the task has a result; what it raised is taken note of, or must be raised here if nobody foresaw it."""
    if task.cancelled():
        return False
    error = task.exception()
    if error is not None and not isinstance(error, UplinkError | RecordError):
        raise error
    return error is None
