"""How much each channel matters, and which ones go.

The importance of a channel is its share of what the layers behind it receive: a layer that reads x_u with the weights
W_u gets E[x_u^2] |W_u|^2 from channel u, divided by the sum over its channels, so that every reader counts alike; a
channel's importance is the sum over its readers. It looks at activation and outgoing weights together and does not
change when one is scaled up and the other down, as the norm of a filter or the scale of a batch normalisation does
(Li et al. 2017, arXiv 1608.08710; Liu et al. 2017, arXiv 1708.06519). It is the first-layer term of the reconstruction
error that ThiNet minimises (Luo et al. 2017, arXiv 1707.06342).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from edgekit.pruning.channels import Channels
from edgekit.pruning.errors import PruningError

MULTIPLE = 16
"""Widths that processors like: sixteen floats are one register of AVX-512, and one block of channels in onnxruntime.
With it a MobileNetV2 at three quarters of its width is 1.37 times as fast as before, with multiples of 8 1.26 times."""
MULTIPLE_NARROW = 8
"""Below WIDE channels, where blocks of sixteen would leave no choice."""
WIDE = 64


def importance(
    model: onnx.ModelProto, channels: Channels, squares: Mapping[str, NDArray[np.float64]]
) -> dict[int, float]:
    """By unit, 0 or more. `squares`: mean square of each channel (axis 1) of every tensor of `channels.measured`.

    Raises PruningError for a tensor that is missing there or whose values are not finite.
    """
    weights = {one.name: one for one in model.graph.initializer}
    found = dict.fromkeys((unit for group in channels.groups for unit in group.units), 0.0)
    for layer in channels.layers:
        units = channels.slots[layer.weight, layer.axis]
        if (units < 0).all():
            continue
        energy = squares.get(layer.reads)
        if energy is None or energy.shape != units.shape or not np.isfinite(energy).all():
            raise PruningError(f'the activations "{layer.reads}" were not measured, or are not finite')
        weight = onnx.numpy_helper.to_array(weights[layer.weight]).astype(np.float64)
        others = tuple(axis for axis in range(weight.ndim) if axis != layer.axis)
        received = energy * np.square(weight).sum(axis=others)
        total = float(received.sum())
        for unit, part in zip(units.tolist(), received.tolist(), strict=True):
            if unit >= 0 and total:
                found[unit] += part / total
    return found


def least(channels: Channels, scores: Mapping[int, float], keep: float) -> set[int]:
    """The units that go, so that about the share `keep` (0..1) of every width is left: those of the lowest score.

    Widths are rounded to a multiple of 16 (of 8 below 64), never below nine tenths of what was asked for. Raises
    PruningError where nothing would go.
    """
    gone: set[int] = set()
    for group in channels.groups:
        left = width(len(group.units), keep)
        ranked = sorted(group.units, key=lambda unit: (scores[unit], unit))
        gone.update(ranked[: len(group.units) - left])
    if not gone:
        widths = ", ".join(str(len(group.units)) for group in channels.groups) or "none"
        raise PruningError(f"there are no channels to take away: the widths that may change are {widths}")
    return gone


def width(channels: int, keep: float) -> int:
    """How many of `channels` are left."""
    step = MULTIPLE if channels >= WIDE else MULTIPLE_NARROW
    wanted = channels * keep
    rounded = max(step, int(wanted + step / 2) // step * step)
    return min(channels, rounded if rounded >= 0.9 * wanted else rounded + step)
