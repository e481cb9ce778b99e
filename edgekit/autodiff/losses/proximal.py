"""The proximal term of FedProx, which keeps a site's model near the one that the round began with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit.autodiff.builder import GraphBuilder
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.interfaces import Optimiser, Parameter
from edgekit.autodiff.losses.common import total

ANCHOR = ".anchor"
"""The parameter NAME is held near the input NAME.anchor."""


@dataclass(frozen=True)
class Proximal:
    """Adds strength / 2 * sum |w - w0|^2 to the loss, that is strength * (w - w0) to every gradient.

    Li et al. 2020 (arXiv 1812.06127), equation 2. Put it around the optimiser, outside of any clipping. Fed:
    `NAME.anchor` for every parameter, float32 of its shape: the weights w0 that the round began with. The term itself
    is the output `proximal`; `loss` is without it.
    """

    optimiser: Optimiser
    strength: float  # mu; 0.001 to 1 in the paper

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1e3:
            raise AutodiffError(f"the proximal term's strength is {self.strength}; it lies above 0, usually up to 1")

    def emit(self, builder: GraphBuilder, parameters: Sequence[Parameter]) -> None:
        """See Optimiser.emit."""
        pulled, squares = [], []
        for parameter in parameters:
            anchor = builder.input(parameter.name + ANCHOR, parameter.value.shape)
            away = builder.sub(parameter.value, anchor)
            squares.append(total(builder, builder.mul(away, away)))
            gradient = builder.add(parameter.gradient, builder.scaled(away, self.strength))
            pulled.append(replace(parameter, gradient=gradient))
        builder.output("proximal", builder.scaled(builder.total(squares), self.strength / 2))
        self.optimiser.emit(builder, pulled)
