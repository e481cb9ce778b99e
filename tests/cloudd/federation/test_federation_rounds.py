"""Rounds over HTTP with real keys: exact sums, devices that vanish or cheat, jobs of every kind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloudd.federation import page, views
from cloudd.federation.errors import FederationError
from cloudd.federation.lineage import LINEAGE, Lineage
from cloudd.federation.service import Federation
from cloudd.federation.store import JobRow
from edgekit import packages
from edgekit.identity import generate_key
from edgekit.messages.federation import Invitation, Over, Publication, Uploaded
from edgekit.packages import Package
from edgekit.secagg import fixedpoint, messages
from edgekit.secagg.client import ClientRound
from edgekit.secagg.errors import Refusal
from edgekit.secagg.ledger import MemoryLedger
from edgekit.secagg.signatures import signer
from tests.support.federation import Plant, begin, definition, site
from tests.support.federation_devices import Device, expected, fleet

Here = tuple[Federation, str]
SHORT = "[deadlines]\nsettle = 0.5\nkeys = 1.5\ntrain = 5.0\nunmask = 1.5\npatience = 0.0"


async def _ended(federation: Federation, job: str) -> JobRow:
    for _ in range(400):
        row = await federation.find(job)
        if row.ended_at is not None:
            return row
        await asyncio.sleep(0.05)
    raise AssertionError("the job does not end")


def _short(text: str) -> str:
    start = text.index("[deadlines]")
    return text[:start] + SHORT + text[text.index("\n[plan", start) :]


@pytest.mark.parametrize("secure", [True, False])
async def test_four_devices_move_the_model_by_exactly_their_plain_sum(
    here: Here, package: Package, tmp_path: Path, secure: bool
) -> None:
    federation, url = here
    plant = Plant(4)
    text = definition(plant if secure else None, least=4, rounds=3)
    row = await begin(federation, package, text, [plant.roster(tmp_path / "r")] if secure else [])
    devices = [Device(i, key, url) for i, key in enumerate(plant.devices)]
    ends = await asyncio.wait_for(fleet(devices, row.id, {"north": plant.public}), 30)
    assert [(one.outcome, one.version) for one in ends] == [("finished", 3)] * 4
    wanted = expected(devices[0], devices[0].start, [[0, 1, 2, 3]] * 3)
    for device in devices:
        assert np.array_equal(device.state.model, wanted.model)
    assert (await _ended(federation, "job")).status == "finished"


async def test_the_merged_model_is_registered_with_its_lineage_and_answers_as_its_weights_say(
    here: Here, package: Package, tmp_path: Path
) -> None:
    federation, url = here
    plant = Plant(3)
    text = definition(plant, evaluate_every=2, result="taught")
    row = await begin(federation, package, text, [plant.roster(tmp_path / "r")])
    devices = [Device(i, key, url) for i, key in enumerate(plant.devices)]
    await asyncio.wait_for(fleet(devices, row.id, {"north": plant.public}), 30)
    ended = await _ended(federation, "job")
    assert (ended.status, ended.reason, ended.result) == ("finished", "", "taught@1-job")
    entry = await federation.registry.resolve("taught@1-job")
    assert entry is not None
    made = packages.open_package(await federation.registry.materialise(entry))
    lineage = msgspec.json.decode(made.path(LINEAGE).read_bytes(), type=Lineage)
    assert (lineage.source.model, lineage.job.sums, lineage.job.secure) == ("small@1", 2, True)
    assert lineage.state == devices[0].rules.digest(devices[0].state).hex()
    assert lineage.figures is not None and lineage.figures.accuracy == pytest.approx(0.85)
    from edgekit.training import WEIGHTS_FILE, read_weights

    weights = read_weights(made.path(WEIGHTS_FILE))
    for name, array in devices[0].rules.strategy.layout.unflatten(devices[0].state.model).items():
        assert np.array_equal(weights[name], array)
    assert not (federation.folder / row.id).exists()  # nothing of a finished job stays but rows and blobs


async def test_an_evaluation_adds_up_the_confusion_of_all_devices(here: Here, package: Package, tmp_path: Path) -> None:
    federation, url = here
    plant = Plant(4)
    text = definition(plant, least=4, evaluate_every=1, rounds=1)
    row = await begin(federation, package, text, [plant.roster(tmp_path / "r")])
    devices = [Device(i, key, url) for i, key in enumerate(plant.devices)]
    await asyncio.wait_for(fleet(devices, row.id, {"north": plant.public}), 30)
    rounds = (await views.detail(federation, "job")).rounds
    (judged,) = [one for one in rounds if one.kind == "evaluate"]
    assert judged.figures is not None and (judged.figures.samples, judged.figures.devices) == (80, 4)
    assert judged.figures.accuracy == pytest.approx(0.85) and judged.version == 1
    assert await federation.store.published(row.id, 0, 10) != []
    assert all(len(one.sums) == 1 for one in await federation.store.published(row.id, 0, 10))


async def test_a_device_that_vanishes_in_any_step_leaves_the_exact_sum_of_the_others(
    package: Package, tmp_path: Path
) -> None:
    async def without(step: str, here: Here) -> None:
        federation, url = here
        folder, plant = tmp_path / step, Plant(5)
        text = _short(definition(plant, least=4, most=5, rounds=1))
        row = await begin(federation, package, text, [plant.roster(folder / "r")])
        devices = [Device(i, key, url, vanishes=step if i == 2 else "") for i, key in enumerate(plant.devices)]
        await asyncio.wait_for(fleet(devices, row.id, {"north": plant.public}), 60)
        members = [0, 1, 2, 3, 4] if step in ("vote", "reveal") else [0, 1, 3, 4]
        wanted = expected(devices[0], devices[0].start, [members])
        assert all(np.array_equal(device.state.model, wanted.model) for device in devices), step
        (one,) = (await views.detail(federation, "job")).rounds
        assert (one.outcome, one.delivered) == ("summed", len(members)), step

    async with AsyncExitStack() as stack:
        steps = ("keys", "shares", "held", "vector", "masked", "vote", "reveal")
        sites = {step: await stack.enter_async_context(site(tmp_path / step)) for step in steps}
        async with asyncio.TaskGroup() as group:
            for step, found in sites.items():
                group.create_task(without(step, found))


async def test_too_few_devices_void_the_round_and_the_job_fails_after_its_tries(
    here: Here, package: Package, tmp_path: Path
) -> None:
    federation, url = here
    plant = Plant(4)
    text = _short(definition(plant, least=4, tries=1, rounds=1))
    row = await begin(federation, package, text, [plant.roster(tmp_path / "r")])
    devices = [Device(i, key, url, vanishes="shares" if i < 2 else "") for i, key in enumerate(plant.devices)]
    ends = await asyncio.wait_for(fleet(devices, row.id, {"north": plant.public}), 30)
    assert {one.outcome for one in ends} == {"failed"} and "2 of 4 devices sent shares" in ends[0].reason
    detail = await views.detail(federation, "job")
    assert detail.job.status == "failed" and detail.rounds[0].outcome == "void"
    assert "3 are needed" in detail.rounds[0].reason


async def test_only_devices_of_the_rosters_see_the_job(here: Here, package: Package, tmp_path: Path) -> None:
    federation, url = here
    plant = Plant(3)
    row = await begin(federation, package, definition(plant), [plant.roster(tmp_path / "r")])
    async with Device(9, generate_key(), url) as stranger, Device(0, plant.devices[0], url) as member:
        status, data = await stranger.ask("GET", "/jobs")
        assert (status, msgspec.json.decode(data).get("jobs", [])) == (200, [])
        entry = row.job.files[0]
        for method, route in (("GET", ""), ("GET", f"/files/{entry.sha256}"), ("POST", "/next"), ("POST", "/rounds/0")):
            assert (await stranger.ask(method, f"/jobs/{row.id}{route}", b"{}"))[0] == 404
        status, data = await member.ask("GET", "/jobs")
        assert [one["id"] for one in msgspec.json.decode(data)["jobs"]] == [row.id]
        assert (await member.ask("GET", f"/jobs/{row.id}/files/{'0' * 64}"))[0] == 404


async def test_the_list_of_jobs_is_held_until_it_changes(here: Here, package: Package, tmp_path: Path) -> None:
    federation, url = here
    plant = Plant(3)
    async with Device(0, plant.devices[0], url) as device:
        revision = msgspec.json.decode((await device.ask("GET", "/jobs"))[1])["revision"]
        held = asyncio.create_task(device.ask("GET", f"/jobs?known={revision}"))
        await asyncio.sleep(0.2)
        assert not held.done()
        await begin(federation, package, definition(plant), [plant.roster(tmp_path / "r")])
        assert len(msgspec.json.decode((await asyncio.wait_for(held, 5))[1])["jobs"]) == 1


async def test_a_message_of_another_device_or_of_no_protocol_is_refused_and_on_record(
    here: Here, package: Package, tmp_path: Path
) -> None:
    federation, url = here
    plant = Plant(3)
    row = await begin(federation, package, definition(plant, rounds=1), [plant.roster(tmp_path / "r")])
    devices = [Device(i, key, url) for i, key in enumerate(plant.devices)]
    running = asyncio.create_task(fleet(devices[1:], row.id, {"north": plant.public}))
    async with devices[0] as device:
        await device.open(row.id, {"north": plant.public})
        turn = await device.next()
        assert isinstance(turn, Invitation)
        config = messages.from_cloud(turn.config)
        assert isinstance(config, messages.RoundConfig)
        blank = dict.fromkeys(("channel", "mask", "commitment"), bytes(32))
        foreign = messages.Keys(
            node=devices[1].node, config=messages.digest(config), nonce=bytes(16), signature=bytes(64), **blank
        )
        place = f"/jobs/{row.id}/rounds/{turn.number}"
        for body, rule in ((messages.encode(foreign), "identity"), (b"\xff" * 100, "malformed")):
            status, data = await device.ask("POST", place, body)
            assert (status, msgspec.json.decode(data)["rule"]) == (409, rule)
        right = messages.encode(_round_of(device, config).keys())
        for flipped in range(0, len(right), 5):
            wrong = right[:flipped] + bytes([right[flipped] ^ 0x41]) + right[flipped + 1 :]
            assert (await device.ask("POST", place, wrong))[0] == 409, flipped
        own = messages.encode(msgspec.structs.replace(foreign, node=device.node))
        status, data = await device.ask("POST", place, own)
        assert (status, msgspec.json.decode(data)["rule"]) == (409, "identity")  # the signature is not its own
        with pytest.raises(Refusal, match="another state"):
            await federation.runs[row.id].next(device.node, _standing(device, state="0" * 64))
        with pytest.raises(Refusal, match="has published 0"):
            await federation.runs[row.id].next(device.node, _standing(device, version=7))
        await device.take_part(turn)
        while not isinstance(await device.next(), Publication):
            pass
    await asyncio.wait_for(running, 20)
    (one,) = (await views.detail(federation, "job")).rounds
    assert [(each.by, each.rule) for each in one.refusals[:2]] == [("cloudd", "identity"), ("cloudd", "malformed")]


def _round_of(device: Device, config: messages.RoundConfig) -> ClientRound:
    """The device's half of a round of which nothing is kept."""
    assert device.membership is not None
    return ClientRound(
        config,
        model=config.model,
        node=device.node,
        sign=signer(device.key),
        membership=device.membership,
        policy=device.policy,
        ledger=MemoryLedger(),
        random=os.urandom,
    )


