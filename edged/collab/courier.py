"""The one path by which a picture leaves the device: recorded first, then sent, and the breaker learns how it went."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from edged.collab.breaker import Breaker
from edged.collab.commits import CommitError
from edged.collab.ledger import Ledger, Outcome
from edged.collab.uplink import Uplink, UplinkError
from edgekit.messages import Answer, HardSample

SLOW_S = 5.0
"""An answer to a sample nobody waits for is slow after this; three in a row say that live samples need not try."""
REFUSED_REST_S = 60.0
"""A cloudd that refuses this device needs a person, so asking more often than once a minute helps nobody."""


class RecordError(RuntimeError):
    """The record of what leaves could not be written (in time), so nothing left."""


class Courier:
    """Uplink, ledger and breaker together."""

    def __init__(self, uplink: Uplink, ledger: Ledger, breaker: Breaker, clock: Callable[[], float]) -> None:
        """`clock` gives monotonic seconds."""
        self.uplink = uplink
        self.breaker = breaker
        self._ledger = ledger
        self._clock = clock

    async def deliver(
        self, header: HardSample, picture: bytes, timeout_s: float, ticket: int, slow_s: float = SLOW_S
    ) -> Answer:
        """Send one sample; `ticket` is the breaker's permission. Raises UplinkError or RecordError."""
        end = self._clock() + timeout_s
        with self._failures_of(ticket):
            number = await self._record(header, picture, self.uplink.authority(), timeout_s)
            started = self._clock()
            try:
                answer = await self.uplink.ask(header, picture, end - started)
            except UplinkError as error:
                self._ledger.outcome(number, _outcome(error))
                raise
            except BaseException:  # called off in the middle: it may have left
                self._ledger.outcome(number, "unanswered")
                raise
        self._ledger.outcome(number, "answered", answer.verdict.label)
        self.breaker.success(ticket, slow=self._clock() - started > slow_s)
        return answer

    async def check(self, timeout_s: float, ticket: int) -> None:
        """Probe cloudd without a picture. Raises UplinkError."""
        with self._failures_of(ticket):
            await self.uplink.check(timeout_s)
        self.breaker.success(ticket)

    async def _record(self, header: HardSample, picture: bytes, authority: str, timeout_s: float) -> int:
        """A disk that stalls must not hold the sample beyond its time; a record that comes too late says "unsent"."""
        task = asyncio.create_task(self._ledger.record(header, picture, authority))
        try:
            async with asyncio.timeout(timeout_s):  # wait_for would lose a cancellation that comes with the result
                return await asyncio.shield(task)
        except CommitError as error:
            raise RecordError(f"the record of what leaves cannot be written ({error})") from error
        except TimeoutError:
            task.add_done_callback(self._unsent)
            raise RecordError("the disk was too slow to record that the sample leaves") from None
        except asyncio.CancelledError:
            task.add_done_callback(self._unsent)
            raise

    def _unsent(self, task: asyncio.Task[int]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._ledger.outcome(task.result(), "unsent")

    @contextlib.contextmanager
    def _failures_of(self, ticket: int) -> Iterator[None]:
        """Whatever is raised inside, the breaker hears of it."""
        try:
            yield
        except UplinkError as error:
            self._blame(ticket, error)
            raise
        except BaseException:
            self.breaker.abandon(ticket)
            raise

    def _blame(self, ticket: int, error: UplinkError) -> None:
        """Tell the breaker what the error means for the next request."""
        match error.kind:
            case "rejected":
                self.breaker.success(ticket)  # the link works
            case "busy":
                self.breaker.pause(ticket, error.retry_after_s)
            case "refused":
                self.breaker.failure(ticket, least_backoff=REFUSED_REST_S)
            case "down" | "timeout":
                self.breaker.failure(ticket)


def _outcome(error: UplinkError) -> Outcome:
    if not error.sent:
        return "unsent"
    return "rejected" if error.kind in ("rejected", "refused", "busy") else "unanswered"
