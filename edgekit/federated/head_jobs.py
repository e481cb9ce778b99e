"""A head of one round as a federated job: what its rounds add up, and the last layer that the totals make.

The job's files hold the base model up to its last features (FEATURES_FILE) and in HEAD_FILE its old last layer and a
scale for each feature: a power of two, so that scaled features are the device's own to the last bit. What devices add
up are sums of scaled features (`heads`). Whatever else a head needs follows from the totals alone: mean and deviation
by which features are standardised, shrinkage, covariance, temperature. So a site that takes its sums out leaves no
trace in the head, not even in how features are standardised.

A job may continue an earlier one: it begins with its totals, and each device contributes the difference to what it
has in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edgekit.federated.errors import FederatedError
from edgekit.federated.heads import AdditiveHead, AdditiveHeadStrategy, Codes64
from edgekit.federated.layout import Layout, Vector
from edgekit.federated.strategy import Contribution, LocalResult, LocalTerm, State
from edgekit.federated.sums import Aggregate, Room, RoundNumbers
from edgekit.heads.linear import LinearHead, lda, shrinkage
from edgekit.heads.statistics import MAX_FEATURES, Floats, HeadError, Standardiser, Statistics, checked

FEATURES_FILE = "features.onnx"
HEAD_FILE = "head.safetensors"
TOTALS_FILE = "totals.safetensors"
"""Of a job that continues an earlier one."""
WEIGHT, BIAS = "federated.weight", "federated.bias"
"""Of the last layer, in the job's model and its weights: [labels, features], [labels]."""
SCALE, OLD_WEIGHT, OLD_BIAS, TOTALS = "scale", "weight", "bias", "totals"
"""Tensors of HEAD_FILE and TOTALS_FILE."""
FEWEST = 2
"""Samples of a class, over all devices, from which its mean is estimated."""
CUT = 256.0
"""Largest scaled feature; what lies further out is cut, so that no sample outweighs all others."""
MAX_EARLIER = 64


class OneRoundHead(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="strategy", tag="additive-head"
):
    """Settings in a job's plan."""

    balanced: bool = False
    """Whether a rare class also counts in the covariance as much as a common one; sums are as many times larger."""
    fraction_bits: Annotated[int, Meta(ge=0, le=20)] = 6
    """Of the grid. Any one sum of a device has room up to 2^(24 - fraction_bits)."""
    continues: Annotated[tuple[Annotated[str, Meta(pattern="^[0-9a-f]{32}$")], ...], Meta(max_length=MAX_EARLIER)] = ()
    """The jobs whose totals this one begins with, the last one first. cloudd writes it."""


@dataclass(frozen=True, eq=False)
class HeadBase:
    """What a job of a head begins with."""

    scale: Floats  # [d], powers of two
    weight: Floats  # [classes of the base, d]: its last layer, on features that are not scaled
    bias: Floats  # [classes of the base]

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]]) -> HeadBase:
        """From the tensors of HEAD_FILE. Raises FederatedError for what cannot be such a layer."""
        missing = [name for name in (SCALE, OLD_WEIGHT, OLD_BIAS) if name not in tensors]
        if missing:
            raise FederatedError(f"{HEAD_FILE} has no tensor {missing[0]!r}")
        found = cls(*(np.asarray(tensors[name], np.float64) for name in (SCALE, OLD_WEIGHT, OLD_BIAS)))
        features = found.scale.size
        fits = found.weight.ndim == 2 and found.weight.shape[1] == features and found.bias.shape == (found.known,)
        if found.scale.ndim != 1 or not 1 <= features <= MAX_FEATURES or not fits:
            raise FederatedError(f"{HEAD_FILE} holds no last layer of 1 to {MAX_FEATURES} features with their scales")
        if not all(np.isfinite(one).all() for one in (found.scale, found.weight, found.bias)):
            raise FederatedError(f"{HEAD_FILE} holds a value that is not a number")
        if (found.scale <= 0).any() or (np.frexp(found.scale)[0] != 0.5).any():
            raise FederatedError(f"a scale in {HEAD_FILE} is no power of two")
        return found

    @property
    def known(self) -> int:
        """Classes of the base."""
        return len(self.weight)

    @property
    def features(self) -> int:
        """Inputs of the last layer."""
        return int(self.scale.size)


@dataclass(frozen=True, eq=False)
class Layer:
    """A last layer on features that are not scaled. `notes` are sentences."""

    weight: Vector  # [c, d]
    bias: Vector  # [c]
    notes: tuple[str, ...] = ()


