"""Frames whose doubtful regions are sent, with a real cloud behind TLS, a real spool and a real gate."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from edged.collab import spool_view
from edged.collab.collaborator import NOTHING_LEAVES
from edged.collab.region_collaborator import FrameCollaborator, RegionCollaborator
from edged.collab.region_keeper import RegionKeeper
from edged.collab.regions import LocalRegions
from edgekit.gates.classwise import ClasswiseStatus
from edgekit.messages import HardSample, Link
from edgekit.regions import mosaic
from edgekit.regions.header import NOTHING, Found, MosaicAnswer
from edgekit.regions.select import Candidate
from edgekit.services import DecisionRules, Pipeline, RegionGroup, Regions, Tiles
from edgekit.vision.images import decode, encode_jpeg, sniff
from tests.edged.collab_bench import CALIBRATION, EASY, HARD, Bench, Line, service, until
from tests.edged.collab_cloud import running
from tests.edged.collab_regions import (
    FRAME,
    HEIGHT,
    WIDTH,
    FrameLine,
    agrees,
    box,
    certified,
    detecting,
    frame,
    grey_of,
    hard_samples,
    says,
    sees,
    tile,
    tiled,
)

AUDITED = hard_samples(audit_share=0.6)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with running(tmp_path / "cloud") as cloud:
        cloud.regions = says(agrees)
        yield Bench(tmp_path / "device", cloud)


def keeper(line: FrameLine) -> RegionKeeper:
    assert isinstance(line.collaborator, RegionCollaborator)
    return line.collaborator.keeper


# --- the link is fine -------------------------------------------------------------------------------------------------


async def test_only_the_doubtful_tiles_leave_and_the_frame_is_decided_of_all(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await certified(hub, tiled(), tile)
        bench.cloud.regions = says(lambda region: "open")
        local = frame(*(tile(i) for i in range(4)), tile(4, HARD), tile(5), tile(7, HARD, "short"))
        decision = await line.one(local)
        assert (decision.decided, decision.label, decision.model) == ("cloud", "open", "large@1")
        assert (decision.sent, decision.defects, decision.spooled, decision.reason) == ("hard", 2, False, "")
        assert decision.edge.label == "short" and decision.cloud is not None and decision.cloud.label == "open"
        assert decision.certified and decision.timings_ms["cloud"] > 0 and decision.serial == "board-7"
        assert [(r.box, r.label, r.decided) for r in decision.regions] == [
            (tile(4).box, "open", "cloud"),
            (tile(7).box, "open", "cloud"),
        ]
        header = bench.cloud.received[-1]
        assert header.mosaic is not None and header.pipeline is None and header.clean == "good"
        assert header.edge == decision.edge
        sent = mosaic.views(decode(bench.cloud.pictures[decision.sample_id], "grey"), header.mosaic)
        assert [(region.index, region.label, region.reason) for region, _ in sent] == [
            (4, "good", "hard"),
            (6, "short", "hard"),
        ]
        for (_, pixels), grey in zip(sent, (grey_of(4), grey_of(7)), strict=True):
            assert pixels.shape == (64, 64) and abs(pixels.astype(int) - grey).max() <= 3
    (record,) = spool_view.left(bench.state, limit=1)
    assert (record.sample_id, record.regions, record.outcome) == (decision.sample_id, 2, "answered")
    assert record.bytes == len(bench.cloud.pictures[decision.sample_id]) < len(FRAME)


async def test_a_frame_with_nothing_to_send_touches_neither_network_nor_disk_nor_a_thread(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await certified(hub, tiled(), tile)
        asked, threads = bench.cloud.requests, set(threading.enumerate())
        for _ in range(20):
            coroutine = line.one(frame(*(tile(i, 0.9) for i in range(12))))
            with pytest.raises(StopIteration) as finished:
                coroutine.send(None)  # it must run to its end without waiting for anything at all
            decision = finished.value.value
            assert (decision.decided, decision.label, decision.sent) == ("edge", "good", None)
            assert decision.certified and decision.regions == [] and decision.defects == 0
        assert set(threading.enumerate()) <= threads
        assert bench.cloud.requests == asked and not hub._background
    assert len(spool_view.left(bench.state)) == asked


async def test_audits_alone_are_answered_here_at_once_and_sent_in_the_background(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await certified(hub, tiled(hard_samples=AUDITED), tile)
        bench.cloud.regions = says(lambda region: "open")
        asked = bench.cloud.requests
        coroutine = line.one(frame(tile(0), tile(1, label="short")))
        with pytest.raises(StopIteration) as finished:
            coroutine.send(None)
        decision = finished.value.value
        assert (decision.decided, decision.label, decision.sent, decision.certified) == ("edge", "short", "audit", True)
        await until(lambda: bench.cloud.requests == asked + 1 and bench.compared == [False])
        header = bench.cloud.received[-1]
        assert header.reason == "audit" and header.mosaic is not None and not header.late
        assert [region.reason for region in header.mosaic.regions()] == ["audit", "audit"]


async def test_an_audit_that_travels_with_a_hard_region_counts(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await certified(hub, tiled(hard_samples=AUDITED), tile)
        bench.cloud.regions = says(lambda region: "open" if region.reason == "audit" else region.label)
        decision = await line.one(frame(tile(0), tile(1, HARD)))
        assert (decision.decided, decision.label, decision.sent) == ("cloud", "open", "hard")
        assert [region.label for region in decision.regions] == ["open", "good"]


async def test_an_audit_that_travels_with_a_hard_region_and_is_not_answered_leaves_the_local_one(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await certified(hub, tiled(hard_samples=AUDITED), tile)
        bench.cloud.mode = "hang"
        decision = await line.one(frame(tile(0, label="open"), tile(1, HARD, "short")), deadline_s=0.3)
        assert decision.decided == "edge-degraded" and not decision.certified
        assert [(region.label, region.decided, region.certified) for region in decision.regions] == [
            ("open", "edge", True),
            ("short", "edge-degraded", False),
        ]


async def test_beyond_the_most_only_the_hardest_are_asked_about_and_the_frame_is_uncertified(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await certified(hub, tiled(Regions(clean="good", most=3)), tile, each=3)
        decision = await line.one(frame(*(tile(i, 0.99) for i in range(4)), tile(4, HARD)))
        assert decision.decided == "cloud" and not decision.certified
        assert [region.box for region in decision.regions] == [tile(4).box]


async def test_mosaics_are_webp_once_cloudd_has_said_that_it_takes_them(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await certified(hub, tiled(), tile)

        async def sent_as(index: int) -> str:
            decision = await line.one(frame(tile(index, HARD), tile(9, HARD, "open")))
            assert (decision.decided, decision.label, decision.route) == ("cloud", "open", "regions")
            return sniff(bench.cloud.pictures[decision.sample_id], webp=True).format

        assert [await sent_as(0), await sent_as(1)] == ["jpeg", "jpeg"], "a cloudd that does not know it says nothing"
        bench.cloud.webp = True
        assert [await sent_as(2), await sent_as(3)] == ["jpeg", "webp"]
        bench.cloud.webp = False  # an older cloudd took its place: one sample is lost
        lost = await line.one(frame(tile(4, HARD)))
        assert (lost.decided, lost.spooled) == ("edge-degraded", False) and "422" in lost.reason
        assert await sent_as(5) == "jpeg"


async def test_large_tiles_are_not_scaled_down(bench: Bench) -> None:
    side = 700
    pipeline = Pipeline(tiles=Tiles(width=side, height=side, worst=["short"]))
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(tiled(pipeline=pipeline), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        local = LocalRegions(
            2 * side, side, [Candidate((i * side, 0, (i + 1) * side, side), "good", 0.6, HARD) for i in range(2)]
        )
        picture = encode_jpeg(np.zeros((side, 2 * side, 3), np.uint8))
        assert (await line.one(local, picture=picture)).decided == "cloud"
    header = bench.cloud.received[-1].mosaic
    assert header is not None and {cell.scale for cell in header.cells} == {(1.0, 1.0)}


async def test_nothing_may_leave(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(tiled(may_leave="nothing"), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        for _ in range(30):
            decision = await line.one(frame(tile(0, HARD), tile(1, HARD, "short")))
            assert (decision.decided, decision.label, decision.reason) == ("edge", "short", NOTHING_LEAVES)
            assert not decision.certified and decision.sent is None and decision.defects == 1
            assert [region.decided for region in decision.regions] == ["edge"]
        await asyncio.sleep(0.1)
        assert bench.cloud.requests == 0 and hub.spool_report().items == 0
        assert "Nothing may leave" in line.collaborator.sentence()
        assert "0 of them are on their way" in keeper(line).sentence()


async def test_a_gate_that_is_off_sends_no_region(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = FrameLine(
            await hub.add(detecting(Regions(silent=1.0), hard_samples=hard_samples(mode="off")), "small@1")
        )
        assert (await line.one(frame(box(0, HARD)))).sent is None
        assert (await line.one(frame())).sent is None
        assert "Off:" in line.collaborator.sentence() and "looked at" not in line.collaborator.sentence()


# --- detectors --------------------------------------------------------------------------------------------------------


async def test_a_box_under_the_threshold_may_become_a_finding(bench: Bench) -> None:
    bench.cloud.regions = sees(agrees)
    async with bench.hub() as hub:
        line = await certified(hub, detecting(Regions(silent=0.0)), box)
        bench.cloud.regions = sees(lambda region: "open" if region.label == NOTHING else NOTHING)
        decision = await line.one(frame(box(0), box(2, HARD, NOTHING), box(9, HARD, "short")))
        assert (decision.decided, decision.label, decision.defects) == ("cloud", "open", 2)
        assert [(r.box, r.label, r.decided) for r in decision.regions] == [
            (box(0).box, "short", "edge"),
            (box(2).box, "open", "cloud"),
            (box(9).box, NOTHING, "cloud"),
        ]
        header = bench.cloud.received[-1].mosaic
        assert header is not None and header.frame == (WIDTH, HEIGHT)
        assert header.regions()[0].view == (2 * 64 + 12, 12, 2 * 64 + 52, 52), "a quarter, but 8 pixels at least"


async def test_what_fails_decides_the_label_and_nothing_is_spelt_out(bench: Bench) -> None:
    bench.cloud.regions = sees(lambda region: NOTHING)
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(detecting(Regions()), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        decision = await line.one(frame(box(0, HARD, "short")))
        assert (decision.label, decision.decided, decision.defects) == ("nothing", "cloud", 0)
        assert decision.edge.label == "short" and [region.label for region in decision.regions] == [""]


async def test_silent_frames_are_looked_at_in_the_background_and_counted_over_restarts(bench: Bench) -> None:
    bench.cloud.regions = sees(agrees)
    wanted = detecting(Regions(silent=0.6))  # the bench's random number is 0.5
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(wanted, "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        decision = await line.one(frame())
        assert (decision.decided, decision.label, decision.sent) == ("edge", "nothing", "audit")
        assert not decision.certified and decision.regions == []
        await until(lambda: keeper(line).silent.frames == 1)
        bench.cloud.regions = sees(lambda region: "short")
        await line.one(frame())
        await until(lambda: keeper(line).silent.frames == 2)
        assert bench.compared == [True, False]
        header = bench.cloud.received[-1]
        assert header.mosaic is not None and header.mosaic.size == (WIDTH, HEIGHT)
        assert [region.reason for region in header.mosaic.regions()] == ["silent"]
        assert "2 looked at, 1 of them with something in it" in line.collaborator.sentence()
        await line.one(frame(box(1)))
        assert "2 looked at" in line.collaborator.sentence(), "a frame with a box is not silent"
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(wanted, "small@1"), prefix="again")
        assert (keeper(line).silent.frames, keeper(line).silent.found) == (2, 1)
        bench.cloud.model = "large@2"
        await until(lambda: hub.breaker_state == "closed")
        await line.one(frame())
        await until(lambda: (keeper(line).silent.frames, keeper(line).silent.found) == (1, 1))


async def test_whole_frames_of_a_detector_take_the_boxes_that_the_cloud_found(bench: Bench) -> None:
    def found(header: HardSample) -> MosaicAnswer:
        boxes = [("open", (10.0, 10.0, 60.0, 60.0)), ("short", (100.0, 10.0, 160.0, 60.0)), ("", (5.0, 5.0, 9.0, 9.0))]
        return MosaicAnswer(
            task="detection",
            found=[Found(cell=0, box=place, label=label, score=0.9, margin=0.8) for label, place in boxes],
        )

    bench.cloud.regions = found
    bench.cloud.label = "short"  # the surest box; the service finds "open" worse
    rules = DecisionRules(fail=["open", "short"])
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(detecting(decision=rules), "small@1"))
        assert isinstance(line.collaborator, FrameCollaborator)
        await until(lambda: hub.breaker_state == "closed")
        decision = await line.one(frame(box(0, EASY), box(1, HARD, NOTHING)))
        assert (decision.label, decision.decided, decision.defects) == ("open", "cloud", 2)
        assert decision.cloud is not None and decision.cloud.label == "open" and decision.model == "large@1"
        assert [(region.label, region.decided) for region in decision.regions] == [
            ("open", "cloud"),
            ("short", "cloud"),
        ]
        header = bench.cloud.received[-1]
        assert header.mosaic is None and header.edge.margin == HARD and header.edge.label == "short"
        assert bench.cloud.pictures[decision.sample_id] == FRAME
        await until(lambda: "19 answers are missing" in line.collaborator.sentence())
        bench.cloud.regions = lambda header: MosaicAnswer(
            task="detection", found=[Found(cell=0, box=(0.0, 0.0, WIDTH + 1.0, 9.0), label="x", score=0.9, margin=0.9)]
        )
        decision = await line.one(frame(box(0, EASY)))
        assert decision.decided == "edge-degraded" and "outside of its cell" in decision.reason
        assert [(region.label, region.decided) for region in decision.regions] == [("short", "edge-degraded")]


async def test_whole_frames_agree_by_the_label_that_the_services_rule_gives_them(bench: Bench) -> None:
    bench.cloud.label = "nothing"
    bench.cloud.regions = lambda header: MosaicAnswer(task="detection")
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(detecting(), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        for _ in range(CALIBRATION):
            assert (await line.one(frame(), deadline_s=5.0)).label == "nothing"
        await until(lambda: line.collaborator.status().state == "certified")
        decision = await line.one(frame())
        assert (decision.decided, decision.label, decision.certified) == ("edge", "nothing", True)
        decision = await line.one(frame(box(3, HARD)))
        assert (decision.decided, decision.label, decision.defects) == ("cloud", "nothing", 0)


async def test_a_filter_sees_the_boxes_that_count(bench: Bench) -> None:
    bench.cloud.regions = lambda header: MosaicAnswer(task="detection")
    ibt = hard_samples(mode="filter", filter="IBT")
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(detecting(hard_samples=ibt), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        assert (await line.one(frame(box(0), box(1), box(2, HARD, NOTHING)))).decided == "edge"
        assert (await line.one(frame())).decided == "cloud", "what a filter cannot judge is hard"


# --- groups -----------------------------------------------------------------------------------------------------------


async def test_each_group_is_certified_for_itself_and_goes_on_after_a_restart(bench: Bench) -> None:
    groups = [RegionGroup(name="defect", labels=["short"], risk=0.4), RegionGroup(name="clean", risk=0.3)]
    wanted = tiled(Regions(clean="good", groups=groups), hard_samples=AUDITED)

    def states(line: FrameLine) -> list[str]:
        status = line.collaborator.status()
        assert isinstance(status, ClasswiseStatus)
        return [group.gate.state for group in status.groups]

    async with bench.hub() as hub:
        line = FrameLine(await hub.add(wanted, "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        for _ in range(CALIBRATION // 10):
            await line.one(frame(*(tile(i, 0.9) for i in range(10)), tile(10, 0.9, "short")), deadline_s=5.0)
        await until(lambda: states(line) == ["calibrating", "certified"])
        bench.cloud.regions = says(lambda region: "short")
        decision = await line.one(frame(tile(0), tile(1, EASY, "short")))
        assert (decision.sent, decision.decided) == ("calibrating", "cloud")
        header = bench.cloud.received[-1].mosaic
        assert header is not None and {r.label: r.reason for r in header.regions()} == {
            "good": "audit",
            "short": "calibrating",
        }
        await until(lambda: "1 of 1 audits were escaped" in line.collaborator.sentence())
    async with bench.hub() as hub:
        line = FrameLine(await hub.add(wanted, "small@1"))
        assert states(line) == ["calibrating", "certified"]
        assert "1 of 1 audits were escaped" in line.collaborator.sentence()


# --- other definitions ------------------------------------------------------------------------------------------------


async def test_what_another_definition_left_in_the_spool_teaches_nothing(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        await FrameLine(await hub.add(tiled(), "small@1"), prefix="regions").one(frame(tile(0)))
        await Line(await hub.add(service(), "small@1"), prefix="whole").one()
    async with bench.hub() as hub:
        whole = await hub.add(service(), "small@1")
        await until(lambda: hub.spool_report().items == 0)
        assert bench.compared == [False], "regions cannot be compared with a whole picture"
        assert whole.status() != (await hub.add(tiled(), "small@1")).status()
    async with bench.hub() as hub:
        collaborator = await hub.add(detecting(Regions()), "small@1")
        assert f"{CALIBRATION} answers are missing" in collaborator.sentence()


async def test_a_new_model_in_the_cloud_starts_a_new_calibration(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await certified(hub, tiled(), tile)
        bench.cloud.model = "large@2"
        await line.one(frame(tile(0, HARD)))
        await until(lambda: line.collaborator.status().state == "calibrating")


def test_the_frame_of_the_bench_is_what_it_says() -> None:
    info = sniff(FRAME)
    assert (info.width, info.height) == (WIDTH, HEIGHT)
