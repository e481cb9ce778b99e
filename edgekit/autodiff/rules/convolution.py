"""Gradients of convolutions, in the formulations that stock onnxruntime executes fastest on a CPU.

Which formulation is chosen depends on the shapes alone; the limits were measured (`research/edge-training.md`,
"Gradient formulas that are fast"). All are exact.
"""

from __future__ import annotations

import math

import numpy as np

from edgekit.autodiff.builder import GraphBuilder, Node, Shape, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.rules import depthwise
from edgekit.autodiff.rules.geometry import Window, folding, joined, padded, places, unfolding, views, window
from edgekit.autodiff.rules.registry import Gradients, Needs, rule

FEW_PIXELS = 16
"""With as few output pixels an image, one product over the batch beats one a picture, which has too few columns."""
FAT_WEIGHT = 1 << 17
"""From so many weights on."""
FEW_CHANNELS = 4
"""Up to so many input channels a large kernel's gradient is a convolution with the gradient as kernel."""
LONG_RUN = 64
"""From so many input channels on, a product for every position of the kernel alone is efficient."""
WIDE_ROW = 16
"""From so many pixels of an output row on, columns of few channels are picked by a convolution."""
MANY_PIXELS = 64
"""From so many pixels a picture on, a product of every picture alone is efficient."""
FEW_READ = 64
"""Up to so many input pixels im2col and its reverse are products with a matrix of zeros and ones: a third of the time
of slices of two to four pixels."""
_LOWEST = -(2**63)


