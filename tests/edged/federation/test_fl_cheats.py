"""A cloudd that cheats one device in each step: it reveals nothing, says so on record, and takes no further part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from fl_stage import Edge, Plant, Stage, edges

from edged.federation import chain
from edgekit.secagg import bitmap, messages
from edgekit.secagg.messages import Held, Keys, Masked, Shares, Unmask, Vote, Wire

Lie = Callable[[Stage, Wire], Wire]


def without_me(stage: Stage, roll: Wire) -> Wire:
    assert isinstance(roll, messages.Roll)
    return msgspec.structs.replace(
        roll, degree=len(roll.keys) - 2, keys=tuple(one for one in roll.keys if one.node != stage.plant.nodes[0])
    )


def lower_threshold(stage: Stage, roll: Wire) -> Wire:
    assert isinstance(roll, messages.Roll)
    return msgspec.structs.replace(roll, threshold=2)


def no_shares(stage: Stage, inbox: Wire) -> Wire:
    assert isinstance(inbox, messages.Inbox)
    return msgspec.structs.replace(inbox, senders=bytes(len(inbox.senders)), sealed=b"")


def nobody_ready(stage: Stage, ready: Wire) -> Wire:
    assert isinstance(ready, messages.Ready)
    place = sorted(stage.plant.nodes).index(stage.plant.nodes[0])
    return msgspec.structs.replace(ready, ready=bitmap.pack([place], 4))


def two_survivors(stage: Stage, survivors: Wire) -> Wire:
    assert isinstance(survivors, messages.Survivors)
    place = sorted(stage.plant.nodes).index(stage.plant.nodes[0])
    return msgspec.structs.replace(survivors, survivors=bitmap.pack({place, (place + 1) % 4}, 4))


def others_survive(stage: Stage, survivors: Wire) -> Wire:
    assert isinstance(survivors, messages.Survivors)
    place = sorted(stage.plant.nodes).index(stage.plant.nodes[0])
    return msgspec.structs.replace(survivors, survivors=bitmap.pack(set(range(4)) - {place}, 4))


def short_certificate(stage: Stage, unmask: Wire) -> Wire:
    assert isinstance(unmask, Unmask)
    one = bitmap.unpack(unmask.voters, 4)[0]
    return msgspec.structs.replace(
        unmask, voters=bitmap.pack([one], 4), signatures=unmask.signatures[:64], lists=unmask.lists[:1]
    )


def forged_certificate(stage: Stage, unmask: Wire) -> Wire:
    assert isinstance(unmask, Unmask)
    return msgspec.structs.replace(unmask, signatures=bytes(len(unmask.signatures)))


def another_step(stage: Stage, message: Wire) -> Wire:
    return messages.Ready(roll=bytes(32), ready=b"\x0f")


@pytest.mark.parametrize(
    ("after", "lie", "rule"),
    [
        (Keys, without_me, "keys"),
        (Keys, lower_threshold, "policy"),
        (Keys, another_step, "order"),
        (Shares, no_shares, "shares"),
        (Held, nobody_ready, "shares"),
        (Masked, two_survivors, "survivors"),
        (Masked, others_survive, "survivors"),
        (Vote, short_certificate, "certificate"),
        (Vote, forged_certificate, "identity"),
    ],
)
async def test_what_is_not_right_is_refused_and_on_record(tmp_path: Path, after: type, lie: Lie, rule: str) -> None:
    stage = Stage(Plant(4), rounds=1)
    devices = edges(tmp_path, stage)
    victim = devices[0]
    step = victim.cloud.step

    async def cheat(job: str, number: int, message: bytes, sha256: str = "") -> bytes | None:
        reply = await step(job, number, message, sha256)
        if isinstance(messages.from_device(message), after):
            assert reply is not None
            return messages.encode(lie(stage, messages.from_cloud(reply)))
        return reply

    victim.cloud.step = cheat  # type: ignore[method-assign]
    await _until_refused(stage, devices)
    (refusal,) = [one for node, one in stage.refusals if node == stage.plant.nodes[0]]
    assert refusal.rule == rule
    (record,) = list(chain.read(victim.root / "federation" / "audit.jsonl"))
    assert record.outcome == "refused" and [one.rule for one in record.refusals] == [rule]
    assert "reveal" not in [left.step for left in record.left]
    assert record.mask_shares_revealed == record.key_shares_revealed == 0


async def test_a_second_survivor_set_after_a_restart_is_an_alarm(tmp_path: Path) -> None:
    stage = Stage(Plant(4), rounds=1)
    devices = edges(tmp_path, stage)
    victim = devices[0]
    step = victim.cloud.step
    asked: list[bytes] = []

    async def cheat(job: str, number: int, message: bytes, sha256: str = "") -> bytes | None:
        said = messages.from_device(message)
        if isinstance(said, Vote) and not asked:
            asked.append(message)
            raise OSError("the power is out")
        reply = await step(job, number, message, sha256)
        if isinstance(said, Vote):
            unmask = messages.from_cloud(reply or b"")
            assert isinstance(unmask, Unmask)
            place = sorted(stage.plant.nodes).index(stage.plant.nodes[0])
            other = set(range(4)) - {(place + 1) % 4}
            return messages.encode(msgspec.structs.replace(unmask, survivors=bitmap.pack(other, 4)))
        return reply

    victim.cloud.step = cheat  # type: ignore[method-assign]
    others = [asyncio.create_task(one.run()) for one in devices[1:]]
    with pytest.raises(OSError, match="power"):
        await victim.run()
    task = asyncio.create_task(victim.run())
    await asyncio.wait_for(stage.until(lambda: stage.refusals), 30)
    for one in (task, *others):
        one.cancel()
    await asyncio.gather(task, *others, return_exceptions=True)
    record = next(iter(chain.read(victim.root / "federation" / "audit.jsonl")))
    assert record.outcome == "refused" and record.refusals[0].rule in ("identity", "certificate", "once")
    assert record.key_shares_revealed == record.mask_shares_revealed == 0
    assert [left.step for left in record.left] == ["keys", "shares", "held", "masked", "vector", "vote"]


async def _until_refused(stage: Stage, devices: list[Edge]) -> None:
    tasks = [asyncio.create_task(one.run()) for one in devices]
    async with asyncio.timeout(30):
        await stage.until(lambda: any(node == stage.plant.nodes[0] for node, _ in stage.refusals))
        await asyncio.sleep(0.2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
