"""Updates as whole numbers of which a sum of all devices' cannot overflow, and back.

With n devices invited and words of B bits, no word of one device exceeds M = (2^(B-1) - 1) // n in magnitude, so a sum
of n lies within the signed range: not "rarely beyond", never. A value x with weight w becomes round(w x M' / L); L is
the limit of one value, W the largest weight, M' = min(M, 2^24) // W the code of a value at the limit with weight 1.
Up to 2^24 every whole number is exact in float32, so clipping before rounding holds the bound.

Two words more carry the weight, as digits to a base that n devices cannot overflow either.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.secagg import masks
from edgekit.secagg.errors import Refusal
from edgekit.secagg.masks import Mask, Words
from edgekit.secagg.messages import RoundConfig

EXTRA = 2
"""Words behind the parameters: the low and the high digit of the weight."""
_EXACT = 1 << 24
_COARSE = 1 << 11  # codes a value: below, plain rounding would bias a sum of many small values
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Encoding:
    """The numbers that follow from a configuration. Raises Refusal if they leave no room for values or weights."""

    config: RoundConfig

    def __post_init__(self) -> None:
        if self.unit < 1:
            raise Refusal(
                "policy",
                f"{self.config.bits}-bit words leave no room for {self.config.invited} devices with weights up to "
                f"{self.config.max_weight}",
            )
        if self.config.max_weight >= self.base**2:
            raise Refusal("policy", f"weights up to {self.config.max_weight} do not fit two words of this round")

    @property
    def largest(self) -> int:
        """M: no device's word exceeds it in magnitude."""
        return int((2 ** (self.config.bits - 1) - 1) // self.config.invited)

    @property
    def unit(self) -> int:
        """M': the code of a value at the limit, with weight 1."""
        return min(self.largest, _EXACT) // self.config.max_weight

    @property
    def stochastic(self) -> bool:
        """Whether values are rounded up or down at random, right on average, because there are few codes."""
        return self.unit < _COARSE

    @property
    def base(self) -> int:
        """Of the weight's two digits."""
        return int((2**self.config.bits - 1) // self.config.invited) + 1

    @property
    def words(self) -> int:
        """Length of a masked vector."""
        return self.config.parameters + EXTRA


def encode(update: NDArray[np.float32], weight: int, encoding: Encoding, random: Callable[[int], bytes]) -> Words:
    """weight * update as words, shape (encoding.words,); clipped to the norm and the limit of the configuration.

    Raises Refusal for another shape or dtype, a weight outside 1..max_weight, NaN or infinity.
    """
    config = encoding.config
    if update.dtype != np.float32 or update.shape != (config.parameters,):
        raise Refusal(
            "value", f"an update is float32 of shape ({config.parameters},), not {update.dtype} {update.shape}"
        )
    if not 1 <= weight <= config.max_weight:
        raise Refusal("value", f"the weight {weight} is outside 1..{config.max_weight}")
    norm = _norm(update)
    shrink = min(1.0, config.clip / norm) if norm else 1.0
    factor = np.float32(shrink * weight * encoding.unit / config.limit)
    most = np.float32(weight * encoding.unit)
    words = np.empty(encoding.words, masks.dtype(config.bits))
    signed = words.view(f"<i{config.bits // 8}")
    scaled = np.empty(min(_BLOCK, config.parameters), np.float32)
    dither = _Dither(random(32), config, scaled.size) if encoding.stochastic else None
    for start in range(0, config.parameters, _BLOCK):
        block = scaled[: min(_BLOCK, config.parameters - start)]
        np.multiply(update[start : start + block.size], factor, out=block)
        np.clip(block, -most, most, out=block)
        if dither is None:
            np.rint(block, out=block)
        else:
            block += dither.next(block.size)
            np.floor(block, out=block)
            np.minimum(block, most, out=block)  # in float32, most + 0.99998 may be most + 1
        np.copyto(signed[start : start + block.size], block, casting="unsafe")
    words[-2:] = weight % encoding.base, weight // encoding.base
    return words


def decode(words: Words, survivors: int, encoding: Encoding) -> tuple[NDArray[np.float32], int]:
    """(sum of weight * update, shape (parameters,); sum of weights) of a sum of `survivors` devices' words.

    Raises Refusal if the shape does not fit or the sum is none that so many devices can have sent: a weight outside
    what they may announce, or a norm beyond weight * clip.
    """
    weight = check_sum(words, survivors, encoding)
    config = encoding.config
    total = words[: config.parameters].view(f"<i{config.bits // 8}").astype(np.float32)
    total *= np.float32(config.limit / encoding.unit)
    return total, weight


def check_sum(words: Words, survivors: int, encoding: Encoding) -> int:
    """The sum of the weights of a sum, whose values are looked at but not copied. Raises as `decode` does."""
    config = encoding.config
    if words.dtype != masks.dtype(config.bits) or words.shape != (encoding.words,):
        raise Refusal(
            "value", f"a sum has {encoding.words} words of {config.bits} bits, not {words.dtype} {words.shape}"
        )
    weight = int(words[-2]) + encoding.base * int(words[-1])
    if not survivors <= weight <= survivors * config.max_weight:
        raise Refusal("value", f"the weights of {survivors} devices cannot sum to {weight}")
    codes, step = words[: config.parameters].view(f"<i{config.bits // 8}"), config.limit / encoding.unit
    rounding = survivors * math.sqrt(config.parameters) * step
    if _norm(codes) * step > (weight * config.clip + rounding) * (1 + 1e-4):
        raise Refusal("value", f"the sum is longer than {survivors} updates clipped to {config.clip:g} can be")
    return weight


def _norm(vector: NDArray[Any]) -> float:
    """Euclidean norm, blocks summed in double precision. Raises Refusal if it is not finite."""
    total = 0.0
    for start in range(0, vector.size, _BLOCK):
        block = vector[start : start + _BLOCK].astype(np.float32, copy=False)
        total += float(np.dot(block, block))
    if not math.isfinite(total):
        raise Refusal("value", "the values are not finite numbers, or too large for float32")
    return math.sqrt(total)


class _Dither:
    """Uniform values in [0, 1) from a key stream: 16 bits are finer than any code that needs them."""

    def __init__(self, key: bytes, config: RoundConfig, size: int) -> None:
        self._key, self._config, self._size = key, config, size
        self._block = 0

    def next(self, count: int) -> NDArray[np.float32]:
        """The next `count` values."""
        drawn = np.zeros(self._size, np.dtype("<u2"))
        key = hashlib.sha256(self._key + self._block.to_bytes(4, "big")).digest()
        masks.apply(drawn, [Mask(key, add=True)], self._config.prg)
        self._block += 1
        return drawn[:count].astype(np.float32) * np.float32(2.0**-16)
