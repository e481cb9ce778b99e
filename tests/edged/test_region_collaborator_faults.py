"""The link, the cloud, the disk or the power fails under a frame of regions: the answer comes in time, nothing is lost,
and the gate hears of every region."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from edged.collab import mosaics, spool_view
from edged.collab.region_collaborator import RegionCollaborator
from edgekit.messages import HardSample, Link
from edgekit.regions.header import Found, MosaicAnswer, RegionAnswer
from edgekit.services import Regions
from tests.edged.collab_bench import CALIBRATION, HARD, Bench, until
from tests.edged.collab_cloud import running
from tests.edged.collab_regions import (
    FrameLine,
    agrees,
    box,
    certified,
    detecting,
    frame,
    hard_samples,
    says,
    sees,
    tile,
    tiled,
)

DOUBTFUL = frame(tile(0), tile(1, HARD, "short"), tile(2, HARD))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with running(tmp_path / "cloud") as cloud:
        cloud.regions = says(agrees)
        yield Bench(tmp_path / "device", cloud)


def on_their_way(line: FrameLine) -> str:
    """What the gate says about the answers that it waits for."""
    return line.collaborator.sentence().partition("missing (")[2].partition(")")[0]


# --- the link and the cloud -------------------------------------------------------------------------------------------


async def test_late_answers_teach_the_gate_as_early_ones_do(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"))
        for _ in range(CALIBRATION // 10):
            decision = await line.one(frame(*(tile(i, 0.9) for i in range(10))))
            assert decision.spooled and decision.sent == "calibrating" and "has not joined" in decision.reason
        assert on_their_way(line) == f"{CALIBRATION} of them are on their way"
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"))
        assert on_their_way(line) == f"{CALIBRATION} of them are on their way"
        await until(lambda: line.collaborator.status().state == "certified")
        await until(lambda: bench.compared == [True] * (CALIBRATION // 10))
    assert all(sample.late and sample.mosaic is not None for sample in bench.cloud.received)
    assert [record.regions for record in spool_view.left(bench.state)] == [10] * (CALIBRATION // 10)


def _misses_one(header: HardSample) -> MosaicAnswer:
    assert header.mosaic is not None
    first = header.mosaic.regions()[0]
    return MosaicAnswer(
        task="classification", regions=[RegionAnswer(index=first.index, label="x", score=0.9, margin=0.9)]
    )


def _beside(header: HardSample) -> MosaicAnswer:
    found = Found(cell=0, box=(0.0, 0.0, 5000.0, 5000.0), label="x", score=0.9, margin=0.9)
    return MosaicAnswer(task="detection", found=[found])


@pytest.mark.parametrize("fault", ["hang", "garbage", "rst mid reply", "status 500", _misses_one, _beside])
async def test_a_misbehaving_cloud_costs_no_more_than_the_deadline_and_loses_nothing(
    bench: Bench, fault: str | Callable[[HardSample], MosaicAnswer]
) -> None:
    async with bench.hub() as hub:
        line = await certified(hub, tiled(), tile)
        if isinstance(fault, str):
            bench.cloud.mode = fault
        else:
            bench.cloud.regions = fault
        decisions = []
        for _ in range(6):
            started = time.monotonic()
            decisions.append(await line.one(DOUBTFUL, deadline_s=0.3))
            assert time.monotonic() - started < 0.3 + 0.2
        assert all((d.decided, d.label, d.certified) == ("edge-degraded", "short", False) for d in decisions)
        assert all(d.spooled or d.reason.endswith("is being stored") for d in decisions), [d.reason for d in decisions]
        assert all([r.decided for r in d.regions] == ["edge-degraded"] for d in decisions)
        assert hub.breaker_state != "closed"
        bench.cloud.received.clear()
        bench.cloud.answered.clear()
        bench.cloud.mode = "answer"
        bench.cloud.regions = says(agrees)
        hub.set_link(msgspec.structs.replace(bench.link, generation=1))  # so that nothing rests any more
        wanted = {d.sample_id for d in decisions}
        await until(lambda: len(bench.cloud.received) >= len(wanted) and hub.spool_report().items == 0)
    late = [sample for sample in bench.cloud.received if sample.late]
    assert Counter(sample.sample_id for sample in late) == Counter(wanted), "each exactly once"
    assert all(sample.mosaic is not None and len(sample.mosaic.regions()) == 2 for sample in late)


async def test_a_cloud_that_does_not_know_regions_is_said_and_the_gate_hears_that_they_are_lost(bench: Bench) -> None:
    bench.cloud.regions = lambda header: None
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        decision = await line.one(frame(tile(0), tile(1)))
        assert decision.decided == "edge-degraded" and "does not know regions yet" in decision.reason
        assert not decision.spooled and hub.breaker_state == "closed"
        assert on_their_way(line) == "0 of them are on their way"
        assert bench.codes == ["warning:answers.rejected.solder"] and "must be updated" in bench.events[0].text
        hub.set_link(msgspec.structs.replace(bench.link, up=False))
        assert (await line.one(frame(tile(0)))).spooled
        hub.set_link(bench.link)
        await until(lambda: hub.spool_report().items == 0)
        await until(lambda: on_their_way(line) == "0 of them are on their way")
        bench.cloud.regions = says(agrees)
        assert (await line.one(frame(tile(0)))).decided == "cloud"
        await until(lambda: bench.codes[-1] == "ok:answers.rejected.solder")


async def test_with_no_time_left_the_regions_are_stored(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await certified(hub, tiled(), tile)
        asked = bench.cloud.requests
        bench.cloud.mode = "hang"
        decision = await line.one(DOUBTFUL, deadline_s=-1.0)
        assert decision.decided == "edge-degraded" and decision.reason.startswith("no time was left")
        await until(lambda: hub.spool_report().items + bench.cloud.requests - asked >= 1)


# --- cutting up -------------------------------------------------------------------------------------------------------


def stall(hub_mosaics: mosaics.Mosaics) -> threading.Event:
    """Nothing is cut up until the event is set."""
    go_on = threading.Event()
    hub_mosaics._executor.submit(go_on.wait, 30.0)
    return go_on


async def test_cutting_up_that_takes_too_long_does_not_hold_the_answer(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"))
        go_on = stall(hub.mosaics)
        started = time.monotonic()
        decision = await line.one(DOUBTFUL, deadline_s=0.15)
        assert time.monotonic() - started < 0.25
        assert not decision.spooled and decision.reason.endswith("is being stored")
        assert hub.spool_report().items == 0
        go_on.set()
        await until(lambda: hub.spool_report().items == 1)
        assert on_their_way(line) == "3 of them are on their way"


async def test_what_is_being_cut_up_when_the_worker_ends_is_in_the_spool_then(bench: Bench) -> None:
    audited = detecting(Regions(silent=0.6), hard_samples=hard_samples(audit_share=0.6))
    bench.cloud.regions = sees(agrees)
    async with bench.hub() as hub:
        line = await certified(hub, audited, box)
        hub.set_link(Link())
        stalled = stall(hub.mosaics)
        assert (await line.one(frame(box(0)))).sent == "audit"
        assert (await line.one(frame())).sent == "audit"
        asyncio.get_running_loop().call_later(0.2, stalled.set)
    async with bench.hub(link=Link()) as hub:
        assert hub.spool_report().items == 2


async def test_a_picture_that_cannot_be_cut_up_leaves_the_local_answers_and_is_lost(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        decision = await line.one(DOUBTFUL, picture=b"\xff\xd8 no picture")
        assert (decision.decided, decision.label, decision.spooled) == ("edge-degraded", "short", False)
        assert decision.reason.startswith("the regions cannot be cut out")
        assert on_their_way(line) == "0 of them are on their way"
        decision = await line.one(frame(tile(0), tile(1)))
        assert decision.decided == "cloud"


async def test_too_many_frames_that_wait_to_be_cut_up_are_lost_and_the_gate_hears_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mosaics, "MAX_PENDING", 0)
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"))
        decision = await line.one(DOUBTFUL)
        assert decision.decided == "edge-degraded" and "too many frames wait" in decision.reason
        assert on_their_way(line) == "0 of them are on their way"


# --- the spool --------------------------------------------------------------------------------------------------------


async def test_a_lost_frame_loses_each_of_its_regions_also_after_a_restart(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"))
        for _ in range(2):
            assert (await line.one(frame(*(tile(i) for i in range(5))))).spooled
        assert on_their_way(line) == "10 of them are on their way"
    async with bench.hub(link=Link()) as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"), prefix="again")
        assert on_their_way(line) == "10 of them are on their way"
        assert await hub.purge("solder") == 2
        await until(lambda: on_their_way(line) == "0 of them are on their way")


async def test_a_full_spool_lets_local_answers_go_on_and_tells_the_gate(bench: Bench) -> None:
    async with bench.hub(link=Link(), quota=0) as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"))
        decision = await line.one(DOUBTFUL)
        assert decision.decided == "edge-degraded" and "was not stored" in decision.reason
        assert on_their_way(line) == "0 of them are on their way"


async def test_regions_in_flight_at_a_power_cut_are_no_part_of_the_set(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"))
        assert (await line.one(frame(tile(0), tile(1)))).spooled
        collaborator = line.collaborator
        assert isinstance(collaborator, RegionCollaborator)
        collaborator.keeper.decide([tile(0), tile(1), tile(2)], [0, 1, 2], lambda: 0.5, "gone")
        assert on_their_way(line) == "5 of them are on their way"
    async with bench.hub(link=Link()) as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"))
        assert on_their_way(line) == "2 of them are on their way"


# --- the power --------------------------------------------------------------------------------------------------------

CHILD = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    import msgspec
    from edged.collab.collaboration import Collaboration
    from edgekit.messages import Link
    from tests.edged.collab_regions import tiled

    async def main():
        link = msgspec.json.decode(sys.argv[2], type=Link)
        async with Collaboration(Path(sys.argv[1]), "DEVICE", link, quota=1 << 26, reserve=0,
                                 drain_per_second=1000.0) as hub:
            await hub.add(tiled(), "small@1")
            while hub.spool_report().items:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    """
)


@pytest.mark.parametrize("point", ["spool.answered", "spool.delivered", "spool.removed"])
async def test_a_power_cut_anywhere_in_a_delivery_teaches_each_region_once(bench: Bench, point: str) -> None:
    async with bench.hub(link=Link()) as hub:
        line = FrameLine(await hub.add(tiled(), "small@1"))
        for _ in range(4):
            assert (await line.one(frame(tile(0), tile(1), tile(2)))).spooled
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(bench.state),
        msgspec.json.encode(bench.link).decode(),
        env={"EDGED_CRASH_AT": f"{point}:2", "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
    )
    _, errors = await child.communicate()
    assert child.returncode == -9, errors.decode()
    assert len(bench.cloud.received) == 2
    async with bench.hub() as hub:
        await hub.add(tiled(), "small@1")
        await until(lambda: hub.spool_report().items == 0)
        assert hub.spool_report().delivered == 4
    learned = sqlite3.connect(bench.state / "gate.db").execute(
        "SELECT sample_id, label, answer FROM observations ORDER BY seq"
    )
    assert list(learned) == [(f"s{frame}#{index}", "good", "good") for frame in range(1, 5) for index in range(3)]
