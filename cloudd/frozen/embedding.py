"""An embedding package from a few pictures of each identity, for identities that it has never seen.

Features are frozen (`cloudd.frozen.features`), their means over a grid of GRID x GRID fields put in a row. Learned is
one matrix: the whitening of the covariance *within* identities, so that what changes from picture to picture of one
thing (light, place, noise) counts little and what differs between things counts much (within-class covariance
normalisation, Hatch et al. 2006). The covariance is shrunk towards a multiple of the identity matrix; by how much is
chosen by identities that were held out, because an embedding must tell apart what it has not learned from.

It suits things that one camera sees in one way: parts, boards, trays. For faces bring a network that was trained on
faces, as a package of task "embedding".
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from cloudd.derived import Progress
from cloudd.frozen.features import FEATURES, INPUT, PLACE, VALUES, Graph, decoded, input_spec, open_features
from cloudd.frozen.package import MODEL_FILE, SAMPLE_BYTES, Made, keep_sample, made, record_of
from cloudd.train.errors import TrainError
from cloudd.train.figures import Share, share
from edgekit.datasets.dataset import Dataset, DatasetError, Picture
from edgekit.heads.statistics import HeadError
from edgekit.heads.unknown import calibrate_acceptance
from edgekit.packages import EmbeddingSpec, Manifest, OutputSpec, Package, ProofSample, Variant
from edgekit.vision.embedding import Embedder
from edgekit.vision.preprocess import prepare

GRID = 4
"""Fields along a side, whose values stand beside each other in the embedding."""
SIDE = PLACE * GRID
"""What sides of the input are multiples of."""
MOST = 20_000
"""Pictures that are learned from."""
FOLDS = 5
FEWEST = 3
"""Identities, each with two pictures at least."""
_SIDE = 96
_SHRINKAGES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
_RATE = 0.01  # of strangers that the package's own threshold takes for somebody
_SAMPLES = 3  # identities, by two pictures each


class EmbeddingWishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asked for; None: what suits the pictures."""

    size: tuple[int, int] | None = None  # width and height of the input, pixels
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class EmbeddingFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How well held-out identities are told apart; the ranges are those of `cloudd.train.figures`."""

    identities: int
    pictures: int
    shrinkage: float
    nearest: Share  # pictures that are nearer to another one of their own identity than to all others
    threshold: float
    missed: Share  # pictures that are less like any other of their identity than the threshold wants
    taken: Share  # pictures that are more like another identity than it allows


@dataclass(frozen=True)
class _Judged:
    own: NDArray[np.float64]  # of each picture: the cosine to the nearest other one of its identity
    other: NDArray[np.float64]  # and to the nearest one of any other identity


def learn_embedding(
    name: str, version: str, dataset: Dataset, wishes: EmbeddingWishes, out: Path, progress: Progress
) -> Made:
    """Learn from `dataset`, whose labels are identities, judge, and put NAME@VERSION into `out` unless it is refused.

    Raises DatasetError for pictures that cannot be used or are too few, TrainError for wishes that cannot be met,
    PackageError, ModelError, OSError.
    """
    pictures = _pictures(dataset)
    width, height = wishes.size or (_SIDE, _SIDE)
    if any(side % SIDE or not 2 * SIDE <= side <= 16 * SIDE for side in (width, height)):
        raise TrainError(
            f"--size {width}x{height}: sides that are multiples of {SIDE} from {2 * SIDE} to {16 * SIDE} pixels "
            "belong there"
        )
    identities = sorted({one.label for one in pictures})
    own = np.array([identities.index(one.label) for one in pictures])
    values = _features(dataset, pictures, width, height, progress)
    judged = {part: _judged(values, own, part) for part in _SHRINKAGES}
    shrinkage = max(_SHRINKAGES, key=lambda part: (_nearest(judged[part]), _apart(judged[part])))
    chosen = judged[shrinkage]
    threshold = _threshold(chosen)
    figures = EmbeddingFigures(
        identities=len(identities),
        pictures=len(pictures),
        shrinkage=shrinkage,
        nearest=share(int((chosen.own > chosen.other).sum()), len(pictures)),
        threshold=threshold,
        missed=share(int((chosen.own < threshold).sum()), len(pictures)),
        taken=share(int((chosen.other >= threshold).sum()), len(pictures)),
    )
    mean, whitening = _learned(values, own, shrinkage)
    recipe = {"size": [width, height], "features": "statistics", "grid": GRID, "folds": FOLDS, "shrinkage": shrinkage}
    draft = Manifest(
        name=name,
        version=version,
        task="embedding",
        description=f"tells things apart, learned from {len(pictures)} pictures of {len(identities)} by cloudd",
        input=input_spec(width, height),
        output=OutputSpec(kind="none", name="embedding"),
        embedding=EmbeddingSpec(width=values.shape[1], threshold=threshold),
        variants=[Variant(file=MODEL_FILE)],
    )

    def samples(root: Path, package: Package) -> list[ProofSample]:
        return _samples(root, package, dataset, pictures)

    record = record_of("embedding", pictures, recipe, figures)
    reason = _reason(figures, identities)
    return made(
        out,
        record,
        reason,
        draft,
        lambda root: _write(root / MODEL_FILE, width, height, mean, whitening),
        samples,
        Embedder.load,
    )


def _pictures(dataset: Dataset) -> list[Picture]:
    if dataset.detection:
        raise TrainError("the data has boxes; an embedder learns from whole pictures, a folder for each identity")
    ordered = sorted(dataset.pictures, key=lambda one: one.sha256)[:MOST]
    enough = [label for label in dataset.labels if sum(one.label == label for one in ordered) >= 2]
    if len(enough) < FEWEST:
        raise DatasetError(
            f"{len(enough)} identities have two pictures or more; {FEWEST} are needed, and 20 or more tell much better "
            "how well strangers are kept apart"
        )
    return [one for one in ordered if one.label in enough]


def _features(
    dataset: Dataset, pictures: Sequence[Picture], width: int, height: int, progress: Progress
) -> NDArray[np.float64]:
    """[n, GRID * GRID * VALUES], as the graph of `_write` has them before its matrix."""
    spec = input_spec(width, height)
    with tempfile.TemporaryDirectory(prefix="cloudd-frozen-") as folder:
        session = open_features(width, height, Path(folder))
        try:
            rows = []
            for at, picture in enumerate(pictures):
                progress("learning", at + 1, len(pictures))
                tensor = prepare(decoded(dataset, picture, spec), spec, session.inputs[0])
                rows.append(_pooled(session.run({INPUT: tensor})[0]))
        finally:
            session.close()
    return np.stack(rows)


def _pooled(features: NDArray[np.float32]) -> NDArray[np.float64]:
    _, values, rows, columns = features.shape
    fields = features.reshape(values, GRID, rows // GRID, GRID, columns // GRID)
    return np.asarray(fields.mean(axis=(2, 4), dtype=np.float64).reshape(-1), np.float64)


def _learned(
    values: NDArray[np.float64], own: NDArray[np.int64], shrinkage: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [d] of the identities' means, and whitening [d, d] of the covariance within them.

    Each value is first divided by its spread over everything, which goes into the whitening, so that none rules by its
    unit. (1 - a) S + a tr(S) / d I is what is inverted, a being the shrinkage.
    """
    means = np.stack([values[own == one].mean(axis=0) for one in np.unique(own)])
    spread = values.std(axis=0) + 1e-9
    residual = (values - means[np.unique(own, return_inverse=True)[1]]) / spread
    freedom = max(1, len(values) - len(means))
    within = residual.T @ residual / freedom
    width = values.shape[1]
    within = (1 - shrinkage) * within + (shrinkage * np.trace(within) / width + 1e-9) * np.eye(width)
    size, vectors = np.linalg.eigh(within)
    return means.mean(axis=0), (vectors / np.sqrt(size)) / spread[:, np.newaxis]