class HeadStrategy:
    """`Learning` for a head. The result of a device are its whole numbers, as float32 (below 2^24 they are exact)."""

    def __init__(self, settings: OneRoundHead, labels: tuple[str, ...], base: HeadBase, room: Room) -> None:
        """`labels`: those of the base in its order, then new ones. Raises FederatedError for sums without room."""
        if not base.known <= len(labels):
            raise FederatedError(f"the base has {base.known} classes and the job {len(labels)} labels")
        self.settings, self.base = settings, base
        self.sums = AdditiveHeadStrategy(
            AdditiveHead(
                labels=labels,
                features=base.features,
                room=room,
                balanced=settings.balanced,
                fraction_bits=settings.fraction_bits,
            )
        )
        counts, sums = len(labels), len(labels) * base.features
        self.layout = Layout({"a.counts": (counts,), "b.sums": (sums,), "c.products": (self._size - counts - sums,)})
        """Names for the parts of the totals, in their order."""

    @property
    def _size(self) -> int:
        return self.sums.parameters

    @property
    def numbers(self) -> RoundNumbers:
        """See Strategy."""
        return self.sums.numbers

    def start(self, model: NDArray[Any] | None = None) -> State:
        """The totals of the jobs before (int64), or of no sample yet. Raises FederatedError."""
        state = self.sums.start() if model is None else State(model)
        self.fits(state)
        return state

    def fits(self, state: State) -> None:
        """Raises FederatedError for a state that is none of this job: other numbers, or fewer samples than none."""
        counts = state.model[: len(self.sums.settings.labels)]
        if state.slots or state.model.dtype != np.int64 or state.model.shape != (self._size,):
            raise FederatedError(f"the totals of this head are {self._size} whole numbers and nothing else")
        if (counts < 0).any():
            raise FederatedError("a class has fewer samples than none: some device took out more than it had put in")

    def term(self, state: State, memory: Codes64 | None = None) -> LocalTerm:
        """A head has no gradient."""
        return LocalTerm(anchor=np.zeros(0, np.float32))

    def scaled(self, features: NDArray[np.floating]) -> Floats:
        """Features [n, d] as they are summed. Raises FederatedError."""
        try:
            return np.clip(checked(features, self.base.features) * self.base.scale, -CUT, CUT)
        except HeadError as error:
            raise FederatedError(str(error)) from None

    def result(self, features: NDArray[np.floating], classes: NDArray[np.integer]) -> LocalResult:
        """What a device with these samples wants in the totals; of none: nothing (any more). Raises FederatedError."""
        rows = self.scaled(features) if len(classes) else np.zeros((0, self.base.features))
        codes = self.sums.codes(rows, classes)
        most = 1 << 24
        if int(np.abs(codes).max(initial=0)) > most:
            raise FederatedError(
                f"a sum of {len(classes)} samples has no room: give the job's strategy fewer fraction_bits than "
                f"{self.settings.fraction_bits}"
            )
        return LocalResult(delta=codes.astype(np.float32), samples=len(classes), steps=1, learning_rate=1.0)

    def contribution(self, state: State, result: LocalResult, memory: Codes64 | None) -> Contribution[Codes64]:
        """See AdditiveHeadStrategy.contribution: the difference to what the device has in the totals."""
        return self.sums.contribution(state, np.rint(result.delta).astype(np.int64), memory)

    def apply(self, state: State, aggregate: Aggregate) -> State:
        """See Strategy."""
        following = self.sums.apply(state, aggregate)
        self.fits(following)
        return following

    # --- the head ---------------------------------------------------------------------------------------------------

    def layer(self, state: State) -> Layer:
        """The last layer of all samples in the totals. Raises FederatedError where they make none.

        A class of the base of which there are fewer than FEWEST samples keeps its old row, and its bias is moved so
        that on the samples at hand it stands to the others as it did before.
        """
        labels, base = self.sums.settings.labels, self.base
        try:
            total = self.sums.statistics(state)
            counts = np.rint(state.model[: len(labels)] * 2.0**-self.settings.fraction_bits)
            seen = np.flatnonzero(counts >= FEWEST)
            rare = [labels[at] for at in range(base.known, len(labels)) if counts[at] < FEWEST]
            if rare:
                raise HeadError(f'all devices together have fewer than {FEWEST} samples of the new class "{rare[0]}"')
            used = _without_single(total, counts)
            standard, standardiser = standardised(used)
            told = Statistics(used.labels, np.where(counts >= FEWEST, counts, 0.0), used.sums, used.products)
            found = lda(standard, shrinkage(told)).on_raw(standardiser)
        except HeadError as error:
            raise FederatedError(f"the totals make no head: {error}") from None
        return self._whole(found, seen, used)

    def _whole(self, head: LinearHead, seen: NDArray[np.intp], used: Statistics) -> Layer:
        base, labels = self.base, self.sums.settings.labels
        old_weight = base.weight / base.scale
        moments = _moments(used)
        shared = seen[seen < base.known]
        rows = {int(label_at): row for row, label_at in enumerate(seen)}
        mine = [rows[int(at)] for at in shared]
        now = np.column_stack([head.weight, head.bias])
        before = np.column_stack([old_weight, base.bias])
        now /= _temperature(now[mine], before[shared], moments)
        whole = np.zeros((len(labels), base.features + 1))
        whole[seen] = now
        rest = np.setdiff1d(np.arange(len(labels)), seen)
        notes: tuple[str, ...] = ()
        if len(rest):
            mean = moments[-1]  # of the scaled features, and 1
            shift = float(np.mean(now[mine] @ mean - before[shared] @ mean)) if len(shared) else 0.0
            whole[rest] = before[rest]
            whole[rest, -1] += shift
            named = ", ".join(f'"{labels[int(at)]}"' for at in rest[:5]) + (", ..." if len(rest) > 5 else "")
            notes = (f"{named} had fewer than {FEWEST} samples on all devices and kept what the base knew of them",)
        weight = (whole[:, :-1] * base.scale).astype(np.float32)
        return Layer(weight, whole[:, -1].astype(np.float32), notes)

    def tensors(self, state: State) -> dict[str, Vector]:
        """The last layer under its names in the job's model. Raises FederatedError."""
        layer = self.layer(state)
        return {WEIGHT: layer.weight, BIAS: layer.bias}


