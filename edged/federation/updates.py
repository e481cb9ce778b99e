"""What this device contributes: trained once for each state, kept until it is in a sum, charged and hidden if asked."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.federation.book import Book
from edged.federation.files import JobFolder
from edged.federation.settings import Federation
from edged.federation.shared import Shared
from edgekit.faults import crash_point
from edgekit.federated import evaluation
from edgekit.federated.budget import Account, Budget
from edgekit.federated.errors import BudgetSpent, FederatedError
from edgekit.federated.layout import Vector
from edgekit.federated.privacy import noise_sources
from edgekit.federated.strategy import LocalResult, LocalTerm, State
from edgekit.messages.federation import RoundKind
from edgekit.secagg.cohort import Cohort
from edgekit.secagg.errors import Refusal
from edgekit.secagg.messages import RoundConfig

UPDATE = "update"
DEAR_S = 1.0
"""A training that takes less is done again after a restart, rather than kept after each."""
_UNBOUNDED = 1e3
"""The epsilon of a device that keeps no budget: what was spent is still counted, for people."""


class Source(Protocol):
    """Where this device's updates come from: the local training, or a stand-in. `train` and `evaluate` block."""

    @property
    def samples(self) -> int:
        """Labelled ones to learn from."""

    def train(self, state: State, term: LocalTerm, version: int) -> LocalResult:
        """Train from the state on; `version` says where in the job it stands.

        Raises SourceError, OSError; Stopped by `stop`.
        """

    def evaluate(self, state: State) -> tuple[NDArray[np.int64], float]:
        """(confusion matrix over the job's labels, mean loss) of the state on held-out samples. Raises as `train`."""

    def stop(self) -> None:
        """Let `train` save and end soon. From any thread."""


class SourceError(RuntimeError):
    """This device has nothing to contribute; the message is a sentence for people."""


class Stopped(Exception):
    """The training was saved and ends for now."""


class _Update(msgspec.Struct, frozen=True, kw_only=True):
    """What a training gave, beside its vector."""

    version: int  # of the state that it began with
    digest: bytes
    samples: int
    steps: int
    learning_rate: float
    effective: float = 0.0


