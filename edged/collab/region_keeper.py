"""Keepers of the gates of services whose pictures are many answers: regions that are samples, and a detector's frames.

A region's sample id is FRAME#k. What travels, waits in the spool and gets lost is the frame, so the keeper says which
of a frame's regions that concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

import msgspec

from edged.collab.gate_keeper import GateKeeper, Keeper, gate_settings
from edged.collab.gate_memory import GateMemory, Observation
from edged.collab.regions import clean_label, frame_rule, verdict_of
from edgekit.gates.block import BlockState
from edgekit.gates.classwise import ClasswiseGate, ClasswiseSettings, ClasswiseSnapshot, ClasswiseStatus, Group
from edgekit.gates.policy import SAFE_MODE_SAMPLES, Gate, GateDecision, GateSnapshot, GateStatus
from edgekit.gates.scores import hardness
from edgekit.messages import Answer, GateFacts, HardSample
from edgekit.regions.answers import FrameRegion, Outcome, compare, decide
from edgekit.regions.header import NOTHING
from edgekit.regions.select import Candidate
from edgekit.regions.silent import SilentTally
from edgekit.services import RegionGroup, Service

_OF_BLOCK = 2.0  # what a sample of a calibration block is worth, see GateDecision.value


def region_id(frame: str, index: int) -> str:
    """The sample id of a frame's region."""
    return f"{frame}#{index}"


class RegionSnapshot(msgspec.Struct, kw_only=True):
    """Everything that is known about the regions of a service."""

    gate: GateSnapshot | None = None
    groups: ClasswiseSnapshot | None = None  # with groups, instead of `gate`
    silent: SilentTally = SilentTally()

    def blocks(self) -> list[BlockState]:
        """The calibration sets that are not complete yet."""
        gates = [self.gate] if self.gate is not None else []
        gates += [group.gate for group in self.groups.groups] if self.groups is not None else []
        return [gate.block for gate in gates if gate.block is not None]


class RegionKeeper(Keeper):
    """Its samples are the regions of frames."""

    def __init__(self, service: Service, edge_model: str, memory: GateMemory) -> None:
        super().__init__(service, edge_model, memory)
        self.clean = clean_label(service)
        self.gate = _make_gate(service, self._pair, self.clean)
        self.silent = SilentTally()
        self._confidence = service.hard_samples.confidence
        silent = service.regions.silent if service.regions is not None and service.task == "detection" else 0.0
        self._looks = silent > 0.0 and service.hard_samples.asks
        self._awaited: dict[str, set[int]] = {}  # regions of calibration sets that are out, by frame

    def status(self) -> GateStatus | ClasswiseStatus:
        """Where the gate stands; its samples are regions."""
        return self.gate.status()

    def sentence(self) -> str:
        sentence = f"Each sample is a region. {self.gate.status().sentence}"
        return f"{sentence} {self.silent.sentence(self._confidence)}" if self._looks else sentence

    def facts(self) -> GateFacts | None:
        """The share that the calibration would send is one of regions: of frames, which are sent, it says nothing."""
        facts = self.gate.facts()
        return msgspec.structs.replace(facts, calibrated=None) if facts is not None else None

    def decide(
        self, candidates: Sequence[Candidate], asked: Iterable[int], rng: Callable[[], float], frame: str
    ) -> dict[int, GateDecision]:
        """What the gate says about each of the `asked` candidates, in this order, by their positions.

        Call it exactly once a frame, in the order in which they come. `rng`: uniform in [0, 1), for audits.
        """
        decisions = {index: self._decide(candidates[index], rng(), region_id(frame, index)) for index in asked}
        awaited = {index for index, decision in decisions.items() if decision.value >= _OF_BLOCK}
        if awaited:
            self._awaited[frame] = awaited
        self._changed = self._changed or bool(decisions)
        return decisions

    async def learn(self, header: HardSample, answer: Answer) -> bool | None:
        """As Keeper.learn, for all regions of the frame together."""
        if header.mosaic is None or answer.mosaic is None:
            return None
        outcomes, _ = compare(header.mosaic, answer.mosaic, self.clean)
        if header.edge.model == self.edge_model and header.clean == self.clean:
            by = answer.verdict.model
            await self._keep(answer, [self._observation(header.sample_id, one, by) for one in outcomes])
        return not any(outcome.differs for outcome in outcomes)

    def lost(self, sample_id: str) -> None:
        """No answer will ever come for this frame. A look at a silent frame that is lost counts nowhere."""
        for index in self._awaited.pop(sample_id, ()):
            self.gate.lost(region_id(sample_id, index))
            self._changed = True

    def recalibrate(self) -> None:
        self.gate.recalibrate()
        self.silent = SilentTally()
        self._awaited.clear()
        self._changed = True

    # --- inside ------------------------------------------------------------------------------------------------------

    def _decide(self, candidate: Candidate, u: float, sample_id: str) -> GateDecision:
        if isinstance(self.gate, ClasswiseGate):
            return self.gate.decide(candidate.label, candidate.margin, u, sample_id)
        return self.gate.decide(candidate.margin, u, sample_id)

    def _observation(self, frame: str, outcome: Outcome, by: str) -> Observation:
        region = outcome.region
        return Observation(
            sample_id=region_id(frame, region.index),
            score=hardness(region.margin),
            differs=outcome.differs,
            reason=region.reason,
            answered_by=by,
            label=self._spelt(region.label),
            answer=self._spelt(outcome.label),
        )

    def _spelt(self, label: str) -> str:
        """A classifier's region of NOTHING is clean, and a group may name that label."""
        return label if label != NOTHING else self.clean

    def _observe(self, observation: Observation) -> None:
        if observation.reason == "silent":
            self.silent = self.silent.add(observation.differs)
            return
        score, reason, sample_id = observation.score, observation.reason, observation.sample_id
        frame, _, index = sample_id.rpartition("#")
        awaited = self._awaited.get(frame)
        if awaited is not None:
            awaited.discard(int(index))
            if not awaited:
                del self._awaited[frame]
        if isinstance(self.gate, ClasswiseGate):
            self.gate.learn(observation.label, observation.answer, score, reason, sample_id)
        else:
            self.gate.learn(score, observation.differs, reason, sample_id)

    def _snapshot(self) -> msgspec.Struct:
        if isinstance(self.gate, ClasswiseGate):
            return RegionSnapshot(groups=self.gate.snapshot(), silent=self.silent)
        return RegionSnapshot(gate=self.gate.snapshot(), silent=self.silent)

    def _restore(self, snapshot: bytes, waiting: Container[str]) -> bool:
        stored = msgspec.json.decode(snapshot, type=RegionSnapshot)
        known = _WaitingRegions(waiting)
        if isinstance(self.gate, ClasswiseGate):
            restored = stored.groups is not None and self.gate.restore(stored.groups, known)
        else:
            restored = stored.gate is not None and self.gate.restore(stored.gate, known)
        if not restored:
            return False
        self.silent = stored.silent
        for block in stored.blocks():
            for entry in block.entries:
                if entry.differs is None and entry.sample_id in known:
                    frame, _, index = entry.sample_id.rpartition("#")
                    self._awaited.setdefault(frame, set()).add(int(index))
        return True


