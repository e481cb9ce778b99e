"""How long to wait before the next try."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Exponential backoff with full jitter: uniform in [0, min(cap, base * 2^n)].

    Full jitter spreads a whole plant's devices evenly when cloudd comes back (Brooker, "Exponential Backoff And
    Jitter", 2015). A floor keeps a single device from hammering.
    """

    def __init__(
        self,
        base_s: float,
        cap_s: float,
        floor_s: float = 0.0,
        rng: Callable[[], float] = random.random,
    ) -> None:
        """`rng` gives a number in [0, 1)."""
        self._base, self._cap, self._floor, self._rng = base_s, cap_s, floor_s, rng
        self._failures = 0

    def next_s(self) -> float:
        """Seconds to wait after one more failure."""
        ceiling = min(self._cap, self._base * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return max(self._floor, self._rng() * ceiling)

    def reset(self) -> None:
        """It works again."""
        self._failures = 0
