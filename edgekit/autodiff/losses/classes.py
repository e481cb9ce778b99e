"""Losses of a classifier: cross entropy with class weights and label smoothing, and distillation of a larger model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.autodiff.builder import GraphBuilder, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.interfaces import LossTerms
from edgekit.autodiff.losses.common import find_output, one_over, times, total


@dataclass(frozen=True)
class CrossEntropy:
    """- sum_c t_c log softmax(z)_c over logits z [N, C], t_c = w_c ((1 - s) [c = y] + s / C), divided by sum_n w_y.

    Equals PyTorch's CrossEntropyLoss(weight=w, label_smoothing=s). Fed: `labels` int64 [N], 0..C-1, and with `weighted`
    `class_weights` float32 [C]. `smoothing` s is 0..1 (Szegedy et al. 2016, arXiv 1512.00567, section 7).
    """

    output: str = ""  # name of the logits; "" for the only output
    weighted: bool = False
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise AutodiffError(f"cross entropy: smoothing is {self.smoothing}; it lies from 0 to below 1")

    def emit(self, builder: GraphBuilder, outputs: Mapping[str, Value]) -> LossTerms:
        """See Loss.emit."""
        name, logits = find_output(outputs, self.output, "cross entropy", 2)
        classes = logits.size(1)
        labels = builder.input("labels", (logits.shape[0],), np.int64)
        log_p = builder.emit("LogSoftmax", [logits], {"axis": 1})
        p = builder.emit("Exp", [log_p])
        rest = self.smoothing / classes
        levels = builder.constant(np.array([rest, 1 - self.smoothing + rest], np.float32))
        depth = builder.constant(np.array(classes, np.int64))
        target = builder.emit("OneHot", [labels, depth, levels], {"axis": 1}, shape=logits.shape)
        if self.weighted:
            weights = builder.input("class_weights", (classes,))
            target = builder.mul(target, builder.reshape(weights, [1, classes]))
            scale = one_over(builder, total(builder, builder.emit("Gather", [weights, labels])))
            p = builder.mul(p, builder.reduce_sum(target, [1], keepdims=True))
        else:
            scale = one_over(builder, builder.batch_size(logits))
        loss = builder.emit("Neg", [builder.mul(total(builder, builder.mul(target, log_p)), scale)])
        return LossTerms(loss, {name: times(builder, builder.sub(p, target), scale)})


@dataclass(frozen=True)
class Distillation:
    """share * T^2 KL(softmax(teacher / T) || softmax(z / T)) + (1 - share) * hard, mean over the batch.

    Hinton et al. 2015 (arXiv 1503.02531); T^2 keeps the size of the gradient whatever the temperature T. Fed: `teacher`
    float32 [N, C], the larger model's logits or the logarithms of its probabilities, and what `hard` is fed. With
    share = 1 no labels are needed.
    """

    hard: CrossEntropy = CrossEntropy()
    temperature: float = 2.0
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0.1 <= self.temperature <= 100:
            raise AutodiffError(
                f"distillation: share is {self.share} and temperature {self.temperature}; they lie above 0 to 1, "
                "and from 0.1 to 100"
            )

    def emit(self, builder: GraphBuilder, outputs: Mapping[str, Value]) -> LossTerms:
        """See Loss.emit."""
        name, logits = find_output(outputs, self.hard.output, "distillation", 2)
        teacher = builder.input("teacher", logits.shape)
        cooler = 1 / self.temperature
        log_q = builder.emit("LogSoftmax", [builder.scaled(teacher, cooler)], {"axis": 1})
        log_p = builder.emit("LogSoftmax", [builder.scaled(logits, cooler)], {"axis": 1})
        q, p = builder.emit("Exp", [log_q]), builder.emit("Exp", [log_p])
        scale = one_over(builder, builder.batch_size(logits))
        divergence = builder.mul(total(builder, builder.mul(q, builder.sub(log_q, log_p))), scale)
        loss = builder.scaled(divergence, self.share * self.temperature**2)
        slope = builder.scaled(scale, self.share * self.temperature)
        gradient = times(builder, builder.sub(p, q), slope)
        if self.share < 1:
            hard = self.hard.emit(builder, outputs)
            assert hard.gradients is not None
            loss = builder.add(loss, builder.scaled(hard.loss, 1 - self.share))
            gradient = builder.add(gradient, builder.scaled(hard.gradients[name], 1 - self.share))
        return LossTerms(loss, {name: gradient}, {"divergence": divergence})