def standardised(total: Statistics) -> tuple[Statistics, Standardiser]:
    """Sums of features as if each had been standardised by mean and deviation over all samples of the sums.

    For x' = (x - m) / s: sum x' = (sum x - n m) / s and sum x' x'^T = (sum x x^T - n m m^T) / (s s^T), with the n of
    all samples and m their mean. A feature that hardly varies gets the deviation 1, as in Standardiser.of. Raises
    HeadError without samples.
    """
    count = float(total.counts.sum())
    if count < FEWEST:
        raise HeadError("there are no samples to standardise features by")
    mean = total.sums.sum(axis=0) / count
    spread = np.maximum(np.diag(total.products) / count - np.square(mean), 0.0)
    # Below that a difference of sums, each rounded to the grid, is noise.
    deviation = np.where(spread > 1e-9 * np.maximum(1.0, np.square(mean)), np.sqrt(spread), 1.0)
    sums = (total.sums - total.counts[:, None] * mean) / deviation
    products = (total.products - count * np.outer(mean, mean)) / np.outer(deviation, deviation)
    return Statistics(total.labels, total.counts, sums, products), Standardiser(mean, deviation)


def _without_single(total: Statistics, counts: Floats) -> Statistics:
    """Without classes of one sample: their sum is that sample, so it can be taken out of the products, too."""
    rows = np.flatnonzero((counts > 0) & (counts < FEWEST))
    if not len(rows):
        return total
    kept = total.counts.copy()
    sums, products = total.sums.copy(), total.products.copy()
    for row in rows:
        products -= np.outer(sums[row], sums[row]) / total.counts[row]
        kept[row], sums[row] = 0.0, 0.0
    return Statistics(total.labels, kept, sums, products)


def _moments(total: Statistics) -> Floats:
    """Second moments [d + 1, d + 1] of a scaled sample with a 1 behind it."""
    count = float(total.counts.sum())
    mean = np.append(total.sums.sum(axis=0) / count, 1.0)
    found = np.empty((mean.size, mean.size))
    found[:-1, :-1] = total.products / count
    found[-1], found[:, -1] = mean, mean
    return found


def _temperature(now: Floats, before: Floats, moments: Floats) -> float:
    """By which the new logits are divided, so that over the samples they differ by as much as the base's do.

    The base's logits were fitted to labels, and thresholds on margins stand on their scale; of a head from sums there
    is no sample left to fit a temperature by. Compared are the mean squares of the logits of the classes that both
    have, each less the mean of its sample. 1 where there are fewer than two such classes.
    """
    if len(now) < 2:
        return 1.0
    squares = [
        float(np.einsum("cd,de,ce->", one, moments, one)) for one in (now - now.mean(0), before - before.mean(0))
    ]
    if not all(np.isfinite(one) and one > 0 for one in squares):
        return 1.0
    return float(np.sqrt(squares[0] / squares[1]))
