"""When to say "unknown": a similarity that strangers exceed at a certified rate only.

With the similarities of n impostors (things that are not enrolled, each to its nearest enrolled one) the number above a
threshold t is binomial in the false-accept rate F(t), which never rises with t. As in `edgekit.gates.certified` a
fixed-sequence test goes from the strictest threshold to looser ones and stops before the Clopper-Pearson bound exceeds
the rate: with probability 1 - delta the rate holds on what comes from the same source as these impostors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from edgekit.gates.binomial import clopper_pearson_upper, smallest_n
from edgekit.heads.statistics import HeadError


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold: what is at least so similar is taken for known."""

    threshold: float
    impostors: int  # that it was calibrated with
    accepted: int  # of them at or above the threshold
    bound: float  # upper bound of the false-accept rate
    rate: float  # that was asked for
    delta: float


def calibrate_acceptance(impostors: Sequence[float], rate: float, delta: float = 0.1) -> Acceptance:
    """The loosest threshold whose false-accept rate is certified to be at most `rate`.

    Raises HeadError if there are too few impostors for any (the message says how many are needed), or a similarity is
    not a number.
    """
    if not (0.0 < rate < 1.0 and 0.0 < delta < 1.0):
        raise HeadError(f"rate {rate} and delta {delta} are shares between 0 and 1")
    values = sorted((float(value) for value in impostors), reverse=True)
    if not all(math.isfinite(value) for value in values):
        raise HeadError("the similarity of an impostor is not a number")
    needed = smallest_n(rate, delta)
    if len(values) < needed:
        raise HeadError(
            f"{len(values)} impostors cannot certify a false-accept rate of {rate:g}; {needed} can at the best"
        )
    accepted = 0
    bound = clopper_pearson_upper(0, len(values), delta)
    while accepted < len(values):
        # Equal similarities are accepted together or not at all.
        beyond = next((at for at in range(accepted, len(values)) if values[at] < values[accepted]), len(values))
        looser = clopper_pearson_upper(beyond, len(values), delta)
        if looser > rate:
            break
        accepted, bound = beyond, looser
    edge = values[accepted] if accepted < len(values) else -math.inf
    threshold = math.nextafter(edge, math.inf) if math.isfinite(edge) else values[-1]
    return Acceptance(
        threshold=threshold, impostors=len(values), accepted=accepted, bound=bound, rate=rate, delta=delta
    )
