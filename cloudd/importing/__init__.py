"""Foreign models become checked packages: ONNX, TFLite, and what PyTorch and TensorFlow of the user's own can read."""

from __future__ import annotations

from cloudd.importing.description import CONVENTIONS, read_wishes
from cloudd.importing.errors import ImportRefused
from cloudd.importing.learnable import RUNGS, Learning
from cloudd.importing.lineage import Checkpoint, Foreign, Likeness, Lineage, Sameness, read_lineage
from cloudd.importing.request import Outcome, Request
from cloudd.importing.step import import_model

__all__ = [
    "CONVENTIONS",
    "RUNGS",
    "Checkpoint",
    "Foreign",
    "ImportRefused",
    "Learning",
    "Likeness",
    "Lineage",
    "Outcome",
    "Request",
    "Sameness",
    "import_model",
    "read_lineage",
    "read_wishes",
]
