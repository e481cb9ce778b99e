"""Memory for what devices upload: bounded for all together, and none takes it away from the others."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator


class NoRoom(Exception):
    """An upload of this size finds no memory now."""


class Uploads:
    """Counts the bytes that each tenant has in memory.

    A tenant may have as many as would still be free (dynamic thresholds: Choudhury, Hahne 1998). So one alone gets half
    of all, n at the same time an n+1-th each, and somebody who comes anew always finds some.
    """

    def __init__(self, size: int) -> None:
        """`size`: bytes of all together."""
        self._free = size
        self._held: Counter[str] = Counter()

    @contextlib.contextmanager
    def room(self, tenant: str, size: int) -> Iterator[None]:
        """Memory for `size` bytes until the block ends. Raises NoRoom."""
        if self._held[tenant] + size > self._free - size:
            raise NoRoom(f"{self._held[tenant]} bytes of samples from here are being answered at the moment")
        self._free -= size
        self._held[tenant] += size
        try:
            yield
        finally:
            self._free += size
            self._held[tenant] -= size
            if not self._held[tenant]:
                del self._held[tenant]
