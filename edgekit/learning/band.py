"""Has a figure been too high for long enough? With hysteresis, so that one that trembles at the limit decides once."""

from __future__ import annotations

import msgspec


class BandState(msgspec.Struct, frozen=True):
    """`since`: when the figure left the band; None: it is inside. `seen`: the last look."""

    since: float | None = None
    seen: float | None = None


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """A figure leaves the band above `leave`, is back below `back`, and is out when it stayed away for `seconds`.

    Two looks more than `gap` seconds apart say nothing about the time in between: the waiting begins anew.
    """

    leave: float
    back: float
    seconds: float
    gap: float = 900.0

    def __post_init__(self) -> None:
        """Raises ValueError for limits in the wrong order."""
        if not (0.0 < self.back <= self.leave and self.seconds >= 0.0 and self.gap > 0.0):
            raise ValueError(f"a band needs 0 < back <= leave, not back={self.back} and leave={self.leave}")

    def look(self, state: BandState, value: float | None, now: float) -> tuple[BandState, bool]:
        """The state after a look at `now`, and whether the figure is out. No value is no look."""
        if value is None:
            return state, False
        known = state.seen is not None and 0.0 <= now - state.seen <= self.gap
        since = state.since if known else None
        if value < self.back:
            since = None
        elif since is None and value > self.leave:
            since = now
        return BandState(since, now), since is not None and now - since >= self.seconds
