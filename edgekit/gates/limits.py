"""What the acceptance gate for models asks for; see `edgekit.gates.paired`. Needs no numpy."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a new model must keep. Shares, not percentages."""

    items: int = 500  # fewest held-out items
    drop: float = 0.01  # of accuracy, by its upper bound
    class_drop: float = 0.02  # of any class's accuracy, by its lower bound
    offload: float = 0.03  # more to the cloud at the same certified risk
    faster: float = 0.1  # by which the 95th percentile of the run time must be better
    confidence: float = 0.95  # of the upper bound of the drop

    def __post_init__(self) -> None:
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must be over 0 and under 1, not {self.confidence}")
        if self.items < 1:
            raise ValueError(f"items must be at least 1, not {self.items}")
        for name in ("drop", "class_drop", "offload", "faster"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be at least 0 and under 1, not {getattr(self, name)}")


LIMITS = Limits()
"""What is asked of a compressed model."""
