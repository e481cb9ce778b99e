"""What noise is worth: Renyi differential privacy, its composition, and its conversion to (epsilon, delta).

    Skellam    e(a) <= a D2^2 / (2 v) + min(((2a - 1) D2^2 + 6 D1) / (4 v^2), 3 D1 / (2 v))
               v variance, D1 and D2 sensitivities, integer a > 1: Agarwal, Kairouz, Liu 2021, arXiv 2110.04995,
               corollary 3.6. The first term is the Gaussian mechanism's.
    rounds     e(a) add up: Mironov 2017, arXiv 1702.07476, proposition 1
    (e, d)     e = e(a) + ln(1 - 1/a) - ln(d a) / (a - 1), least over a: Canonne, Kamath, Steinke 2020, arXiv
               2004.00010, proposition 12

Nothing is claimed for sampling of devices: cloudd chooses the cohort and may choose the victim each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekit.federated.errors import FederatedError

ORDERS: tuple[int, ...] = (*range(2, 65), *range(72, 129, 8), *range(160, 257, 32), 384, 512, 1024)
"""Where the curve is kept: every account of a device has these."""


def skellam_rdp(variance: float, l1: float, l2: float) -> tuple[float, ...]:
    """e(a) at ORDERS of one release of a whole-number vector. Raises FederatedError for what cannot be."""
    if not (0 < variance < math.inf and 0 <= l2 < math.inf and 0 <= l1 < math.inf):
        raise FederatedError(f"a variance of {variance} and sensitivities of {l1} and {l2} cannot be")
    return tuple(
        order * l2**2 / (2 * variance)
        + min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
        for order in ORDERS
    )


def epsilon(rdp: Sequence[float], delta: float, orders: Sequence[int] = ORDERS) -> float:
    """The least epsilon that the curve gives for this delta; 0 at the least. Raises FederatedError."""
    if not 0 < delta < 1:
        raise FederatedError(f"a delta of {delta} cannot be; it is a share between 0 and 1")
    if len(rdp) != len(orders):
        raise FederatedError(f"a curve of {len(rdp)} points; {len(orders)} are needed")
    if not any(rdp):
        return 0.0
    return max(
        0.0,
        min(
            value + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
            for order, value in zip(orders, rdp, strict=True)
        ),
    )
