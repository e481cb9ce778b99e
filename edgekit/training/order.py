"""Which examples an epoch shows, in which order: shuffled, with rare classes shown more often where that is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.training.errors import TrainingError

Balance = Literal["none", "root", "full"]
"""How often a class is shown: as often as it occurs, by the root of that, or all classes equally often."""

_POWERS = {"none": 1.0, "root": 0.5, "full": 0.0}
_ORDER = 0x6F72646572  # keeps these draws apart from those of augmentation with the same seed


def epoch_order(labels: NDArray[Any], epoch: int, seed: int, balance: Balance = "none") -> NDArray[np.intp]:
    """Places among `labels` [n] to be shown in this epoch, n of them: the same for the same arguments.

    With a balance a rare class repeats its examples evenly (none twice more often than another), and of a common class
    another part is left out in each epoch. `labels` are class indices; where an example has several or none, any whole
    number that groups them will do.
    """
    rng = np.random.default_rng([_ORDER, seed, epoch])
    count = len(labels)
    if balance == "none" or not count:
        return rng.permutation(count)
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes ** _POWERS[balance]
    quotas = _whole(count * shares / shares.sum(), count)
    shown = [
        _repeat(np.flatnonzero(labels == one), int(quota), rng) for one, quota in zip(classes, quotas, strict=True)
    ]
    return rng.permutation(np.concatenate(shown))


def class_weights(labels: NDArray[Any], classes: int, balance: Balance = "full") -> NDArray[np.float32]:
    """Weight of each class in the loss, [classes] float32: by 1 / frequency ("full") or the root of that.

    Their mean over `labels` is 1. A class without an example gets the weight 1. Raises TrainingError for no labels, or
    one outside 0..classes - 1.
    """
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise TrainingError(f"class weights need labels from 0 to {classes - 1}")
    sizes = np.bincount(labels, minlength=classes)
    weights = np.where(sizes > 0, np.maximum(sizes, 1).astype(np.float64) ** (_POWERS[balance] - 1), 0)
    weights *= len(labels) / (weights * sizes).sum()
    return np.where(sizes > 0, weights, 1).astype(np.float32)


def batches(order: NDArray[np.intp], size: int) -> Sequence[NDArray[np.intp]]:
    """`order` in batches of exactly `size`; what is left over waits for the next epoch. All of it where it is less.

    A last batch of one or two would move BatchNormalization and the weights as far as a full one.
    """
    if size < 1 or not len(order):
        raise TrainingError(f"{len(order)} examples cannot be shown in batches of {size}")
    if len(order) < size:
        return [order]
    return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]


def _whole(quotas: NDArray[np.float64], total: int) -> NDArray[np.intp]:
    """Whole numbers near `quotas` that sum to `total`: those with the largest remainders are rounded up."""
    floors = np.floor(quotas).astype(np.intp)
    most = np.argsort(-(quotas - floors), kind="stable")[: total - int(floors.sum())]
    floors[most] += 1
    return floors


def _repeat(places: NDArray[np.intp], quota: int, rng: np.random.Generator) -> NDArray[np.intp]:
    times, rest = divmod(quota, len(places))
    return np.concatenate([np.tile(places, times), rng.permutation(places)[:rest]])
