"""A device that masked its sums and vanished still knows whether they are in the totals of a head."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec
import numpy as np
from fl_stage import ALLOWED, NOW, Edge, MadeUp, Plant, Round, Stage, View, entry_of
from numpy.typing import NDArray

from edged.federation import sums
from edged.federation.participant import Participant, Places
from edged.federation.shared import Shared
from edgekit import tensors
from edgekit.federated.head_jobs import HEAD_FILE, HeadBase
from edgekit.federated.rounds import JobRules
from edgekit.federated.strategy import LocalResult, LocalTerm, State
from edgekit.messages.federation import FederatedJob
from edgekit.secagg import messages
from edgekit.secagg.messages import Masked

D = 3
HEAD = {"scale": np.ones(D, np.float32), "weight": np.ones((2, D), np.float32), "bias": np.ones(2, np.float32)}
PLAN = '{"strategy": {"strategy": "additive-head"}}'


class HeadStage(Stage):
    """An obedient cloudd with a job of a head."""

    def __init__(self, plant: Plant) -> None:
        super().__init__(plant)
        data = tensors.save(HEAD)
        self.job = msgspec.structs.replace(self.job, plan=PLAN, rounds=1, files=(entry_of(HEAD_FILE, data),))
        self.blobs[hashlib.sha256(data).hexdigest()] = data
        self.rules = JobRules(self.job, {}, HeadBase.of(HEAD))
        self.state = self.rules.start({})

    def publish(self, one: Round, words: NDArray[np.unsignedinteger], survivors: int) -> None:
        super().publish(one, words, survivors)
        (made,) = self.published[-1].sums
        named = msgspec.structs.replace(made, nodes=tuple(sorted(one.heard[Masked])))
        self.published[-1] = msgspec.structs.replace(self.published[-1], sums=(named,))


class Gone(View):
    """It vanishes when its masked sums have arrived."""

    vanished = False

    async def step(self, job: str, number: int, message: bytes, sha256: str = "") -> bytes | None:
        said = messages.from_device(message)
        if isinstance(said, Masked) and not self.vanished:
            self.vanished = True
            self.stage.rounds[number].take(said)
            self.stage.drop(self.node)
            raise ConnectionError("the line is cut")
        return await super().step(job, number, message, sha256)


class Counted(MadeUp):
    """Whole numbers that follow from the device."""

    def train(self, state: State, term: LocalTerm, version: int) -> LocalResult:
        numbers = np.random.default_rng(self.place).integers(0, 99, self.size)
        return LocalResult(delta=numbers.astype(np.float32), samples=40, steps=1, learning_rate=1.0)


class HeadEdge(Edge):
    def participant(self, at: Places) -> Participant:
        def source(job: FederatedJob, folder: object, shared: Shared) -> Counted:
            return Counted(self.place, shared.rules.strategy.layout.size)

        return Participant(
            self.stage.job.id, self.cloud, source, identity=self.stage.plant.signing(self.place), policy=self.policy,
            places=at, wall=lambda: NOW, settle_s=0.01,
        )  # fmt: skip

    def in_totals(self) -> np.ndarray | None:
        at = self.places()
        try:
            job = self.stage.job.id
            if not (at.folder.root_beside(sums._ROOT) / job).is_dir():
                return None
            kept = at.folder.beside(sums._ROOT, job).read(sums._RECORD, sums._Kept)
            assert kept is not None
            return kept[1][sums._CODES]
        finally:
            at.chain.close()
            at.book.close()


async def test_its_sums_are_on_record_because_the_published_sum_names_it(tmp_path: Path) -> None:
    stage = HeadStage(Plant(5))
    devices = [HeadEdge(tmp_path, stage, place, ALLOWED) for place in range(5)]
    devices[2].cloud = Gone(stage, stage.plant.nodes[2])
    async with asyncio.timeout(60):
        ends = await asyncio.gather(*(one.run() for one in devices), return_exceptions=True)
    assert isinstance(ends[2], ConnectionError)
    stage.gone.clear()
    over = await devices[2].run()
    assert (over.outcome, over.version) == ("finished", 1)
    codes = [np.random.default_rng(place).integers(0, 99, stage.state.model.size) for place in range(5)]
    np.testing.assert_array_equal(stage.state.model, sum(codes))
    for one, mine in zip(devices, codes, strict=True):
        np.testing.assert_array_equal(one.in_totals(), mine)


async def test_who_is_to_leave_while_its_sums_are_under_way_learns_that_they_are_in(tmp_path: Path) -> None:
    stage = HeadStage(Plant(5))
    devices = [HeadEdge(tmp_path, stage, place, ALLOWED) for place in range(5)]
    devices[2].cloud = Gone(stage, stage.plant.nodes[2])
    async with asyncio.timeout(60):
        await asyncio.gather(*(one.run() for one in devices), return_exceptions=True)
    stage.gone.clear()
    at = devices[2].places()
    at.book.leave("solder", "we go")
    at.chain.close()
    at.book.close()
    assert (await devices[2].run()).outcome == "finished"
    found = devices[2].in_totals()
    assert found is not None and found.any(), "so that a later job can take it out"
