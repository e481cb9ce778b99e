"""What a maker of variants is: one function of one shape.

It reads what `Materials` offers, writes one self-contained model file and says how it made it. It decides nothing about
the variant's worth: that is the gate's business, which is the same for every maker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloudd.derived import Progress
from edgekit.packages import InputSpec


@dataclass(frozen=True)
class Training:
    """What a smaller network learns from.

    `source`: the float model as it lies in the package, with its batch normalisation: its un-folded checkpoint if it
    has one. `output`: which of its outputs
    answers. `read`: one of the `count` encoded pictures by its number; none of them judges. `seconds`: of computing
    that are planned for one network. `progress` hears how far it is.
    """

    source: Path
    output: str
    spec: InputSpec
    count: int
    read: Callable[[int], bytes]
    seconds: float
    progress: Progress


@dataclass(frozen=True)
class Materials:
    """What a maker works from.

    `model`: the float model after `quantise.prepare`, in a folder in which makers may leave what they share. `input`:
    its only input. `pictures`: starts over the calibration pictures at every call; each is a batch of one, prepared as
    the package says. `training`: None where nothing can be trained.
    """

    model: Path
    input: str
    pictures: Callable[[], Iterator[NDArray[np.float32]]]
    training: Training | None = None


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a variant was made, for its lineage."""

    method: str
    kept_in_float: list[str] = []  # nodes that were left as they are
    network: str = ""  # "" the model's own; variants of another network answer alike, but not to the last digits


class Maker(Protocol):
    def __call__(self, materials: Materials, target: Path, *, careful: bool) -> Recipe:
        """Write the variant to `target`. `careful` asks for accuracy at some cost of speed, after a first refusal.

        The same materials give the same bytes. Raises CompressError if the model cannot be made into this kind.
        """
        ...
