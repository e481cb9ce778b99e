"""The two smallest losses, for tests that should not depend on the library's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.autodiff.builder import GraphBuilder, Value
from edgekit.autodiff.interfaces import LossTerms


class CrossEntropy:
    """Softmax with cross entropy in closed form; labels are class numbers."""

    def emit(self, b: GraphBuilder, outputs: Mapping[str, Value]) -> LossTerms:
        z = outputs["logits"]
        labels = b.input("labels", (z.shape[0],), np.int64)
        log_p = b.emit("LogSoftmax", [z], {"axis": 1})
        values = b.constant(np.array([0.0, 1.0], np.float32))
        hot = b.emit("OneHot", [labels, b.constant(np.array(z.size(1), np.int64)), values], {"axis": 1}, shape=z.shape)
        part = b.emit("Reciprocal", [b.batch_size(z)])
        loss = b.emit("Neg", [b.mul(b.reduce_sum(b.mul(log_p, hot), [0, 1]), part)])
        gradient = b.mul(b.sub(b.emit("Exp", [log_p]), hot), b.ranked(part, 2))
        return LossTerms(loss, {"logits": gradient})


class Weighted:
    """The mean of output times a fed tensor: any gradient can be sent into a network. Differentiated by its nodes."""

    def __init__(self, output: str = "logits") -> None:
        self._output = output

    def emit(self, b: GraphBuilder, outputs: Mapping[str, Value]) -> LossTerms:
        z = outputs[self._output]
        seed = b.input("seed", z.shape)
        return LossTerms(b.emit("ReduceSum", [b.mul(z, seed)], {"keepdims": 0}))


class Descent:
    """Gradient descent with momentum 0.9."""

    def emit(self, b: GraphBuilder, parameters: object) -> None:
        rate = b.input("lr", ())
        for one in parameters:  # type: ignore[attr-defined]
            rank = one.value.rank
            name = f"{one.name}.momentum"
            zeros = np.zeros(list(one.value.shape), np.float32)
            velocity = b.add(b.mul(b.state(name, zeros), b.scalar(0.9, rank)), one.gradient)
            b.update(name, velocity)
            b.update(one.name, b.sub(one.value, b.mul(velocity, b.ranked(rate, rank))))
