"""Devices in whole jobs against the real server half: sums, records, budgets, and a cloudd that cheats."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fl_stage import ALLOWED, NOW, Edge, Plant, Stage, all_of, edges, update_of

from edged.federation import chain
from edged.federation.shared import Shared
from edgekit.federated.sums import Sum
from edgekit.messages.federation import Over
from edgekit.secagg import fixedpoint, messages, signatures
from edgekit.secagg.errors import Refusal


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant(4)


def _mean(stage: Stage, version: int, places: list[int]) -> np.ndarray:
    size = stage.rules.strategy.layout.size
    return np.mean([update_of(place, version, size) for place in places], axis=0)


async def test_a_secure_job_ends_with_the_mean_of_all_updates_on_every_device(plant: Plant, tmp_path: Path) -> None:
    stage = Stage(plant)
    devices = edges(tmp_path, stage)
    results = await all_of(devices)
    assert results == [Over(outcome="finished", version=3)] * 4
    expected = np.full(stage.rules.strategy.layout.size, 0.5, np.float32)
    for version in range(3):
        expected = expected + _mean(stage, version, [0, 1, 2, 3])
    np.testing.assert_allclose(stage.state.model, expected, atol=1e-5)
    for one in devices:
        at = one.places()
        shared = Shared(stage.job, at.folder)
        assert shared.state.version == 3
        np.testing.assert_array_equal(shared.state.model, stage.state.model)
        note = at.book.job(stage.job.id)
        assert note is not None and (note.contributed, note.stage) == (3, "judging")


async def test_secure_and_plain_sums_are_equal_bit_for_bit(plant: Plant, tmp_path: Path) -> None:
    secure, plain = Stage(plant), Stage(plant, secure=False)
    await all_of(edges(tmp_path / "s", secure))
    await all_of(edges(tmp_path / "p", plain, msgspec.structs.replace(ALLOWED, plain=True)))
    assert plain.state.version == 3
    np.testing.assert_array_equal(secure.state.model, plain.state.model)


async def test_no_update_leaves_unmasked(plant: Plant, tmp_path: Path) -> None:
    stage = Stage(plant, rounds=1)
    await all_of(edges(tmp_path, stage))
    one = stage.rounds[0]
    encoding = fixedpoint.Encoding(one.config)
    for place, node in enumerate(plant.nodes):
        own = fixedpoint.encode(update_of(place, 0, one.config.parameters), 1, encoding, lambda n: bytes(n))
        sent = np.frombuffer(one.vectors[node], "<u4")
        assert (own != sent).mean() > 0.9


async def test_every_round_is_in_a_signed_chain_with_what_left(plant: Plant, tmp_path: Path) -> None:
    stage = Stage(plant)
    devices = edges(tmp_path, stage)
    await all_of(devices)
    path = devices[0].root / "federation" / "audit.jsonl"
    records = list(chain.read(path))
    assert [(one.round, one.outcome, one.survivors) for one in records] == [(n, "summed", 4) for n in range(3)]
    assert [left.step for left in records[0].left] == ["keys", "shares", "held", "masked", "vector", "vote", "reveal"]
    assert records[0].left[4].bytes == 4 * (stage.rules.strategy.layout.size + 2)
    own = signatures.point(plant.devices[0].public_key())
    assert chain.first_wrong(path, own) is None
    assert chain.first_wrong(path, signatures.point(plant.devices[1].public_key())) == 1


async def test_a_device_that_vanishes_after_the_roll_is_not_in_the_sum(plant: Plant, tmp_path: Path) -> None:
    stage = Stage(plant, rounds=1)
    devices = edges(tmp_path, stage)
    step = devices[3].cloud.step

    async def vanish(job: str, number: int, message: bytes, sha256: str = "") -> bytes | None:
        if isinstance(messages.from_device(message), messages.Masked):
            stage.drop(plant.nodes[3])
            raise OSError("the cable is out")
        return await step(job, number, message, sha256)

    devices[3].cloud.step = vanish  # type: ignore[method-assign]
    results = await all_of(devices)
    assert isinstance(results[3], OSError)
    np.testing.assert_allclose(stage.state.model, 0.5 + _mean(stage, 0, [0, 1, 2]), atol=1e-5)


async def test_a_device_that_was_away_applies_all_sums_it_missed(plant: Plant, tmp_path: Path) -> None:
    stage = Stage(plant)
    stage.wanted = 3
    devices = edges(tmp_path, stage)
    stage.gone.add(plant.nodes[3])
    stage.wanted = 4
    await all_of(devices[:3])
    stage.gone.clear()
    assert await devices[3].run() == Over(outcome="finished", version=3)
    at = devices[3].places()
    np.testing.assert_array_equal(Shared(stage.job, at.folder).state.model, stage.state.model)
    note = at.book.job(stage.job.id)
    assert note is not None and note.contributed == 0


async def test_scaffold_remembers_only_what_is_in_a_sum(plant: Plant, tmp_path: Path) -> None:
    plan = '{"strategy": {"strategy": "scaffold", "clip": 10.0, "devices": 4, "control_scale": 0.5}}'
    stage = Stage(plant, plan, rounds=2)
    devices = edges(tmp_path, stage)
    await all_of(devices)
    shared = Shared(stage.job, devices[0].places().folder)
    assert shared.memory is not None and np.abs(shared.memory).max() > 0
    np.testing.assert_array_equal(shared.state.slots["control"], stage.state.slots["control"])
    mean = np.mean([Shared(stage.job, one.places().folder).memory for one in devices], axis=0)
    np.testing.assert_allclose(mean, stage.state.slots["control"], atol=1e-4)


async def test_an_evaluation_round_adds_up_confusion_matrices(plant: Plant, tmp_path: Path) -> None:
    stage = Stage(plant, rounds=1, evaluate_every=1)
    stage.kinds = ["evaluate"]
    await all_of(edges(tmp_path, stage))
    (figures,) = stage.figures
    np.testing.assert_array_equal(figures.confusion, [[1 + 2 + 3 + 4, 4], [0, 8]])


async def test_private_rounds_are_charged_before_they_leave_and_refused_when_the_budget_is_spent(
    plant: Plant, tmp_path: Path
) -> None:
    plan = '{"strategy": {"strategy": "fedavg", "clip": 1.0}, "privacy": {"noise_multiplier": 1.0}}'
    stage = Stage(plant, plan, rounds=50)
    policy = msgspec.structs.replace(ALLOWED, epsilon=8.0, delta=1e-5)
    devices = edges(tmp_path, stage, policy)
    tasks = [asyncio.create_task(one.run()) for one in devices]
    await asyncio.wait_for(stage.until(lambda: len(stage.refusals) == 4), 30)
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert 0 < stage.state.version < 50, "the budget ends the contributions before the job's rounds do"
    assert {one.health for one in stage.standings.values()} <= {"error"}, "they follow, and are not invited any more"
    book = devices[0].places().book
    assert 4.0 < book.spent()["solder"] <= 8.0
    assert any("this device allows 8" in one.text or "the device allows 8" in one.text for one in book.events())


async def test_a_device_with_a_budget_refuses_rounds_without_noise(plant: Plant, tmp_path: Path) -> None:
    stage = Stage(plant)
    (result,) = await all_of([Edge(tmp_path, stage, 0, msgspec.structs.replace(ALLOWED, epsilon=8.0))])
    assert isinstance(result, Refusal) and "adds no noise" in str(result)
    assert not stage.rounds and stage.refusals[0][1].rule == "policy"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"enabled": False}, "federation.enabled"),
        ({"services": ["other"]}, "federation.services"),
        ({"plants": {"south": Plant(1).text}}, "no plant that this device trusts"),
    ],
)
async def test_the_plants_policy_decides_whether_a_device_takes_part(
    plant: Plant, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    stage = Stage(plant)
    policy = msgspec.structs.replace(ALLOWED, **changes)
    edge = Edge(tmp_path, stage, 0, policy, **(changes.get("plants") or {"north": plant.text}))  # type: ignore[arg-type]
    (result,) = await all_of([edge])
    assert isinstance(result, Refusal | ValueError) and sentence in str(result)
    assert not edge.cloud.sent


async def test_a_plain_job_needs_the_plants_word(plant: Plant, tmp_path: Path) -> None:
    (result,) = await all_of([Edge(tmp_path, Stage(plant, secure=False), 0)])
    assert isinstance(result, Refusal) and "federation.plain" in str(result)


async def test_a_device_that_is_in_no_roster_takes_no_part(plant: Plant, tmp_path: Path) -> None:
    stage = Stage(plant)
    without = plant.signed(serial=2, without=1)
    stage.blobs[stage.job.rosters[0].sha256] = without
    stage.job = msgspec.structs.replace(
        stage.job, rosters=(msgspec.structs.replace(stage.job.rosters[0], size=len(without)),)
    )
    (result,) = await all_of([Edge(tmp_path, stage, 0)])
    assert isinstance(result, Refusal) and "no roster" in str(result)


async def test_a_cohort_below_the_plants_minimum_gets_no_keys(plant: Plant, tmp_path: Path) -> None:
    stage = Stage(plant, rounds=1)
    devices = edges(tmp_path, stage, msgspec.structs.replace(ALLOWED, min_cohort=5))
    for one in devices:
        one.cloud.refuse = _noted(stage, one)  # type: ignore[method-assign]
    at = devices[0].places()
    participant = devices[0].participant(at)
    stage.wanted = 1
    task = asyncio.create_task(participant.run())
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not devices[0].cloud.sent
    assert stage.refusals and "min_cohort" in stage.refusals[0][1].text
    record = next(iter(chain.read(devices[0].root / "federation" / "audit.jsonl")))
    assert (record.outcome, record.refusals[0].rule) == ("refused", "policy")


def _noted(stage: Stage, edge: Edge):  # type: ignore[no-untyped-def]
    async def refuse(job: str, refusal: object) -> None:
        stage.refusals.append((b"", refusal))  # type: ignore[arg-type]

    return refuse


async def test_another_state_behind_the_same_version_is_refused(plant: Plant, tmp_path: Path) -> None:
    """cloudd tells one device of another job than it tells the others: a round is bound to the whole job."""
    stage = Stage(plant, rounds=1)
    victim = Edge(tmp_path, stage, 0)
    other = msgspec.structs.replace(stage.job, evaluate_every=7)

    async def lie(job: str):  # type: ignore[no-untyped-def]
        return other

    victim.cloud.job = lie  # type: ignore[method-assign]
    results = await all_of([victim])
    assert isinstance(results[0], AssertionError), "an honest cloudd sees another state"
    assert not victim.cloud.sent


async def test_a_sum_of_other_survivors_than_were_signed_ends_the_job(plant: Plant, tmp_path: Path) -> None:
    stage = Stage(plant, rounds=1)
    devices = edges(tmp_path, stage)
    fetch = devices[0].cloud.next

    async def lie(job: str, standing):  # type: ignore[no-untyped-def]
        turn = await fetch(job, standing)
        if hasattr(turn, "rounds") and turn.rounds:
            one = turn.rounds[0]
            changed = msgspec.structs.replace(one.sums[0], survivors=3)
            turn = msgspec.structs.replace(turn, rounds=(msgspec.structs.replace(one, sums=(changed,)),))
        return turn

    devices[0].cloud.next = lie  # type: ignore[method-assign]
    results = await all_of(devices)
    assert isinstance(results[0], Refusal) and "4 were signed" in str(results[0])
    assert Shared(stage.job, devices[0].places().folder).state.version == 0


async def test_two_jobs_with_one_model_get_one_contribution(plant: Plant, tmp_path: Path) -> None:
    """cloudd begins the same job twice, has the victim in the first one only, and wants to subtract the two sums."""
    first, second = Stage(plant, rounds=1), Stage(plant, rounds=1)
    assert first.job.id != second.job.id
    await all_of(edges(tmp_path, first))
    assert first.state.version == 1
    devices = edges(tmp_path, second)
    tasks = [asyncio.create_task(one.run()) for one in devices]
    await asyncio.wait_for(second.until(lambda: len(second.refusals) == 4), 30)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not any(one.cloud.sent for one in devices) and second.state.version == 0
    assert {refusal.rule for _, refusal in second.refusals} == {"policy"}
    assert all("these very weights" in refusal.text for _, refusal in second.refusals)
    third = Stage(plant, rounds=1)
    await all_of(edges(tmp_path, third, msgspec.structs.replace(ALLOWED, repeats=1)))
    assert third.state.version == 1, "the plant has the last word"


async def test_an_operators_refusal_holds_for_ever(plant: Plant, tmp_path: Path) -> None:
    stage = Stage(plant)
    edge = Edge(tmp_path, stage, 0)
    at = edge.places()
    at.book.refuse(stage.job.id, "not with our parts")
    at.book.close()
    (result,) = await all_of([edge])
    assert isinstance(result, Refusal) and "not with our parts" in str(result)


def test_the_sum_is_read_as_it_is_published(plant: Plant) -> None:
    stage = Stage(plant)
    config = stage.rules.config("learn", bytes(32), number=0, colluders=1, prg="aes-256-ctr", rosters=bytes(32))
    words = np.zeros(config.parameters + 2, "<u4")
    words[-2] = 3
    assert Sum.of_words(words, 3, config).weight == 3
    assert NOW > 0
