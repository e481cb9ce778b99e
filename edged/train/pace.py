"""Giving way while a job goes on: the budget, a pause when it is asked for, progress for people, seconds of work.

A job calls `turn` after each piece of work. There it rests as long as the budget says, and leaves by `Halted` where it
is to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from edgekit.learning.budget import Budget, Governor, Sensors, Stop, Wait
from edgekit.messages.learning import TrainProgress

Step = Literal["reading", "features", "sending", "training", "judging", "sealing"]
T = TypeVar("T")

_EVERY_S = 0.25
"""Between two messages of progress of one step."""
_NAP_S = 0.5
"""Longest sleep without a look whether a pause is asked for."""


class Halted(Exception):
    """The job is to end here. `asked`: somebody asked for it; else the budget is exceeded, and the reason says how."""

    def __init__(self, reason: str, asked: bool) -> None:
        super().__init__(reason)
        self.asked = asked


class Pace:
    """`clock` gives seconds that never go back, `sleep` lets them pass, `say` hears the progress."""

    def __init__(
        self,
        budget: Budget,
        sensors: Sensors,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        say: Callable[[TrainProgress], None],
    ) -> None:
        self._governor = Governor(budget)
        self._sensors, self._clock, self._sleep, self._say = sensors, clock, sleep, say
        self._asked = ""
        self._on_pause: Callable[[str], None] | None = None
        self._worked = 0.0
        self._since = clock()
        self._told: tuple[Step | None, float] = (None, 0.0)

    @property
    def seconds(self) -> float:
        """Of work so far, without rests."""
        return self._worked + self._clock() - self._since

    @property
    def asked(self) -> str:
        """Why the job is to pause, "" if it is not. A clause."""
        return self._asked

    def pause(self, reason: str) -> None:
        """The job is to save and end soon. For a signal handler, too."""
        self._asked = reason
        if self._on_pause is not None:
            self._on_pause(reason)

    def hand_over(self, on_pause: Callable[[str], None] | None) -> None:
        """Whoever trains now keeps the budget by itself and wants to hear of a pause; None: nobody any more."""
        now = self._clock()
        self._worked += now - self._since
        self._since = now
        self._on_pause = on_pause
        if on_pause is not None and self._asked:
            on_pause(self._asked)

    def worked_before(self, seconds: float) -> None:
        """So much work was done by earlier runs of this job."""
        self._worked += seconds

    def turn(self, step: Step, done: int, total: int, text: str = "") -> None:
        """A piece of work is done. Raises Halted."""
        now = self._clock()
        self._governor.worked(now - self._since)
        self._worked += now - self._since
        self._since = now
        self.tell(step, done, total, text)
        while True:
            if self._asked:
                raise Halted(self._asked, True)
            verdict = self._governor.verdict(self._sensors())
            if isinstance(verdict, Stop):
                raise Halted(verdict.reason, False)
            if not isinstance(verdict, Wait):
                return
            self.tell(step, done, total, f"rests: {verdict.reason}" if verdict.seconds > 1 else text)
            self.rest(verdict.seconds)

    def rest(self, seconds: float) -> None:
        """Compute nothing for so long, or until a pause is asked for."""
        started = self._clock()
        self._worked += started - self._since
        while not self._asked and (left := seconds - (self._clock() - started)) > 0:
            self._sleep(min(left, _NAP_S))
        self._since = self._clock()
        self._governor.rested(self._since - started)

    def tell(self, step: Step, done: int, total: int, text: str = "") -> None:
        """Say how far it is, unless that was said a moment ago."""
        now = self._clock()
        last, at = self._told
        if step == last and done != total and now - at < _EVERY_S:
            return
        self._told = (step, now)
        self._say(TrainProgress(step=step, done=done, total=total, text=text))

    def through(self, step: Step, items: Iterator[T], total: int) -> Iterator[T]:
        """The same items, with a turn after each of them. Raises Halted."""
        for done, item in enumerate(items, 1):
            yield item
            self.turn(step, done, total)


@dataclass(frozen=True)
class Workplace:
    """Where and with what a job works."""

    folder: Path  # of its own: what it keeps to go on from, and its scratch files
    threads: int
    pace: Pace
    clock: Callable[[], float]  # seconds that never go back
    sensors: Sensors