def _judged(values: NDArray[np.float64], own: NDArray[np.int64], shrinkage: float) -> _Judged:
    """Every picture under a matrix that has not learned from its identity."""
    count = int(own.max()) + 1
    folds = np.arange(count) % min(FOLDS, count)
    same, other = np.empty(len(values)), np.empty(len(values))
    for fold in np.unique(folds):
        judge = folds[own] == fold
        mean, whitening = _learned(values[~judge], own[~judge], shrinkage)
        vectors = (values - mean) @ whitening
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12
        cosines = vectors[judge] @ vectors.T
        mine = own[judge][:, np.newaxis] == own[np.newaxis]
        itself = np.flatnonzero(judge)[:, np.newaxis] == np.arange(len(values))[np.newaxis]
        same[judge] = np.where(mine & ~itself, cosines, -1.0).max(axis=1)
        other[judge] = np.where(mine, -1.0, cosines).max(axis=1)
    return _Judged(same, other)


def _nearest(judged: _Judged) -> float:
    return float((judged.own > judged.other).mean())


def _apart(judged: _Judged) -> float:
    """P(a picture's own cosine is above another picture's strange one)."""
    return float((judged.own[:, np.newaxis] > judged.other[np.newaxis]).mean())


def _threshold(judged: _Judged) -> float:
    """Certified for _RATE if the pictures suffice, else half-way from the most alike strangers to equality."""
    try:
        found = calibrate_acceptance(judged.other.tolist(), _RATE).threshold
    except HeadError:
        found = (1.0 + float(judged.other.max())) / 2
    return round(min(0.999, max(0.001, found)), 4)


