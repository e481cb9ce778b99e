"""Timing several ways of doing the same in turn, and leaving out what other processes disturbed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edged.hardware.bench.timing import Others
from edged.hardware.search import QUIET

Runs = Mapping[str, Callable[[int], object]]
_PAUSE_S = 0.03  # threads that still spin for the one before go to sleep


@dataclass(frozen=True)
class Round:
    """One window of each. `seconds`: its median run. `others`: the largest share of all CPUs that others took."""

    seconds: dict[str, float]
    others: float


@dataclass(frozen=True)
class Timed:
    """The rounds that count."""

    rounds: list[Round]

    def ms(self, key: str) -> float:
        """The median over the windows."""
        return statistics.median(one.seconds[key] for one in self.rounds) * 1e3

    def ratio(self, key: str, to: str) -> float:
        """How many times as long `key` takes as `to`: the median over the rounds of the ratio within a round.

        A virtual machine changes its speed by half from second to second. The two windows of a round lie so close
        that they mostly see the same machine; two medians of all windows need not.
        """
        return statistics.median(one.seconds[key] / one.seconds[to] for one in self.rounds)

    @property
    def noise(self) -> float:
        """Share of all CPUs that others took in the middle round."""
        return statistics.median(one.others for one in self.rounds)


def interleaved(runs: Runs, rounds: int, window_s: float, *, patience: int) -> Timed:
    """Time all in turn, in an order that turns too, until there are `rounds` rounds in which others took little.

    If that is not so after `patience` times as many, all rounds count: the neighbour is there to stay, and the quietest
    windows would only be those in which he was crowded out.
    """
    found: list[Round] = []
    keys = list(runs)
    others = Others()
    for turn in range(rounds * patience + 1):
        seconds: dict[str, float] = {}
        most = 0.0
        for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:
            time.sleep(_PAUSE_S)
            others.share()
            seconds[key] = _window(runs[key], window_s)
            most = max(most, others.share())
        if turn:  # the first round warms up
            found.append(Round(seconds, most))
        if sum(one.others <= QUIET for one in found) >= rounds:
            break
    quiet = [one for one in found if one.others <= QUIET]
    return Timed(quiet if len(quiet) >= rounds else found)


def _window(run: Callable[[int], object], seconds: float) -> float:
    times: list[float] = []
    run(0)
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        run(len(times))
        times.append(time.perf_counter() - started)
    return statistics.median(times)
