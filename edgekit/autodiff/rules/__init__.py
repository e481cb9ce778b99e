"""Gradient rules of the ONNX operators, one file a family; importing the package fills the table in `registry`."""

from edgekit.autodiff.rules import activation, arithmetic, convolution, linear, normalisation, pooling, reduction, shape
from edgekit.autodiff.rules.registry import CONSTANT, RULES, RULES_OF_MANY, supported

__all__ = [
    "CONSTANT",
    "RULES",
    "RULES_OF_MANY",
    "activation",
    "arithmetic",
    "convolution",
    "linear",
    "normalisation",
    "pooling",
    "reduction",
    "shape",
    "supported",
]
