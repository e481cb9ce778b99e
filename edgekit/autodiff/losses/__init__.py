"""Losses as parts of an ONNX graph, each with its gradient in closed form; each docstring says what is fed."""

from __future__ import annotations

from edgekit.autodiff.losses.binary import BinaryCrossEntropy
from edgekit.autodiff.losses.boxes import AbsoluteError, GeneralisedIou
from edgekit.autodiff.losses.centre_point import CentrePointLoss
from edgekit.autodiff.losses.classes import CrossEntropy, Distillation
from edgekit.autodiff.losses.proximal import Proximal

__all__ = [
    "AbsoluteError",
    "BinaryCrossEntropy",
    "CentrePointLoss",
    "CrossEntropy",
    "Distillation",
    "GeneralisedIou",
    "Proximal",
]
