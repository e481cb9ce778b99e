"""FedNova: devices that make more local steps must not pull the model towards their own optimum.

Wang et al. 2020, arXiv 2007.07481. With a_i the effective number of steps of a device, d_i its update and p_i its
share of the weights:

    x += eta (sum p_i a_i) (sum p_i d_i / a_i)

a_i of SGD: the steps; with momentum r: (steps - r (1 - r^steps) / (1 - r)) / (1 - r); with a proximal term mu at the
rate eta_l: (1 - (1 - eta_l mu)^steps) / (eta_l mu). The vector is [d_i / a_i, a_i as one value], so one masked sum.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from msgspec import Meta

from edgekit.federated.averaging import Averaging
from edgekit.federated.buffer import discount
from edgekit.federated.errors import FederatedError
from edgekit.federated.layout import Layout, Vector, finite
from edgekit.federated.strategy import Contribution, LocalResult, LocalTerm, Share, State, checked
from edgekit.federated.sums import Aggregate, RoundNumbers, clipped, value_numbers


class FedNova(Averaging, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="strategy", tag="fednova"):
    """Settings. `clip` is that of the whole update, as in FedAvg."""

    most_steps: Annotated[int, Meta(ge=1, le=1 << 20)]
    """A device that made more is refused."""
    momentum: Share = 0.0
    """Of the local optimiser."""


def effective_steps(steps: int, learning_rate: float, momentum: float, proximal: float) -> float:
    """a_i. Raises FederatedError for momentum and a proximal term at once: the paper has no closed form for both."""
    if momentum and proximal:
        raise FederatedError("FedNova knows no closed form for momentum with a proximal term; use one of them")
    if momentum:
        return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    shrink = learning_rate * proximal
    if not 0 <= shrink < 1:
        raise FederatedError(f"a learning rate of {learning_rate:g} diverges with a proximal term of {proximal:g}")
    return (1 - (1 - shrink) ** steps) / shrink if shrink else float(steps)


class NovaStrategy:
    """Devices keep no memory."""

    def __init__(self, layout: Layout, settings: FedNova) -> None:
        self.layout, self.settings = layout, settings
        self._most = settings.most_steps / (1 - settings.momentum)

    def start(self, model: Vector) -> State:
        """The state before the first round."""
        return State(finite(model, self.layout.size))

    @property
    def numbers(self) -> RoundNumbers:
        """See Strategy."""
        clip = self.settings.clip
        most = self.settings.weighting.most
        return value_numbers(self.layout.size + 1, clip * math.sqrt(2), clip, most)

    def term(self, state: State, memory: None = None) -> LocalTerm:
        """What the local training adds to its gradient."""
        return LocalTerm(checked(state, self.layout).model, self.settings.proximal)

    def contribution(self, state: State, result: LocalResult, memory: None = None) -> Contribution[None]:
        """See Strategy."""
        settings = self.settings
        if result.effective:
            return self._of_site(result)
        if not 1 <= result.steps <= settings.most_steps:
            raise FederatedError(f"{result.steps} local steps; 1 to {settings.most_steps} are allowed (most_steps)")
        steps = effective_steps(result.steps, result.learning_rate, settings.momentum, settings.proximal)
        delta = clipped(finite(result.delta, self.layout.size), settings.clip)
        scale = (discount(result.age) if result.age else 1.0) / max(1.0, steps)
        return Contribution(self._vector(delta * np.float32(scale), steps), settings.weighting.of(result.samples))

    def site(self, mean: Vector) -> tuple[Vector, float]:
        """What the mean of the vectors of a site's devices holds: mean d_i / a_i and mean a_i, which is 1 at least."""
        found = finite(mean, self.layout.size + 1)
        return found[:-1], min(max(1.0, float(found[-1]) * self._most / self.settings.clip), self._most)

    def _of_site(self, result: LocalResult) -> Contribution[None]:
        """Both means are linear, so a site's vector is what its devices' are: it is not divided again."""
        if not 1 <= result.effective <= self._most:
            raise FederatedError(f"{result.effective:g} effective steps; 1 to {self._most:g} are possible (most_steps)")
        delta = clipped(finite(result.delta, self.layout.size), self.settings.clip)
        return Contribution(self._vector(delta, result.effective), self.settings.weighting.of(result.samples))

    def _vector(self, scaled: Vector, steps: float) -> Vector:
        return np.append(scaled, np.float32(max(1.0, steps) / self._most * self.settings.clip))

    def apply(self, state: State, aggregate: Aggregate) -> State:
        """See Strategy."""
        checked(state, self.layout)
        mean = finite(aggregate.mean, self.layout.size + 1)
        steps = float(mean[-1]) * self._most / self.settings.clip
        rate = np.float32(self.settings.learning_rate * steps)
        return State(state.model + rate * mean[:-1], {}, state.version + 1)