class Updates:
    """Belongs to one event loop; the training itself runs in a thread."""

    def __init__(self, shared: Shared, source: Source, folder: JobFolder, book: Book, policy: Federation) -> None:
        self._shared, self._source, self._folder = shared, source, folder
        self._book, self._policy = book, policy
        self._training: asyncio.Future[None] | None = None
        self._newest: tuple[_Update, Vector] | None = self._read()
        self.spent = False
        """The privacy budget pays for no further contribution."""

    @property
    def samples(self) -> int:
        """Labelled ones to learn from."""
        return self._source.samples

    def ready(self) -> int | None:
        """The version that the update which is kept belongs to; None if there is none that can be used."""
        kept = self._kept()
        return kept[0].version if kept is not None else None

    def begin(self) -> None:
        """Train in a thread, unless that was done or is being done."""
        if self._training is None and self._kept() is None:
            shared = self._shared
            try:
                term = shared.rules.strategy.term(shared.state, shared.memory)
            except FederatedError as error:
                raise SourceError(f"the job's strategy cannot train here: {error}") from None
            work = asyncio.to_thread(self._train, shared.state, shared.digest(), term)
            self._training = asyncio.ensure_future(work)

    async def result(self) -> LocalResult:
        """What was trained for the present state, or one that is not too old. Raises SourceError, Stopped, OSError."""
        self.begin()
        training = self._training
        if training is not None:
            try:
                await asyncio.shield(training)
            finally:
                if training.done():  # also one that failed: another round of this state may try again
                    self._training = None
        found = self.newest()
        if found is None:
            raise OSError(5, "what was trained is not on the disk")
        return found

    def newest(self) -> LocalResult | None:
        """What is kept, with its present age."""
        kept = self._kept()
        if kept is None:
            return None
        header, delta = kept
        return LocalResult(
            delta=delta,
            samples=header.samples,
            steps=header.steps,
            learning_rate=header.learning_rate,
            effective=header.effective,
            age=self._shared.state.version - header.version,
        )

    async def vector(self, kind: RoundKind, config: RoundConfig, cohort: Cohort | None) -> tuple[Vector, int]:
        """What goes into the sum, and its weight: trained, then charged to the budget (durably), then hidden in noise.

        Raises Refusal if it cannot be part of the round or the budget is spent; SourceError, Stopped, OSError.
        """
        rules = self._shared.rules
        try:
            if kind == "evaluate":
                confusion, loss = await asyncio.to_thread(self._source.evaluate, self._shared.state)
                judged = evaluation.contribution(rules.evaluation, confusion, loss)
                return judged.vector, judged.weight
            found = self._shared.contribution(await self.result())
            if rules.mechanism is None:
                return found.vector, found.weight
            if cohort is None:
                raise Refusal("policy", "a private round needs masks")
            sources = noise_sources(cohort.count, config.colluders, cohort.graph)
            self._charge(config)
            return rules.mechanism.hide(found.vector, sources, secrets.token_bytes(32), config.prg), 1
        except FederatedError as error:
            self.spent = self.spent or isinstance(error, BudgetSpent)
            raise Refusal("policy", str(error)) from None

    def forget(self, *, durable: bool = True) -> None:
        """The update is in a sum, or (then it need not be durable) belongs to a state that has gone by."""
        self._newest = None
        self._folder.remove(UPDATE, durable=durable)

    async def end(self) -> None:
        """Let a training that is under way save and end."""
        if self._training is not None:
            self._source.stop()
            with contextlib.suppress(Exception):  # what it could not save is trained again
                await self._training
            self._training = None

    def _train(self, state: State, digest: bytes, term: LocalTerm) -> None:
        """In a thread."""
        begun = time.monotonic()
        result = self._source.train(state, term, state.version)
        header = _Update(
            version=state.version,
            digest=digest,
            samples=result.samples,
            steps=result.steps,
            learning_rate=result.learning_rate,
            effective=result.effective,
        )
        # A power cut costs the training; only what the device is to remember of it must not be lost once it was sent.
        if self._shared.remembers or time.monotonic() - begun >= DEAR_S:
            self._folder.write(UPDATE, header, {"delta": result.delta}, durable=self._shared.remembers)
        self._newest = header, result.delta
        crash_point("fl.trained")

    def _charge(self, config: RoundConfig) -> None:
        """Durable when this returns. Raises BudgetSpent, FederatedError for a damaged account."""
        mechanism = self._shared.rules.mechanism
        if mechanism is None:
            return
        service, policy = self._shared.job.service, self._policy
        kept = self._book.account(service)
        try:
            account = msgspec.msgpack.decode(kept, type=Account) if kept else Account()
        except msgspec.MsgspecError as error:
            raise FederatedError(f"the privacy account of {service} is damaged: {error}") from None
        budget = Budget(epsilon=_UNBOUNDED if policy.epsilon is None else policy.epsilon, delta=policy.delta)
        after = account.charge(mechanism.cost, budget, config.session + config.round.to_bytes(4, "big"))
        self._book.keep_account(service, msgspec.msgpack.encode(after), after.epsilon(budget.delta))
        crash_point("fl.charged")

    def _read(self) -> tuple[_Update, Vector] | None:
        kept = self._folder.read(UPDATE, _Update)
        if kept is None or "delta" not in kept[1]:
            return None
        return kept[0], kept[1]["delta"]

    def _kept(self) -> tuple[_Update, Vector] | None:
        """What can be used for the present state."""
        if self._newest is None:
            return None
        (header, delta), rules = self._newest, self._shared.rules
        age = self._shared.state.version - header.version
        if not 0 <= age <= rules.plan.max_age or delta.shape != (rules.strategy.layout.size,):
            return None
        return (header, delta) if age or header.digest == self._shared.digest() else None
