"""Whether the package's model gives what the foreign one gives, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudd.importing.brought import Answers, Ask
from cloudd.importing.errors import ImportRefused
from cloudd.importing.lineage import Sameness
from edgekit.runtimes import Session, TensorInfo
from edgekit.vision.classification import softmax

LIMIT = 1e-3
"""Largest difference, as a share of the largest value of the output: what another order of sums may make in float32."""
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


def compare(ask: Ask, session: Session, tensors: Sequence[NDArray[Any]], noises: int, cut: int | None) -> Sameness:
    """Show that `session` answers as `ask` does. `cut`: place of the output whose Softmax was taken off.

    Outputs may stand in another order: each must have its like. Raises ImportRefused with the difference, ModelError.
    """
    wanted, given = ask(tensors), answers_of(session, tensors)
    worst = 0.0
    for number, (theirs, ours) in enumerate(zip(wanted, given, strict=True)):
        if cut is not None:
            ours = [softmax(one) if place == cut else one for place, one in enumerate(ours)]
        if len(theirs) != len(ours):
            raise ImportRefused(f"the file gives {len(theirs)} outputs and what was made of it gives {len(ours)}")
        left = list(theirs)
        for one in ours:
            differences = [difference(one, other) for other in left]
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


def difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Largest difference as a share of the largest value; infinity for other sizes or values that are no numbers."""
    if one.size != other.size or not one.size:
        return np.inf
    left, right = (np.asarray(x, np.float64).reshape(-1) for x in (one, other))
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return np.inf
    scale = float(np.abs(right).max())
    return float(np.abs(left - right).max()) / scale if scale else float(np.abs(left).max())
