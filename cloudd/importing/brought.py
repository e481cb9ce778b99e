"""What every road into a package ends in: a model file in its folder, and what answers as the foreign file does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from cloudd.importing.one_value import Ending
from cloudd.importing.onnx_file import OnnxTaken
from edgekit.packages.manifest import Precision, Runtime

Answers = list[list[NDArray[Any]]]
"""For each tensor that was asked, the outputs."""
Ask = Callable[[Sequence[NDArray[Any]]], Answers]


@dataclass(frozen=True)
class Brought:
    """A model file in the package's folder."""

    file: str
    runtime: Runtime
    precision: Precision
    road: str  # how it became this file
    ask: Ask | None  # the foreign program itself; None: the file is the foreign one, byte for byte
    files: tuple[str, ...] = ()  # beside it
    labels: tuple[str, ...] = ()  # that the foreign file names
    tools: dict[str, str] = field(default_factory=dict)
    onnx: OnnxTaken | None = None

    @property
    def ending(self) -> Ending:
        """What was taken off the output that answers."""
        return "" if self.onnx is None else self.onnx.ending
