"""Differential privacy of a device in a published sum: clip, and noise of which every device adds a part.

The vector, clipped to C, is rounded to s values per unit (s a power of two), and device i adds Sk(v_i). So a published
sum is sum(codes) + Sk(sum v_i), whole numbers without rounding or wrapping after the noise. Rounding may lengthen a
vector; the device shortens it until the *rounded* one is within D2 = sqrt((s C)^2 + m / 4), what errors of half a code
add when they are not aligned. So two sums that differ in one device being there with its vector or with zeros differ by
at most D2 in Euclidean norm, and D1 <= min(sqrt(m) D2, D2^2): sensitivities for `edgekit.federated.accountant`. The
noise multiplier z gives v = (z D2)^2.

Who adds it. Of a published sum at least q survivors sign, of which c may collude with cloudd and add none (and subtract
what they added). So each adds v / (q - c): the sum of what honest survivors add is v even if as many vanish as the
round tolerates. If none vanish there is more noise than needed, by n / (q - c) in variance; that is the price.

What it does not give: amplification by sampling (see accountant), secrecy of who took part, protection of one *sample*
as distinct from the whole device (it follows, but is not cheaper), or noise for the weights: they are 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edgekit.federated import accountant, noise
from edgekit.federated.errors import FederatedError
from edgekit.federated.layout import Vector, finite
from edgekit.federated.sums import Mean, Room, RoundNumbers, Sum, clipped, to_values, whole_numbers
from edgekit.secagg import parameters as tails
from edgekit.secagg.messages import Prg
from edgekit.secagg.parameters import GraphParameters

_COARSE = 1.25  # the sensitivity may grow by so much through rounding
_FINEST = 24


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one contribution may cost a device."""

    rdp: tuple[float, ...]
    """At `accountant.ORDERS`."""
    slack: float
    """Part of delta that pays for drawing noise with 63 bits."""


class Privacy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings, the same on all devices."""

    noise_multiplier: Annotated[float, Meta(gt=0, le=1e3)]
    """z: deviation of the noise in the sum over the sensitivity."""


def noise_sources(count: int, colluders: int, graph: GraphParameters) -> int:
    """Honest survivors that every published sum has at least: q - c, less what a random graph may let cloudd leave out.

    Raises FederatedError if that is nobody.
    """
    sources = tails.quorum(count, colluders) - colluders - (tails.smallest_cut(count, colluders, graph) - 1)
    if sources < 1:
        raise FederatedError(f"{count} devices of which {colluders} collude leave nobody to add noise")
    return sources


@dataclass(frozen=True)
class Mechanism:
    """One kind of round: vectors of `parameters` values clipped to `clip`, so many devices and bits.

    Raises FederatedError if the words leave no room for noise and values that are fine enough.
    """

    settings: Privacy
    parameters: int
    clip: float
    room: Room
    scale: float = field(init=False)
    """s, codes per unit: the finest for which one device could add all the noise."""

    def __post_init__(self) -> None:
        most = self.room.most
        z = self.settings.noise_multiplier
        finest = math.floor(math.log2(min(noise.MAX_DEVIATION / z, 2.0**_FINEST) / self.clip))
        for exponent in range(finest, finest - 64, -1):
            value = 2.0**exponent * self.clip
            length = _length(value, self.parameters)
            if length > _COARSE * value:
                break
            deviation = z * length
            if 1 <= deviation <= noise.MAX_DEVIATION and length + noise.reach(deviation**2 + 1) <= most:
                object.__setattr__(self, "scale", 2.0**exponent)
                return
        raise FederatedError(
            f"noise of {z:g} times the clip and {self.parameters} values do not fit {self.room.bits}-bit words of "
            f"{self.room.invited} devices: take 32 bits, less noise or a smaller model"
        )

    @property
    def sensitivity(self) -> float:
        """D2, in codes."""
        return _length(self.scale * self.clip, self.parameters)

    @property
    def variance(self) -> float:
        """v: of the noise in a sum, at least, in codes."""
        return (self.settings.noise_multiplier * self.sensitivity) ** 2

    @property
    def cost(self) -> Cost:
        """Of one contribution."""
        l1 = min(math.sqrt(self.parameters) * self.sensitivity, self.sensitivity**2)
        rdp = accountant.skellam_rdp(self.variance, l1, self.sensitivity)
        return Cost(rdp=rdp, slack=self.parameters * self.room.invited * noise.TRUNCATION)

    @property
    def numbers(self) -> RoundNumbers:
        """Of the round."""
        return whole_numbers(self.parameters, self.room)

    def share(self, sources: int) -> int:
        """Variance that each device adds, so that `sources` of them (see `noise_sources`) add all of it."""
        return max(1, math.ceil(self.variance / sources))

    def hide(self, vector: Vector, sources: int, key: bytes, prg: Prg = "aes-256-ctr") -> Vector:
        """What a device contributes (with weight 1) instead of a strategy's vector. `key`: 32 fresh random bytes."""
        finite(vector, self.parameters)
        codes = self._rounded(clipped(vector, self.clip) * np.float32(self.scale))
        codes += noise.skellam(self.parameters, self.share(sources), key, prg)
        return to_values(codes, self.room)

    def _rounded(self, scaled: Vector) -> NDArray[np.int64]:
        factor = 1.0
        while True:
            codes = np.rint(scaled * np.float32(factor))
            if math.sqrt(float(np.square(codes, dtype=np.float64).sum())) <= self.sensitivity:
                found: NDArray[np.int64] = codes.astype(np.int64)
                return found
            factor *= 0.99

    def mean(self, total: Sum) -> Mean:
        """What a strategy applies instead of the sum. Raises FederatedError if it is of another round."""
        if total.codes.shape != (self.parameters,) or total.weight != total.survivors:
            raise FederatedError(f"the sum is none of {self.parameters} values with weights of 1")
        values: Vector = total.codes.astype(np.float32)
        values *= np.float32(1 / (self.scale * total.survivors))
        return Mean(values, total.survivors)


def _length(value: float, parameters: int) -> float:
    """Of a vector of the length `value` after rounding, at most."""
    return math.sqrt(value**2 + parameters / 4)


def noise_multiplier(epsilon: float, delta: float, rounds: int, *, parameters: int, clip: float, room: Room) -> float:
    """The least z (to a hundredth) with which a device may take part in so many rounds. Raises FederatedError."""
    if not (0 < epsilon < math.inf and rounds >= 1):
        raise FederatedError(f"epsilon {epsilon} for {rounds} rounds cannot be")

    def enough(z: float) -> bool:
        mechanism = Mechanism(Privacy(noise_multiplier=z), parameters, clip, room)
        rest = delta - rounds * mechanism.cost.slack
        if rest <= 0:
            raise FederatedError(f"a delta of {delta:g} is smaller than the precision of the noise")
        return accountant.epsilon([rounds * value for value in mechanism.cost.rdp], rest) <= epsilon

    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
    while high / max(low, 1e-9) > 1.01:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
