"""A smaller centre-point detector learns to say what a larger one says, cell by cell, beside the true boxes.

The larger one's heat map tells more than the boxes do: what resembles a defect, and how much. Size and offset are
followed at its peaks only, since nothing has taught it elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgekit.autodiff.builder import GraphBuilder, Value
from edgekit.autodiff.interfaces import LossTerms
from edgekit.autodiff.losses import CentrePointLoss
from edgekit.autodiff.losses.common import one_over, times, total
from edgekit.training import BoxedExamples

PEAK = 0.3
"""Of the larger one's heat map: a cell that says more than its eight neighbours, and this at least, is a centre."""
SHARE = 0.5
"""Of the loss, that compares with the larger network; the rest compares with the boxes."""

Maps = NDArray[np.float32]


@dataclass(frozen=True)
class TaughtCentres:
    """(1 - share) * hard + share * (heat + box_weight * size + offset_weight * offset), the latter against a teacher.

    heat: (p - t)^2 (softplus(z) - z t) over logits z with p = sigmoid(z) and the teacher's probability t: binary cross
    entropy that counts less the nearer both are, as the quality focal loss of Li et al. 2020 (arXiv 2006.04388, 3.1).
    size and offset: |value - teacher's| at its peaks. All divided by the sum of the peaks, 1 at least. Fed beside what
    `hard` is fed: `teacher_heat` float32 [N, C, H, W], 0..1, `teacher_size` and `teacher_offset` [N, 2, H, W] in cells,
    and `teacher_peaks` [N, 1, H, W].
    """

    hard: CentrePointLoss
    share: float = SHARE

    def emit(self, builder: GraphBuilder, outputs: Mapping[str, Value]) -> LossTerms:
        """See Loss.emit."""
        terms = self.hard.emit(builder, outputs)
        assert terms.gradients is not None
        z, size, offset = (outputs[name] for name in (self.hard.heat, self.hard.size, self.hard.offset))
        t = builder.input("teacher_heat", z.shape)
        peaks = builder.input("teacher_peaks", (offset.shape[0], 1, *offset.shape[2:]))
        scale = one_over(builder, builder.emit("Max", [total(builder, peaks), builder.scalar(1.0)]))
        losses, slopes = {}, {}
        losses[self.hard.heat], slopes[self.hard.heat] = _heat(builder, z, t, scale)
        for name, value, fed, weight in (
            (self.hard.size, size, "teacher_size", self.hard.box_weight),
            (self.hard.offset, offset, "teacher_offset", self.hard.offset_weight),
        ):
            apart = builder.mul(builder.sub(value, builder.input(fed, value.shape)), peaks)
            losses[name] = builder.scaled(builder.mul(total(builder, builder.emit("Abs", [apart])), scale), weight)
            slope = builder.mul(builder.emit("Sign", [apart]), peaks)
            slopes[name] = builder.scaled(times(builder, slope, scale), weight)
        soft = builder.total(list(losses.values()))
        return LossTerms(
            builder.add(builder.scaled(terms.loss, 1 - self.share), builder.scaled(soft, self.share)),
            {
                name: builder.add(
                    builder.scaled(terms.gradients[name], 1 - self.share), builder.scaled(slope, self.share)
                )
                for name, slope in slopes.items()
            },
            {"taught_loss": soft},
        )


class TaughtBoxes:
    """Examples for a `Trainer`: changed pictures with their boxes, and with the maps of the larger network.

    `teacher`: pictures as the model wants them -> its heat map (logits), sizes and offsets.
    """

    def __init__(
        self, examples: BoxedExamples, teacher: Callable[[NDArray[np.float32]], list[Maps]], image: str
    ) -> None:
        self._examples, self._teacher, self._image = examples, teacher, image

    @property
    def groups(self) -> NDArray[np.intp]:
        """See Examples.groups."""
        return self._examples.groups

    def feeds(self, places: NDArray[np.intp], epoch: int, start: int) -> dict[str, NDArray[Any]]:
        """See Examples.feeds."""
        return self._with_teacher(self._examples.feeds(places, epoch, start))

    def plain(self, places: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """See Examples.plain."""
        return self._with_teacher(self._examples.plain(places))

    def _with_teacher(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        logits, size, offset = self._teacher(feeds[self._image])
        heat = np.asarray(1 / (1 + np.exp(-np.clip(logits, -60, 60))), np.float32)
        return feeds | {
            "teacher_heat": heat,
            "teacher_size": size,
            "teacher_offset": offset,
            "teacher_peaks": peaks_of(heat),
        }


def peaks_of(heat: Maps) -> Maps:
    """[n, 1, h, w] of a heat map [n, c, h, w]: its highest value where a class has a peak of PEAK at least, else 0."""
    found = np.zeros((len(heat), 1, *heat.shape[2:]), np.float32)
    for row, maps in enumerate(heat):
        for one in maps:
            around = cv2.dilate(one, np.ones((3, 3), np.uint8))
            found[row, 0] = np.maximum(found[row, 0], np.where((one >= PEAK) & (one >= around), one, 0.0))
    return found


def _heat(builder: GraphBuilder, z: Value, t: Value, scale: Value) -> tuple[Value, Value]:
    """Loss and slope: with d = p - t and c = softplus(z) - z t they are d^2 c and d (2 p (1 - p) c + d^2)."""
    one = builder.scalar(1.0, z.rank)
    p = builder.emit("Sigmoid", [z])
    apart = builder.sub(p, t)
    cost = builder.sub(builder.emit("Softplus", [z]), builder.mul(z, t))
    square = builder.mul(apart, apart)
    turn = builder.scaled(builder.mul(builder.mul(p, builder.sub(one, p)), cost), 2.0)
    slope = builder.mul(apart, builder.add(turn, square))
    return builder.mul(total(builder, builder.mul(square, cost)), scale), times(builder, slope, scale)
