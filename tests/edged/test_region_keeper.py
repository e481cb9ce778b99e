"""The keeper of a gate for regions: whatever happens to its frames, the gate knows what a gate asked region by region
would know."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.collab.gate_memory import GateMemory
from edged.collab.region_keeper import RegionKeeper, region_id
from edgekit.gates.classwise import ClasswiseGate
from edgekit.gates.policy import Gate, GateDecision
from edgekit.gates.scores import hardness
from edgekit.messages import Answer, HardSample, Verdict
from edgekit.regions.cutouts import EXACT, region
from edgekit.regions.header import Cell, MosaicAnswer, MosaicHeader, RegionAnswer
from edgekit.regions.select import Candidate
from edgekit.services import RegionGroup, Regions, Service
from tests.edged.collab_regions import HEIGHT, WIDTH, hard_samples, tile, tiled

LABELS = ["good", "short", "open"]
GROUPS = [RegionGroup(name="defect", labels=["short"], risk=0.4), RegionGroup(name="clean", risk=0.3)]

SURE = [(0.95, "good")] * 11 + [(0.95, "short")]

margins = st.sampled_from([0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0])
frames = st.lists(st.tuples(margins, st.sampled_from(LABELS)), min_size=1, max_size=12)
policies = st.sampled_from(
    [
        hard_samples(),
        hard_samples(audit_share=0.6),
        hard_samples(mode="budget", budget=0.3),
        hard_samples(risk=0.1, confidence=0.5, calibration=25),
    ]
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), frames),
        st.tuples(st.just("answered"), frames),
        st.tuples(st.just("answered"), st.just(SURE)),
        st.tuples(st.just("answer"), st.integers(0, 20)),
        st.tuples(st.just("again"), st.integers(0, 20)),
        st.tuples(st.just("lost"), st.integers(0, 20)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    min_size=1,
    max_size=80,
)


class Model:
    """A keeper with its memory on a disk, and a gate that is asked the same, region by region, and never restarts."""

    def __init__(self, root: Path, service: Service) -> None:
        self.service = service
        self.executor = ThreadPoolExecutor(max_workers=1)
        self.root = root
        self.out: dict[str, tuple[HardSample, Answer]] = {}  # frames that are on their way
        self.known: list[tuple[HardSample, Answer]] = []
        self.count = 0
        self._open()
        self.gate = RegionKeeper(service, "small@1", self.memory).gate

    def _open(self) -> None:
        self.memory = GateMemory(self.root / "gate.db", self.executor)
        self.keeper = RegionKeeper(self.service, "small@1", self.memory)

    def frame(self, regions: list[tuple[float, str]]) -> None:
        self.count += 1
        name = f"f{self.count}"
        candidates = [tile(index, margin, label) for index, (margin, label) in enumerate(regions)]
        decisions = self.keeper.decide(candidates, range(len(candidates)), lambda: 0.5, name)
        wanted = {}
        for index, candidate in enumerate(candidates):
            if isinstance(self.gate, ClasswiseGate):
                wanted[index] = self.gate.decide(candidate.label, candidate.margin, 0.5, region_id(name, index))
            else:
                wanted[index] = self.gate.decide(candidate.margin, 0.5, region_id(name, index))
        assert decisions == wanted
        if any(decision.send for decision in decisions.values()):
            self.out[name] = _sent(name, candidates, decisions)

    async def answered(self, regions: list[tuple[float, str]]) -> None:
        """A frame whose answer comes at once."""
        self.frame(regions)
        if f"f{self.count}" in self.out:
            await self._answer(f"f{self.count}")

    async def answer(self, which: int) -> None:
        if self.out:
            await self._answer(sorted(self.out)[which % len(self.out)])

    async def _answer(self, name: str) -> None:
        header, answer = self.out.pop(name)
        self.known.append((header, answer))
        await self.keeper.learn(header, answer)
        self._teach(header, answer)

    def _teach(self, header: HardSample, answer: Answer) -> None:
        assert header.mosaic is not None and answer.mosaic is not None
        said = {one.index: one.label for one in answer.mosaic.regions}
        for one in header.mosaic.regions():
            assert one.reason != "silent"
            name = region_id(header.sample_id, one.index)
            if isinstance(self.gate, ClasswiseGate):
                self.gate.learn(one.label, said[one.index], hardness(one.margin), one.reason, name)
            else:
                self.gate.learn(hardness(one.margin), said[one.index] != one.label, one.reason, name)

    async def again(self, which: int) -> None:
        """cloudd gives the same answer a second time, as after a power cut: nothing changes."""
        if self.known:
            header, answer = self.known[which % len(self.known)]
            await self.keeper.learn(header, msgspec.structs.replace(answer, repeated=True))

    def lost(self, which: int) -> None:
        if not self.out:
            return
        name = sorted(self.out)[which % len(self.out)]
        header, _ = self.out.pop(name)
        self.keeper.lost(name)
        assert header.mosaic is not None
        for one in header.mosaic.regions():
            self.gate.lost(region_id(name, one.index))

    async def restart(self) -> None:
        """Every frame that is out waits in the spool."""
        await self.keeper.save()
        await self.memory.close()
        self._open()
        await self.keeper.restore(set(self.out))

    async def close(self) -> None:
        await self.memory.close()
        self.executor.shutdown()


def _sent(name: str, candidates: list[Candidate], decisions: Mapping[int, GateDecision]) -> tuple[HardSample, Answer]:
    """The frame as it travels, and what a cloud says that finds an "open" where the edge is unsure."""
    regions = [
        region(index, candidates[index], decision.reason, EXACT, WIDTH, HEIGHT)
        for index, decision in decisions.items()
        if decision.reason is not None
    ]
    header = MosaicHeader(
        frame=(WIDTH, HEIGHT),
        size=(WIDTH, HEIGHT),
        cells=[Cell(place=(0, 0, WIDTH, HEIGHT), box=(0, 0, WIDTH, HEIGHT), regions=regions)],
    )
    edge = Verdict(label="good", score=0.9, margin=0.8, model="small@1")
    sample = HardSample(
        sample_id=name,
        service="solder",
        answer_model="large",
        edge=edge,
        reason="hard",
        captured_at=0.0,
        mosaic=header,
        clean="good",
    )
    said = [
        RegionAnswer(index=one.index, label="open" if one.margin < 0.3 else one.label, score=0.9, margin=0.9)
        for one in regions
    ]
    verdict = Verdict(label="good", score=0.9, margin=0.9, model="large@1")
    mosaic = MosaicAnswer(task="classification", regions=said)
    return sample, Answer(sample_id=name, verdict=verdict, compute_ms=1.0, mosaic=mosaic)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policy=policies, grouped=st.booleans(), happens=events)
def test_the_gate_knows_what_a_gate_asked_region_by_region_would_know(
    policy: object, grouped: bool, happens: list[tuple[str, object]]
) -> None:
    grouped = grouped and policy.mode == "risk"  # type: ignore[attr-defined]
    service = tiled(Regions(clean="good", groups=GROUPS if grouped else []), hard_samples=policy)

    async def run(root: Path) -> None:
        model = Model(root, service)
        try:
            for kind, what in happens:
                if kind == "frame":
                    model.frame(what)  # type: ignore[arg-type]
                elif kind == "lost":
                    model.lost(what)  # type: ignore[arg-type]
                elif kind == "restart":
                    await model.restart()
                else:
                    await getattr(model, kind)(what)
                assert _known(model.keeper.gate) == _known(model.gate)
        finally:
            await model.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))


def _known(gate: Gate | ClasswiseGate) -> object:
    """As it is stored: a restart keeps what JSON keeps."""
    return msgspec.json.decode(msgspec.json.encode(gate.snapshot()))
