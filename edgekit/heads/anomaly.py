"""Products without defect pictures: what good ones look like, place by place, and where a part looks like none of them.

The features are a frozen backbone's maps [height, width, d] of good parts. Two ways, as published and small enough for
a device:

    GaussianMap  one mean a place, one covariance for all places; the score of a place is its Mahalanobis distance.
                 After Defard et al. 2021 (PaDiM) with one covariance for all places, so that few parts suffice.
                 For parts that always lie alike.
    NearestMap   a bank of features of good parts, thinned to a coreset (greedy k-centre); the score of a place is the
                 distance to the nearest of them. After Roth et al. 2022 (PatchCore). Parts may lie anywhere.

A part's score is the mean of its worst places, so that one noisy place does not condemn it. The limit is a quantile of
the scores of good parts that were not learned from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.heads.statistics import Floats, HeadError

MAX_PLACES = 64 * 64
"""Of a map; finer ones make scores that nobody can tell apart and take a lot of time."""
_WORST = 0.01  # share of places that a part's score is the mean of
_RIDGE = 0.01  # share of the mean variance added to each one
_CHUNK = 256  # places at a time, so that distances never fill the memory
_PROJECTION = 64  # dimensions in which the coreset is chosen; distances are kept within some per cent

Maps = NDArray[np.float32]


class AnomalyModel(Protocol):
    """What tells how unusual each place is."""

    def scores(self, maps: NDArray[np.floating]) -> Floats:
        """Distance of every place from what is good, [n, height, width], of maps [n, height, width, d]."""
        ...


@dataclass(frozen=True, eq=False)
class GaussianMap:
    """See the module's docstring."""

    means: Maps  # [height, width, d]
    whitening: Maps  # [d, d]: the distance is the length of (x - mean) @ whitening

    @classmethod
    def of(cls, maps: NDArray[np.floating]) -> GaussianMap:
        """Learn from maps [n, height, width, d] of at least two good parts. Raises HeadError."""
        values = _checked(maps)
        if len(values) < 2:
            raise HeadError("at least two good parts are needed")
        means = values.mean(axis=0)
        width = values.shape[-1]
        covariance = np.zeros((width, width))
        for part in values:
            residual = (part - means).reshape(-1, width).astype(np.float64)
            covariance += residual.T @ residual
        covariance /= (len(values) - 1) * means.shape[0] * means.shape[1]
        level = float(np.trace(covariance)) / width
        spread, vectors = np.linalg.eigh(covariance + (_RIDGE * level + 1e-12) * np.eye(width))
        return cls(means, (vectors / np.sqrt(spread)).astype(np.float32))

    def scores(self, maps: NDArray[np.floating]) -> Floats:
        """See AnomalyModel. Raises HeadError for maps of another shape."""
        values = _checked(maps, self.means.shape)
        scores: Floats = np.linalg.norm((values - self.means) @ self.whitening, axis=-1).astype(np.float64)
        return scores


@dataclass(frozen=True, eq=False)
class NearestMap:
    """See the module's docstring."""

    bank: Maps  # [m, d]

    @classmethod
    def of(cls, maps: NDArray[np.floating], size: int, rng: np.random.Generator) -> NearestMap:
        """Learn from maps [n, height, width, d] of good parts and keep `size` places at most. Raises HeadError."""
        if size < 1:
            raise HeadError(f"a bank of {size} places knows nothing")
        values = _checked(maps)
        places = values.reshape(-1, values.shape[-1])
        return cls(places[_coreset(places, min(size, len(places)), rng)])

    def scores(self, maps: NDArray[np.floating]) -> Floats:
        """See AnomalyModel. Raises HeadError for maps of another depth."""
        values = _checked(maps)
        if values.shape[-1] != self.bank.shape[1]:
            raise HeadError(f"features of {values.shape[-1]} values a place; the bank has {self.bank.shape[1]}")
        places = values.reshape(-1, values.shape[-1])
        squares = np.einsum("md,md->m", self.bank, self.bank)
        nearest = np.empty(len(places))
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            distances = squares - 2.0 * (chunk @ self.bank.T) + np.einsum("nd,nd->n", chunk, chunk)[:, None]
            nearest[start : start + len(chunk)] = np.sqrt(np.maximum(distances.min(axis=1), 0.0))
        return nearest.reshape(values.shape[:-1])


def part_scores(scores: Floats) -> Floats:
    """One score a part [n]: the mean of the worst hundredth of its places, of scores [n, height, width]."""
    flat = scores.reshape(len(scores), -1)
    count = max(1, math.ceil(_WORST * flat.shape[1]))
    worst: Floats = np.sort(flat, axis=1)[:, -count:].mean(axis=1)
    return worst


def limit(good: Floats, false_alarms: float) -> float:
    """The score from which a part is anomalous: good parts that were not learned from exceed it with that share.

    The conformal quantile: of n scores the ceil((n + 1) (1 - share))-th, so that the expected share of false alarms
    among later good parts is at most `false_alarms` (Vovk et al. 2005). Raises HeadError if there are too few.
    """
    if not 0.0 < false_alarms < 1.0:
        raise HeadError(f"a share of false alarms of {false_alarms} cannot be")
    rank = math.ceil((len(good) + 1) * (1.0 - false_alarms) - 1e-9)
    if rank > len(good):
        needed = math.ceil(1.0 / false_alarms - 1e-9) - 1
        raise HeadError(f"{len(good)} good parts cannot give {false_alarms:g} false alarms; {needed} can")
    return float(np.sort(good)[rank - 1])


def _coreset(places: Maps, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of places so that none is far from the nearest: each next one is the farthest from those before."""
    width = places.shape[1]
    thin = places
    if width > _PROJECTION:
        thin = places @ (rng.standard_normal((width, _PROJECTION)) / math.sqrt(_PROJECTION)).astype(np.float32)
    chosen = np.empty(size, np.int64)
    chosen[0] = rng.integers(len(thin))
    far = np.full(len(thin), np.inf)
    for at in range(1, size):
        far = np.minimum(far, np.square(thin - thin[chosen[at - 1]]).sum(axis=1))
        chosen[at] = int(far.argmax())
    return chosen


def _checked(maps: NDArray[np.floating], shape: tuple[int, ...] | None = None) -> Maps:
    values = np.asarray(maps, np.float32)
    if values.ndim != 4 or not len(values) or (shape is not None and values.shape[1:] != shape):
        wanted = "[parts, height, width, features]" if shape is None else f"[parts, {', '.join(map(str, shape))}]"
        raise HeadError(f"maps have the shape {values.shape}; {wanted} belongs there")
    if values.shape[1] * values.shape[2] > MAX_PLACES:
        raise HeadError(f"maps of {values.shape[1]}x{values.shape[2]} places; {MAX_PLACES} are the most")
    if not np.isfinite(values).all():
        raise HeadError("a feature is not a number: the model or its input is damaged")
    return values
