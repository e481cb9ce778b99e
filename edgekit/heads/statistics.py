"""Sums over labelled features: all that a closed-form head needs, additive over batches, sites and time.

Kept are the number of samples and the sum of the features of each class, and one sum of outer products of all: with
384 features and 7 classes 0.3 MB. Sites add theirs up; taking one out again is a subtraction. A picture cannot be read
from the sums of many, but sums of *one* sample are that sample's features: send them masked, or of many.

Features are standardised first, so that fixed-point sums have room (`research/algorithms.md` 4.3: with +-30 and a scale
of 2^20 a sum of 10^9 samples stays below 2^63).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLIP = 30.0
"""Standard deviations. What lies further out is cut, so that no sample outweighs all others."""
MAX_FEATURES = 4096
MAX_CLASSES = 4096

Floats = NDArray[np.float64]


class HeadError(ValueError):
    """Features, labels or sums that no head can be made of; the message says why."""


@dataclass(frozen=True, eq=False)
class Standardiser:
    """What a backbone's features are on its own training data: all sites of a service must use the same one."""

    mean: Floats  # [d]
    deviation: Floats  # [d], above 0

    def __post_init__(self) -> None:
        """Raises HeadError for values that cannot be."""
        if self.mean.ndim != 1 or self.mean.shape != self.deviation.shape or not 1 <= self.mean.size <= MAX_FEATURES:
            raise HeadError(f"mean and deviation of 1 to {MAX_FEATURES} features are needed, one each a feature")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.deviation).all() and (self.deviation > 0).all()):
            raise HeadError("mean or deviation of a feature is not a number, or a deviation is not above 0")

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Standardiser:
        """From features [n, d] of at least two samples; one that never varies gets the deviation 1."""
        values = checked(features)
        if len(values) < 2:
            raise HeadError("at least two samples are needed to standardise features")
        deviation = values.std(axis=0)
        return cls(values.mean(axis=0), np.where(deviation > 1e-9, deviation, 1.0))

    def __call__(self, features: NDArray[np.floating]) -> Floats:
        """Features [n, d] in standard deviations from the mean, cut at +-CLIP. Raises HeadError."""
        values = checked(features, self.mean.size)
        return np.clip((values - self.mean) / self.deviation, -CLIP, CLIP)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sums of standardised features of the classes `labels`. Immutable; adding gives new ones."""

    labels: tuple[str, ...]
    counts: Floats  # [c], whole numbers
    sums: Floats  # [c, d]
    products: Floats  # [d, d], the sum of x x^T over all samples

    def __post_init__(self) -> None:
        """Raises HeadError for shapes that do not fit together or values that cannot be sums."""
        classes, features = len(self.labels), self.products.shape[0]
        if len(set(self.labels)) != classes or not 1 <= classes <= MAX_CLASSES:
            raise HeadError(f"statistics need 1 to {MAX_CLASSES} labels, all different")
        if not 1 <= features <= MAX_FEATURES:
            raise HeadError(f"statistics of {features} features; 1 to {MAX_FEATURES} can be used")
        expected = {"counts": (classes,), "sums": (classes, features), "products": (features, features)}
        for name, shape in expected.items():
            values = getattr(self, name)
            if values.shape != shape:
                raise HeadError(f"{name} has the shape {values.shape}; {shape} belongs there")
            if not np.isfinite(values).all():
                raise HeadError(f"{name} holds a value that is not a number")
        if (self.counts < 0).any() or (self.counts != np.rint(self.counts)).any():
            raise HeadError("the number of samples of a class is not a whole number from 0")

    @classmethod
    def empty(cls, labels: Sequence[str], features: int) -> Statistics:
        """Of no sample yet."""
        return cls(tuple(labels), np.zeros(len(labels)), np.zeros((len(labels), features)), np.zeros((features,) * 2))

    @classmethod
    def of(cls, features: NDArray[np.floating], classes: Sequence[int], labels: Sequence[str]) -> Statistics:
        """Of standardised features [n, d]; `classes` has the index into `labels` of each. Raises HeadError."""
        values = checked(features)
        index = np.asarray(classes, np.int64)
        if index.shape != (len(values),) or (len(index) and not 0 <= index.min() <= index.max() < len(labels)):
            raise HeadError(f"{len(values)} samples need as many classes, each from 0 to {len(labels) - 1}")
        sums = np.zeros((len(labels), values.shape[1]))
        np.add.at(sums, index, values)
        counts = np.bincount(index, minlength=len(labels)).astype(np.float64)
        return cls(tuple(labels), counts, sums, values.T @ values)

    @property
    def features(self) -> int:
        """How many features a sample has."""
        return len(self.products)

    @property
    def means(self) -> Floats:
        """Mean of each class [c, d]; 0 for a class without samples."""
        return self.sums / np.maximum(self.counts, 1.0)[:, None]

    @property
    def within(self) -> Floats:
        """Covariance within the classes [d, d], pooled over all samples (divided by their number). Raises HeadError."""
        total = float(self.counts.sum())
        if total < 1:
            raise HeadError("there are no samples to take a covariance of")
        means = self.means
        covariance = (self.products - (means * self.counts[:, None]).T @ means) / total
        return (covariance + covariance.T) / 2

    def __add__(self, other: Statistics) -> Statistics:
        """Of both together; labels that only the other has come last. Raises HeadError if the features differ."""
        ours, theirs = self._side_by_side(other)
        return Statistics(
            ours.labels, ours.counts + theirs.counts, ours.sums + theirs.sums, ours.products + theirs.products
        )

    def __sub__(self, other: Statistics) -> Statistics:
        """Without the samples of `other`, which must have been in it. Raises HeadError if they cannot have been."""
        ours, theirs = self._side_by_side(other)
        if (theirs.counts > ours.counts).any():
            raise HeadError("more samples would be taken out of a class than are in it")
        return Statistics(
            ours.labels, ours.counts - theirs.counts, ours.sums - theirs.sums, ours.products - theirs.products
        )

    def for_labels(self, labels: Sequence[str]) -> Statistics:
        """The same sums with the classes in this order; new ones are empty. Raises HeadError if one would be lost."""
        known = {label: index for index, label in enumerate(self.labels)}
        lost = [label for label, count in zip(self.labels, self.counts, strict=True) if count and label not in labels]
        if lost:
            raise HeadError(f"the classes {', '.join(lost)} have samples and cannot be left out of a sum over all")
        result = Statistics.empty(labels, self.features)
        for row, label in enumerate(labels):
            if label in known:
                result.counts[row], result.sums[row] = self.counts[known[label]], self.sums[known[label]]
        return Statistics(result.labels, result.counts, result.sums, self.products)

    def vector(self) -> Floats:
        """All sums in one vector, for a masked sum: counts, class sums, upper triangle of the products."""
        return np.concatenate([self.counts, self.sums.ravel(), self.products[np.triu_indices(self.features)]])

    @classmethod
    def from_vector(cls, vector: NDArray[np.floating], labels: Sequence[str], features: int) -> Statistics:
        """The other way round; counts are rounded, because fixed point and masks leave them whole. Raises HeadError."""
        classes = len(labels)
        length = classes + classes * features + features * (features + 1) // 2
        if vector.shape != (length,):
            raise HeadError(f"a vector of {vector.size} values; {classes} classes of {features} features need {length}")
        counts, sums, triangle = np.split(vector.astype(np.float64), [classes, classes + classes * features])
        products = np.zeros((features, features))
        products[np.triu_indices(features)] = triangle
        products = products + np.triu(products, 1).T
        return cls(tuple(labels), np.rint(counts), sums.reshape(classes, features), products)

    def tensors(self) -> Mapping[str, Floats]:
        """What is stored (`edgekit.tensors.save`), the labels beside it."""
        return {"counts": self.counts, "sums": self.sums, "products": self.products}

    def _side_by_side(self, other: Statistics) -> tuple[Statistics, Statistics]:
        if other.features != self.features:
            raise HeadError(f"sums of {self.features} and of {other.features} features cannot be put together")
        if other.labels == self.labels:
            return self, other
        labels = (*self.labels, *(label for label in other.labels if label not in self.labels))
        return self.for_labels(labels), other.for_labels(labels)


def checked(features: NDArray[np.floating], width: int | None = None) -> Floats:
    """Features as float64 [n, d]. Raises HeadError for another shape or a value that is not a number."""
    values = np.asarray(features, np.float64)
    if values.ndim != 2 or (width is not None and values.shape[1] != width):
        wanted = "any number of features" if width is None else f"{width} features"
        raise HeadError(f"features have the shape {values.shape}; [samples, features] with {wanted} belongs there")
    if not np.isfinite(values).all():
        raise HeadError("a feature is not a number: the model or its input is damaged")
    return values