def _standing(device: Device, **changes: object) -> object:
    from edgekit.messages.federation import Standing

    right = {"version": 0, "state": device.rules.digest(device.state).hex()}
    return Standing(**{**right, **changes})  # type: ignore[arg-type]


async def test_an_upload_goes_on_where_it_was_and_begins_anew_when_its_hash_is_wrong(
    here: Here, package: Package, tmp_path: Path
) -> None:
    federation, url = here
    row = await begin(federation, package, definition(None, rounds=1, least=2), [])
    devices = [Device(i, generate_key(), url) for i in range(2)]
    other = asyncio.create_task(fleet(devices[1:], row.id, {}))
    async with devices[0] as device:
        await device.open(row.id, {})
        turn = await device.next()
        assert isinstance(turn, Invitation)
        place = f"/jobs/{row.id}/rounds/{turn.number}"
        whole = msgspec.json.decode((await device.ask("GET", f"{place}/vector"))[1])["whole"]
        assert (await device.ask("PUT", f"{place}/vector?offset=5", b"x" * 10))[0] == 409
        assert (await device.ask("PUT", f"{place}/vector?offset=-1", b"x"))[0] == 400
        for data in (b"x" * 100, b"x" * 100):  # the same part twice
            status, reply = await device.ask("PUT", f"{place}/vector?offset=0", data)
            assert (status, msgspec.json.decode(reply)) == (200, {"size": 100, "whole": whole})
        assert (await device.ask("PUT", f"{place}/vector?offset=100", b"x" * whole))[0] == 409  # too long
        status, reply = await device.ask("PUT", f"{place}/vector?offset=100", b"x" * (whole - 100))
        assert msgspec.json.decode(reply)["size"] == whole
        assert (await device.ask("POST", f"{place}/plain", b'{"sha256": "%s"}' % (b"0" * 64)))[0] == 409
        assert msgspec.json.decode((await device.ask("GET", f"{place}/vector"))[1])["size"] == 0
        await device.take_part(turn)
        while not isinstance(await device.next(), Publication):
            pass
    await asyncio.wait_for(other, 20)


