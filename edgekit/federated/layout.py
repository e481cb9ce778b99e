"""Named tensors as one flat vector in an order that every device derives alike, and which tensors never leave.

Tensors stand in the order of their names. Those that match a personal pattern are in no vector: BatchNormalization's
for FedBN (Li et al. 2021, arXiv 2102.07623), a device's own head for personal heads (Collins et al. 2021, arXiv
2102.07078). They may differ from device to device in shape as well; the digest speaks of the shared ones only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.federated.errors import FederatedError
from edgekit.secagg.messages import MAX_WORDS

MAX_TENSORS = 10_000
_MAX_NAME = 256

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in the vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    size: int


class Layout:
    """The shared tensors of a model.

    `shapes`: of all tensors of the model. `personal`: patterns (`*`, `?`, `[..]`) of names that stay on the device.
    Raises FederatedError for a pattern that matches nothing (it would hide a misspelling), for a model of which nothing
    is shared, and for more than secagg can sum.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], personal: Collection[str] = ()) -> None:
        if len(shapes) > MAX_TENSORS:
            raise FederatedError(f"a model of {len(shapes)} tensors; {MAX_TENSORS} can be federated")
        idle = [pattern for pattern in personal if not any(fnmatchcase(name, pattern) for name in shapes)]
        if idle:
            raise FederatedError(f"no tensor has a name like {idle[0]!r}, which is to stay personal")
        self.personal = tuple(
            sorted(name for name in shapes if any(fnmatchcase(name, pattern) for pattern in personal))
        )
        """Names of the tensors that stay on the device."""
        slots, start = [], 0
        for name in sorted(set(shapes) - set(self.personal)):
            shape = tuple(int(side) for side in shapes[name])
            if not name or len(name) > _MAX_NAME or any(side < 1 for side in shape):
                raise FederatedError(f"the tensor {name[:_MAX_NAME]!r} of shape {shape} cannot be federated")
            slots.append(Slot(name, shape, start, math.prod(shape)))
            start += slots[-1].size
        if not 1 <= start <= MAX_WORDS:
            raise FederatedError(f"{start} shared values; a sum has 1 to {MAX_WORDS}")
        self.slots = tuple(slots)
        self.size = start
        """Values in the vector."""
        described = msgspec.msgpack.encode([[slot.name, slot.shape] for slot in slots])
        self.digest = hashlib.sha256(b"edged/federated/1/layout\0" + described).digest()
        """SHA-256 of names and shapes: equal on two devices if, and only if, their vectors mean the same."""

    def flatten(self, tensors: Mapping[str, NDArray[Any]]) -> Vector:
        """The shared ones of `tensors` as a new vector [size]; others are ignored.

        Raises FederatedError for a missing tensor, another shape, a dtype that is not float32, NaN or infinity.
        """
        vector = np.empty(self.size, np.float32)
        for slot in self.slots:
            tensor = tensors.get(slot.name)
            if tensor is None:
                raise FederatedError(f"the tensor {slot.name!r} is missing")
            if tensor.shape != slot.shape or tensor.dtype != np.float32:
                raise FederatedError(
                    f"the tensor {slot.name!r} is {tensor.dtype} {tensor.shape}; float32 {slot.shape} is federated, "
                    "anything else must stay personal"
                )
            vector[slot.start : slot.start + slot.size] = tensor.ravel()
        return finite(vector, self.size)

    def unflatten(self, vector: Vector) -> dict[str, Vector]:
        """The other way round; the tensors own their memory. Raises FederatedError for another shape or dtype."""
        finite(vector, self.size)
        return {
            slot.name: vector[slot.start : slot.start + slot.size].reshape(slot.shape).copy() for slot in self.slots
        }


def finite(vector: Vector, size: int) -> Vector:
    """The vector itself. Raises FederatedError if it is not float32 [size] of numbers."""
    if vector.dtype != np.float32 or vector.shape != (size,):
        raise FederatedError(f"a vector of float32 ({size},) is needed, not {vector.dtype} {vector.shape}")
    if not np.isfinite(vector).all():
        raise FederatedError("a value is NaN or infinite: the local training has diverged")
    return vector
