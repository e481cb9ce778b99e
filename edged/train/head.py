"""Rung `head`: a new last layer in closed form, for the classes that the model has and for new ones.

The head is the shrinkage LDA of `edgekit.heads` on the features before the last layer (`research/algorithms.md` 4.3).
A class of the model that has no labels here cannot be estimated: it keeps its row of the old layer, with the bias moved
so that on the pictures at hand it stands against all others as it did before.

Where the graph allows it the layer reads earlier maps, too (`edged.train.stages`), unless a cross-validation on the
pictures that teach, by board or lot, is clearly against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.train.lessons import Lessons, Part
from edged.train.network import Network, features
from edged.train.pace import Workplace
from edgekit.datasets.parts import place
from edgekit.graphs.errors import NetworkError
from edgekit.graphs.logits import Floats, LastLayer
from edgekit.heads.linear import LinearHead, lda
from edgekit.heads.statistics import HeadError, Standardiser, Statistics
from edgekit.packages import InputSpec

FEATURES = "features"
"""Folder of the graph that gives them."""
FEWEST = 2
"""Labels of a class from which its mean is estimated."""
FOLDS = 5
"""Of a cross-validation. More would leave each head more of few labels, but one of 2048 features takes seconds."""
DOUBT = 0.05
"""Share of a class by which the wider head may look worse in a cross-validation and is taken all the same: two standard
deviations of chance. Over 100 draws of the boards of `pcb-bare` smaller differences said nothing about those on other
boards, where it was better by .006 to .049 on the mean."""
_TEMPERED = 20
"""Pictures from which the temperature is chosen by those that did not teach."""
_SALT = "head 1"


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features [n, d] and the classes [n] of the pictures they are of."""

    features: Floats
    classes: NDArray[np.int64]

    def last(self, count: int) -> Labelled:
        """Only the last features."""
        return Labelled(self.features[:, -count:], self.classes)


@dataclass(frozen=True, eq=False)
class NewHead:
    """A last layer. `notes` are sentences."""

    weight: Floats  # [classes, features]
    bias: Floats  # [classes]
    notes: tuple[str, ...]


def relearned(
    network: Network, lessons: Lessons, spec: InputSpec, at: Workplace, *, widen: bool = True
) -> tuple[Network, tuple[str, ...]]:
    """The network with a new head for all classes of `lessons`, and notes; without `widen` it reads what it read.

    Gradient steps that began with a wider head kept less of the old classes (`benchmarks.incremental`). Raises
    NetworkError, ModelError, DatasetError, TrainingError, Halted, OSError.
    """
    narrow = network.last_layer().weight.shape[1]
    parts = (lessons.learn, lessons.choose)
    total = sum(len(part.pictures) for part in parts)

    def tensors() -> Iterator[NDArray[Any]]:
        for part in parts:
            pictures = lessons.pictures(part, spec, cache_bytes=0)
            for row in range(len(part.pictures)):
                yield pictures.tensor(pictures.fitted(row).image)

    cut = len(lessons.learn.pictures)
    if not cut:
        raise NetworkError("no picture is there to learn from")
    wide = network.widened(next(tensors()).shape) if widen else None
    reading = network if wide is None else wide
    with reading.feature_session(at.folder / FEATURES, at.threads) as session:
        found = list(at.pace.through("features", features(session, network.image, tensors()), total))
    learn, choose = (_labelled(rows, part) for rows, part in zip((found[:cut], found[cut:]), parts, strict=True))
    notes: tuple[str, ...] = ()
    if wide is not None:
        taken, note = _compared(learn, narrow, lessons, at)
        notes = (note,)
        if taken:
            network = wide
        else:
            learn, choose = learn.last(narrow), choose.last(narrow)
    head = new_head(network.last_layer(), lessons.classes, learn, choose)
    return network.with_last_layer(head.weight, head.bias), (*notes, *head.notes)


def _compared(learn: Labelled, narrow: int, lessons: Lessons, at: Workplace) -> tuple[bool, str]:
    """Whether the layer is to read more than the last `narrow` features, and a note. Raises Halted."""
    folds = np.array([int(place(one, _SALT) * FOLDS) for one in lessons.learn.pictures])
    shares = []
    for turn, these in enumerate((learn.last(narrow), learn), 1):
        shares.append(cross_validated(these, folds, len(lessons.classes)))
        at.pace.turn("training", turn, 2, "cross-validation")
    without, with_them = shares
    taken, more = with_them >= without - DOUBT, learn.features.shape[1] - narrow
    return taken, (
        f"the last layer reads {'' if taken else 'none of '}{more} features of earlier maps besides its {narrow}: "
        f"cross-validated it finds {with_them:.1%} of a class with them and {without:.1%} without"
    )


