"""Losses of independent yes-or-no answers: binary cross entropy, and focal loss where one answer is rare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.autodiff.builder import GraphBuilder, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.interfaces import LossTerms
from edgekit.autodiff.losses.common import find_output, one_over_size, times, total


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """a (1 - p_t)^gamma * (softplus(z) - z t) over logits z and targets t, mean over all values.

    p_t = p t + (1 - p)(1 - t) with p = sigmoid(z), and a = alpha t + (1 - alpha)(1 - t). With gamma = 0 and alpha None
    it is PyTorch's BCEWithLogitsLoss; with gamma = 2 and alpha = 0.25 torchvision's sigmoid_focal_loss (Lin et al.
    2017, arXiv 1708.02002). Fed: `targets` float32 of the output's shape, 0..1.
    """

    output: str = ""  # name of the logits; "" for the only output
    gamma: float = 0.0  # how much less what is right already counts: 0, or 1 to 5
    alpha: float | None = None  # weight of the targets that are 1, 0..1

    def __post_init__(self) -> None:
        if self.gamma != 0 and not 1 <= self.gamma <= 5:
            raise AutodiffError(f"focal loss: gamma is {self.gamma}; it is 0, or from 1 to 5")
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise AutodiffError(f"focal loss: alpha is {self.alpha}; it lies between 0 and 1")

    def emit(self, builder: GraphBuilder, outputs: Mapping[str, Value]) -> LossTerms:
        """See Loss.emit."""
        name, z = find_output(outputs, self.output, "binary cross entropy")
        t = builder.input("targets", z.shape)
        p = builder.emit("Sigmoid", [z])
        values = builder.sub(builder.emit("Softplus", [z]), builder.mul(z, t))
        slopes = builder.sub(p, t)
        if self.gamma:
            values, slopes = self._focus(builder, p, t, values, slopes)
        if self.alpha is not None:
            # alpha t + (1 - alpha)(1 - t) = (2 alpha - 1) t + 1 - alpha
            weight = builder.scaled(t, 2 * self.alpha - 1)
            weight = builder.add(weight, builder.scalar(1 - self.alpha, t.rank))
            values, slopes = builder.mul(values, weight), builder.mul(slopes, weight)
        scale = one_over_size(builder, z)
        return LossTerms(builder.mul(total(builder, values), scale), {name: times(builder, slopes, scale)})

    def _focus(self, builder: GraphBuilder, p: Value, t: Value, values: Value, slopes: Value) -> tuple[Value, Value]:
        """(1 - p_t)^gamma times the loss, and its derivative by the product rule.

        With u = 1 - p_t = p + t - 2 p t: du/dz = (1 - 2 t) p (1 - p).
        """
        one = builder.scalar(1.0, p.rank)
        wrong = builder.sub(builder.add(p, t), builder.scaled(builder.mul(p, t), 2.0))
        lower = wrong if self.gamma == 2 else builder.emit("Pow", [wrong, builder.scalar(self.gamma - 1, p.rank)])
        factor = builder.mul(lower, wrong)
        turn = builder.mul(builder.sub(one, builder.scaled(t, 2.0)), builder.mul(p, builder.sub(one, p)))
        change = builder.scaled(builder.mul(lower, turn), self.gamma)
        slopes = builder.add(builder.mul(slopes, factor), builder.mul(values, change))
        return builder.mul(values, factor), slopes
