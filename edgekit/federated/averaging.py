"""Averages of updates and what the server's optimiser makes of them.

FedAvg    x += eta mean(d)                           McMahan et al. 2017, arXiv 1602.05629
FedProx   the same; locally + mu (w - x)             Li et al. 2020, arXiv 1812.06127
FedAvgM   v = beta v + mean(d), x += eta v           Hsu et al. 2019, arXiv 1909.06335
FedAdagrad, FedAdam, FedYogi   algorithm 2 of        Reddi et al. 2021, arXiv 2003.00295
    m = b1 m + (1 - b1) mean(d),  x += eta m / (sqrt(v) + tau),  v starts at tau^2
    v += d^2;  v = b2 v + (1 - b2) d^2;  v -= (1 - b2) d^2 sign(v - d^2)

d is a device's update, clipped, and mean the weighted mean over the survivors. Stale updates (asynchronous rounds) are
discounted by the device itself, `edgekit.federated.buffer`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from edgekit.federated.buffer import discount
from edgekit.federated.layout import Layout, Vector, finite
from edgekit.federated.strategy import (
    Contribution,
    LocalResult,
    LocalTerm,
    Positive,
    Share,
    State,
    Weighting,
    checked,
)
from edgekit.federated.sums import Aggregate, RoundNumbers, clipped, value_numbers


class Averaging(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all averages have."""

    clip: Positive
    """Norm to which a device's update is clipped."""
    limit: Positive | None = None
    """Largest magnitude of one value; None: the clip, so that none is cut. Less is finer in `lite` rounds."""
    proximal: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """mu of FedProx; 0 for none."""
    learning_rate: Positive = 1.0
    """eta of the server."""
    weighting: Weighting = Weighting()


class FedAvg(Averaging, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="strategy", tag="fedavg"):
    """FedAvg; with `proximal`, FedProx."""


class FedAvgM(Averaging, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="strategy", tag="fedavgm"):
    """FedAvg with the server's momentum."""

    momentum: Share = 0.9


class Adaptive(Averaging, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="strategy", tag="adaptive"):
    """FedAdagrad, FedAdam, FedYogi; the paper's defaults."""

    kind: Literal["adagrad", "adam", "yogi"]
    learning_rate: Positive = 0.1
    momentum: Share = 0.9
    decay: Share = 0.99
    """b2; Adagrad has none."""
    adaptivity: Positive = 1e-3
    """tau."""


class AveragingStrategy:
    """FedAvg and all that differ from it on the server only. Devices keep no memory."""

    def __init__(self, layout: Layout, settings: FedAvg | FedAvgM | Adaptive) -> None:
        self.layout, self.settings = layout, settings

    @property
    def slots(self) -> tuple[str, ...]:
        """What the state keeps beside the model."""
        if isinstance(self.settings, Adaptive):
            return ("momentum", "variance")
        return ("momentum",) if isinstance(self.settings, FedAvgM) else ()

    def start(self, model: Vector) -> State:
        """The state before the first round."""
        start = {name: np.zeros(self.layout.size, np.float32) for name in self.slots}
        if isinstance(self.settings, Adaptive):
            start["variance"] += np.float32(self.settings.adaptivity) * np.float32(self.settings.adaptivity)
        return State(finite(model, self.layout.size), start)

    @property
    def numbers(self) -> RoundNumbers:
        """See Strategy."""
        clip = self.settings.clip
        return value_numbers(self.layout.size, clip, self.settings.limit or clip, self.settings.weighting.most)

    def term(self, state: State, memory: None = None) -> LocalTerm:
        """What the local training adds to its gradient."""
        return LocalTerm(checked(state, self.layout, self.slots).model, self.settings.proximal)

    def contribution(self, state: State, result: LocalResult, memory: None = None) -> Contribution[None]:
        """See Strategy."""
        finite(result.delta, self.layout.size)
        delta = clipped(result.delta, self.settings.clip)
        if result.age:
            delta = delta * np.float32(discount(result.age))
        return Contribution(delta, self.settings.weighting.of(result.samples))

    def apply(self, state: State, aggregate: Aggregate) -> State:
        """See Strategy."""
        checked(state, self.layout, self.slots)
        settings, mean = self.settings, finite(aggregate.mean, self.layout.size)
        rate = np.float32(settings.learning_rate)
        if isinstance(settings, FedAvg):
            model = rate * mean
            model += state.model
            return State(model, {}, state.version + 1)
        if isinstance(settings, FedAvgM):
            momentum = np.float32(settings.momentum) * state.slots["momentum"] + mean
            return State(state.model + rate * momentum, {"momentum": momentum}, state.version + 1)
        keep = np.float32(settings.momentum)
        momentum = keep * state.slots["momentum"] + (np.float32(1) - keep) * mean
        variance = _variance(settings, state.slots["variance"], mean * mean)
        step = rate * momentum / (np.sqrt(variance) + np.float32(settings.adaptivity))
        return State(state.model + step, {"momentum": momentum, "variance": variance}, state.version + 1)


def _variance(settings: Adaptive, before: Vector, square: Vector) -> Vector:
    if settings.kind == "adagrad":
        return before + square
    decay = np.float32(settings.decay)
    rest = np.float32(1) - decay
    if settings.kind == "adam":
        return decay * before + rest * square
    lower: Vector = before - rest * square * np.sign(before - square)
    return lower
