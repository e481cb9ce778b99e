"""Aggregates that a few bad devices cannot move: over sums of disjoint cohorts (buckets), never over single updates.

Coordinate-wise median and trimmed mean: Yin et al. 2018, arXiv 1803.01498; over sums of groups, as the only way with
secure aggregation: Velicheti et al. 2021 (SHARE, arXiv 2110.02940). A bad device spoils its bucket; as long as fewer
than half of the buckets (median), or at most `trim` (trimmed mean), hold one, each coordinate lies within the range of
honest buckets' means. Krum and the geometric median need lengths, whose last bits differ between processors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from edgekit.federated.errors import FederatedError
from edgekit.federated.layout import Vector
from edgekit.federated.sums import Mean

MIN_BUCKET = 3
"""Devices: the smallest cohort of secagg/2."""
_BLOCK = 1 << 16  # coordinates at a time, so that sorting takes no second copy of all buckets


class Robust(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a robust aggregate."""

    kind: Literal["median", "trimmed-mean"]
    buckets: Annotated[int, Meta(ge=3, le=1024)]
    trim: Annotated[int, Meta(ge=0, le=511)] = 0
    """Buckets left out at either end of each coordinate; for the trimmed mean only."""
    min_bucket: Annotated[int, Meta(ge=MIN_BUCKET, le=1024)] = 5
    """Survivors of a bucket, at least: of a bucket its devices' sum becomes known."""

    def __post_init__(self) -> None:
        """Raises FederatedError for a trim that leaves nothing, or trims nothing."""
        if self.kind == "trimmed-mean" and not 1 <= self.trim <= (self.buckets - 1) // 2:
            raise FederatedError(f"of {self.buckets} buckets 1 to {(self.buckets - 1) // 2} can be trimmed at each end")
        if self.kind == "median" and self.trim:
            raise FederatedError("a median trims nothing; leave trim out")


@dataclass(frozen=True, eq=False)
class Bucket:
    """The mean of one cohort's sum."""

    mean: Vector
    devices: frozenset[bytes]  # the survivors


def split(nodes: Collection[bytes], buckets: int, seed: bytes) -> list[tuple[bytes, ...]]:
    """Devices dealt to buckets, in an order that `seed` (fresh, of nobody's choice) decides. Raises FederatedError."""
    if not 1 <= buckets <= len(set(nodes)):
        raise FederatedError(f"{len(set(nodes))} devices cannot fill {buckets} buckets")
    order = sorted(set(nodes), key=lambda node: hashlib.sha256(b"edged/federated/1/bucket\0" + seed + node).digest())
    return [tuple(sorted(order[place::buckets])) for place in range(buckets)]


def combine(buckets: Sequence[Bucket], settings: Robust) -> Mean:
    """The robust mean of all buckets' means, which count the same whatever their size.

    Raises FederatedError for too few buckets (one may be void: `trim` and the median bear it down to 2 trim + 1, or 3),
    one of fewer than `min_bucket` survivors (a single update above all), or a device in two.
    """
    least = max(3, 2 * settings.trim + 1)
    if not least <= len(buckets) <= settings.buckets:
        raise FederatedError(f"{len(buckets)} sums; {least} to {settings.buckets} can be combined")
    for bucket in buckets:
        if len(bucket.devices) < settings.min_bucket:
            raise FederatedError(
                f"a sum of {len(bucket.devices)} devices; at least {settings.min_bucket} must hide each other "
                "(min_bucket): single updates cannot be sorted under secure aggregation"
            )
    devices = frozenset[bytes]().union(*(bucket.devices for bucket in buckets))
    if len(devices) != sum(len(bucket.devices) for bucket in buckets):
        raise FederatedError("a device is in two buckets: sums of overlapping cohorts can be subtracted")
    size = buckets[0].mean.size
    if any(bucket.mean.dtype != np.float32 or bucket.mean.shape != (size,) for bucket in buckets):
        raise FederatedError("the sums have different lengths")
    found = np.empty(size, np.float32)
    for start in range(0, size, _BLOCK):
        block = np.sort(np.stack([bucket.mean[start : start + _BLOCK] for bucket in buckets]), axis=0)
        found[start : start + _BLOCK] = _median(block) if settings.kind == "median" else _mean(block, settings.trim)
    if not np.isfinite(found).all():
        raise FederatedError("a sum holds NaN or infinity")
    return Mean(found, len(devices))


def _median(ordered: Vector) -> Vector:
    middle = len(ordered) // 2
    if len(ordered) % 2:
        found: Vector = ordered[middle]
    else:
        found = (ordered[middle - 1] + ordered[middle]) * np.float32(0.5)
    return found


def _mean(ordered: Vector, trim: int) -> Vector:
    kept = ordered[trim : len(ordered) - trim]
    total: Vector = kept[0].copy()
    for row in kept[1:]:  # one after the other: numpy's own sum may add in another order on another processor
        total += row
    total *= np.float32(1 / len(kept))
    return total
