"""Losses of numbers and boxes: mean absolute error (or Huber's), and generalised IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.autodiff.builder import GraphBuilder, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.interfaces import LossTerms
from edgekit.autodiff.losses.common import find_output, less, one_over, one_over_size, times, total

_SMALLEST = 1e-4
"""Smallest side of a box, in its own unit: no area of 0 divides, and no negative size turns a box inside out."""


@dataclass(frozen=True)
class AbsoluteError:
    """|y - t|, mean over all values; with `beta` > 0 half of (y - t)^2 / beta inside of it: PyTorch's SmoothL1Loss.

    Fed: `targets` float32 of the output's shape.
    """

    output: str = ""
    beta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1e6:
            raise AutodiffError(f"absolute error: beta is {self.beta}; it is 0 or more")

    def emit(self, builder: GraphBuilder, outputs: Mapping[str, Value]) -> LossTerms:
        """See Loss.emit."""
        name, y = find_output(outputs, self.output, "absolute error")
        difference = builder.sub(y, builder.input("targets", y.shape))
        if self.beta:
            slopes = builder.emit(
                "Clip", [builder.scaled(difference, 1 / self.beta), builder.scalar(-1.0), builder.scalar(1.0)]
            )
            # With s = clip(d / beta, -1, 1) both branches are s d - beta s^2 / 2.
            square = builder.scaled(builder.mul(slopes, slopes), self.beta / 2)
            values = builder.sub(builder.mul(slopes, difference), square)
        else:
            slopes = builder.emit("Sign", [difference])
            values = builder.emit("Abs", [difference])
        scale = one_over_size(builder, y)
        return LossTerms(builder.mul(total(builder, values), scale), {name: times(builder, slopes, scale)})


@dataclass(frozen=True)
class GeneralisedIou:
    """1 - GIoU of boxes [N, M, 4] as left, top, right, bottom, mean over the boxes that count.

    GIoU = I/U - (C - U)/C with the intersection I, the union U and the smallest box around both C (Rezatofighi et al.
    2019, arXiv 1902.09630). Fed: `boxes` float32 [N, M, 4], `counts` float32 [N, M], 1 where a box counts and 0 where
    not. A box that is turned inside out is treated as one without a size.
    """

    output: str = ""

    def emit(self, builder: GraphBuilder, outputs: Mapping[str, Value]) -> LossTerms:
        """See Loss.emit. Raises AutodiffError for an output that is no [N, M, 4]."""
        name, y = find_output(outputs, self.output, "generalised IoU", 3)
        if y.size(2) != 4:
            raise AutodiffError(f'generalised IoU wants boxes [N, M, 4]; the output "{name}" is {list(y.shape)}')
        truth = builder.input("boxes", y.shape)
        counts = builder.input("counts", y.shape[:2])
        edges = [_column(builder, y, index) for index in range(4)]
        wanted = [_column(builder, truth, index) for index in range(4)]
        values, slopes = generalised_iou(builder, edges, wanted)
        mask = builder.reshape(counts, [0, 0, 1], (*y.shape[:2], 1))
        scale = one_over(builder, builder.emit("Max", [total(builder, counts), builder.scalar(1.0)]))
        loss = builder.mul(total(builder, builder.mul(values, mask)), scale)
        together = builder.emit("Concat", [builder.mul(slope, mask) for slope in slopes], {"axis": 2})
        return LossTerms(loss, {name: times(builder, together, scale)})


def generalised_iou(
    builder: GraphBuilder, box: Sequence[Value], truth: Sequence[Value]
) -> tuple[Value, tuple[Value, ...]]:
    """1 - GIoU and its four derivatives by the edges of `box`; all are left, top, right, bottom of one shape.

    With L = 2 - I/U - U/C and U = A + A' - I:
    dL = (1/C - 1/U - I/U^2) dI + (I/U^2 - 1/C) dA + (U/C^2) dC.
    """
    left, top, right, bottom = box
    width, width_free = _side(builder, left, right)
    height, height_free = _side(builder, top, bottom)
    across = _span(builder, left, right, truth[0], truth[2])
    down = _span(builder, top, bottom, truth[1], truth[3])
    shared, around = builder.mul(across.shared, down.shared), builder.mul(across.around, down.around)
    true_area = builder.mul(builder.sub(truth[2], truth[0]), builder.sub(truth[3], truth[1]))
    union = builder.sub(builder.add(builder.mul(width, height), true_area), shared)
    iou, filled = builder.div(shared, union), builder.div(union, around)
    values = builder.sub(builder.sub(builder.scalar(2.0, left.rank), iou), filled)
    by_area = builder.sub(builder.div(iou, union), builder.emit("Reciprocal", [around]))
    by_shared = builder.emit("Neg", [builder.add(by_area, builder.emit("Reciprocal", [union]))])
    by_around = builder.div(filled, around)
    slopes: list[Value] = []
    for end in range(2):
        for span, other, side, free in ((across, down, height, width_free), (down, across, width, height_free)):
            parts = [
                builder.mul(builder.mul(by_shared, other.shared), span.inner[end]),
                builder.mul(builder.mul(by_area, side), free),
                builder.mul(builder.mul(by_around, other.around), span.outer[end]),
            ]
            slope = builder.total(parts)
            slopes.append(slope if end else builder.emit("Neg", [slope]))
    return values, tuple(slopes)


@dataclass(frozen=True)
class _Span:
    """Along one axis: the common and the enclosing length, and for the low and the high edge whether it bounds them."""

    shared: Value
    around: Value
    inner: tuple[Value, Value]
    outer: tuple[Value, Value]


def _span(builder: GraphBuilder, low: Value, high: Value, true_low: Value, true_high: Value) -> _Span:
    overlap = builder.sub(builder.emit("Min", [high, true_high]), builder.emit("Max", [low, true_low]))
    reach = builder.sub(builder.emit("Max", [high, true_high]), builder.emit("Min", [low, true_low]))
    touches = less(builder, builder.scalar(0.0, low.rank), overlap)
    return _Span(
        shared=builder.emit("Relu", [overlap]),
        around=builder.emit("Max", [reach, builder.scalar(_SMALLEST, low.rank)]),
        inner=(
            builder.mul(less(builder, true_low, low), touches),
            builder.mul(less(builder, high, true_high), touches),
        ),
        outer=(less(builder, low, true_low), less(builder, true_high, high)),
    )


def _side(builder: GraphBuilder, low: Value, high: Value) -> tuple[Value, Value]:
    """The length of a side, and 1 where it may change, 0 where it is held at its smallest."""
    side = builder.sub(high, low)
    smallest = builder.scalar(_SMALLEST, side.rank)
    return builder.emit("Max", [side, smallest]), less(builder, smallest, side)


def _column(builder: GraphBuilder, value: Value, index: int) -> Value:
    """[N, M, 1] of [N, M, 4]."""
    return builder.emit("Slice", [value, builder.ints(index), builder.ints(index + 1), builder.ints(2)])