def _reason(figures: EmbeddingFigures, identities: Sequence[str]) -> str:
    """Why it is worth nothing: chance would find the right one of all the others about once in so many."""
    if figures.nearest.low > 2.0 / len(identities) or figures.nearest.hits == figures.pictures:
        return ""
    return (
        f"{figures.nearest.hits} of {figures.pictures} pictures are nearer to their own identity than to any other, "
        "which may as well be chance; more pictures of each, or a network that was trained for such things, may help"
    )


def _write(path: Path, width: int, height: int, mean: NDArray[np.float64], whitening: NDArray[np.float64]) -> None:
    graph = Graph(width, height)
    rows, columns = graph.places
    fields = graph.pooled(FEATURES, rows // GRID, columns // GRID)
    flat = graph.node("Reshape", fields, graph.constant([1, GRID * GRID * VALUES], np.int64))
    moved = graph.node("Sub", flat, graph.constant(mean[np.newaxis]))
    graph.node("MatMul", moved, graph.constant(whitening), name="embedding")
    graph.write(path, {"embedding": (1, len(mean))})


def _samples(root: Path, package: Package, dataset: Dataset, pictures: Sequence[Picture]) -> list[ProofSample]:
    """Two pictures each of some identities, if the package tells them apart."""
    model = Embedder.load(package)
    chosen: list[tuple[Picture, bytes]] = []
    try:
        for label in sorted({one.label for one in pictures}):
            pair = [(one, dataset.read(one)) for one in pictures if one.label == label][:2]
            if all(len(data) <= SAMPLE_BYTES for _, data in pair):
                chosen += pair
            if len(chosen) == 2 * _SAMPLES:
                break
        vectors = np.stack([model.embed(data)[0] for _, data in chosen]) if chosen else np.empty((0, 1))
    finally:
        model.close()
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)
    names = [one.label for one, _ in chosen]
    right = all(names[int(row.argmax())] == name for row, name in zip(cosines, names, strict=True))
    if not right:
        return []
    return [
        ProofSample(
            file=keep_sample(root, at, data),
            label=one.label,
            score=round(max(0.0, float(cosines[at].max())), 3),
            tolerance=0.05,
        )
        for at, (one, data) in enumerate(chosen)
    ]
