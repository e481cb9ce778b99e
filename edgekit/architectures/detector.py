"""A centre-point detector: Zhou et al. 2019 (arXiv 1904.07850) on a narrow backbone of inverted residuals.

The outputs are what `edgekit.vision.detection.heads` reads as `centernet`: a heat map of logits, and size and offset in
cells of 4 pixels.
"""

from __future__ import annotations

import math

from edgekit.architectures.classifiers import inverted_residual, scaled
from edgekit.architectures.network import HEAT, INPUT, OFFSET, SIZE, ArchitectureError, Spec
from edgekit.architectures.writer import OUTPUT_SPREAD, Writer

STRIDE = 4
"""Pixels of the input for each cell."""
_COARSEST = 16
_STEM = 16
_STAGES = ((24, 2), (32, 3), (64, 3))
"""Channels and repeats at 4, 8 and 16 pixels a cell."""
_EXPANSION = 4
_NECK = 48
_PRIOR = 0.01
"""What the heat map says at first: else the many empty cells would swamp the first steps (Lin et al. 2017, 4.1)."""


def centre_point(net: Writer, spec: Spec) -> tuple[str, ...]:
    """Heat map, size and offset at a quarter of the input's resolution: 0.2 M parameters at width 1."""
    if spec.input_width % _COARSEST or spec.input_height % _COARSEST:
        raise ArchitectureError(
            f"centre_point needs an input whose sides are multiples of {_COARSEST} pixels, "
            f"not {spec.input_width}x{spec.input_height}"
        )
    net.block("stem")
    x = net.conv(INPUT, "conv", scaled(_STEM, spec.width), 3, 2)
    x = net.relu6(net.norm(x, "norm"), "relu6")
    levels = []
    for stage, (channels, repeats) in enumerate(_STAGES):
        for number in range(repeats):
            net.block(f"stage{stage + 1}.{number + 1}")
            x = inverted_residual(net, x, scaled(channels, spec.width), _EXPANSION, 1 if number else 2)
        levels.append(x)
    neck = scaled(_NECK, spec.width)
    net.block("neck")
    x = net.conv(levels[-1], "lateral3", neck, 1, bias=0.0)
    for level in (1, 0):
        side = net.conv(levels[level], f"lateral{level + 1}", neck, 1, bias=0.0)
        x = net.add(side, net.double(x, f"double{level + 1}"), f"add{level + 1}")
    x = net.relu(net.norm(net.conv(x, "conv", neck), "norm"), "relu")
    net.block("head")
    outputs = ((HEAT, spec.classes, -math.log((1 - _PRIOR) / _PRIOR)), (SIZE, 2, 0.0), (OFFSET, 2, 0.0))
    for name, channels, bias in outputs:
        y = net.relu(net.conv(x, f"{name}_conv", neck, bias=0.0), f"{name}_relu")
        net.named(net.conv(y, f"{name}_out", channels, 1, bias=bias, spread=OUTPUT_SPREAD), name)
    return HEAT, SIZE, OFFSET
