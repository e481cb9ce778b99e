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
class Timed:
    """`ms`: the median over windows of the median of a window. `noise`: share of all CPUs that others took in them."""

    ms: dict[str, float]
    noise: float


def interleaved(runs: Runs, rounds: int, window_s: float, *, patience: int) -> Timed:
    """Time all in turn, in an order that turns too, until each has `rounds` windows in which others took little.

    If that is not so after `patience` times as many rounds, all windows count: the neighbour is there to stay, and the
    quietest windows would only be those in which he was crowded out.
    """
    found: dict[str, list[tuple[float, float]]] = {key: [] for key in runs}  # (share of others, seconds)
    keys = list(runs)
    others = Others()
    for turn in range(rounds * patience + 1):
        for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:
            time.sleep(_PAUSE_S)
            others.share()
            seconds = _window(runs[key], window_s)
            if turn:  # the first round warms up
                found[key].append((others.share(), seconds))
        if all(sum(share <= QUIET for share, _ in windows) >= rounds for windows in found.values()):
            break
    quiet = {key: [one for one in windows if one[0] <= QUIET] for key, windows in found.items()}
    kept = quiet if all(len(windows) >= rounds for windows in quiet.values()) else found
    return Timed(
        {key: statistics.median(seconds for _, seconds in windows) * 1e3 for key, windows in kept.items()},
        max(statistics.median(share for share, _ in windows) for windows in kept.values()),
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
