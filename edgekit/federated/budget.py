"""What a device has spent of its privacy, and when it refuses to go on.

Pure: the caller stores what `charge` returns, durably, *before* the contribution leaves, and refuses the round when it
raises. A contribution that was lost on the way has been paid for all the same.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.federated import accountant
from edgekit.federated.errors import BudgetSpent, FederatedError
from edgekit.federated.privacy import Cost


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The device's own policy, for all rounds that use the same data."""

    epsilon: Annotated[float, Meta(gt=0, le=1e3)]
    delta: Annotated[float, Meta(gt=0, lt=0.1)]


class Account(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was spent: the sum of all contributions' costs. What a device stores."""

    rdp: tuple[float, ...] = (0.0,) * len(accountant.ORDERS)
    slack: float = 0.0
    contributions: Annotated[int, Meta(ge=0)] = 0
    last: Annotated[bytes, Meta(max_length=64)] = b""
    """The contribution that was charged last; the same again (after a restart) is free."""

    def __post_init__(self) -> None:
        """Raises FederatedError for a stored account that cannot be read as one."""
        if len(self.rdp) != len(accountant.ORDERS) or not all(0 <= x < math.inf for x in (*self.rdp, self.slack)):
            raise FederatedError("a privacy account that is damaged or of another version: nothing may be spent on it")

    def epsilon(self, delta: float) -> float:
        """What was spent so far, for this delta; infinity if delta does not even pay for the noise's precision."""
        return accountant.epsilon(self.rdp, delta - self.slack) if delta > self.slack else math.inf

    def charge(self, cost: Cost, budget: Budget, contribution: bytes) -> Account:
        """With one more contribution, whose name is unique (say, session and round). Raises BudgetSpent."""
        if not contribution:
            raise FederatedError("a contribution needs a name to be charged once")
        if contribution == self.last:
            return self
        if len(cost.rdp) != len(self.rdp):
            raise FederatedError("the cost is of another accountant")
        after = Account(
            rdp=tuple(old + new for old, new in zip(self.rdp, cost.rdp, strict=True)),
            slack=self.slack + cost.slack,
            contributions=self.contributions + 1,
            last=contribution,
        )
        reached = after.epsilon(budget.delta)
        if reached > budget.epsilon:
            raise BudgetSpent(
                f"this round would bring epsilon from {self.epsilon(budget.delta):.3g} to {reached:.3g} at a delta of "
                f"{budget.delta:g}; the device allows {budget.epsilon:g} (privacy.epsilon)"
            )
        return after
