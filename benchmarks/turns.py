"""Timing several ways of doing the same in turn, and leaving out what other processes disturbed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from edged.hardware.bench.timing import Others
from edged.hardware.search import QUIET

T = TypeVar("T")
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


def until_quiet(one_round: Callable[[int], tuple[T, float]], wanted: int, patience: int) -> tuple[list[T], float]:
    """Rounds that each say the largest share of all CPUs that others took: those that count, and their median share.

    As `interleaved`: the quiet ones if `wanted` of at most `patience` times as many are, else all. `one_round` gets the
    number of the round.
    """
    found: list[tuple[T, float]] = []
    for turn in range(wanted * patience):
        found.append(one_round(turn))
        quiet = [one for one in found if one[1] <= QUIET]
        if len(quiet) == wanted:
            found = quiet
            break
    return [one for one, _ in found], statistics.median(share for _, share in found)


def caution(shares: Sequence[float]) -> str:
    """A sentence to show beside figures of cases during which others took these shares; "" if all were quiet."""
    disturbed = sum(share > QUIET for share in shares)
    if not disturbed:
        return ""
    return (
        f"\nOther processes took more than {QUIET:.0%} of the CPUs in {disturbed} of {len(shares)} cases (up to "
        f"{max(shares):.0%}): measure again on a quiet machine."
    )


def _window(run: Callable[[int], object], seconds: float) -> float:
    times: list[float] = []
    run(0)
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        run(len(times))
        times.append(time.perf_counter() - started)
    return statistics.median(times)
