"""Tensors and operators of a graph under construction, as gradient rules, losses and optimisers see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.autodiff.errors import AutodiffError

Dim = int | str | None
"""A size: a number, the name of an open one (the batch), or unknown."""
Shape = tuple[Dim, ...]
StateKind = Literal["parameter", "batch_norm", "optimiser", "accumulator"]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph under construction."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]

    @property
    def rank(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    def size(self, axis: int) -> int:
        """The fixed size of `axis`. Raises AutodiffError where it is open."""
        size = self.shape[axis]
        if not isinstance(size, int):
            raise AutodiffError(
                f"axis {axis} of {self.name} has no fixed size (shape {list(self.shape)}); only the batch may be open, "
                "so export the model with fixed height and width"
            )
        return size

    def sizes(self, first: int = 0) -> list[int]:
        """The fixed sizes of the axes from `first` on. Raises AutodiffError where one is open."""
        return [self.size(axis) for axis in range(first, self.rank)]


@dataclass(frozen=True)
class Node:
    """One operator as a gradient rule sees it. `inputs` has None for an optional one that is left out."""

    op: str
    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)  # plain numbers, text, lists, arrays

    def input(self, index: int) -> Value:
        """The input that must be there. Raises AutodiffError when it is not."""
        value = self.optional(index)
        if value is None:
            raise AutodiffError(f"node {self.name} ({self.op}) lacks its input {index}")
        return value

    def optional(self, index: int) -> Value | None:
        """The input, or None where the node has none at this place."""
        return self.inputs[index] if index < len(self.inputs) else None

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute's value, `default` where the node does not state it."""
        return self.attributes.get(attribute, default)


@dataclass
class State:
    """A tensor that one step takes and hands on to the next: input `value.name`, output `updated`."""

    value: Value
    kind: StateKind
    initial: NDArray[Any]
    updated: Value | None = None