def cross_validated(these: Labelled, folds: NDArray[np.integer], classes: int) -> float:
    """The share of a class that heads find which were made without its fold [n], on the mean over the classes.

    What stands in a fold without which no head can be made is not found.
    """
    found = np.zeros(len(these.classes), bool)
    for fold in np.unique(folds):
        out = folds == fold
        try:
            head, standardiser = _fitted(these.features[~out], these.classes[~out], classes)
            said = head.logits(standardiser(these.features[out])).argmax(axis=1)
        except HeadError:
            continue
        names = np.array([int(label) for label in head.labels])
        found[out] = names[said] == these.classes[out]
    return float(np.mean([found[these.classes == one].mean() for one in np.unique(these.classes)]))


def _fitted(x: Floats, y: NDArray[np.int64], classes: int) -> tuple[LinearHead, Standardiser]:
    """A head on standardised features; its labels are the numbers of the classes that have any. Raises HeadError."""
    standardiser = Standardiser.of(x)
    labels = [str(number) for number in range(classes)]
    return lda(Statistics.of(standardiser(x), y.tolist(), labels)), standardiser


def _labelled(rows: list[Floats], part: Part) -> Labelled:
    return Labelled(np.stack(rows) if rows else np.zeros((0, 1)), part.labels)


def new_head(old: LastLayer, classes: Sequence[str], learn: Labelled, choose: Labelled) -> NewHead:
    """A head for `classes`, the first of which are those of the old layer, in its order.

    Its temperature makes its probabilities fit pictures that it was not made of, so that margins, and the thresholds
    that are calibrated on them, keep their meaning. Raises NetworkError where fewer than two classes have FEWEST
    labels, or a new class has fewer.
    """
    counts = np.bincount(learn.classes, minlength=len(classes))
    known = len(old.weight)
    for at in range(known, len(classes)):
        if counts[at] < FEWEST:
            raise NetworkError(f'the new class "{classes[at][:64]}" has {counts[at]} pictures to learn from')
    seen = np.flatnonzero(counts >= FEWEST)
    mine = np.isin(learn.classes, seen)
    try:
        head, standardiser = _fitted(learn.features[mine], learn.classes[mine], len(classes))
        rows = np.full(len(classes), -1)
        rows[seen] = np.arange(len(seen))
        inside = choose if len(choose.classes) >= _TEMPERED else _together(choose, learn)
        inside = _only(inside, seen)
        # As Platt 1999: n labels count as n + 1 in n + 2, so that few of them without a mistake prove no certainty.
        doubt = 1 / (len(inside.classes) + 2)
        head = head.tempered(standardiser(inside.features), rows[inside.classes], doubt).on_raw(standardiser)
    except HeadError as error:
        raise NetworkError(f"no head can be made: {error}") from None
    return _whole(head, old, classes, seen, learn.features[mine])


def _whole(head: LinearHead, old: LastLayer, classes: Sequence[str], seen: NDArray[np.intp], x: Floats) -> NewHead:
    weight, bias = np.zeros((len(classes), head.weight.shape[1])), np.zeros(len(classes))
    weight[seen], bias[seen] = head.weight / head.temperature, head.bias / head.temperature
    rest = np.setdiff1d(np.arange(len(classes)), seen)
    if not len(rest):
        return NewHead(weight, bias, ())
    shared = seen[seen < len(old.weight)]
    before, now = x @ old.weight.T + old.bias, x @ weight.T + bias
    # The logarithm of what all classes seen here have together, in the old layer's scale and in the new one's.
    shift = float(np.mean(_log_sum(now[:, shared]) - _log_sum(before[:, shared]))) if len(shared) else 0.0
    weight[rest], bias[rest] = old.weight[rest], old.bias[rest] + shift
    named = ", ".join(f'"{classes[int(at)][:64]}"' for at in rest[:5]) + (", ..." if len(rest) > 5 else "")
    note = f"{named} had fewer than {FEWEST} pictures to learn from and kept what the model had learned of them before"
    return NewHead(weight, bias, (note,))


def _log_sum(logits: Floats) -> Floats:
    top = logits.max(axis=1)
    total: Floats = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return total


def _together(one: Labelled, other: Labelled) -> Labelled:
    if not len(one.classes):
        return other
    return Labelled(np.concatenate([one.features, other.features]), np.concatenate([one.classes, other.classes]))


def _only(these: Labelled, seen: NDArray[np.intp]) -> Labelled:
    mine = np.isin(these.classes, seen)
    return Labelled(these.features[mine], these.classes[mine])
