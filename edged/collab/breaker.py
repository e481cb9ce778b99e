"""The circuit breaker: stops asking a cloudd that does not answer in time, and finds out politely when it does again.

Pure: clock and randomness are passed in. Not thread-safe; it lives in one event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class BreakerSettings:
    """When to open and how long to stay open. Times are seconds."""

    strikes: int = 3  # consecutive failures, timeouts or slow answers that open it
    first_backoff: float = 1.0
    longest_backoff: float = 30.0
    shortest_backoff: float = 0.1  # full jitter alone could retry at once for ever


class Breaker:
    """closed -> (strikes) -> open -> (backoff over) -> half-open, one probe -> closed or open again.

    Live samples ask only while it is closed, so that nobody on the line pays for finding out; probes are made with
    samples for which nobody waits. Every permission is a ticket, and a result counts only for the phase its ticket is
    of: a late failure of an old request cannot spoil a probe.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        rng: Callable[[], float],
        settings: BreakerSettings | None = None,
        on_change: Callable[[State], None] = lambda state: None,
    ) -> None:
        """`clock` gives monotonic seconds, `rng` a number in [0, 1). It starts open until a link is known to exist."""
        self._clock = clock
        self._rng = rng
        self._settings = settings or BreakerSettings()
        self._on_change = on_change
        self._state: State = "open"
        self._phase = 0
        self._strikes = 0
        self._failed_probes = 0
        self._retry_at = clock()

    @property
    def state(self) -> State:
        return self._state

    @property
    def retry_in(self) -> float:
        """Seconds until a probe is allowed; 0 if it is allowed now or the breaker is not open."""
        return max(0.0, self._retry_at - self._clock()) if self._state == "open" else 0.0

    def admit(self) -> int | None:
        """A ticket for an ordinary request, None while the breaker is not closed."""
        return self._phase if self._state == "closed" else None

    def probe(self) -> int | None:
        """A ticket for the one probe that follows a backoff, None if it is too early or a probe is already out."""
        if self._state != "open" or self.retry_in > 0:
            return None
        self._move("half-open")
        return self._phase

    def success(self, ticket: int, slow: bool = False) -> None:
        """The request was answered. `slow`: too late to be of use to the line, which is a strike like a failure."""
        if slow:
            self.failure(ticket)
        elif ticket == self._phase:
            self._close()

    def failure(self, ticket: int, least_backoff: float = 0.0) -> None:
        """No answer, or one too late. `least_backoff`: seconds to stay open at least, for errors that need a person."""
        if ticket != self._phase:
            return
        self._strikes += 1
        if self._state == "half-open" or self._strikes >= self._settings.strikes or least_backoff > 0:
            self._open(least_backoff)

    def pause(self, ticket: int, seconds: float) -> None:
        """cloudd asked for `seconds` of rest (`Retry-After`); open at once and wait at least that long."""
        if ticket == self._phase:
            self._open(seconds)

    def abandon(self, ticket: int) -> None:
        """The request was called off before it could tell anything; a probe may be made again at once."""
        if ticket == self._phase and self._state == "half-open":
            self._retry_at = self._clock()
            self._move("open")

    def link_down(self) -> None:
        """The control channel lost cloudd: open at once. A probe follows the backoff, as a hint can be wrong."""
        if self._state != "open":
            self._open(0.0)

    def link_up(self) -> None:
        """The control channel has cloudd again: probe now instead of at the end of the backoff."""
        self._failed_probes = 0
        if self._state == "open":
            self._retry_at = self._clock()
            self._on_change(self._state)

    def _open(self, least: float) -> None:
        settings = self._settings
        ceiling = min(settings.longest_backoff, settings.first_backoff * 2.0 ** min(self._failed_probes, 32))
        self._failed_probes += 1
        # Full jitter (Brooker 2015): a fleet that lost its cloudd together must not come back together.
        self._retry_at = self._clock() + max(settings.shortest_backoff, self._rng() * ceiling, least)
        self._move("open")

    def _close(self) -> None:
        self._strikes = 0
        self._failed_probes = 0
        if self._state != "closed":
            self._move("closed")

    def _move(self, state: State) -> None:
        self._state = state
        self._strikes = 0
        self._phase += 1
        self._on_change(state)