class FrameKeeper(GateKeeper):
    """Its samples are the whole frames of a detector. Two of them agree if they have the same label by the service's
    rule, wherever the boxes are."""

    def __init__(self, service: Service, edge_model: str, memory: GateMemory) -> None:
        super().__init__(service, edge_model, memory)
        self._rule = frame_rule(service)

    def _said(self, answer: Answer) -> str:
        """Of the boxes that the cloud found, which do not know the service's rule."""
        regions = found_regions(answer)
        return answer.verdict.label if regions is None else verdict_of(decide(regions, self._rule), "").label


def found_regions(answer: Answer) -> list[FrameRegion] | None:
    """What the cloud's detector says about a whole picture, also of the boxes that do not count; None without one."""
    if answer.mosaic is None:
        return None
    return [
        FrameRegion(None, found.box, found.label, found.score, found.margin, "cloud", False)
        for found in answer.mosaic.found
    ]


class _WaitingRegions:
    """The ids of samples that wait, and of the regions of those that do."""

    def __init__(self, waiting: Container[str]) -> None:
        self._waiting = waiting

    def __contains__(self, sample_id: object) -> bool:
        return sample_id in self._waiting or str(sample_id).partition("#")[0] in self._waiting


def _make_gate(service: Service, pair: str, clean: str) -> Gate | ClasswiseGate:
    regions = service.regions
    assert regions is not None, "a service without regions has no gate for them"
    settings = gate_settings(service.hard_samples, pair)
    # 400 regions may be two frames, which say little about others: as many as the service's own set are needed.
    settings = msgspec.structs.replace(settings, safe_mode=max(SAFE_MODE_SAMPLES, settings.calibration))
    if not regions.groups:
        return Gate(settings)
    named = {label for group in regions.groups for label in group.labels}

    def is_good(group: RegionGroup) -> bool:
        return clean in group.labels or (not group.labels and clean not in named)

    groups = [
        Group(
            name=group.name,
            labels=group.labels,
            good=is_good(group),
            gate=msgspec.structs.replace(settings, risk=group.risk),
        )
        for group in regions.groups
    ]
    return ClasswiseGate(ClasswiseSettings(groups=groups))
