"""The interface of all strategies: a device contributes a vector and a weight, everybody applies the sum.

    device:    term(state, memory) -> train -> contribution(state, result, memory) -> vector, weight, new memory
    everybody: apply(state, sum) -> the next state

cloudd sees the sum and publishes it; it holds the same state as every device, which `digest` proves: it is the `model`
of the next RoundConfig. A device keeps the new memory only when its own vector was in the published sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edgekit.federated.errors import FederatedError
from edgekit.federated.layout import Layout, Vector, finite
from edgekit.federated.sums import Aggregate, RoundNumbers

Result = TypeVar("Result", contravariant=True)
Memory = TypeVar("Memory")

Positive = Annotated[float, Meta(gt=0, le=1e6)]
Share = Annotated[float, Meta(ge=0, lt=1)]


class Weighting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much a device counts. With `most` 1 (the default) all count the same and values have the finest code."""

    most: Annotated[int, Meta(ge=1, le=1 << 20)] = 1
    samples: Annotated[int, Meta(ge=1, le=1 << 30)] = 1
    """Samples to one unit of weight."""

    def of(self, samples: int) -> int:
        """1..most."""
        if samples < 1:
            raise FederatedError("a device without samples has nothing to contribute")
        return max(1, min(self.most, round(samples / self.samples)))


@dataclass(frozen=True, eq=False)
class State:
    """What every device and cloudd hold after a round: to the last bit the same."""

    model: NDArray[Any]  # float32 (p,); int64 for strategies of whole numbers
    slots: Mapping[str, Vector] = field(default_factory=dict)  # a strategy's own, such as momentum; each (p,)
    version: int = 0  # sums applied so far

    def digest(self, layout: bytes, settings: msgspec.Struct) -> bytes:
        """SHA-256 of the state, of the tensors' layout and of the strategy's settings."""
        found = hashlib.sha256(b"edged/federated/1/state\0" + layout + self.version.to_bytes(8, "big"))
        found.update(hashlib.sha256(msgspec.msgpack.encode(settings)).digest())
        for name, values in (("", self.model), *sorted(self.slots.items())):
            found.update(hashlib.sha256(name.encode()).digest())
            found.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
        return found.digest()

    def tensors(self) -> dict[str, NDArray[Any]]:
        """For `edgekit.tensors.save`; the version travels beside them."""
        return {"model": self.model, **{f"slot.{name}": values for name, values in self.slots.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]], version: int) -> State:
        """The other way round. Raises FederatedError for anything else; `Strategy.check` says whether it fits."""
        model = tensors.get("model")
        if model is None or version < 0:
            raise FederatedError("a state needs its model and a version from 0")
        slots = {name.removeprefix("slot."): values for name, values in tensors.items() if name != "model"}
        if len(slots) != sum(name.startswith("slot.") for name in tensors):
            raise FederatedError("a state has tensors that belong to none")
        return cls(model, slots, version)


@dataclass(frozen=True, eq=False)
class LocalResult:
    """What a device's training gave."""

    delta: Vector  # shared tensors after minus before, (p,)
    samples: int
    steps: int  # of the local optimiser
    learning_rate: float  # of the local optimiser, mean over the steps
    age: int = 0  # rounds that were published since `before` (asynchronous rounds only)
    effective: float = 0.0
    """Of a site with FedNova: the mean a_i of its devices, and `delta` is the mean of d_i / a_i. 0: it is a device."""


@dataclass(frozen=True, eq=False)
class LocalTerm:
    """What the local training adds to its gradient: proximal * (weights - anchor) + correction.

    A trainer whose loss has a proximal term takes `proximal` alone; one without may call `gradient` after each step.
    """

    anchor: Vector
    proximal: float = 0.0
    correction: Vector | None = None

    def gradient(self, weights: Vector) -> Vector:
        """The addition, (p,)."""
        added = (weights - self.anchor) * np.float32(self.proximal)
        return added if self.correction is None else added + self.correction


@dataclass(frozen=True, eq=False)
class Contribution(Generic[Memory]):
    """What goes into the masked sum, and what the device remembers if it got there."""

    vector: Vector
    weight: int
    memory: Memory | None = None


class Strategy(Protocol[Result, Memory]):
    """See the module's docstring. All methods raise FederatedError for what does not fit."""

    @property
    def settings(self) -> msgspec.Struct:
        """What is the same on all devices."""

    @property
    def numbers(self) -> RoundNumbers:
        """Of a round of this strategy."""

    def contribution(self, state: State, result: Result, memory: Memory | None) -> Contribution[Memory]:
        """Of one device; changes neither."""

    def apply(self, state: State, aggregate: Aggregate) -> State:
        """The next state; changes nothing."""


class Learning(Strategy[LocalResult, Memory], Protocol[Memory]):
    """A strategy whose devices train."""

    @property
    def layout(self) -> Layout:
        """The tensors that are shared."""

    def start(self, model: Vector) -> State:
        """The state before the first round."""

    def term(self, state: State, memory: Memory | None = None) -> LocalTerm:
        """What the local training adds to its gradient."""


def checked(state: State, layout: Layout, slots: tuple[str, ...] = ()) -> State:
    """The state itself. Raises FederatedError if model or slots are not those of a strategy over this layout."""
    if tuple(sorted(state.slots)) != tuple(sorted(slots)):
        raise FederatedError(f"the state has the slots {sorted(state.slots)}; the strategy keeps {sorted(slots)}")
    for values in (state.model, *state.slots.values()):
        finite(values, layout.size)
    return state
