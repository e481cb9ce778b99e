"""SCAFFOLD: devices whose data differ pull in different directions; each takes out what it knows of its own pull.

Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1 with option II. Locally every gradient gets + c - c_i; after K
steps of the rate eta, with the update d:

    c_i' = c_i - c - d / (K eta)
    x += eta_g mean(d),   c += S / N mean(c_i' - c_i)     S survivors of N devices

Both means are one vector [d, gamma (c_i' - c_i)], so one masked sum. gamma brings the second half to the size of the
first: K eta of a usual device is right. Means are unweighted. What is clipped off the second half is not added to the
device's own c_i either, so that c stays the mean of all c_i.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from edgekit.federated.errors import FederatedError
from edgekit.federated.layout import Layout, Vector, finite
from edgekit.federated.strategy import Contribution, LocalResult, LocalTerm, Positive, State, checked
from edgekit.federated.sums import Aggregate, RoundNumbers, clipped, value_numbers


class Scaffold(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="strategy", tag="scaffold"
):
    """Settings; see the module's docstring."""

    clip: Positive
    """Norm to which each half is clipped."""
    limit: Positive | None = None
    """Largest magnitude of one value; None: the clip."""
    devices: Annotated[int, Meta(ge=1, le=1 << 24)]
    """N: all that may take part, in this round or another."""
    control_scale: Positive
    """gamma."""
    learning_rate: Positive = 1.0
    """eta_g."""


class ScaffoldStrategy:
    """A device's memory is its c_i, (p,); None stands for zeros."""

    slots = ("control",)

    def __init__(self, layout: Layout, settings: Scaffold) -> None:
        self.layout, self.settings = layout, settings

    def start(self, model: Vector) -> State:
        """The state before the first round."""
        return State(finite(model, self.layout.size), {"control": np.zeros(self.layout.size, np.float32)})

    @property
    def numbers(self) -> RoundNumbers:
        """See Strategy."""
        clip = self.settings.clip
        return value_numbers(2 * self.layout.size, clip * math.sqrt(2), self.settings.limit or clip, 1)

    def term(self, state: State, memory: Vector | None = None) -> LocalTerm:
        """What the local training adds to its gradient: c - c_i."""
        checked(state, self.layout, self.slots)
        return LocalTerm(state.model, 0.0, state.slots["control"] - self._own(memory))

    def contribution(self, state: State, result: LocalResult, memory: Vector | None) -> Contribution[Vector]:
        """See Strategy."""
        checked(state, self.layout, self.slots)
        delta, own = finite(result.delta, self.layout.size), self._own(memory)
        if result.age:
            raise FederatedError("SCAFFOLD cannot use an update to an older model; use FedAvg in asynchronous rounds")
        if result.steps < 1 or not 0 < result.learning_rate < math.inf:
            raise FederatedError("SCAFFOLD needs the number of local steps and their learning rate")
        scale = np.float32(self.settings.control_scale)
        change = -state.slots["control"] - delta * np.float32(1 / (result.steps * result.learning_rate))
        scaled = clipped(change * scale, self.settings.clip)
        vector = np.concatenate([clipped(delta, self.settings.clip), scaled])
        return Contribution(vector, 1, own + scaled * np.float32(1 / self.settings.control_scale))

    def apply(self, state: State, aggregate: Aggregate) -> State:
        """See Strategy."""
        checked(state, self.layout, self.slots)
        mean = finite(aggregate.mean, 2 * self.layout.size)
        delta, change = mean[: self.layout.size], mean[self.layout.size :]
        share = aggregate.survivors / (self.settings.devices * self.settings.control_scale)
        if aggregate.survivors > self.settings.devices:
            raise FederatedError(f"{aggregate.survivors} survivors of {self.settings.devices} devices")
        control = state.slots["control"] + np.float32(share) * change
        model = state.model + np.float32(self.settings.learning_rate) * delta
        return State(model, {"control": control}, state.version + 1)

    def _own(self, memory: Vector | None) -> Vector:
        return np.zeros(self.layout.size, np.float32) if memory is None else finite(memory, self.layout.size)
