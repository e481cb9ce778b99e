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


@dataclass(frozen=True)
class Materials:
    """What a maker works from.

    `model`: the float model after `quantise.prepare`. `input`: its only input. `pictures`: starts over the calibration
    pictures at every call; each is a batch of one, prepared as the package says.
    """

    model: Path
    input: str
    pictures: Callable[[], Iterator[NDArray[np.float32]]]


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a variant was made, for its lineage."""

    method: str
    kept_in_float: list[str] = []  # nodes that were left as they are


class Maker(Protocol):
    def __call__(self, materials: Materials, target: Path, *, careful: bool) -> Recipe:
        """Write the variant to `target`. `careful` asks for accuracy at some cost of speed, after a first refusal.

        The same materials give the same bytes. Raises CompressError if the model cannot be made into this kind.
        """
        ...
