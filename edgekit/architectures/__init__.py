"""Built-in networks, written as ONNX with a seeded initialisation, so that a first model needs no other framework."""

from __future__ import annotations

from edgekit.architectures.network import ArchitectureError, Block, Network, Spec
from edgekit.architectures.registry import ARCHITECTURES, build, detection_spec, input_spec

__all__ = [
    "ARCHITECTURES",
    "ArchitectureError",
    "Block",
    "Network",
    "Spec",
    "build",
    "detection_spec",
    "input_spec",
]
