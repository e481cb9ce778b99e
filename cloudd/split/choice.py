"""Which cuts of a model are worth a file each: the few that leave a planner least to wish for, whatever the link."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.splitting.cuts import Cut, candidates

_FASTER = 8.0
"""How many times as fast as the edge the host is taken to be (research/algorithms.md 2 looks at 5 and 20)."""
_LINKS = np.logspace(-2, 1.5, 36)
"""What the raw picture takes on the link, in times of the whole model at the edge: from 1 Gbit/s beside a slow edge to
1 Mbit/s, for the networks of research/algorithms.md 2."""
_WORTH = 1.01
"""A cut that is nowhere so much better than the rest is not worth a file."""


def choose(cuts: Sequence[Cut], count: int, whole: bool, picture: int) -> list[Cut]:
    """At most `count` of the `candidates` among `cuts`, from the earliest to the latest.

    A cut costs the head's work at the edge, the tail's on a host _FASTER times as fast, and its bytes on a link. One
    after the other, the cut goes without which the best of the rest falls least behind the best of all, on the link
    where that shows most. With `whole` the device may also run the whole model, so a cut must beat that. `picture`:
    values of the model's input.
    """
    left = candidates(cuts)
    if not left:
        return []
    costs = _costs(left, whole, picture)
    best = costs.min(axis=0)
    kept = list(range(len(left)))
    always = [len(left)] if whole else []
    while len(kept) > 1:
        behind = {
            one: float((costs[[other for other in kept if other != one] + always].min(axis=0) / best).max())
            for one in kept
        }
        least = min(kept, key=lambda one: (behind[one], one))
        if len(kept) <= count and behind[least] >= _WORTH:
            break
        kept.remove(least)
    return [left[one] for one in kept]


def _costs(cuts: Sequence[Cut], whole: bool, picture: int) -> NDArray[np.float64]:
    """One row a cut, and one more for the whole model if it may run at the edge; one column a link."""
    work = np.array([cut.work for cut in cuts])
    sizes = np.array([cut.wire_bytes for cut in cuts], np.float64)
    costs = (work + (1 - work) / _FASTER)[:, np.newaxis] + np.outer(sizes / picture, _LINKS)
    return np.vstack((costs, np.ones_like(_LINKS))) if whole else costs
