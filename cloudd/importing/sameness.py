"""Whether the package's model gives what the foreign one gives, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudd.importing.brought import Answers, Ask
from cloudd.importing.errors import ImportRefused
from cloudd.importing.lineage import Sameness
from cloudd.importing.one_value import Ending
from edgekit.runtimes import Session, TensorInfo
from edgekit.training.folded import LIMIT, difference
from edgekit.vision.classification import softmax

NOISE = 4
"""Tensors of noise that are compared beside the pictures: a fault that pictures do not show may show on them."""


def noise(tensor: TensorInfo, like: Sequence[NDArray[Any]] = (), count: int = NOISE) -> list[NDArray[Any]]:
    """Tensors for an input whose sizes are known but for the batch: uniform between the extremes of `like`."""
    shape = (1, *(size or 1 for size in tensor.shape[1:]))
    rng = np.random.default_rng(0)
    if tensor.dtype in ("uint8", "int8"):
        limits = np.iinfo(tensor.dtype)
        return [rng.integers(limits.min, limits.max + 1, shape, tensor.dtype) for _ in range(count)]
    low, high = (min(x.min() for x in like), max(x.max() for x in like)) if like else (0.0, 1.0)
    return [rng.uniform(low, high, shape).astype(np.float32) for _ in range(count)]


def answers_of(session: Session, tensors: Sequence[NDArray[Any]]) -> Answers:
    """What a session gives for each tensor. Raises ModelError."""
    name = session.inputs[0].name
    return [session.run({name: tensor}) for tensor in tensors]


@dataclass(frozen=True)
class Cut:
    """What was taken off one output of ours, so that both sides can be read alike."""

    place: int
    ending: Ending

    def ours(self, array: NDArray[Any]) -> NDArray[Any]:
        """What was cut off is computed here."""
        pair = np.asarray(array, np.float64).reshape(-1, 2) if self.ending in ("sigmoid", "value") else array
        return pair[:, 1] - pair[:, 0] if self.ending == "value" else softmax(pair)

    def theirs(self, array: NDArray[Any]) -> NDArray[Any]:
        """Of the probability of one label, those of both: a small one alone has no digits to compare."""
        if self.ending != "sigmoid" or array.size != 1:
            return array
        value = np.asarray(array, np.float64).reshape(-1)
        return np.stack([1 - value, value], axis=1)


def compare(ask: Ask, session: Session, tensors: Sequence[NDArray[Any]], noises: int, cut: Cut | None) -> Sameness:
    """Show that `session` answers as `ask` does. `cut`: what was taken off an output.

    Outputs may stand in another order: each must have its like. Raises ImportRefused with the difference, ModelError.
    """
    wanted, given = ask(tensors), answers_of(session, tensors)
    worst = 0.0
    for number, (theirs, ours) in enumerate(zip(wanted, given, strict=True)):
        read = [array if cut is None or place != cut.place else cut.ours(array) for place, array in enumerate(ours)]
        if len(theirs) != len(ours):
            raise ImportRefused(f"the file gives {len(theirs)} outputs and what was made of it gives {len(ours)}")
        left = list(theirs)
        for place, one in enumerate(read):
            mine = cut is not None and place == cut.place
            differences = [difference(one, cut.theirs(other) if mine and cut else other) for other in left]
            best = int(np.argmin(differences))
            worst = max(worst, differences[best])
            if not differences[best] <= LIMIT:
                what = "a picture" if number < len(tensors) - noises else "noise"
                raise ImportRefused(
                    f"what was made of the file does not answer as the file does: on {what} an output differs by "
                    f"{differences[best]:.2g} of its largest value, {LIMIT:g} is allowed. A model that was not in "
                    "evaluation mode (model.eval()) when it was exported does that, and one that draws random numbers"
                )
            left.pop(best)
    return Sameness(how="outputs", pictures=len(tensors) - noises, noise=noises, largest=float(f"{worst:.2g}"))