async def test_the_last_part_of_a_plain_vector_takes_it_into_the_round_if_it_says_the_right_hash(
    here: Here, package: Package
) -> None:
    federation, url = here
    row = await begin(federation, package, definition(None, rounds=1, least=2), [])
    devices = [Device(i, generate_key(), url) for i in range(2)]
    other = asyncio.create_task(fleet(devices[1:], row.id, {}))
    async with devices[0] as device:
        await device.open(row.id, {})
        turn = await device.next()
        assert isinstance(turn, Invitation)
        place = f"/jobs/{row.id}/rounds/{turn.number}/vector?offset="
        config = messages.from_cloud(turn.config)
        assert isinstance(config, messages.RoundConfig)
        data = fixedpoint.encode(*device.vector("learn"), fixedpoint.Encoding(config), os.urandom).tobytes()
        assert (await device.ask("PUT", f"{place}0&sha256=x", data))[0] == 400
        assert (await device.ask("PUT", f"{place}0&sha256={'0' * 64}", data))[0] == 409
        assert (await device.ask("PUT", f"{place}0", data[:100]))[0] == 200, "it begins anew"
        sha256 = hashlib.sha256(data).hexdigest()
        status, reply = await device.ask("PUT", f"{place}100&sha256={sha256}", data[100:])
        assert (status, msgspec.json.decode(reply, type=Uploaded)) == (
            200, Uploaded(size=len(data), whole=len(data), taken=True),
        )  # fmt: skip
        while not isinstance(turn, Publication):
            turn = await device.next()
        await device.apply(turn)
    await asyncio.wait_for(other, 20)
    wanted = expected(devices[0], devices[0].start, [[0, 1]])
    assert np.array_equal(devices[0].state.model, wanted.model)


