"""A device that is killed at each crash point and begun again: the job ends, and nothing is contributed twice."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fl_stage import ALLOWED, WHO, Edge, Plant, Stage, edges

from edged.federation import chain
from edged.federation.book import Book
from edged.federation.files import JobFolder
from edged.federation.shared import STATE, Shared
from edgekit.federated.plan import Plan
from edgekit.messages.federation import Over
from edgekit.secagg import signatures

SECURE = (
    "fl.trained",
    "fl.keys",
    "fl.shares",
    "fl.held",
    "fl.masked",
    "fl.vector",
    "fl.saved",
    "fl.uploaded",
    "fl.vote",
    "fl.reveal",
    "fl.apply",
    "fl.applied",
    "fl.recorded",
)
PRIVATE = '{"strategy": {"strategy": "fedavg", "clip": 1.0}, "privacy": {"noise_multiplier": 2.0}}'


class Killed(BaseException):
    """As SIGKILL, but for what `finally` does on the way."""


def kill_at(monkeypatch: pytest.MonkeyPatch, point: str) -> list[str]:
    """The first time that the first device passes the point, it is gone. Returns the points where that happened."""
    killed: list[str] = []

    def crash_point(name: str) -> None:
        if name == point and not killed and WHO.get() == 0:
            killed.append(name)
            raise Killed(point)

    for module in ("chain", "participant", "sitting", "updates"):
        monkeypatch.setattr(f"edged.federation.{module}.crash_point", crash_point)
    return killed


async def _until_over(edge: Edge) -> Over:
    """As the supervisor does: begin it again whenever it died."""
    while True:
        try:
            return await edge.run()
        except Killed:
            await asyncio.sleep(0.01)


async def _play(stage: Stage, devices: list[Edge]) -> list[Over]:
    async with asyncio.timeout(60):
        return list(await asyncio.gather(*(_until_over(one) for one in devices)))


def _contributed(stage: Stage, node: bytes) -> list[bytes]:
    """The models of the rounds that hold a vector of a device."""
    return [one.config.model for one in stage.rounds.values() if node in one.vectors]


@pytest.mark.parametrize("point", SECURE)
async def test_a_killed_device_goes_on_in_the_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, point: str
) -> None:
    stage = Stage(Plant(4), rounds=2)
    killed = kill_at(monkeypatch, point)
    devices = edges(tmp_path, stage)
    results = await _play(stage, devices)
    assert killed
    assert results == [Over(outcome="finished", version=2)] * 4
    for one in devices:
        at = one.places()
        np.testing.assert_array_equal(Shared(stage.job, at.folder).state.model, stage.state.model)
        at.book.close()
        at.chain.close()
        models = _contributed(stage, stage.plant.nodes[one.place])
        assert len(models) == len(set(models)), "a device contributes once to a model"
    for place, one in enumerate(devices):
        path = one.root / "federation" / "audit.jsonl"
        assert chain.first_wrong(path, signatures.point(stage.plant.devices[place].public_key())) is None
        records = list(chain.read(path))
        assert len({one.round for one in records}) == len(records)
    assert [one.outcome for one in chain.read(devices[0].root / "federation" / "audit.jsonl")] == ["summed", "summed"]
    assert not stage.gone and not stage.refusals


@pytest.mark.parametrize("point", ["fl.charged", "fl.vector", "fl.saved"])
async def test_a_contribution_is_paid_for_once_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, point: str
) -> None:
    spent = []
    for kill in (False, True):
        stage = Stage(Plant(4), PRIVATE, rounds=1)
        if kill:
            kill_at(monkeypatch, point)
        policy = msgspec.structs.replace(ALLOWED, epsilon=20.0)
        devices = edges(tmp_path / str(kill), stage, policy)
        await _play(stage, devices)
        spent.append(devices[0].places().book.spent()["solder"])
    assert spent[0] == spent[1]


@pytest.mark.parametrize("point", ["fl.vector", "fl.saved", "fl.applied"])
async def test_a_killed_device_goes_on_in_a_plain_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, point: str
) -> None:
    stage = Stage(Plant(3), secure=False, rounds=2)
    killed = kill_at(monkeypatch, point)
    results = await _play(stage, edges(tmp_path, stage, msgspec.structs.replace(ALLOWED, plain=True)))
    assert killed and results == [Over(outcome="finished", version=2)] * 3


@pytest.mark.parametrize(("dear_s", "trained"), [(0.0, [1]), (60.0, [0, 1])])
async def test_a_training_that_took_long_is_kept_and_a_short_one_done_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dear_s: float, trained: list[int]
) -> None:
    monkeypatch.setattr("edged.federation.updates.DEAR_S", dear_s)
    stage = Stage(Plant(3), secure=False, rounds=2)
    killed = kill_at(monkeypatch, "fl.trained")
    devices = edges(tmp_path, stage, msgspec.structs.replace(ALLOWED, plain=True))
    await _play(stage, devices)
    assert killed and devices[0].source is not None
    assert devices[0].source.trained == trained, "by the process after the kill"


@pytest.mark.parametrize("secure", [True, False])
async def test_nothing_is_said_in_a_round_before_the_state_that_it_is_of_is_on_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secure: bool
) -> None:
    done: list[str] = []  # of the first device
    here = tmp_path / "device-0" / "federation"
    write, keep_seat = JobFolder.write, Book.keep_seat

    def slow(self: JobFolder, name: str, *args: Any, **kwargs: Any) -> None:
        if name == STATE:
            time.sleep(0.05)
        write(self, name, *args, **kwargs)
        if here in self.path.parents:
            done.append(name)

    def seat(self: Book, job: str, number: int, data: bytes) -> None:
        if self.folder == here:
            done.append(f"seat {number}")
        keep_seat(self, job, number, data)

    monkeypatch.setattr(JobFolder, "write", slow)
    monkeypatch.setattr(Book, "keep_seat", seat)
    stage = Stage(Plant(3), secure=secure, rounds=3)
    await _play(stage, edges(tmp_path, stage, msgspec.structs.replace(ALLOWED, plain=not secure)))
    written = [place for place, name in enumerate(done) if name == STATE]
    assert len(written) == 3
    assert written[0] < done.index("seat 1") and written[1] < done.index("seat 2")


async def test_a_torn_record_is_cut_off_and_the_chain_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = Stage(Plant(3), rounds=2)
    killed = kill_at(monkeypatch, "federation.audit.torn")
    devices = edges(tmp_path, stage)
    await _play(stage, devices)
    assert killed
    for place, one in enumerate(devices):
        path = one.root / "federation" / "audit.jsonl"
        assert chain.first_wrong(path, signatures.point(stage.plant.devices[place].public_key())) is None
        assert [record.outcome for record in chain.read(path)] == ["summed", "summed"]


async def test_a_lost_seat_is_given_up_and_raises_no_alarm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = Stage(Plant(4), rounds=1)
    devices = edges(tmp_path, stage)
    kill_at(monkeypatch, "fl.held")
    task = asyncio.gather(*(_until_over(one) for one in devices[1:]))
    with pytest.raises(Killed):
        await devices[0].run()
    at = devices[0].places()
    number, _ = at.book.seat(stage.job.id) or (-1, b"")
    at.book.keep_seat(stage.job.id, number, b"sealed with a key that is lost")
    at.book.close()
    at.chain.close()
    await _until_over(devices[0])
    async with asyncio.timeout(60):
        await task
    np.testing.assert_array_equal(Shared(stage.job, devices[0].places().folder).state.model, stage.state.model)
    assert _contributed(stage, stage.plant.nodes[0]) == []
    assert not any(one.alarm for one in chain.read(devices[0].root / "federation" / "audit.jsonl"))


def test_the_plan_of_a_private_job_is_a_plan() -> None:
    assert msgspec.json.decode(PRIVATE, type=Plan).privacy is not None
