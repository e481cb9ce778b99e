"""Who or what is this? Identities enrolled by a few pictures each, told apart by an embedding model.

An identity is kept as embeddings only, of unit length: no picture. A probe is as similar to an identity as to its
nearest embedding (cosine); below the gallery's threshold it is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.heads.statistics import HeadError, checked

MAX_IDENTITIES = 100_000
MAX_PICTURES = 32
"""Embeddings of one identity."""
_MAX_NAME = 128
_BLOCK = 64

Embeddings = NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """The identity that is nearest to a probe. `known`: it is similar enough."""

    name: str
    similarity: float  # cosine, -1..1
    runner_up: float  # of the nearest other identity, -1 without one
    known: bool


class Gallery:
    """Enrolled identities. Not safe for threads."""

    def __init__(self, width: int, threshold: float) -> None:
        """`width`: values of an embedding. `threshold`: see `edgekit.heads.unknown`. Raises HeadError."""
        if not 1 <= width <= 8192 or not np.isfinite(threshold):
            raise HeadError(f"a gallery of embeddings of {width} values with the threshold {threshold} cannot be")
        self.width, self.threshold = width, threshold
        self._enrolled: dict[str, Embeddings] = {}
        self._all: tuple[Embeddings, NDArray[np.int64], list[str]] | None = None

    def __len__(self) -> int:
        return len(self._enrolled)

    def __iter__(self) -> Iterator[str]:
        return iter(self._enrolled)

    def enrol(self, name: str, embeddings: NDArray[np.floating]) -> None:
        """Add pictures' embeddings [n, width] to an identity, new or not; the newest MAX_PICTURES are kept.

        Raises HeadError for a name or embedding that cannot be, or a full gallery.
        """
        if not name or len(name) > _MAX_NAME or not name.isprintable():
            raise HeadError(f"the name of an identity has 1 to {_MAX_NAME} printable characters")
        if name not in self._enrolled and len(self._enrolled) >= MAX_IDENTITIES:
            raise HeadError(f"the gallery is full: {MAX_IDENTITIES} identities are enrolled")
        new = self._unit(embeddings)
        if not len(new):
            raise HeadError(f"no picture to enrol {name} by")
        before = self._enrolled.get(name)
        self._enrolled[name] = (new if before is None else np.concatenate([before, new]))[-MAX_PICTURES:]
        self._all = None

    def remove(self, name: str) -> None:
        """Forget an identity. Raises HeadError if it is not enrolled."""
        if self._enrolled.pop(name, None) is None:
            raise HeadError(f"{name[:_MAX_NAME]} is not enrolled")
        self._all = None

    def match(self, embeddings: NDArray[np.floating]) -> list[Match]:
        """The nearest identity of each probe [n, width]. Raises HeadError if nobody is enrolled."""
        if not self._enrolled:
            raise HeadError("nobody is enrolled in this gallery")
        probes = self._unit(embeddings)
        enrolled, starts, names = self._index()
        # One row a probe, one column an identity: similarity to its nearest embedding.
        best = np.maximum.reduceat(probes @ enrolled.T, starts, axis=1)
        matches = []
        for row in best:
            first = int(row.argmax())
            similarity = float(row[first])
            others = np.delete(row, first)
            runner_up = float(others.max()) if others.size else -1.0
            matches.append(Match(names[first], similarity, runner_up, similarity >= self.threshold))
        return matches

    def impostors(self, most: int | None = None) -> list[float]:
        """The similarity of each embedding to the nearest *other* identity: strangers to calibrate a threshold with.

        With `most` that of so many of them at most, spread evenly over the gallery.
        """
        if len(self._enrolled) < 2:
            return []
        enrolled, starts, names = self._index()
        own = np.repeat(np.arange(len(names)), np.diff([*starts, len(enrolled)]))
        count = len(enrolled) if most is None else min(most, len(enrolled))
        found: list[float] = []
        for rows in np.array_split(np.linspace(0, len(enrolled) - 1, count).astype(np.int64), -(-count // _BLOCK)):
            # Some rows at a time: a full square would be large.
            best = np.maximum.reduceat(enrolled[rows] @ enrolled.T, starts, axis=1)
            best[np.arange(len(rows)), own[rows]] = -np.inf
            found += best.max(axis=1).tolist()
        return found

    def tensors(self) -> Mapping[str, Embeddings]:
        """What is stored (`edgekit.tensors.save`): one tensor an identity."""
        return dict(self._enrolled)

    def _unit(self, embeddings: NDArray[np.floating]) -> Embeddings:
        values = checked(embeddings, self.width)
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        if (lengths < 1e-12).any():
            raise HeadError("an embedding is zero: the model saw nothing in the picture")
        unit: Embeddings = (values / lengths).astype(np.float32)
        return unit

    def _index(self) -> tuple[Embeddings, NDArray[np.int64], list[str]]:
        if self._all is None:
            parts = list(self._enrolled.values())
            starts = np.cumsum([0, *(len(part) for part in parts[:-1])], dtype=np.int64)
            self._all = np.concatenate(parts), starts, list(self._enrolled)
        return self._all