@rule("Conv")
def _conv(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x, w = node.input(0), node.input(1)
    move = window(node, w.sizes(2), x, node.outputs[0])
    dx = input_gradient(b, g, x, w, move) if needs[0] else None
    dw = weight_gradient(b, x, g, w, move) if needs[1] else None
    db = b.reduce_sum(g, [0, 2, 3]) if len(needs) > 2 and needs[2] else None
    return [dx, dw, db]


@rule("ConvTranspose")
def _conv_transpose(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """The transpose of a convolution that reads `g` and writes `x`: roles of input and output are exchanged."""
    x, w = node.input(0), node.input(1)
    move = window(node, w.sizes(2), g, x)
    if not node.get("pads") and node.get("auto_pad", "NOTSET") == "NOTSET" and node.get("output_shape"):
        raise AutodiffError("ConvTranspose with output_shape needs explicit pads; export it with output_padding")
    dx = dw = None
    if needs[0]:
        dx = b.emit("Conv", [g, w], _attributes(move), shape=x.shape)
    if needs[1]:
        dw = weight_gradient(b, g, x, w, move)
    db = b.reduce_sum(g, [0, 2, 3]) if len(needs) > 2 and needs[2] else None
    return [dx, dw, db]


def _attributes(move: Window) -> dict[str, object]:
    return {
        "strides": list(move.strides),
        "dilations": list(move.dilations),
        "pads": list(move.pads),
        "group": move.group,
    }


def is_fat(w: Value, move: Window) -> bool:
    """Whether one product over the batch is the faster way: few pixels, many weights."""
    return move.group == 1 and move.pixels_out <= FEW_PIXELS and math.prod(w.sizes()) >= FAT_WEIGHT


def is_fixed_fat(w: Value, move: Window) -> bool:
    """Whether `fixed_convolution` is the faster way, which needs a weight that nothing changes."""
    return is_fat(w, move) and move.points > 1 and move.pixels_in <= FEW_READ


# ------------------------------------------------------------------ with respect to the input


def input_gradient(b: GraphBuilder, g: Value, x: Value, w: Value, move: Window) -> Value:
    """d loss / d x [N, Ci, H, W] of a convolution, from g [N, Co, Oh, Ow] and w [Co, Ci / group, kh, kw]."""
    if is_fat(w, move):
        return _fat_input_gradient(b, g, x, w, move)
    if depthwise.is_small(x, w, move):
        return depthwise.input_gradient(b, g, x, w, move)
    if move.strides == (1, 1) and 1 < move.group == x.size(1) == w.size(0):
        # A convolution with the kernel turned by 180 degrees.
        turned = b.emit("Slice", [w, b.ints(-1, -1), b.ints(_LOWEST, _LOWEST), b.ints(2, 3), b.ints(-1, -1)])
        reach = [(move.kernel[i] - 1) * move.dilations[i] for i in (0, 1)]
        pads = [reach[i % 2] - move.pads[i] for i in range(4)]
        if min(pads) >= 0:
            attributes = {"group": move.group, "pads": pads, "dilations": list(move.dilations)}
            return b.emit("Conv", [g, turned], attributes, shape=x.shape)
    if move.points == 1 and move.strides == (1, 1) and move.group == 1 and not any(move.pads):
        # Pointwise: a convolution with the transposed matrix takes the same fast path as the forward one.
        return b.emit("Conv", [g, b.transpose(w, [1, 0, 2, 3])], shape=x.shape)
    attributes = _attributes(move)
    # What the last stride does not reach of the input is padding of the output here.
    rest = []
    for i in (0, 1):
        reach_of = (move.kernel[i] - 1) * move.dilations[i] + 1
        covered = (move.out[i] - 1) * move.strides[i] - move.pads[i] - move.pads[i + 2] + reach_of
        rest.append(move.size[i] - covered)
    if all(0 <= rest[i] < max(move.strides[i], move.dilations[i]) for i in (0, 1)):
        if any(rest):
            attributes["output_padding"] = rest
        return b.emit("ConvTranspose", [g, w], attributes, shape=x.shape)
    covered_shape: Shape = (*x.shape[:2], move.size[0] - rest[0], move.size[1] - rest[1])
    part = b.emit("ConvTranspose", [g, w], attributes, shape=covered_shape)
    return padded(b, part, (0, 0, rest[0], rest[1]), (2, 3))


def _fat_input_gradient(b: GraphBuilder, g: Value, x: Value, w: Value, move: Window) -> Value:
    channels, outputs = x.size(1), w.size(0)
    rows = channels * move.points
    columns = b.emit("Gemm", [b.reshape(w, [outputs, rows]), _pixels_first(b, g)], {"transA": 1})
    if move.pixels_in <= FEW_READ:
        seen = b.reshape(columns, [channels, move.points * move.pixels_out, -1])
        if not move.pointwise:
            seen = b.emit("MatMul", [b.constant(unfolding(move)), seen])
        return b.reshape(b.transpose(seen, [2, 0, 1]), [-1, channels, *move.size], shape=x.shape)
    columns = b.transpose(b.reshape(columns, [rows, move.pixels_out, -1]), [2, 0, 1])
    attributes = _attributes(move)
    del attributes["group"]
    return b.emit("Col2Im", [columns, b.ints(*move.size), b.ints(*move.kernel)], attributes, shape=x.shape)


# ------------------------------------------------------------------ with respect to the weight


def weight_gradient(b: GraphBuilder, x: Value, g: Value, w: Value, move: Window) -> Value:
    """d loss / d w [Co, Ci / group, kh, kw] from the input x [N, Ci, H, W] and g [N, Co, Oh, Ow]."""
    if move.group == 1:
        return b.reshape(product_over_pixels(b, x, g), w.sizes()) if move.pointwise else _dense(b, x, g, w, move)
    if depthwise.is_small(x, w, move):
        return depthwise.weight_gradient(b, x, g, w, move)
    if move.group == x.size(1) == w.size(0):
        if move.size[1] <= depthwise.WIDEST:
            return depthwise.weight_gradient_by_rows(b, x, g, w, move)
        return _depthwise(b, x, g, w, move)
    return _grouped(b, x, g, w, move)


def product_over_pixels(b: GraphBuilder, x: Value, g: Value) -> Value:
    """The sum of g x^T over batch and pixels, [channels of g, channels of x], for tensors of the same height and width.

    With many pixels it is one product a picture, so that only the narrower of both has to be transposed.
    """
    inputs, outputs, pixels = x.size(1), g.size(1), x.size(2) * x.size(3)
    if pixels >= MANY_PIXELS:
        rows_x, rows_g = b.reshape(x, [-1, inputs, pixels]), b.reshape(g, [-1, outputs, pixels])
        if inputs <= outputs:
            return b.reduce_sum(b.emit("MatMul", [rows_g, b.transpose(rows_x, [0, 2, 1])]), [0])
        product = b.emit("MatMul", [rows_x, b.transpose(rows_g, [0, 2, 1])])
        return b.transpose(b.reduce_sum(product, [0]), [1, 0])
    flat = b.reshape(b.transpose(g, [1, 0, 2, 3]), [outputs, -1])
    if inputs <= outputs:
        return b.emit("Gemm", [flat, b.reshape(b.transpose(x, [1, 0, 2, 3]), [inputs, -1])], {"transB": 1})
    return b.emit("Gemm", [flat, b.reshape(b.transpose(x, [0, 2, 3, 1]), [-1, inputs])])


def _dense(b: GraphBuilder, x: Value, g: Value, w: Value, move: Window) -> Value:
    """im2col and one product over the batch. Channels last where channel runs are long, else channels first."""
    inputs, outputs = x.size(1), w.size(0)
    if is_fat(w, move):
        # The forward convolution was written with these columns; the builder shares them.
        product = b.emit("Gemm", [_pixels_first(b, g), fat_columns(b, x, move)], {"transB": 1})
        return b.reshape(product, w.sizes())
    if inputs <= FEW_CHANNELS and move.points >= 25 and move.dilations == (1, 1):
        return _swapped(b, x, g, w, move)
    if inputs < LONG_RUN and move.out[1] >= WIDE_ROW and move.points > 1:
        return _picked(b, x, g, w, move)
    flat = b.reshape(b.transpose(g, [1, 0, 2, 3]), [outputs, -1])
    if inputs >= LONG_RUN:
        # One product a position of the kernel: what they see is read where it lies, not joined first.
        seen = views(b, b.transpose(x, [0, 2, 3, 1]), move, (1, 2))
        products = [
            b.reshape(b.emit("MatMul", [flat, b.reshape(one, [-1, inputs])]), [1, outputs, inputs]) for one in seen
        ]
        return b.reshape(b.transpose(joined(b, products, 0), [1, 2, 0]), w.sizes())
    seen = views(b, b.transpose(x, [0, 2, 3, 1]), move, (1, 2))
    columns = b.reshape(joined(b, seen, 3), [-1, move.points * inputs])
    product = b.emit("MatMul", [flat, columns])
    if move.points == 1:
        return b.reshape(product, w.sizes())
    return b.transpose(b.reshape(product, [outputs, *move.kernel, inputs]), [0, 3, 1, 2])


def _picked(b: GraphBuilder, x: Value, g: Value, w: Value, move: Window) -> Value:
    """im2col by a convolution of every channel with kernels of one 1 each, which knows the padding and uses all threads
    (slices and their concatenation do not); then one product a picture.
    """
    inputs, outputs, pixels = x.size(1), w.size(0), move.pixels_out
    kernels = np.tile(np.eye(move.points, dtype=np.float32).reshape(-1, 1, *move.kernel), (inputs, 1, 1, 1))
    attributes = {**_attributes(move), "group": inputs}
    shape = (x.shape[0], inputs * move.points, *move.out)
    columns = b.reshape(b.emit("Conv", [x, b.constant(kernels)], attributes, shape=shape), [-1, shape[1], pixels])
    product = b.emit("MatMul", [b.reshape(g, [-1, outputs, pixels]), b.transpose(columns, [0, 2, 1])])
    return b.reshape(b.reduce_sum(product, [0]), w.sizes())


def _swapped(b: GraphBuilder, x: Value, g: Value, w: Value, move: Window) -> Value:
    """The input convolved with the gradient as the kernel, pictures as channels: for large kernels on few channels."""
    turned, kernel = b.transpose(x, [1, 0, 2, 3]), b.transpose(g, [1, 0, 2, 3])
    sizes = [move.size[i] + move.pads[i] + move.pads[i + 2] - (move.out[i] - 1) * move.strides[i] for i in (0, 1)]
    # What the last stride does not reach of the padding would only add positions that no kernel has.
    spare = [min(sizes[i] - move.kernel[i], move.pads[i + 2]) for i in (0, 1)]
    pads = [*move.pads[:2], move.pads[2] - spare[0], move.pads[3] - spare[1]]
    shape = (x.size(1), w.size(0), sizes[0] - spare[0], sizes[1] - spare[1])
    attributes = {"pads": pads, "dilations": list(move.strides), "kernel_shape": list(move.out)}
    made = b.emit("Conv", [turned, kernel], attributes, shape=shape)
    if shape[2:] != move.kernel:
        made = b.emit("Slice", [made, b.ints(0, 0), b.ints(*move.kernel), b.ints(2, 3)])
    return b.transpose(made, [1, 0, 2, 3])


def _depthwise(b: GraphBuilder, x: Value, g: Value, w: Value, move: Window) -> Value:
    """For every position of the kernel the sum over batch and pixels of g times what it sees, channels last."""
    seen = views(b, b.transpose(x, [0, 2, 3, 1]), move, (1, 2))
    turned = b.transpose(g, [0, 2, 3, 1])
    sums = [b.emit("Unsqueeze", [b.reduce_sum(b.mul(turned, one), [0, 1, 2]), b.ints(1)]) for one in seen]
    return b.reshape(joined(b, sums, 1), w.sizes())


def _grouped(b: GraphBuilder, x: Value, g: Value, w: Value, move: Window) -> Value:
    """One product a group, all in one batched MatMul."""
    group, inputs, outputs = move.group, x.size(1) // move.group, w.size(0) // move.group
    seen = views(b, b.transpose(x, [1, 0, 2, 3]), move, (2, 3))
    columns = joined(b, [b.reshape(one, [group, inputs, -1]) for one in seen], 1)
    flat = b.reshape(b.transpose(g, [1, 0, 2, 3]), [group, outputs, -1])
    product = b.emit("MatMul", [flat, b.transpose(columns, [0, 2, 1])])
    product = b.transpose(b.reshape(product, [group, outputs, *move.kernel, inputs]), [0, 1, 4, 2, 3])
    return b.reshape(product, w.sizes())


# ------------------------------------------------------------------ the forward convolution of few pixels


def fat_columns(b: GraphBuilder, x: Value, move: Window) -> Value:
    """im2col with rows ordered (channel, kernel position): [Ci * kh * kw, Oh * Ow * N], as a weight lies in memory."""
    channels = x.size(1)
    if move.pointwise:
        return _pixels_first(b, x)
    if move.pixels_in <= FEW_READ:
        maps = b.transpose(b.reshape(x, [-1, channels, move.pixels_in]), [1, 2, 0])
        return b.reshape(b.emit("MatMul", [b.constant(folding(move)), maps]), [channels * move.points, -1])
    seen = [b.reshape(one, [channels, 1, -1]) for one in views(b, b.transpose(x, [1, 2, 3, 0]), move, (1, 2))]
    return b.reshape(joined(b, seen, 1), [channels * move.points, -1])


def _pixels_first(b: GraphBuilder, x: Value) -> Value:
    """[N, C, H, W] as [C, H * W * N]: the order of these columns, in which a map of few pixels is turned quickest."""
    return b.reshape(b.transpose(x, [1, 2, 3, 0]), [x.size(1), -1])


def fat_convolution(b: GraphBuilder, x: Value, w: Value, bias: Value | None, move: Window, shape: Shape) -> Value:
    """A convolution as one product over the whole batch; its columns serve the weight gradient as well."""
    outputs = w.size(0)
    product = b.emit("MatMul", [b.reshape(w, [outputs, -1]), fat_columns(b, x, move)])
    y = b.transpose(b.reshape(product, [outputs, move.pixels_out, -1]), [2, 0, 1])
    y = b.reshape(y, [-1, outputs, *move.out], shape=(shape[0], outputs, *move.out))
    return y if bias is None else b.add(y, b.column(bias, 4))


def fixed_convolution(b: GraphBuilder, x: Value, w: Value, bias: Value | None, move: Window, shape: Shape) -> Value:
    """A convolution of few pixels whose weight is a constant of the graph: one product over the batch for every
    position of the kernel, with the pixels that it sees and not with the padding, which is half of the work on 2x2.

    The runtime cuts the weight and packs its parts once, when it loads the graph.
    """
    inputs, outputs, pixels = x.size(1), w.size(0), move.pixels_out
    meets = places(move).reshape(move.points, move.pixels_in, pixels)
    position, source, target = np.nonzero(meets)
    counts = np.bincount(position, minlength=move.points)
    turned = b.transpose(b.reshape(x, [-1, inputs, move.pixels_in]), [0, 2, 1])
    seen = b.emit("MatMul", [b.constant(np.eye(move.pixels_in, dtype=np.float32)[source]), turned])
    parts = b.emit_many("Split", [seen, b.ints(*counts[counts > 0])], {"axis": 1}, count=int((counts > 0).sum()))
    products = []
    for part, point in zip(parts, np.flatnonzero(counts).tolist(), strict=True):
        row, column = divmod(point, move.kernel[1])
        # Two copies of the weight while the runtime cuts it; with Slice, Reshape and Transpose there would be three.
        cut = w
        for axis, place in ((3, column), (2, row)):
            cut = b.emit("Gather", [cut, b.constant(np.array(place, np.int64))], {"axis": axis})
        product = b.emit("Gemm", [b.reshape(part, [-1, inputs]), cut], {"transB": 1})
        products.append(b.reshape(product, [-1, counts[point], outputs]))
    summed = b.emit("MatMul", [b.constant(np.eye(pixels, dtype=np.float32)[:, target]), joined(b, products, 1)])
    y = b.reshape(b.transpose(summed, [0, 2, 1]), [-1, outputs, *move.out], shape=(shape[0], outputs, *move.out))
    return y if bias is None else b.add(y, b.column(bias, 4))
