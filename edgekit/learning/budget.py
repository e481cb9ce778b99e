"""What training may take from the machine it shares with the line: processor time, memory, heat.

The rules are pure: readings go in, a verdict comes out. Who trains asks before each step and does what is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

_SHORTEST_REST = 0.02
"""Seconds. Shorter rests are saved up: waking up costs more than they give."""
_LONGEST_REST = 10.0
"""Seconds of one rest, so that who trains can be asked to stop in between."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Limits; the defaults are none."""

    cpu_share: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0  # of the time that training may be computing
    max_memory: Annotated[int, Meta(ge=1)] | None = None  # bytes resident in the training process
    min_free_memory: Annotated[int, Meta(ge=0)] = 0  # bytes that must be available on the machine
    max_celsius: Annotated[float, Meta(gt=0.0, le=150.0)] | None = None
    cool_by: Annotated[float, Meta(ge=0.0, le=50.0)] = 5.0  # degrees below max_celsius from which it goes on
    check_seconds: Annotated[float, Meta(gt=0.0, le=60.0)] = 5.0  # between two looks while it waits


@dataclass(frozen=True)
class Reading:
    """One look at the machine; None where it cannot tell, which limits nothing."""

    memory: int | None = None  # bytes resident in this process
    free_memory: int | None = None  # bytes available on the machine
    celsius: float | None = None  # of its hottest sensor


Sensors = Callable[[], Reading]


def unlimited() -> Reading:
    """The sensors of a machine that cannot tell anything."""
    return Reading()


@dataclass(frozen=True)
class Go:
    """The next step may run."""


@dataclass(frozen=True)
class Wait:
    """Rest for so many seconds, then ask again."""

    seconds: float
    reason: str


@dataclass(frozen=True)
class Stop:
    """Save and end; more time would not help."""

    reason: str


Verdict = Go | Wait | Stop


class Governor:
    """Keeps one budget over one training. Holds no clock: it is told how long each step took and each rest lasted."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._owed = 0.0  # seconds of rest
        self._hot = False

    def worked(self, seconds: float) -> None:
        """A step took so long."""
        share = self._budget.cpu_share
        self._owed += max(0.0, seconds) * (1 / share - 1)

    def rested(self, seconds: float) -> None:
        """Nothing was computed for so long, whoever asked for it."""
        self._owed = max(0.0, self._owed - max(0.0, seconds))

    def verdict(self, reading: Reading) -> Verdict:
        """What to do before the next step."""
        budget = self._budget
        if budget.max_memory is not None and reading.memory is not None and reading.memory > budget.max_memory:
            return Stop(f"training holds {_mib(reading.memory)} of memory; {_mib(budget.max_memory)} are allowed")
        if reading.free_memory is not None and reading.free_memory < budget.min_free_memory:
            return Stop(
                f"{_mib(reading.free_memory)} of memory are free; training has to leave {_mib(budget.min_free_memory)}"
            )
        if budget.max_celsius is not None and reading.celsius is not None:
            cool = budget.max_celsius - budget.cool_by
            self._hot = reading.celsius > (cool if self._hot else budget.max_celsius)
            if self._hot:
                return Wait(budget.check_seconds, f"{reading.celsius:.0f} °C; training waits until {cool:.0f} °C")
        if self._owed >= _SHORTEST_REST:
            return Wait(
                min(self._owed, _LONGEST_REST), f"training may take {budget.cpu_share:.0%} of the processor time"
            )
        return Go()


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
