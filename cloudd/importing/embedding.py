"""A foreign embedding model: which output is its vector, and how well it tells identities apart that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloudd.derived import Progress
from cloudd.importing.errors import ImportRefused
from cloudd.importing.judging import ENOUGH, SAMPLE_BYTES, ask_all, keep_sample
from cloudd.importing.lineage import Likeness
from cloudd.importing.pictures import Album
from cloudd.train.figures import share
from edgekit.heads.statistics import HeadError
from edgekit.heads.unknown import calibrate_acceptance
from edgekit.packages import ProofSample
from edgekit.runtimes import Session, TensorInfo
from edgekit.runtimes.base import shape_text
from edgekit.vision.embedding import Embedder

WIDEST = 8192
"""Values of an embedding."""
RATE = 0.01
"""Share of strangers that the package's own threshold takes for somebody, as `cloudd train --task embedding` has it."""
_IDENTITIES = 3  # that prove the package, by two pictures each
_TOLERANCE = 0.05
_APART = 0.02  # by which a proof sample must be nearer to its own


def embedding_output(session: Session, arrays: Sequence[NDArray[np.generic]], name: str) -> tuple[TensorInfo, int]:
    """The output that is one vector, and its width; `arrays` are all outputs for one input, `name` is said by the user.

    Raises ImportRefused.
    """
    have = ", ".join(f'"{one.name}" {shape_text(one.shape)}' for one in session.outputs[:8])
    if name and name not in [one.name for one in session.outputs]:
        raise ImportRefused(f'the model has no output "{name}"; it has {have}')
    fitting = [
        (tensor, array.size)
        for tensor, array in zip(session.outputs, arrays, strict=True)
        if name in ("", tensor.name) and array.shape[:1] == (1,) and array.size == max(array.shape)
    ]
    fitting = [(tensor, width) for tensor, width in fitting if 2 <= width <= WIDEST]
    if not fitting:
        raise ImportRefused(
            f"no output is one vector of 2 to {WIDEST} values: {have}. Export the model without what follows its vector"
        )
    if len(fitting) > 1:
        raise ImportRefused(f"several outputs could be the embedding; say --output name=NAME, one of {have}")
    return fitting[0]


def judge_embedder(
    model: Embedder, album: Album, root: Path, progress: Progress
) -> tuple[list[ProofSample], Likeness | None]:
    """Embed all pictures; their labels are identities. Keeps proof samples in `root`/samples.

    Without two identities of two pictures each there are no figures. Raises ImportRefused where pictures are no nearer
    to their own identity than chance would have it, DatasetError for a picture that cannot be used, ModelError.
    """
    vectors = np.stack(ask_all(album, album.pictures, lambda data: model.embed(data)[0], progress)).astype(np.float64)
    names = np.array([one.label for one in album.pictures])
    if not album.said:
        return [], None
    mine = names[:, None] == names[None]
    np.fill_diagonal(mine, False)
    several = mine.any(axis=1)
    identities = sorted({str(name) for name in names[several]})
    if len(identities) < 2:
        return [], None
    cosines = vectors @ vectors.T
    own = np.where(mine, cosines, -1.0).max(axis=1)
    other = np.where(names[:, None] == names[None], -1.0, cosines).max(axis=1)
    threshold = _threshold(other)
    nearest = int((own > other)[several].sum())
    figures = Likeness(
        identities=len(set(names.tolist())),
        pictures=len(names),
        nearest=share(nearest, int(several.sum())),
        threshold=threshold,
        missed=share(int((own < threshold)[several].sum()), int(several.sum())),
        taken=share(int((other >= threshold).sum()), len(names)),
    )
    told = figures.nearest
    if told.trials >= ENOUGH and told.hits < told.trials and told.low <= 2.0 / figures.identities:
        raise ImportRefused(
            f"{told.hits} of {told.trials} pictures are nearer to another of their own identity than to any other, "
            "which may as well be chance: see whether --normalise, --input colour=, resize= and --output name= are "
            "right"
        )
    return _samples(vectors, album, identities, root), figures


def _threshold(other: NDArray[np.float64]) -> float:
    """Certified for RATE if the pictures suffice, else half-way from the most alike strangers to equality."""
    try:
        found = calibrate_acceptance(other.tolist(), RATE).threshold
    except HeadError:
        found = (1.0 + float(other.max())) / 2
    return round(min(0.999, max(0.001, found)), 4)


def _samples(vectors: NDArray[np.float64], album: Album, identities: Sequence[str], root: Path) -> list[ProofSample]:
    """Two pictures each of some identities, if the model tells them apart."""
    chosen: list[int] = []
    for identity in identities:
        pair = [at for at, one in enumerate(album.pictures) if one.label == identity][:2]
        if all(len(album.read(album.pictures[at])) <= SAMPLE_BYTES for at in pair):
            chosen += pair
        if len(chosen) == 2 * _IDENTITIES:
            break
    cosines = vectors[chosen] @ vectors[chosen].T
    np.fill_diagonal(cosines, -1.0)
    names = [album.pictures[at].label for at in chosen]
    samples: list[ProofSample] = []
    for place, name in enumerate(names):
        same = max(cosines[place, at] for at, other in enumerate(names) if other == name)
        if same < _APART + max((cosines[place, at] for at, other in enumerate(names) if other != name), default=-1.0):
            return []
        score = round(max(0.0, float(same)), 3)
        samples.append(ProofSample(file="", label=name, score=score, tolerance=_TOLERANCE))
    return [
        msgspec.structs.replace(one, file=keep_sample(root, place, album.read(album.pictures[at])))
        for place, (at, one) in enumerate(zip(chosen, samples, strict=True))
    ]
