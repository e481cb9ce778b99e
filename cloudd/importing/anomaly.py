"""A foreign anomaly model: which output is its map, and from which score on a part is anomalous.

The limit is the conformal quantile of the scores of good parts, as in `cloudd.frozen.anomaly`: it holds for later good
parts if the model has not learned from these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudd.derived import Progress
from cloudd.frozen.anomaly import ANOMALOUS, GOOD, AnomalyFigures
from cloudd.importing.errors import ImportRefused
from cloudd.importing.judging import ENOUGH, SAMPLE_BYTES, ask_all, keep_sample
from cloudd.importing.pictures import Album
from cloudd.train.figures import share
from edgekit.datasets.dataset import DatasetError, Picture
from edgekit.heads.anomaly import limit
from edgekit.heads.statistics import HeadError
from edgekit.packages import AnomalySpec, ProofSample
from edgekit.runtimes import ModelError, Session, TensorInfo
from edgekit.runtimes.base import shape_text
from edgekit.vision.anomaly import AnomalyDetector, read_map, usual_spread

PROVISIONAL = AnomalySpec(limit=1.0, spread=1.0)
"""With which a map is read before anything is known of its scores."""
_EACH = 2  # proof samples of a label
_TOLERANCE = 0.15


def anomaly_output(session: Session, arrays: Sequence[NDArray[np.generic]], name: str) -> TensorInfo:
    """The output that is a map or a score of 0 or more; `arrays` are all outputs for one input, `name` is said by the
    user.

    Raises ImportRefused.
    """
    have = ", ".join(f'"{one.name}" {shape_text(one.shape)}' for one in session.outputs[:8])
    if name and name not in [one.name for one in session.outputs]:
        raise ImportRefused(f'the model has no output "{name}"; it has {have}')
    fitting, why = [], ""
    for tensor, array in zip(session.outputs, arrays, strict=True):
        if name not in ("", tensor.name):
            continue
        try:
            read_map(array, tensor)
            fitting.append(tensor)
        except ModelError as error:
            why = why or f': "{tensor.name}": {error}'
    if not fitting:
        raise ImportRefused(f"no output is a map of how far each place is from what is good{why}")
    if len(fitting) > 1:
        raise ImportRefused(
            f"several outputs could be the map; say --output name=NAME, one of {have}. A map shows where, a score does "
            "not"
        )
    return fitting[0]


def anomaly_labels(album: Album, good: str, labels: Sequence[str]) -> tuple[str, str]:
    """Of a good part and of any other. Raises ImportRefused, DatasetError."""
    if album.said == "boxes":
        raise ImportRefused("the pictures have boxes; a label for each picture, or one folder of good parts, is needed")
    if good and not album.said:
        raise ImportRefused("--good: the pictures have no labels, so all of them show good parts; leave it out")
    known = album.dataset.labels
    if not good and len(known) > 1:
        raise ImportRefused(
            f"there are several labels ({', '.join(known[:20])}); say which one good parts have: --good"
        )
    if good and good not in known:
        raise DatasetError(f"no picture has the label {good!r} of --good; there are {', '.join(known[:20])}")
    if labels:
        return labels[0], labels[1]
    return good or GOOD, ANOMALOUS if good != ANOMALOUS else "other"


def judge_parts(
    open_with: Callable[[AnomalySpec], AnomalyDetector],
    album: Album,
    good: str,
    false_alarms: float,
    root: Path,
    progress: Progress,
) -> tuple[AnomalySpec, list[ProofSample], AnomalyFigures]:
    """The limit by the good parts, and proof samples in `root`/samples. `open_with` gives a detector with a table.

    Raises ImportRefused for a model that sees no difference, DatasetError for pictures that cannot be used or are too
    few, ModelError.
    """
    first = open_with(PROVISIONAL)
    scores = np.array(ask_all(album, album.pictures, lambda data: first.classify(data).part_score, progress))
    fine = np.array([not good or one.label == good for one in album.pictures])
    own, theirs = scores[fine], scores[~fine]
    try:
        edge = limit(own, false_alarms)
    except HeadError as error:
        raise DatasetError(f"{error}. Bring more pictures of good parts, or allow more --false-alarms") from None
    if not edge > 0 or float(own.max()) == float(own.min()):
        raise ImportRefused(
            f"good parts get scores from {own.min():.4g} to {own.max():.4g}, so nothing can be told by them: see "
            "whether --normalise, --input and --output name= are right"
        )
    others = [one for one, right in zip(album.pictures, fine, strict=True) if not right]
    figures = _figures(own, theirs, edge, others)
    hits = sum(one.hits for one in figures.found.values())
    if len(others) >= ENOUGH and share(hits, len(others)).low <= false_alarms:
        raise ImportRefused(
            f"of {len(others)} anomalous parts it finds {hits}, which may as well be chance where {false_alarms:g} of "
            "the good ones are called anomalous: see whether --normalise, --input and --output name= are right"
        )
    spec = AnomalySpec(limit=edge, spread=usual_spread(edge, own))
    return spec, _samples(open_with(spec), album, fine, root), figures


def _figures(
    own: NDArray[np.float64], theirs: NDArray[np.float64], edge: float, others: Sequence[Picture]
) -> AnomalyFigures:
    names = np.array([one.label for one in others])
    higher, equal = theirs[:, None] > own[None], theirs[:, None] == own[None]
    return AnomalyFigures(
        good=len(own),
        limit=edge,
        false_alarms=share(int((own >= edge).sum()), len(own)),
        unlike=0,
        found={
            label: share(int((theirs[names == label] >= edge).sum()), int((names == label).sum()))
            for label in sorted(set(names.tolist()))
        },
        auroc=float((higher + 0.5 * equal).mean()) if len(others) else None,
    )


def _samples(model: AnomalyDetector, album: Album, fine: NDArray[np.bool_], root: Path) -> list[ProofSample]:
    """The surest pictures of each label that the model gets right."""
    samples: list[ProofSample] = []
    for label, which in zip(model.labels, (fine, ~fine), strict=True):
        sure = []
        for at in np.flatnonzero(which).tolist():
            data = album.read(album.pictures[at])
            answer = model.classify(data)
            if answer.label == label and answer.margin > 0 and len(data) <= SAMPLE_BYTES:
                sure.append((-answer.score, album.pictures[at].sha256, data))
        for score, _, data in sorted(sure)[:_EACH]:
            file = keep_sample(root, len(samples), data)
            samples.append(ProofSample(file=file, label=label, score=round(-score, 3), tolerance=_TOLERANCE))
    return samples
