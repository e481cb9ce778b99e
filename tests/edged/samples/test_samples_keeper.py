"""The worker's side: what is kept by policy, that the line never waits, and what a bad disk does."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from sample_bench import DEVICE, KEK, MIB, by_operator, facts, png

from edged.samples import policy
from edged.samples.keeper import MAX_WAITING, SampleKeeper
from edged.samples.reading import Filter
from edged.samples.store import Limits, SampleStore
from edged.store import StoreError
from edgekit.messages import UNSEEN, Answer, DecidedRegion, Decision, Event, HardSample, SendReason, Verdict
from edgekit.services.definition import Samples
from tests.support.disk import fill

LIMITS = Limits(bytes=64 * MIB, count=10_000, days=365)


def decision(
    number: int = 1, edge: str = "good", cloud: str = "", sent: SendReason | None = None, service: str = "solder"
) -> Decision:
    local = Verdict(label=edge, score=0.8, margin=0.4, model="small@1")
    return Decision(
        sample_id=f"D{number}",
        service=service,
        label=cloud or edge,
        score=0.8,
        decided="cloud" if cloud else "edge",
        model="small@1",
        edge=local,
        cloud=Verdict(label=cloud, score=0.9, margin=0.8, model="large@1") if cloud else None,
        sent=sent,
        serial=f"B{number}",
        captured_at=1_700_000_000.0 + number,
    )


@pytest.mark.parametrize(
    ("samples", "what", "draw", "source"),
    [
        (Samples(), decision(), 0.5, None),
        (Samples(), decision(), 0.005, "random"),
        (Samples(), decision(sent="hard"), 0.5, "asked"),
        (Samples(), decision(sent="calibrating", cloud="good"), 0.5, "asked"),
        (Samples(), decision(sent="audit"), 0.5, "audit"),
        (Samples(), decision(sent="hard", cloud="bad"), 0.5, "disputed"),
        (Samples(), decision(edge=UNSEEN, cloud="bad", sent="hard"), 0.5, "asked"),
        (Samples(), replace(decision(), verdict="review"), 0.5, "doubtful"),
        (Samples(), replace(decision(sent="hard"), verdict="review"), 0.5, "asked"),
        (Samples(), replace(decision(), verdict="fail"), 0.5, None),
        (Samples(keep="all"), decision(), 0.99, "random"),
        (Samples(keep="none"), decision(sent="hard", cloud="bad"), 0.0, None),
        (Samples(random=0.0), decision(), 0.0, None),
    ],
)
def test_the_policy_decides_what_is_kept(samples: Samples, what: Decision, draw: float, source: str | None) -> None:
    assert policy.source_of(samples, what, draw) == source


def test_boxes_are_noted_for_whom_they_belong_to() -> None:
    regions = [
        DecidedRegion(box=(1, 2, 3, 4), label="crack", score=0.9, margin=0.8, decided="edge"),
        DecidedRegion(box=(5, 6, 7, 8), label="bridge", score=0.7, margin=0.6, decided="cloud"),
        DecidedRegion(box=(5, 6, 7, 8), label="", score=0.7, margin=0.6, decided="cloud"),
    ]
    frame = replace(decision(cloud="bridge"), regions=regions)
    edge, cloud = policy.opinions(frame)
    assert edge is not None and [box.label for box in edge.boxes or ()] == ["crack"]
    assert cloud is not None and [(box.label, box.left, box.bottom) for box in cloud.boxes or ()] == [("bridge", 5, 8)]
    assert policy.opinions(decision())[0].boxes is None  # type: ignore[union-attr]


class Line:
    """A keeper on a store in `root`."""

    def __init__(self, root: Path, opener: Callable[[], SampleStore] | None = None, samples: Samples | None = None):
        self.events: list[Event] = []
        self.keeper = SampleKeeper(
            opener or (lambda: open_store(root, self.events)),
            {"solder": samples or Samples(keep="all")},
            lambda: 0.5,
            self.events.append,
            lambda: 1_800_000_000.0,
        )

    async def idle(self) -> None:
        while self.keeper.report().waiting:
            await asyncio.sleep(0.005)


def open_store(root: Path, events: list[Event] | None = None, ballast: int = 64 * 1024) -> SampleStore:
    on_event = events.append if events is not None else lambda event: None
    return SampleStore(root, KEK, DEVICE, limits=lambda service: LIMITS, reserve=0, on_event=on_event, ballast=ballast)


async def test_decided_pictures_are_kept_and_late_answers_find_them(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.keeper.offer(decision(1, sent="audit"), png(1))
    line.keeper.offer(decision(2), bytearray(png(2)))
    line.keeper.offer(decision(3), png(2))
    line.keeper.offer(decision(4, service="unknown"), png(4))
    header = HardSample(
        sample_id="D1",
        service="solder",
        answer_model="large",
        edge=decision().edge,
        reason="audit",
        captured_at=1.0,
    )
    line.keeper.answered(
        header,
        Answer(sample_id="D1", verdict=Verdict(label="bad", score=1, margin=1, model="large@1"), compute_ms=1.0),
    )
    await line.keeper.close()
    report = line.keeper.report()
    assert (report.kept, report.repeated, report.dropped, report.refused) == (2, 1, 0, 0)
    store = open_store(tmp_path)
    found = {one.sha256: one for one in store.select(Filter(), 10)}
    assert len(found) == 2 and all(one.group.startswith("B") for one in found.values())
    assert [one.cloud.label for one in store.queue("solder", 10) if one.cloud is not None] == ["bad"]
    assert line.events == []


async def test_the_line_never_waits_and_what_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    gate = threading.Event()

    def slow() -> SampleStore:
        gate.wait(10)
        return open_store(tmp_path)

    line = Line(tmp_path, slow)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(MAX_WAITING + 40):
        line.keeper.offer(decision(number), png(number))
    assert loop.time() - began < 0.5
    assert line.keeper.report().dropped == 40
    gate.set()
    await line.idle()
    assert line.keeper.report().kept == MAX_WAITING
    line.keeper.offer(decision(999), png(999))
    await line.keeper.close()
    assert line.keeper.report().kept == MAX_WAITING + 1


async def test_a_store_that_cannot_be_opened_is_said_once_and_tried_again(tmp_path: Path) -> None:
    broken = True

    def opener() -> SampleStore:
        if broken:
            raise StoreError("the directory is read-only")
        return open_store(tmp_path)

    line = Line(tmp_path, opener)
    for number in range(3):
        line.keeper.offer(decision(number), png(number))
    await line.idle()
    assert [(event.level, event.code) for event in line.events] == [("error", "samples.unusable")]
    broken = False
    line.keeper.offer(decision(9), png(9))
    await line.keeper.close()
    assert line.events[-1].level == "ok" and line.keeper.report().kept == 1 and line.keeper.report().refused == 3


async def test_a_picture_that_does_not_decode_is_refused_quietly(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.keeper.offer(decision(1), b"\xff\xd8 no picture")
    line.keeper.offer(decision(2), png(2))
    await line.keeper.close()
    assert line.keeper.report().refused == 1 and line.keeper.report().kept == 1 and line.events == []


def test_only_a_service_that_keeps_something_needs_a_store(tmp_path: Path) -> None:
    async def wanted(samples: Samples) -> bool:
        keeper = Line(tmp_path, samples=samples).keeper
        await keeper.close()
        return keeper.wanted

    assert asyncio.run(wanted(Samples())) and not asyncio.run(wanted(Samples(keep="none")))


async def test_a_full_disk_stops_samples_but_not_the_line_and_it_recovers(small_disk: Path) -> None:
    events: list[Event] = []
    line = Line(small_disk, lambda: open_store(small_disk / "samples", events, ballast=4 * MIB))
    for number in range(10):
        line.keeper.offer(decision(number), png(number, 100_000))
    await line.idle()
    assert line.keeper.report().kept == 10
    hog = fill(small_disk)
    for number in range(20, 26):
        line.keeper.offer(decision(number, sent="hard"), png(number, 100_000))
    await line.idle()
    kept = line.keeper.report()
    assert kept.kept + kept.refused == 16
    await line.keeper.close()
    store = open_store(small_disk / "samples", events, ballast=4 * MIB)  # it opens on a full disk, too
    for one in store.select(Filter(), 100):
        store.picture(one.id)
    hog.unlink()
    store.maintain()
    assert (small_disk / "samples" / "ballast").stat().st_size == 4 * MIB
    assert {event.code for event in events if event.level != "ok"} <= {"samples.full"}
    files = list((small_disk / "samples" / "files").glob("??/*"))
    assert len(files) == store.stats().items, "nothing half-written"
    store.close()


def test_a_label_given_on_a_full_disk_is_kept_whole_or_refused(small_disk: Path) -> None:
    store = open_store(small_disk / "samples", ballast=4 * MIB)
    ids = [store.add(facts(number), png(number, 50_000)).id for number in range(5)]
    hog = fill(small_disk)
    given: dict[str, bool] = {}
    for id in ids:
        try:
            store.label(id, by_operator("bad"))
            given[id] = True
        except sqlite3.OperationalError:
            given[id] = False
    hog.unlink()
    store.maintain()
    for id in ids:
        labels = store.sample(id).labels
        assert labels == ([by_operator("bad")] if given[id] else [])
        assert list(store._vault.open(id)[0].labels) == labels, "the file has caught up with the row"
    store.label(ids[0], by_operator("good"))
    store.close()
