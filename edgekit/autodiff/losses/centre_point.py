"""The loss of a centre-point detector: focal loss of the heat map, and size and offset at the true centres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgekit.autodiff.builder import GraphBuilder, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.interfaces import LossTerms
from edgekit.autodiff.losses.boxes import generalised_iou
from edgekit.autodiff.losses.common import as_float, find_output, one_over, times, total


@dataclass(frozen=True)
class CentrePointLoss:
    """heat + box_weight * box + offset_weight * offset, as Zhou et al. 2019 (arXiv 1904.07850), section 3.

    heat: over logits z with p = sigmoid(z) and the target t, -(1 - p)^2 log p where t = 1, else
    -(1 - t)^4 p^2 log(1 - p), divided by the number of centres. box: with "l1" |size - true size| at each centre; with
    "giou" 1 - GIoU of the box that offset and size make. offset: |offset - true offset|. All boxes in cells.

    Fed: `heat_target` float32 [N, C, H, W], 1 at the centres; `size_target`, `offset_target` [N, 2, H, W] and `centres`
    [N, 1, H, W], 1 where there is a centre and else 0.
    """

    heat: str = "heat"
    size: str = "size"
    offset: str = "offset"
    box: Literal["l1", "giou"] = "l1"
    box_weight: float = 0.1
    offset_weight: float = 1.0

    def emit(self, builder: GraphBuilder, outputs: Mapping[str, Value]) -> LossTerms:
        """See Loss.emit."""
        (heat_name, z), (size_name, size), (offset_name, offset) = (
            find_output(outputs, name, "the centre-point loss", 4) for name in (self.heat, self.size, self.offset)
        )
        if size.size(1) != 2 or offset.size(1) != 2:
            raise AutodiffError(
                f'the centre-point loss wants width and height, and x and y; "{size_name}" is {list(size.shape)} and '
                f'"{offset_name}" is {list(offset.shape)}'
            )
        target = builder.input("heat_target", z.shape)
        true_size = builder.input("size_target", size.shape)
        true_offset = builder.input("offset_target", offset.shape)
        centres = builder.input("centres", (offset.shape[0], 1, *offset.shape[2:]))
        scale = one_over(builder, builder.emit("Max", [total(builder, centres), builder.scalar(1.0)]))
        heat_loss, heat_slope = _heat(builder, z, target, scale)
        offset_loss, offset_slope = _at_centres(builder, offset, true_offset, centres, scale)
        if self.box == "l1":
            box_loss, size_slope = _at_centres(builder, size, true_size, centres, scale)
            moved = None
        else:
            box_loss, size_slope, moved = _giou(builder, (offset, size), (true_offset, true_size), centres, scale)
        offset_slope = builder.scaled(offset_slope, self.offset_weight)
        if moved is not None:
            offset_slope = builder.add(offset_slope, builder.scaled(moved, self.box_weight))
        loss = builder.total(
            [heat_loss, builder.scaled(box_loss, self.box_weight), builder.scaled(offset_loss, self.offset_weight)]
        )
        return LossTerms(
            loss,
            {heat_name: heat_slope, size_name: builder.scaled(size_slope, self.box_weight), offset_name: offset_slope},
            {"heat_loss": heat_loss, "box_loss": box_loss, "offset_loss": offset_loss},
        )


def _heat(builder: GraphBuilder, z: Value, target: Value, scale: Value) -> tuple[Value, Value]:
    """Loss and slope of the heat map.

    A centre's loss is that of an empty cell at -z: (1 - p)^2 softplus(-z). For an empty cell of weight b = (1 - t)^4 it
    is b p^2 softplus(z), whose derivative is b p^2 (2 (1 - p) softplus(z) + p). So with s = -1 at centres and else 1,
    both are one expression in s z.
    """
    one = builder.scalar(1.0, z.rank)
    centre = as_float(builder, builder.emit("Equal", [target, one]))
    sign = builder.sub(one, builder.scaled(centre, 2.0))
    turned = builder.mul(sign, z)
    p, cost = builder.emit("Sigmoid", [turned]), builder.emit("Softplus", [turned])
    empty = builder.sub(one, target)
    square = builder.mul(empty, empty)
    weight = builder.add(builder.mul(square, square), centre)
    weighted = builder.mul(weight, builder.mul(p, p))
    inside = builder.add(builder.scaled(builder.mul(builder.sub(one, p), cost), 2.0), p)
    slope = builder.mul(builder.mul(weighted, inside), sign)
    return builder.mul(total(builder, builder.mul(weighted, cost)), scale), times(builder, slope, scale)


def _at_centres(
    builder: GraphBuilder, value: Value, target: Value, centres: Value, scale: Value
) -> tuple[Value, Value]:
    """sum |value - target| at the centres, times `scale`, and its slope."""
    difference = builder.mul(builder.sub(value, target), centres)
    loss = builder.mul(total(builder, builder.emit("Abs", [difference])), scale)
    return loss, times(builder, builder.emit("Sign", [difference]), scale)


def _giou(
    builder: GraphBuilder, box: tuple[Value, Value], truth: tuple[Value, Value], centres: Value, scale: Value
) -> tuple[Value, Value, Value]:
    """1 - GIoU at the centres, times `scale`, and its slopes by size and by offset. `box`, `truth`: (offset, size)."""
    values, (left, top, right, bottom) = generalised_iou(builder, _edges(builder, *box), _edges(builder, *truth))
    loss = builder.mul(total(builder, builder.mul(values, centres)), scale)
    low = builder.emit("Concat", [left, top], {"axis": 1})
    high = builder.emit("Concat", [right, bottom], {"axis": 1})
    mask = times(builder, centres, scale)
    by_size = builder.mul(builder.scaled(builder.sub(high, low), 0.5), mask)
    return loss, by_size, builder.mul(builder.add(low, high), mask)


def _edges(builder: GraphBuilder, offset: Value, size: Value) -> list[Value]:
    """Left, top, right, bottom [N, 1, H, W] relative to the cell."""
    half = builder.scaled(size, 0.5)
    low, high = builder.sub(offset, half), builder.add(offset, half)
    channel = [builder.ints(0), builder.ints(1), builder.ints(2)]
    return [
        builder.emit("Slice", [corner, channel[axis], channel[axis + 1], channel[1]])
        for corner in (low, high)
        for axis in range(2)
    ]
