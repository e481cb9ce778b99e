"""What a federated job computes: the numbers of its rounds, what a round is bound to, and how sums move the state.

cloudd and every device build one `JobRules` from the same FederatedJob, so that both arrive at the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.federated import evaluation, robust
from edgekit.federated.errors import FederatedError
from edgekit.federated.head_jobs import TOTALS, HeadBase, HeadStrategy, OneRoundHead
from edgekit.federated.layout import Vector
from edgekit.federated.plan import Plan
from edgekit.federated.privacy import Mechanism
from edgekit.federated.strategy import Learning, State
from edgekit.federated.sums import Aggregate, Room, RoundNumbers, Sum
from edgekit.messages.federation import FederatedJob, RoundKind, evaluation_model
from edgekit.secagg import masks
from edgekit.secagg.masks import Words
from edgekit.secagg.messages import Prg, RoundConfig


@dataclass(frozen=True, eq=False)
class CohortSum:
    """A published sum with the round that made it."""

    words: Words  # (parameters + 2,)
    survivors: int
    config: RoundConfig
    nodes: frozenset[bytes] = frozenset()  # who the survivors are; robust jobs only


class JobRules:
    """`shapes`: of the trained tensors, the states "parameter" and "batch_norm" of the job's train step.

    `base`: what a head of one round begins with; such a job has no train step and no `shapes`. Raises FederatedError
    for a plan that cannot be read, or does not fit the model or the words.
    """

    def __init__(self, job: FederatedJob, shapes: Mapping[str, tuple[int, ...]], base: HeadBase | None = None) -> None:
        self.job = job
        try:
            self.plan = msgspec.json.decode(job.plan, type=Plan)
        except msgspec.DecodeError as error:
            raise FederatedError(f"the plan of the job cannot be read: {error}") from None
        self.room = Room(invited=max(3, job.most), bits=job.bits)
        self.head: HeadStrategy | None = None
        """The strategy, where the job is a head of one round."""
        self.strategy: Learning[Any]
        if isinstance(self.plan.strategy, OneRoundHead):
            if base is None:
                raise FederatedError("the job is a head, and its files hold none")
            self.strategy = self.head = HeadStrategy(self.plan.strategy, job.labels, base, self.room)
        else:
            self.strategy = self.plan.build(dict(shapes))
        self.mechanism: Mechanism | None = self.plan.mechanism(self.strategy, self.room)
        self.evaluation = evaluation.Evaluation(labels=job.labels, room=self.room, boxes=job.task == "detection")

    def start(self, tensors: Mapping[str, NDArray[Any]]) -> State:
        """The state before the first round, from the first values of the trained tensors, or the totals of a head."""
        if self.head is not None:
            return self.head.start(tensors.get(TOTALS))
        return self.strategy.start(self.strategy.layout.flatten(tensors))

    def fits(self, state: State) -> None:
        """Raises FederatedError for a state that cannot be one of this job."""
        if self.head is not None:
            self.head.fits(state)
        else:
            self.strategy.layout.unflatten(state.model)

    def tensors(self, state: State) -> dict[str, Vector]:
        """The shared tensors of the model that a state stands for, by name. Raises FederatedError."""
        return self.strategy.layout.unflatten(state.model) if self.head is None else self.head.tensors(state)

    def digest(self, state: State) -> bytes:
        """Of a state, of the layout, and of the whole job, 32 bytes."""
        return state.digest(self.strategy.layout.digest, self.job)

    def numbers(self, kind: RoundKind) -> RoundNumbers:
        """What a round must have."""
        if kind == "evaluate":
            return evaluation.numbers(self.evaluation)
        return self.mechanism.numbers if self.mechanism is not None else self.strategy.numbers

    def model(self, state_digest: bytes, kind: RoundKind) -> bytes:
        """`RoundConfig.model` of a round of a state."""
        return evaluation_model(state_digest) if kind == "evaluate" else state_digest

    def config(
        self, kind: RoundKind, state_digest: bytes, *, number: int, colluders: int, prg: Prg, rosters: bytes
    ) -> RoundConfig:
        """The round that cloudd proposes."""
        blank = RoundConfig(
            session=self.job.session,
            round=number,
            invited=self.room.invited,
            colluders=colluders,
            parameters=1,
            clip=1.0,
            limit=1.0,
            max_weight=1,
            bits=self.room.bits,
            prg=prg,
            model=self.model(state_digest, kind),
            rosters=rosters,
        )
        return self.numbers(kind).put_into(blank)

    def check(self, config: RoundConfig, kind: RoundKind, state_digest: bytes, number: int) -> None:
        """What a device demands of a proposal beside its policy. Raises FederatedError if it is not this job's round.

        Colluders, rosters and the key stream are the policy's and the protocol's matter.
        """
        wanted = self.config(
            kind,
            state_digest,
            number=number,
            colluders=config.colluders,
            prg=config.prg,
            rosters=config.rosters,
        )
        for name in wanted.__struct_fields__:
            if getattr(wanted, name) != getattr(config, name):
                shown = "" if isinstance(getattr(wanted, name), bytes) else f" ({getattr(config, name)})"
                raise FederatedError(f"the round has another {name}{shown} than this job's round of this state")

    def apply(self, state: State, sums: Sequence[CohortSum]) -> State:
        """The next state. Raises FederatedError for sums that cannot be those of a round of this job."""
        if self.plan.robust is None:
            if len(sums) != 1:
                raise FederatedError(f"{len(sums)} sums; a round of this job has one")
            return self.strategy.apply(state, self._aggregate(sums[0]))
        buckets = []
        for one in sums:
            if len(one.nodes) != one.survivors:
                raise FederatedError("the survivors of a bucket are not all named")
            buckets.append(robust.Bucket(self._aggregate(one).mean, one.nodes))
        return self.strategy.apply(state, robust.combine(buckets, self.plan.robust))

    def figures(self, total: CohortSum) -> evaluation.Figures:
        """How good the model is, from the sum of an evaluation round. Raises FederatedError."""
        return evaluation.figures(self.evaluation, Sum.of_words(total.words, total.survivors, total.config))

    def _aggregate(self, one: CohortSum) -> Aggregate:
        total = Sum.of_words(one.words, one.survivors, one.config)
        return total if self.mechanism is None else self.mechanism.mean(total)


def read_words(data: bytes | memoryview, config: RoundConfig) -> Words:
    """The words of a published sum, without a copy. Raises FederatedError for another length."""
    size = (config.parameters + 2) * config.bits // 8
    if len(data) != size:
        raise FederatedError(f"a sum of {len(data)} bytes; this round's has {size}")
    return np.frombuffer(data, masks.dtype(config.bits))