async def test_a_bad_plain_vector_is_refused_and_does_not_spoil_the_sum(
    here: Here, package: Package, tmp_path: Path
) -> None:
    federation, url = here
    row = await begin(federation, package, definition(None, rounds=1, least=2, most=3), [])
    devices = [Device(i, generate_key(), url) for i in range(3)]
    async with devices[0] as bad:
        await bad.open(row.id, {})
        others = asyncio.create_task(fleet(devices[1:], row.id, {}))
        turn: object = None
        while not isinstance(turn, Invitation | Publication):
            turn = await bad.next()
        if isinstance(turn, Invitation):
            bad.masked[turn.number] = b"\x7f" * federation.runs[row.id].cohorts[turn.number].vectors.size
            with pytest.raises(Refusal, match="weights of 1 devices cannot sum"):
                await bad.take_part(turn)
            status, _ = await bad.ask(
                "POST", f"/jobs/{row.id}/refusal", b'{"number": %d, "rule": "value"}' % turn.number
            )
            assert status == 204
        await asyncio.wait_for(others, 20)
    wanted = expected(devices[1], devices[1].start, [[1, 2]])
    assert np.array_equal(devices[1].state.model, wanted.model)


async def test_a_device_that_says_it_refuses_is_not_waited_for(here: Here, package: Package, tmp_path: Path) -> None:
    federation, url = here
    plant = Plant(5)
    text = definition(plant, least=4, most=5, rounds=1).replace("settle = 0.0", "settle = 1.0")
    row = await begin(federation, package, text, [plant.roster(tmp_path / "r")])
    devices = [Device(i, key, url) for i, key in enumerate(plant.devices)]
    async with devices[0] as shy:
        await shy.open(row.id, {"north": plant.public})
        others = asyncio.create_task(fleet(devices[1:], row.id, {"north": plant.public}))
        turn = await shy.next()
        assert isinstance(turn, Invitation)
        begun = time.monotonic()
        body = msgspec.json.encode({"number": turn.number, "rule": "policy", "text": "<b>clip</b> of 10\x07"})
        assert (await shy.ask("POST", f"/jobs/{row.id}/refusal", body))[0] == 204
        await asyncio.wait_for(others, 20)
        assert time.monotonic() - begun < 10  # far less than the 20 s of a step
    detail = await views.detail(federation, "job")
    (refused,) = detail.rounds[0].refusals
    assert (refused.by, refused.rule, refused.text) == ("device", "policy", "<b>clip</b> of 10?")
    html = page.render(detail, time.time())
    assert "&lt;b&gt;clip&lt;/b&gt;" in html and "<b>clip" not in html


async def test_a_stopped_job_voids_its_round_and_tells_its_devices(
    here: Here, package: Package, tmp_path: Path
) -> None:
    federation, url = here
    plant = Plant(3)
    row = await begin(federation, package, definition(plant), [plant.roster(tmp_path / "r")])
    async with Device(0, plant.devices[0], url) as device, Device(1, plant.devices[1], url) as second:
        await device.open(row.id, {"north": plant.public})
        await second.open(row.id, {"north": plant.public})
        waiting = asyncio.create_task(device.next())
        await asyncio.sleep(0.2)
        stopped = await federation.stop("job")
        assert stopped.status == "stopped"
        turn = await asyncio.wait_for(waiting, 5)
        assert isinstance(turn, Over) and turn.outcome == "stopped"
        assert isinstance(await second.next(), Over)  # also who asks later
        assert (await second.ask("POST", f"/jobs/{row.id}/rounds/0", b""))[0] == 410
    with pytest.raises(FederationError, match="has ended already"):
        await federation.stop("job")
