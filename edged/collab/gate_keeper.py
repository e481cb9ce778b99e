"""One service's gate together with its memory: what it learns is on disk before it counts."""

from __future__ import annotations

import logging
from collections.abc import Collection

import msgspec

from edged.collab.commits import CommitError
from edged.collab.gate_memory import GateMemory, pair_key
from edgekit.gates.policy import Gate, GateDecision, GateSettings, GateSnapshot
from edgekit.gates.scores import hardness
from edgekit.messages import Answer, HardSample
from edgekit.services import Service

log = logging.getLogger("edged.collab")


class GateKeeper:
    """Belongs to one event loop."""

    def __init__(self, service: Service, edge_model: str, memory: GateMemory) -> None:
        """`edge_model` is name@version of the loaded package."""
        hard = service.hard_samples
        self.service = service.name
        self.edge_model = edge_model
        self.gate = Gate(
            GateSettings(
                mode=hard.mode,
                risk=hard.risk,
                confidence=hard.confidence,
                budget=hard.budget,
                calibration=hard.calibration,
                audit_share=hard.audit_share,
                pair=f"{edge_model} {hard.answer_model}",
            )
        )
        self._memory = memory
        self._key = pair_key(service.name, edge_model, hard.answer_model)
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
        if recalled.snapshot:
            answered = {observation.sample_id for observation in recalled.later}
            try:
                snapshot = msgspec.json.decode(recalled.snapshot, type=GateSnapshot)
                if not self.gate.restore(snapshot, answered.union(waiting)):
                    return  # the settings were changed: everything learned under the old ones is worth nothing
            except (msgspec.MsgspecError, ValueError) as error:
                log.warning("The gate of %s begins anew, because its state cannot be read: %s", self.service, error)
                return
        for observation in recalled.later:
            self.gate.learn(observation.score, observation.differs, observation.reason, observation.sample_id)
            self._seq = observation.seq

    def decide(self, margin: float, u: float, sample_id: str) -> GateDecision:
        """See Gate.decide."""
        self._changed = True
        return self.gate.decide(margin, u, sample_id)

    async def learn(self, header: HardSample, answer: Answer) -> bool:
        """Take an answer, which is durable on return and counts once. True if both models agree.

        An answer to a sample of another edge model says nothing about this one and is not taken. A new model on
        cloudd's side makes the old certificate worthless: the gate calibrates anew.
        """
        differs = answer.verdict.label != header.edge.label
        if header.edge.model != self.edge_model:
            return not differs
        score = hardness(header.edge.margin)
        by = answer.verdict.model
        if by != self._answered_by and not answer.repeated:
            if self._answered_by:
                log.warning("%s: cloudd now answers with %s; the gate calibrates anew.", self.service, by)
                self.gate.recalibrate()
            self._answered_by = by
        seq: int | None
        try:
            seq = await self._memory.add(self._key, header.sample_id, score, differs, header.reason, by)
            self._forgetful = False
            if seq is None:
                return not differs
            self._seq = max(self._seq, seq)
        except CommitError as error:
            if not self._forgetful:
                self._forgetful = True
                log.warning("What the gate of %s learns is not stored for now: %s", self.service, error)
        if by == self._answered_by:
            self.gate.learn(score, differs, header.reason, header.sample_id)
            self._changed = True
        return not differs

    def lost(self, sample_id: str) -> None:
        """No answer will ever come for this sample."""
        self.gate.lost(sample_id)
        self._changed = True

    def recalibrate(self) -> None:
        """Begin anew: a person asked for it."""
        self.gate.recalibrate()
        self._changed = True

    async def save(self) -> None:
        """Store the gate's state if it has changed; a full disk only makes it older."""
        if not self._changed:
            return
        self._changed = False
        snapshot = msgspec.json.encode(self.gate.snapshot())
        try:
            await self._memory.save(self._key, snapshot, self._seq, self._answered_by)
        except CommitError:
            self._changed = True
