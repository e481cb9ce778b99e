"""What all heads share: what they are told and give, finding their tensors, reading scores.

Every shape is checked twice: what the session says of its tensors when the model is loaded, and what really came out
of each run, as some tensors have free sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes.base import ModelError, TensorInfo, dequantise, shape_text

Floats = NDArray[np.float32]
Shape = tuple[int | None, ...]
"""None: any size."""
_SLACK = 0.01  # how far outside 0..1 a probability may lie: rounding of half-precision and 8-bit outputs
_MAX_POWER = 20.0  # e^20 times any size exceeds every picture; above it exp would run into infinity


@dataclass(frozen=True)
class Candidates:
    """Boxes of one run before suppression, in any order, all with a score of at least the floor."""

    boxes: Floats  # [n, 4]: left, top, right, bottom in pixels of the model's input; may reach out of it
    scores: Floats  # [n], 0..1
    labels: NDArray[np.int32]  # [n]
    seconds: Floats  # [n]: probability of the runner-up among the other labels, 0 where the model does not tell


@dataclass(frozen=True)
class HeadConfig:
    """What a head is made from. `scores` and `unit` None: as the head's usual exports."""

    width: int  # of the model's input, pixels
    height: int
    classes: int
    floor: float = 0.05
    outputs: tuple[str, ...] = ()  # names of the tensors in the head's order; empty: told apart by shape
    scores: Literal["probabilities", "logits"] | None = None
    unit: Literal["pixel", "fraction"] | None = None
    strides: tuple[int, ...] = ()
    priors: Floats | None = None  # [N, 4]: centre x, y, width, height as fractions of the input
    variances: tuple[float, ...] = ()
    max_candidates: int = 1000


class Head(Protocol):
    """Turns the outputs of one kind of model into candidates."""

    overlap: float
    """IoU for suppression where the package names none; 1.0 where the model needs no suppression."""

    def decode(self, outputs: Sequence[NDArray[Any]]) -> Candidates:
        """Candidates of one run; `outputs` as the session gives them. Raises ModelError for values that cannot be."""
        ...


@dataclass(frozen=True)
class Slot:
    """One tensor that a head reads: what it is, and the shapes that it may have."""

    what: str
    shapes: tuple[Shape, ...]

    def fits(self, shape: Sequence[int | None]) -> bool:
        return any(agree(shape, wanted) for wanted in self.shapes)

    @property
    def wanted(self) -> str:
        return f"{self.what} as {' or '.join(dict.fromkeys(shape_text(shape) for shape in self.shapes))}"


def agree(shape: Sequence[int | None], wanted: Sequence[int | None]) -> bool:
    """Whether two shapes can be the same; None agrees with every size."""
    return len(shape) == len(wanted) and all(
        one is None or other is None or one == other for one, other in zip(shape, wanted, strict=True)
    )


def find_tensors(
    head: str, slots: Sequence[Slot], names: Sequence[str], tensors: Sequence[TensorInfo]
) -> list[tuple[int, TensorInfo]]:
    """Position and description of the tensor for each slot: by `names`, else the only one of its shape.

    Raises ModelError that says what the head wants and what the model has.
    """
    have = ", ".join(f'"{tensor.name}" {shape_text(tensor.shape)}' for tensor in tensors) or "no outputs"
    want = ", ".join(slot.wanted for slot in slots)
    if names:
        if len(names) != len(slots):
            raise ModelError(f'detection.outputs names {len(names)} tensors; the head "{head}" reads {want}')
        places = {tensor.name: place for place, tensor in enumerate(tensors)}
        for name, slot in zip(names, slots, strict=True):
            if name not in places:
                raise ModelError(f'the model has no output "{name}"; it has {have}')
            if not slot.fits(tensors[places[name]].shape):
                found = shape_text(tensors[places[name]].shape)
                raise ModelError(f'the output "{name}" is {found}; the head "{head}" wants {slot.wanted}')
        return [(places[name], tensors[places[name]]) for name in names]
    found_places = []
    for slot in slots:
        fitting = [place for place, tensor in enumerate(tensors) if slot.fits(tensor.shape)]
        if not fitting:
            raise ModelError(f'the head "{head}" wants {want}; the model has {have}')
        found_places.append(fitting)
    if any(len(fitting) > 1 for fitting in found_places) or len({fitting[0] for fitting in found_places}) < len(slots):
        raise ModelError(
            f'the head "{head}" wants {want}; the model has {have}, where shapes alone do not tell which is which: '
            "name them in this order in detection.outputs"
        )
    return [(fitting[0], tensors[fitting[0]]) for fitting in found_places]


def values_of(array: NDArray[Any], tensor: TensorInfo, slot: Slot) -> Floats:
    """Real values of one output, checked for shape and for NaN and infinity. Raises ModelError."""
    if not slot.fits(array.shape):
        raise ModelError(f'the model gave "{tensor.name}" as {shape_text(array.shape)}, not {slot.wanted}')
    values = dequantise(array, tensor)
    if not np.isfinite(values).all():
        raise ModelError("the model gave values that are not numbers (NaN or infinity)")
    return values


def probabilities(values: Floats, kind: str, activation: Callable[[Floats], Floats]) -> Floats:
    """`values` as they are, clipped to 0..1, or after `activation` for logits. Raises ModelError outside 0..1."""
    if kind == "logits":
        return activation(values)
    if values.size and (values.min() < -_SLACK or values.max() > 1 + _SLACK):
        raise ModelError(
            f"the model's scores reach from {values.min():.3g} to {values.max():.3g}; "
            'its package should say detection.scores = "logits"'
        )
    return np.asarray(np.clip(values, 0, 1), np.float32)


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + e^-x), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), np.float32)


def exponential(values: Floats) -> Floats:
    """e^x, bounded above by far more than any picture's side, so that a hostile model gives no infinity."""
    return np.asarray(np.exp(np.minimum(values, _MAX_POWER)), np.float32)


def best_of(scores: Floats) -> tuple[Floats, NDArray[np.int32], Floats]:
    """Of class scores [n, C]: the best [n], its class [n], and the second best [n] (0 if there is one class)."""
    rows = np.arange(len(scores))
    labels = scores.argmax(axis=1)
    best = scores[rows, labels]
    if scores.shape[1] == 1:
        return best, labels.astype(np.int32), np.zeros_like(best)
    others = scores.copy()
    others[rows, labels] = -np.inf
    return best, labels.astype(np.int32), others.max(axis=1)


def strongest(scores: Floats, floor: float, limit: int) -> NDArray[np.intp]:
    """Indices of the scores [n] of at least `floor`, but of the `limit` highest only."""
    found = np.flatnonzero(scores >= floor)
    if len(found) <= limit:
        return found
    return found[np.argpartition(-scores[found], limit - 1)[:limit]]


def corners(centres: Floats, sizes: Floats) -> Floats:
    """Boxes [n, 4] of centres [n, 2] and sizes [n, 2]."""
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)


def scale_of(config: HeadConfig, unit: str) -> Floats:
    """What turns a box in `unit` into pixels of the input: [4]."""
    size = (config.width, config.height) if unit == "fraction" else (1, 1)
    return np.array([*size, *size], np.float32)
