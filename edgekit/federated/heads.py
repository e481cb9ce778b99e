"""Closed-form heads in one round: every device adds its sums of features, and can take them out again to the last bit.

What travels is `edgekit.heads.statistics`: number of samples and sum of features of each class, sums of outer products.
Values become whole numbers of a grid (2^-fraction_bits), which masks and sums leave exact, so the totals are the same
whichever devices come in which round, and federated equals central up to that rounding.

A device remembers what it has in the total and contributes the difference: new samples, corrected labels, or minus
everything (a site that leaves). Afterwards the total is, bit by bit, that of the devices that stayed. One that loses
its memory cannot leave any more; the total is begun anew then.

The sum of a round is public, and so is the difference of two totals. Where only one device changes, the sum *is* its
difference: nobody is told whose, but that site's sums are known then. Rounds should gather changes of several devices.

`balanced` sends the outer products of each class (c times the size) and pools covariances with equal weights, so that a
rare class counts as much as a common one. Without it only the class means do: the priors of the head are equal anyway.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edgekit.federated.errors import FederatedError
from edgekit.federated.strategy import Contribution, State
from edgekit.federated.sums import Aggregate, Room, RoundNumbers, Sum, to_values, whole_numbers
from edgekit.heads.linear import LinearHead, lda, shrinkage
from edgekit.heads.statistics import MAX_CLASSES, MAX_FEATURES, HeadError, Statistics
from edgekit.secagg.messages import MAX_WORDS

Codes64 = NDArray[np.int64]
_MOST = 2.0**53


class AdditiveHead(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="strategy", tag="additive-head"
):
    """Settings. The standardiser of the features is part of the service: the same on all devices."""

    labels: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...], Meta(min_length=2, max_length=MAX_CLASSES)
    ]
    features: Annotated[int, Meta(ge=1, le=MAX_FEATURES)]
    room: Room
    balanced: bool = False
    fraction_bits: Annotated[int, Meta(ge=0, le=20)] = 10
    """Of the grid. A sum of one device has room up to 2^(24 - fraction_bits): 16,384 with 10."""


class AdditiveHeadStrategy:
    """A device's result is a Statistics for each class or one of all; its memory the whole numbers it has contributed.

    The state's model are the totals, int64.
    """

    def __init__(self, settings: AdditiveHead) -> None:
        """Raises FederatedError for equal labels or more values than a sum has."""
        self.settings = settings
        classes, features = len(settings.labels), settings.features
        if len(set(settings.labels)) != classes:
            raise FederatedError("two classes have the same label")
        self._triangle = features * (features + 1) // 2
        self.parameters = classes * (1 + features) + self._triangle * (classes if settings.balanced else 1)
        """Values of a contribution."""
        if self.parameters > MAX_WORDS:
            raise FederatedError(f"a head of {self.parameters} sums; {MAX_WORDS} are the most")

    def start(self) -> State:
        """Of no sample yet."""
        return State(np.zeros(self.parameters, np.int64))

    @property
    def numbers(self) -> RoundNumbers:
        """See Strategy."""
        return whole_numbers(self.parameters, self.settings.room)

    def codes(self, features: NDArray[np.floating], classes: NDArray[np.integer]) -> Codes64:
        """The whole numbers of standardised features [n, d] and their classes. n = 0: nothing (any more).

        Raises FederatedError for what cannot be features or classes.
        """
        index = np.asarray(classes, np.int64)
        labels = self.settings.labels
        if not len(index):
            return np.zeros(self.parameters, np.int64)
        try:
            everything = Statistics.of(features, index.tolist(), labels)
            if everything.features != self.settings.features:
                raise HeadError(f"{everything.features} features; the head has {self.settings.features}")
            vector = everything.vector()
            if self.settings.balanced:
                rows = np.asarray(features, np.float64)
                parts = [
                    Statistics.of(rows[index == c], [c] * int((index == c).sum()), labels) for c in range(len(labels))
                ]
                triangles = [part.vector()[-self._triangle :] for part in parts]
                vector = np.concatenate([vector[: -self._triangle], *triangles])
        except HeadError as error:
            raise FederatedError(str(error)) from None
        codes: Codes64 = np.rint(vector * 2.0**self.settings.fraction_bits).astype(np.int64)
        return codes

    def contribution(self, state: State, result: Codes64, memory: Codes64 | None) -> Contribution[Codes64]:
        """`result`: of `codes`, all that the device wants in the total. The vector is the difference to `memory`."""
        self._check(state)
        if result.dtype != np.int64 or result.shape != (self.parameters,):
            raise FederatedError(f"a contribution has {self.parameters} whole numbers, not {result.shape}")
        before = np.zeros_like(result) if memory is None else memory
        try:
            return Contribution(to_values(result - before, self.settings.room), 1, result)
        except FederatedError as error:
            raise FederatedError(f"{error}: contribute in more rounds, or with fewer fraction_bits") from None

    def apply(self, state: State, aggregate: Aggregate) -> State:
        """See Strategy."""
        self._check(state)
        if not isinstance(aggregate, Sum):
            raise FederatedError("sums of whole numbers are added as they are; no robust or private mean of them")
        if aggregate.codes.shape != (self.parameters,):
            raise FederatedError(f"a sum of {aggregate.codes.size} values; the head has {self.parameters}")
        return State(state.model + aggregate.codes, {}, state.version + 1)

    def statistics(self, state: State) -> Statistics:
        """All samples' sums; with `balanced`, those of as many (weighted) samples of each class as the largest has.

        Raises FederatedError if the totals can be of no samples: some device contributed nonsense.
        """
        self._check(state)
        settings = self.settings
        if int(np.abs(state.model).max()) >= _MOST:
            raise FederatedError("the totals are too large to be sums of features")
        values = state.model * 2.0**-settings.fraction_bits
        try:
            if not settings.balanced:
                return Statistics.from_vector(values, settings.labels, settings.features)
            return self._balanced(values)
        except HeadError as error:
            raise FederatedError(str(error)) from None

    def head(self, state: State) -> LinearHead:
        """The head of all classes that have samples. Raises FederatedError."""
        statistics = self.statistics(state)
        counts = np.rint(state.model[: len(self.settings.labels)] * 2.0**-self.settings.fraction_bits)
        seen = Statistics(statistics.labels, counts, statistics.sums, statistics.products)
        try:
            return lda(statistics, shrinkage(seen))
        except HeadError as error:
            raise FederatedError(str(error)) from None

    def _balanced(self, values: NDArray[np.float64]) -> Statistics:
        classes, features = len(self.settings.labels), self.settings.features
        counts, sums = np.rint(values[:classes]), values[classes : classes * (1 + features)].reshape(classes, features)
        if (counts < 0).any() or not counts.any():
            raise HeadError("no class has samples, or one has fewer than none")
        factors = np.where(counts > 0, counts.max() / np.maximum(counts, 1), 0.0)
        triangles = values[classes * (1 + features) :].reshape(classes, self._triangle)
        vector = np.concatenate([counts * factors, (sums * factors[:, None]).ravel(), factors @ triangles])
        return Statistics.from_vector(vector, self.settings.labels, features)

    def _check(self, state: State) -> None:
        if state.slots or state.model.dtype != np.int64 or state.model.shape != (self.parameters,):
            raise FederatedError(f"the state of a head has {self.parameters} whole numbers and nothing else")
