"""Times of one half at every cut, in a bounded time: a few cuts are measured, the rest follow from the work share.

The head is timed on the device and the tail on the host, each with this module. Between two measured cuts time grows
in proportion to the work between them; the cuts that a planner may choose come first (`cuts.candidates`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np

from edgekit.splitting.cuts import Cut, candidates

MIN_RUNS = 3
MAX_RUNS = 15

Side = Literal["head", "tail"]


class HalfTime(msgspec.Struct, frozen=True, kw_only=True):
    """How long one half of one cut takes."""

    index: int  # the cut's
    ms: float
    measured: bool  # False: interpolated by work share


def time_runs(run: Callable[[], object], clock: Callable[[], float], until: float) -> float:
    """Median milliseconds of `run`, after one run that does not count.

    Up to MAX_RUNS are made as long as the clock (seconds) stands before `until`, and MIN_RUNS in any case.
    """
    run()
    times: list[float] = []
    while len(times) < MIN_RUNS or (len(times) < MAX_RUNS and clock() < until):
        start = clock()
        run()
        times.append(clock() - start)
    return float(np.median(times)) * 1e3


def profile_halves(
    cuts: Sequence[Cut],
    side: Side,
    whole_ms: float,
    open_half: Callable[[Cut], Callable[[], object]],
    clock: Callable[[], float],
    budget_s: float,
) -> list[HalfTime]:
    """The time of the head or the tail of every cut, in the order of `cuts`.

    `whole_ms` is the time of the whole model on this machine. `open_half` opens the half of a cut and returns what
    runs it once. Among the candidates the next to be measured is always that with the largest share of work to its
    nearest measured neighbours, so that a budget that ends early still leaves an even picture; the budget (seconds of
    `clock`) is exceeded by no more than one half's opening and MIN_RUNS + 1 runs. What `open_half` raises passes.
    """
    end = clock() + budget_s
    share = {cut.index: cut.work if side == "head" else 1 - cut.work for cut in cuts}
    known = {0.0: 0.0, 1.0: whole_ms}
    measured: dict[int, float] = {}
    waiting = candidates(cuts)
    while waiting and clock() < end:
        cut = max(waiting, key=lambda one: min(abs(share[one.index] - other) for other in known))
        waiting.remove(cut)
        until = clock() + (end - clock()) / (len(waiting) + 1)
        measured[cut.index] = known[share[cut.index]] = time_runs(open_half(cut), clock, until)
    shares = sorted(known)
    times = [known[one] for one in shares]
    return [
        HalfTime(
            index=cut.index,
            ms=measured.get(cut.index, float(np.interp(share[cut.index], shares, times))),
            measured=cut.index in measured,
        )
        for cut in cuts
    ]
