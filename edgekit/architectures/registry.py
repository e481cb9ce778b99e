"""Builds a network by its name, and says what a package must tell about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from edgekit.architectures.classifiers import mobilenet_v2, resnet18, tiny_cnn
from edgekit.architectures.detector import STRIDE, centre_point
from edgekit.architectures.network import HEAT, OFFSET, SIZE, Network, Spec
from edgekit.architectures.writer import Writer
from edgekit.packages import DetectionSpec, InputSpec

ARCHITECTURES: dict[str, Callable[[Writer, Spec], tuple[str, ...]]] = {
    "tiny_cnn": tiny_cnn,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
    "centre_point": centre_point,
}
_MIDDLE = 127.5


def build(spec: Spec) -> Network:
    """The network for `spec` with the initial weights of its seed.

    Raises ArchitectureError for a size that the architecture cannot have, or where the package onnx is missing.
    """
    rng = np.random.default_rng(spec.seed)
    writer = Writer(spec.input_height, spec.input_width, spec.channels, rng)
    outputs = ARCHITECTURES[spec.architecture](writer, spec)
    model, blocks = writer.finish(spec.architecture, outputs)
    return Network(spec, model, blocks)


def input_spec(spec: Spec, resize: Literal["stretch", "crop", "letterbox"] = "stretch") -> InputSpec:
    """`[input]` of a package with this network: pixels from -1 to 1."""
    return InputSpec(
        width=spec.input_width,
        height=spec.input_height,
        colour="grey" if spec.channels == 1 else "rgb",
        resize=resize,
        mean=[_MIDDLE],
        scale=[1 / _MIDDLE],
    )


def detection_spec() -> DetectionSpec:
    """`[detection]` of a package with the network `centre_point`."""
    return DetectionSpec(head="centernet", outputs=[HEAT, SIZE, OFFSET], strides=[STRIDE])
