"""One service's gate together with its memory: what it learns is on disk before it counts."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Container, Sequence

import msgspec

from edged.collab.commits import CommitError
from edged.collab.gate_memory import GateMemory, Observation, Recalled, pair_key
from edged.collab.plan.heads import HeadsInfo
from edgekit.gates.filter_gate import FilterGate, FilterSettings, FilterSnapshot
from edgekit.gates.filters import Seen, complete
from edgekit.gates.policy import Gate, GateDecision, GateSettings, GateSnapshot
from edgekit.gates.scores import hardness
from edgekit.messages import Answer, GateFacts, HardSample
from edgekit.services import HardSamples, Service

log = logging.getLogger("edged.collab")


def seen_by(service: Service, edge_model: str) -> str:
    """What answers locally. What a model looks at, and what of its answer counts, decides as much as the model does."""
    tables: list[object] = [service.pipeline, service.detection, service.regions]
    if service.task == "detection" and service.regions is None and service.decision is not None:
        tables.append(service.decision.fail)  # the order by which boxes become a frame's label
    return " ".join([edge_model, *(msgspec.json.encode(table).decode() for table in tables if table is not None)])


class Keeper(ABC):
    """The memory around a gate, whatever its samples are. Belongs to one event loop."""

    def __init__(self, service: Service, edge_model: str, memory: GateMemory) -> None:
        """`edge_model` is name@version of the loaded package."""
        seen, answer_model = seen_by(service, edge_model), service.hard_samples.answer_model
        self.service = service.name
        self.edge_model = edge_model
        self._pair = f"{seen} {answer_model}"
        self._memory = memory
        self._key = pair_key(service.name, seen, answer_model)
        self.heads: HeadsInfo | None = None
        """Of a service that splits: whose answers those to features are."""
        self.audited = 0
        """Audits of answers given here whose answer came to this worker."""
        self.differing = 0
        """Of these: the cloud says something else."""
        self._answered_by = ""
        self._seq = 0
        self._changed = False
        self._forgetful = False

    @property
    def answered_by(self) -> str:
        """name@version of the model on cloudd that has answered, "" while none has."""
        return self._answered_by

    # --- what each kind of gate does in its own way ------------------------------------------------------------------

    @abstractmethod
    def sentence(self) -> str:
        """Where the gate stands, for people."""

    @abstractmethod
    def facts(self) -> GateFacts | None:
        """What the gate knows, for the triggers of learning; None where it promises and measures nothing."""

    @abstractmethod
    async def learn(self, header: HardSample, answer: Answer) -> bool | None:
        """Take an answer, which is durable on return and counts once. True if both models agree, None if it cannot be
        compared.

        An answer to a sample of another edge model or pipeline says nothing about this one and is not taken. A new
        model on cloudd's side makes the old certificate worthless: the gate calibrates anew.
        """

    @abstractmethod
    def lost(self, sample_id: str) -> None:
        """No answer will ever come for this sample."""

    @abstractmethod
    def recalibrate(self) -> None:
        """Begin anew: a person asked for it, or the cloud's model changed."""

    @abstractmethod
    def _observe(self, observation: Observation) -> None:
        """Let the gate learn."""

    @abstractmethod
    def _snapshot(self) -> msgspec.Struct: ...

    @abstractmethod
    def _restore(self, snapshot: bytes, waiting: Container[str]) -> bool:
        """False if it belongs to other settings. Raises MsgspecError or ValueError if it cannot be read."""

    # --- memory ------------------------------------------------------------------------------------------------------

    async def restore(self, waiting: Collection[str]) -> None:
        """Go on where the last worker stopped. `waiting`: ids of the service's samples in the spool.

        A gate whose memory cannot be read begins anew, which is safe: it sends everything.
        """
        try:
            recalled = await self._memory.recall(self._key)
        except CommitError as error:
            log.warning("The gate of %s begins anew, because its memory cannot be read: %s", self.service, error)
            return
        self._answered_by, self._seq = recalled.answered_by, recalled.seq
        if recalled.snapshot and not self._go_on(recalled, waiting):
            self._seq = max((observation.seq for observation in recalled.later), default=recalled.seq)
            return
        self._take(recalled.later)

    def _go_on(self, recalled: Recalled, waiting: Collection[str]) -> bool:
        """False if the state is worth nothing: its settings were changed since, or it cannot be read."""
        known = {observation.sample_id for observation in recalled.later}.union(waiting)
        try:
            return self._restore(recalled.snapshot, known)
        except (msgspec.MsgspecError, ValueError) as error:
            log.warning("The gate of %s begins anew, because its state cannot be read: %s", self.service, error)
            return False

    async def _keep(self, answer: Answer, observations: Sequence[Observation]) -> None:
        """Store what an answer says, and let the gate learn it."""
        by = answer.verdict.model
        if by != self._answered_by and not answer.repeated:
            if self._answered_by:
                log.warning("%s: cloudd now answers with %s; the gate calibrates anew.", self.service, by)
                self.recalibrate()
            self._answered_by = by
        try:
            later = await self._memory.add(self._key, observations, self._seq)
            self._count(observations, later)
            self._take(later)
            self._forgetful = False
        except CommitError as error:
            if not self._forgetful:
                self._forgetful = True
                log.warning("What the gate of %s learns is not stored for now: %s", self.service, error)
            if by == self._answered_by:
                self._count(observations, observations)
                for observation in observations:
                    self._observe(observation)
                self._changed = True

    def _count(self, brought: Sequence[Observation], stored: Sequence[Observation]) -> None:
        """Count the audits that this worker brought; `stored` is what the memory made of them, with those of others.

        What another worker brought, now or before a restart, that worker has counted.
        """
        mine = {one.sample_id for one in brought if one.reason == "audit"}
        for one in stored if mine else ():
            if one.sample_id in mine and one.answered_by == self._answered_by:
                self.audited += 1
                self.differing += one.differs

    def _take(self, observations: list[Observation]) -> None:
        """Let the gate learn what is on disk: each answer once, in one order, whichever worker put it there."""
        for observation in observations:
            if observation.seq <= self._seq:
                continue  # it came with an answer that was stored at the same time
            self._seq = observation.seq
            self._changed = True
            self._answered_by = self._answered_by or observation.answered_by
            if observation.answered_by == self._answered_by:
                self._observe(observation)

    async def save(self) -> None:
        """Take what another worker has learned, and store the state if it has changed; a full disk makes it older."""
        try:
            self._take(await self._memory.after(self._key, self._seq))
            if not self._changed:
                return
            self._changed = False
            snapshot = msgspec.json.encode(self._snapshot())
            await self._memory.save(self._key, snapshot, self._seq, self._answered_by)
        except CommitError:
            self._changed = True


