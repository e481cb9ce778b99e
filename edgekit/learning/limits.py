"""What the judgement on a candidate asks for. Needs no numpy, so that a supervisor can read and send it."""

from __future__ import annotations

import msgspec

from edgekit.gates.limits import Limits


class JudgingLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate must keep and reach. Shares, not percentages; see `edgekit.learning.judging`."""

    old: Limits = Limits(drop=0.01, class_drop=0.01)
    earlier: int = 100  # held-out items that were labelled before the batch
    new_recall: float = 0.8
    new_recall_floor: float = 0.5  # with 90 % confidence
    slower: float = 0.1  # by which the 95th percentile of its run time may be longer
    larger: float = 0.1  # and its files together

    def __post_init__(self) -> None:
        """Raises ValueError for a share that cannot be."""
        if not 0.0 <= self.new_recall_floor <= self.new_recall <= 1.0 or min(self.slower, self.larger) < 0.0:
            raise ValueError("the limits of a judgement are shares, and the floor of a recall is not above it")
