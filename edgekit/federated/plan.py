"""What a federated job is, as its owner writes it and every device checks it: strategy, what stays personal, options.

Combinations that would be wrong are refused here, before anybody trains.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edgekit.federated.averaging import Adaptive, AveragingStrategy, FedAvg, FedAvgM
from edgekit.federated.errors import FederatedError
from edgekit.federated.head_jobs import OneRoundHead
from edgekit.federated.layout import Layout
from edgekit.federated.nova import FedNova, NovaStrategy
from edgekit.federated.privacy import Mechanism, Privacy
from edgekit.federated.robust import Robust
from edgekit.federated.scaffold import Scaffold, ScaffoldStrategy
from edgekit.federated.strategy import Learning
from edgekit.federated.sums import Room


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Raises FederatedError (in a decoder: ValidationError) for what cannot go together."""

    strategy: FedAvg | FedAvgM | Adaptive | Scaffold | FedNova | OneRoundHead
    personal: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...], Meta(max_length=64)] = ()
    """Patterns of names of tensors that stay on the device: FedBN, personal heads."""
    robust: Robust | None = None
    privacy: Privacy | None = None
    max_age: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Asynchronous rounds: sums that an update may be old. 0: all train on the newest model."""

    def __post_init__(self) -> None:
        if isinstance(self.strategy, OneRoundHead):
            if self.personal or self.robust or self.privacy or self.max_age:
                raise FederatedError(
                    "a head of one round is made of exact sums: leave personal, robust, privacy and max_age out"
                )
            return
        if self.privacy and not isinstance(self.strategy, Scaffold) and self.strategy.weighting.most > 1:
            raise FederatedError("private updates all weigh 1: leave weighting out, or privacy")
        if self.max_age and isinstance(self.strategy, Scaffold):
            raise FederatedError("SCAFFOLD cannot use an update to an older model: set max_age to 0 or take FedAvg")

    def build(self, shapes: dict[str, tuple[int, ...]]) -> Learning[Any]:
        """The strategy for a model with these tensors. Raises FederatedError; a head is `JobRules`' matter."""
        if isinstance(self.strategy, OneRoundHead):
            raise FederatedError("a head of one round trains no tensors")
        layout = Layout(shapes, self.personal)
        if isinstance(self.strategy, Scaffold):
            return ScaffoldStrategy(layout, self.strategy)
        if isinstance(self.strategy, FedNova):
            return NovaStrategy(layout, self.strategy)
        return AveragingStrategy(layout, self.strategy)

    def mechanism(self, strategy: Learning[Any], room: Room) -> Mechanism | None:
        """What hides the strategy's vectors, if privacy is asked for. Raises FederatedError if it does not fit."""
        if self.privacy is None:
            return None
        return Mechanism(self.privacy, strategy.numbers.parameters, strategy.numbers.clip, room)
