"""The published sum, the numbers of the round that made it, and whole numbers that pass through it without loss.

`edgekit.secagg.fixedpoint` rounds weight * value * unit / limit to a whole number. A strategy that learns from values
takes what precision that gives. One that needs its own whole numbers (counts, noise on a grid) sends k * 2^-32 in a
round with limit = unit * 2^-32: then the code *is* k, exactly, on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edgekit.federated.errors import FederatedError
from edgekit.federated.layout import Vector, finite
from edgekit.secagg import fixedpoint
from edgekit.secagg.errors import Refusal
from edgekit.secagg.masks import Words
from edgekit.secagg.messages import MAX_COHORT, RoundConfig

_STEP = 2.0**-32
_BLOCK = 1 << 16  # values that stay in the processor's cache
_SLACK = 1 + 1e-6  # a norm computed in another order must not exceed the round's clip by its rounding

Codes = NDArray[np.signedinteger[Any]]


class Room(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides how large a whole number one device can send."""

    invited: Annotated[int, Meta(ge=3, le=MAX_COHORT)]
    """Devices of a round at most, as in RoundConfig."""
    bits: Literal[32, 16] = 32
    """Of a word."""

    @property
    def most(self) -> int:
        """The largest whole number of one device, with weight 1. Raises FederatedError if there is no room for any."""
        config = RoundConfig(
            session=bytes(16),
            round=0,
            invited=self.invited,
            colluders=0,
            parameters=1,
            clip=1.0,
            limit=1.0,
            max_weight=1,
            bits=self.bits,
            prg="aes-256-ctr",
            model=bytes(32),
            rosters=bytes(32),
        )
        try:
            return fixedpoint.Encoding(config).unit
        except Refusal as refusal:
            raise FederatedError(str(refusal)) from None


class RoundNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a RoundConfig that a strategy decides: what a device compares cloudd's proposal with."""

    parameters: int
    clip: float
    limit: float
    max_weight: int
    room: Room | None = None
    """Where the values are whole numbers: devices and word size must be these."""

    def put_into(self, config: RoundConfig) -> RoundConfig:
        """The configuration with these numbers."""
        return msgspec.structs.replace(config, **self._fields())

    def check(self, config: RoundConfig) -> None:
        """Raises FederatedError if a proposed round has other numbers."""
        for name, wanted in self._fields().items():
            found = getattr(config, name)
            if wanted != found:
                raise FederatedError(f"the round has {name} {found}; its strategy needs {wanted}")

    def _fields(self) -> dict[str, Any]:
        names = ("parameters", "clip", "limit", "max_weight")
        return {name: getattr(self, name) for name in names} | (msgspec.structs.asdict(self.room) if self.room else {})


class Aggregate(Protocol):
    """What a strategy applies."""

    @property
    def mean(self) -> Vector:
        """Weighted mean of the contributed vectors, float32 (parameters,)."""

    @property
    def survivors(self) -> int:
        """Devices that it is of."""


@dataclass(frozen=True, eq=False)
class Mean:
    """An aggregate that something was done to."""

    mean: Vector
    survivors: int


@dataclass(frozen=True, eq=False)
class Sum:
    """A published sum."""

    codes: Codes  # (parameters,), int32 or int16
    step: float  # value of one code
    weight: int  # sum of the devices' weights
    survivors: int

    @classmethod
    def of_words(cls, words: Words, survivors: int, config: RoundConfig) -> Sum:
        """Of the words that cloudd published (they are not copied). Raises FederatedError if they can be no such sum.

        `survivors` is what the certificate says, not what cloudd says.
        """
        try:
            encoding = fixedpoint.Encoding(config)
            weight = fixedpoint.check_sum(words, survivors, encoding)
        except Refusal as refusal:
            raise FederatedError(str(refusal)) from None
        codes = words[: config.parameters].view(f"<i{config.bits // 8}")
        return cls(codes, config.limit / encoding.unit, weight, survivors)

    @property
    def mean(self) -> Vector:
        """See Aggregate."""
        mean: Vector = self.codes.astype(np.float32)
        mean *= np.float32(self.step / self.weight)
        return mean


def clipped(vector: Vector, clip: float) -> Vector:
    """The vector, scaled down to a Euclidean norm of `clip` if it is longer. Raises FederatedError if not finite."""
    finite(vector, vector.size)
    total = 0.0
    for start in range(0, vector.size, _BLOCK):
        # No scalar product: of so many values it is worked out by several threads, which wait for each other.
        total += float(np.square(vector[start : start + _BLOCK], dtype=np.float64).sum())
    norm = math.sqrt(total)
    return vector if norm <= clip else vector * np.float32(clip / norm)


def value_numbers(parameters: int, clip: float, limit: float, max_weight: int) -> RoundNumbers:
    """For vectors of a norm up to `clip` whose values up to `limit` are kept."""
    return RoundNumbers(parameters=parameters, clip=clip * _SLACK, limit=limit, max_weight=max_weight)


def whole_numbers(parameters: int, room: Room) -> RoundNumbers:
    """For vectors of whole numbers, as `to_values` writes them. The norm is bounded by the values' limit only."""
    limit = room.most * _STEP
    if limit < 1e-9:
        raise FederatedError(f"{room.bits}-bit words leave no room for whole numbers of {room.invited} devices")
    clip = math.sqrt(parameters) * limit * _SLACK
    return RoundNumbers(parameters=parameters, clip=clip, limit=limit, max_weight=1, room=room)


def to_values(codes: NDArray[np.int64], room: Room) -> Vector:
    """Whole numbers up to `room.most` in magnitude as a contribution. Raises FederatedError beyond."""
    reached = int(np.abs(codes).max(initial=0))
    if reached > room.most:
        raise FederatedError(f"a whole number of {reached}; this round has room for {room.most} a device")
    values: Vector = codes.astype(np.float32)
    values *= np.float32(_STEP)
    return values
