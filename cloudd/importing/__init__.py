"""Foreign models become checked packages: ONNX, TFLite, and what PyTorch and TensorFlow of the user's own can read."""

from __future__ import annotations

from cloudd.importing.description import CONVENTIONS, read_wishes
from cloudd.importing.errors import ImportRefused
from cloudd.importing.learnable import RUNGS, Learning
from cloudd.importing.lineage import Foreign, Lineage, Sameness, read_lineage
from cloudd.importing.step import Outcome, Request, import_model

__all__ = [
    "CONVENTIONS",
    "RUNGS",
    "Foreign",
    "ImportRefused",
    "Learning",
    "Lineage",
    "Outcome",
    "Request",
    "Sameness",
    "import_model",
    "read_lineage",
    "read_wishes",
]