def make_gate(hard: HardSamples, pair: str) -> Gate | FilterGate:
    """The gate that a policy asks for, knowing nothing yet. `pair` names the edge and the answering model."""
    if hard.mode == "filter":
        return FilterGate(
            FilterSettings(
                filter=hard.filter,
                parameters=complete(hard.filter, hard.parameters),
                confidence=hard.confidence,
                audit_share=hard.audit_share,
                pair=pair,
            )
        )
    return Gate(gate_settings(hard, pair))


def gate_settings(hard: HardSamples, pair: str) -> GateSettings:
    """The settings of a policy that is no filter."""
    assert hard.mode != "filter", "a filter has settings of its own"
    return GateSettings(
        mode=hard.mode,
        risk=hard.risk,
        confidence=hard.confidence,
        budget=hard.budget,
        calibration=hard.calibration,
        audit_share=hard.audit_share,
        pair=pair,
    )


class _StoredSettings(msgspec.Struct):
    mode: str


class _Stored(msgspec.Struct):
    """What the snapshots of all gates have in common."""

    settings: _StoredSettings


class GateKeeper(Keeper):
    """Its samples are whole pictures."""

    def __init__(self, service: Service, edge_model: str, memory: GateMemory) -> None:
        super().__init__(service, edge_model, memory)
        self._pipeline = service.pipeline
        self.gate = make_gate(service.hard_samples, self._pair)

    def sentence(self) -> str:
        return self.gate.status().sentence

    def facts(self) -> GateFacts | None:
        return self.gate.facts()

    def decide(self, margin: float, u: float, sample_id: str, seen: Seen) -> GateDecision:
        """See Gate.decide; `seen` is what a filter looks at."""
        self._changed = True
        if isinstance(self.gate, FilterGate):
            return self.gate.decide(margin, u, sample_id, seen)
        return self.gate.decide(margin, u, sample_id)

    async def learn(self, header: HardSample, answer: Answer) -> bool | None:
        if header.mosaic is not None:
            return None
        if header.features is not None:
            whole = self.heads.answer_of(header, answer) if self.heads is not None else None
            if whole is None:  # of a head that this service had before
                self.lost(header.sample_id)
                return None
            answer = whole
        differs = self._said(answer) != header.edge.label
        if header.edge.model == self.edge_model and header.pipeline == self._pipeline:
            observation = Observation(
                sample_id=header.sample_id,
                score=hardness(header.edge.margin),
                differs=differs,
                reason=header.reason,
                answered_by=answer.verdict.model,
            )
            await self._keep(answer, [observation])
        return not differs

    def lost(self, sample_id: str) -> None:
        self.gate.lost(sample_id)
        self._changed = True

    def recalibrate(self) -> None:
        self.gate.recalibrate()
        self._changed = True

    def _said(self, answer: Answer) -> str:
        """The cloud's label for the picture."""
        return answer.verdict.label

    def _observe(self, observation: Observation) -> None:
        if observation.reason != "silent":  # a look that only regions know
            self.gate.learn(observation.score, observation.differs, observation.reason, observation.sample_id)

    def _snapshot(self) -> msgspec.Struct:
        return self.gate.snapshot()

    def _restore(self, snapshot: bytes, waiting: Container[str]) -> bool:
        stored = msgspec.json.decode(snapshot, type=_Stored)
        if (stored.settings.mode == "filter") != isinstance(self.gate, FilterGate):
            return False
        if isinstance(self.gate, FilterGate):
            return self.gate.restore(msgspec.json.decode(snapshot, type=FilterSnapshot), waiting)
        return self.gate.restore(msgspec.json.decode(snapshot, type=GateSnapshot), waiting)
