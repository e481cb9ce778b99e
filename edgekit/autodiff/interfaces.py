"""What a loss and an optimiser are to the assembly of a train step.

Both write nodes with a GraphBuilder. A tensor that the caller must feed at each step (labels, learning rate) is asked
for with `builder.input`; a tensor that lives from step to step (momentum) with `builder.state` and `builder.update`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgekit.autodiff.builder import GraphBuilder, Value


@dataclass(frozen=True)
class LossTerms:
    """What a loss wrote.

    `gradients` are d loss / d output in closed form, by the name of the model's output, each of that output's shape.
    Where it is None the loss's own nodes are differentiated, which needs a gradient rule for every operator between the
    outputs and `loss`. A closed form is shorter and faster (softmax with cross entropy: probability - target).
    """

    loss: Value  # shape (): the mean over the batch, as the caller shall see and minimise it
    gradients: Mapping[str, Value] | None = None
    metrics: Mapping[str, Value] = field(default_factory=dict)  # further tensors to fetch, by the name to fetch them


class Loss(Protocol):
    """Adds a loss to a graph."""

    def emit(self, builder: GraphBuilder, outputs: Mapping[str, Value]) -> LossTerms:
        """Write the loss of the model's `outputs` (by name, axis 0 the open batch). Raises AutodiffError: outputs
        unfit.
        """
        ...


@dataclass(frozen=True)
class Parameter:
    """A trainable tensor and its gradient, of one shape."""

    name: str
    value: Value
    gradient: Value


class Optimiser(Protocol):
    """Adds the rule that makes new parameters from gradients."""

    def emit(self, builder: GraphBuilder, parameters: Sequence[Parameter]) -> None:
        """Write the rule and call `builder.update(parameter.name, new_value)` once for every parameter.

        Parameters are states of the builder already. The optimiser's own states are called `NAME.something`.
        """
        ...
