"""One service's gate together with its memory: what it learns is on disk before it counts."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from edged.collab.commits import CommitError
from edged.collab.gate_memory import GateMemory, Observation, Recalled, pair_key
from edgekit.gates.filter_gate import FilterGate, FilterSettings, FilterSnapshot
from edgekit.gates.filters import Seen, complete
from edgekit.gates.policy import Gate, GateDecision, GateSettings, GateSnapshot
from edgekit.gates.scores import hardness
from edgekit.messages import Answer, HardSample
from edgekit.services import HardSamples, Service

if TYPE_CHECKING:
    from edged.collab.collaborator import LocalAnswer

log = logging.getLogger("edged.collab")


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
    return Gate(
        GateSettings(
            mode=hard.mode,
            risk=hard.risk,
            confidence=hard.confidence,
            budget=hard.budget,
            calibration=hard.calibration,
            audit_share=hard.audit_share,
            pair=pair,
        )
    )


class _StoredSettings(msgspec.Struct):
    mode: str


class _Stored(msgspec.Struct):
    """What the snapshots of all gates have in common."""

    settings: _StoredSettings


class GateKeeper:
    """Belongs to one event loop."""

    def __init__(self, service: Service, edge_model: str, memory: GateMemory) -> None:
        """`edge_model` is name@version of the loaded package."""
        hard = service.hard_samples
        self._pipeline = service.pipeline
        # What the model looks at decides its answers as much as the model does: another pipeline is another model.
        seen = (
            edge_model if service.pipeline is None else f"{edge_model} {msgspec.json.encode(service.pipeline).decode()}"
        )
        self.service = service.name
        self.edge_model = edge_model
        self.gate = make_gate(hard, f"{seen} {hard.answer_model}")
        self._memory = memory
        self._key = pair_key(service.name, seen, hard.answer_model)
        self._answered_by = ""
        self._seq = 0
        self._changed = False
        self._forgetful = False

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
            stored = msgspec.json.decode(recalled.snapshot, type=_Stored)
            if (stored.settings.mode == "filter") != isinstance(self.gate, FilterGate):
                return False
            if isinstance(self.gate, FilterGate):
                return self.gate.restore(msgspec.json.decode(recalled.snapshot, type=FilterSnapshot), known)
            return self.gate.restore(msgspec.json.decode(recalled.snapshot, type=GateSnapshot), known)
        except (msgspec.MsgspecError, ValueError) as error:
            log.warning("The gate of %s begins anew, because its state cannot be read: %s", self.service, error)
            return False

    def decide(self, local: LocalAnswer, u: float, sample_id: str) -> GateDecision:
        """See Gate.decide. A filter sees a classifier's answer as one box around the whole picture."""
        self._changed = True
        if isinstance(self.gate, FilterGate):
            return self.gate.decide(local.margin, u, sample_id, Seen([local.score], local.probabilities))
        return self.gate.decide(local.margin, u, sample_id)

    async def learn(self, header: HardSample, answer: Answer) -> bool:
        """Take an answer, which is durable on return and counts once. True if both models agree.

        An answer to a sample of another edge model or pipeline says nothing about this one and is not taken. A new
        model on cloudd's side makes the old certificate worthless: the gate calibrates anew.
        """
        differs = answer.verdict.label != header.edge.label
        if header.edge.model != self.edge_model or header.pipeline != self._pipeline:
            return not differs
        score = hardness(header.edge.margin)
        by = answer.verdict.model
        if by != self._answered_by and not answer.repeated:
            if self._answered_by:
                log.warning("%s: cloudd now answers with %s; the gate calibrates anew.", self.service, by)
                self.gate.recalibrate()
            self._answered_by = by
        try:
            self._take(
                await self._memory.add(self._key, header.sample_id, score, differs, header.reason, by, self._seq)
            )
            self._forgetful = False
        except CommitError as error:
            if not self._forgetful:
                self._forgetful = True
                log.warning("What the gate of %s learns is not stored for now: %s", self.service, error)
            if by == self._answered_by:
                self.gate.learn(score, differs, header.reason, header.sample_id)
                self._changed = True
        return not differs

    def _take(self, observations: list[Observation]) -> None:
        """Let the gate learn what is on disk: each answer once, in one order, whichever worker put it there."""
        for observation in observations:
            if observation.seq <= self._seq:
                continue  # it came with an answer that was stored at the same time
            self._seq = observation.seq
            self._changed = True
            self._answered_by = self._answered_by or observation.answered_by
            if observation.answered_by == self._answered_by:
                self.gate.learn(observation.score, observation.differs, observation.reason, observation.sample_id)

    def lost(self, sample_id: str) -> None:
        """No answer will ever come for this sample."""
        self.gate.lost(sample_id)
        self._changed = True

    def recalibrate(self) -> None:
        """Begin anew: a person asked for it."""
        self.gate.recalibrate()
        self._changed = True

    async def save(self) -> None:
        """Take what another worker has learned, and store the state if it has changed; a full disk makes it older."""
        try:
            self._take(await self._memory.after(self._key, self._seq))
            if not self._changed:
                return
            self._changed = False
            snapshot = msgspec.json.encode(self.gate.snapshot())
            await self._memory.save(self._key, snapshot, self._seq, self._answered_by)
        except CommitError:
            self._changed = True
