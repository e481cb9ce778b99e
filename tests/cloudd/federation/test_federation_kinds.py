"""Jobs of other kinds than plain averaging, and jobs that wait, or never begin."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from cloudd.federation import views
from cloudd.federation.errors import FederationError
from cloudd.federation.service import Federation
from edgekit.messages.federation import Invitation, Later
from edgekit.packages import Package
from edgekit.secagg.errors import Refusal
from edgekit.secagg.policy import Policy
from tests.support.federation import Plant, begin, definition
from tests.support.federation_devices import Device, expected, fleet

Here = tuple[Federation, str]


async def test_three_buckets_give_the_median_of_their_means(here: Here, package: Package, tmp_path: Path) -> None:
    federation, url = here
    plant = Plant(9)
    robust = '[plan.robust]\nkind = "median"\nbuckets = 3\nmin_bucket = 3\n'
    plan = '[plan.strategy]\nstrategy = "fedavg"\nclip = 10.0\n' + robust
    text = definition(plant, plan, least=3, most=3, rounds=1)
    row = await begin(federation, package, text, [plant.roster(tmp_path / "r")])
    devices = [Device(i, key, url) for i, key in enumerate(plant.devices)]
    await asyncio.wait_for(fleet(devices, row.id, {"north": plant.public}), 30)
    (published,) = await federation.store.published(row.id, 0, 10)
    assert len(published.sums) == 3 and len({node for one in published.sums for node in one.nodes}) == 9
    means = []
    for one in published.sums:
        members = [device.index for device in devices if device.node in one.nodes]
        means.append(expected(devices[0], devices[0].start, [members], single=True).model)
    median = np.sort(np.stack(means), axis=0)[1]
    np.testing.assert_allclose(devices[0].state.model, median, atol=1e-6)


async def test_an_asynchronous_job_invites_those_who_have_an_update_ready(
    here: Here, package: Package, tmp_path: Path
) -> None:
    federation, url = here
    plant = Plant(4)
    plan = '[plan]\nmax_age = 1\n[plan.strategy]\nstrategy = "fedavg"\nclip = 10.0\n'
    row = await begin(federation, package, definition(plant, plan), [plant.roster(tmp_path / "r")])
    devices = [Device(i, key, url) for i, key in enumerate(plant.devices)]
    async with devices[0] as a, devices[1] as b, devices[2] as c, devices[3] as d:
        for device in devices:
            await device.open(row.id, {"north": plant.public})
        idle = asyncio.create_task(d.next())  # nothing ready: it only waits for sums
        ready = [asyncio.create_task(one.next(trained=0)) for one in (a, b, c)]
        for one in ready:
            turn = await asyncio.wait_for(one, 10)
            assert isinstance(turn, Invitation)
        assert not idle.done()
        idle.cancel()


async def test_private_sums_carry_noise_and_still_move_the_model(here: Here, package: Package, tmp_path: Path) -> None:
    federation, url = here
    plant = Plant(3)
    plan = '[plan.strategy]\nstrategy = "fedavg"\nclip = 10.0\n[plan.privacy]\nnoise_multiplier = 0.01\n'
    row = await begin(federation, package, definition(plant, plan, rounds=1), [plant.roster(tmp_path / "r")])
    devices = [Device(i, key, url) for i, key in enumerate(plant.devices)]
    await asyncio.wait_for(fleet(devices, row.id, {"north": plant.public}), 30)
    wanted = expected(devices[0], devices[0].start, [[0, 1, 2]], single=True)
    error = float(np.abs(devices[0].state.model - wanted.model).max())
    assert 0 < error < 0.5 and np.array_equal(devices[0].state.model, devices[1].state.model)


async def test_a_device_whose_plant_wants_a_larger_cohort_refuses(here: Here, package: Package, tmp_path: Path) -> None:
    federation, url = here
    plant = Plant(3)
    row = await begin(federation, package, definition(plant), [plant.roster(tmp_path / "r")])
    devices = [Device(i, key, url, policy=Policy(min_cohort=8)) for i, key in enumerate(plant.devices)]
    async with devices[0] as a, devices[1] as b, devices[2] as c:
        for device in devices:
            await device.open(row.id, {"north": plant.public})
        turns = await asyncio.gather(a.next(), b.next(), c.next())
        assert all(isinstance(turn, Invitation) for turn in turns)
        with pytest.raises(Refusal, match="min_cohort"):
            await a.take_part(turns[0])  # type: ignore[arg-type]


async def test_who_waits_hears_why(
    here: Here, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudd.federation.job.WAIT_S", 0.3)
    federation, url = here
    plant = Plant(3)
    row = await begin(federation, package, definition(plant), [plant.roster(tmp_path / "r")])
    async with Device(0, plant.devices[0], url) as device:
        await device.open(row.id, {"north": plant.public})
        await asyncio.sleep(1.1)
        turn = await device.next()
        assert isinstance(turn, Later) and "devices stand ready; 3 are needed" in turn.reason


async def test_no_round_begins_outside_of_the_window(here: Here, package: Package, tmp_path: Path) -> None:
    federation, url = here
    plant = Plant(3)
    begin_at, end_at = (time.strftime("%H:%M", time.gmtime(time.time() + hours * 3600)) for hours in (2, 3))
    text = definition(plant).replace("[deadlines]", f'[window]\nbegin = "{begin_at}"\nend = "{end_at}"\n[deadlines]')
    row = await begin(federation, package, text, [plant.roster(tmp_path / "r")])
    devices = [Device(i, key, url) for i, key in enumerate(plant.devices)]
    running = asyncio.create_task(fleet(devices, row.id, {"north": plant.public}))
    while federation.runs[row.id].standing < 3:
        await asyncio.sleep(0.02)
    await asyncio.sleep(1.2)
    assert (await views.detail(federation, "job")).job.doing == "the job's window is closed"
    assert await federation.store.rounds(row.id) == []
    await federation.stop("job")
    assert {one.outcome for one in await asyncio.wait_for(running, 10)} == {"stopped"}


async def test_a_job_that_could_never_run_is_refused_at_its_start(here: Here, package: Package, tmp_path: Path) -> None:
    federation, _ = here
    plant, other = Plant(3), Plant(3)
    good = [plant.roster(tmp_path / "good")]

    async def refused(text: str, rosters: list[Path], says: str) -> None:
        with pytest.raises(FederationError, match=says):
            await begin(federation, package, text, rosters)

    text = definition(plant)
    await refused(text, [other.roster(tmp_path / "other")], "no plant that this device trusts")
    await refused(text, [plant.roster(tmp_path / "old", not_after=1.0)], "has expired")
    await refused(text, [good[0], good[0]], "two rosters")
    await refused(definition(plant, least=4), good, "the rosters have 3 devices; least is 4")
    await refused(definition(plant, model="other@1"), good, "no model 'other@1' is registered")
    private = '[plan.strategy]\nstrategy = "fedavg"\nclip = 10.0\n[plan.privacy]\nnoise_multiplier = 900.0\n'
    await refused(definition(plant, private, bits=16), good, "do not fit 16-bit words")
    assert await federation.store.jobs() == []
    await begin(federation, package, text, good)
    await refused(text, good, "take another name")
