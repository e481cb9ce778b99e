"""A service that splits, with real heads and a cloud behind TLS: what leaves, what waits, and what the gate learns."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edged.collab import spool_view
from edged.collab.collaboration import Collaboration
from edged.collab.collaborator import Collaborator
from edged.serve.engine import Engine
from edged.serve.heads import EngineHeads, LoadedHeads, load_heads
from edgekit.messages import Decision, Link
from edgekit.services import HardSamples, Service, Split
from tests.edged.collab_bench import CALIBRATION, EASY, HARD, Bench, Local, until
from tests.edged.collab_cloud import running
from tests.support.halves import Halves, samples


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return Halves(tmp_path_factory.mktemp("halves"), whole=False)


@pytest.fixture(scope="module")
def with_whole(tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return Halves(tmp_path_factory.mktemp("halves"))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with running(tmp_path / "cloud") as cloud:
        yield Bench(tmp_path / "device", cloud)


def service(**changes: object) -> Service:
    hard = HardSamples(
        mode="risk", risk=0.3, confidence=0.6, answer_model="solder-large", calibration=CALIBRATION, audit_share=0.0
    )
    made = Service(
        name="solder", model="solder-small", deadline_ms=5000.0, may_leave="features", hard_samples=hard,
        split=Split(heads="solder-large-head"),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


class Line:
    """A line whose heads run in an engine of its own."""

    def __init__(self, collaborator: Collaborator, halves: Halves) -> None:
        self.collaborator = collaborator
        self.pictures = list(samples(halves.whole).values())
        self.count = 0

    async def one(self, margin: float = HARD, label: str = "normal", deadline_s: float = 5.0) -> Decision:
        self.count += 1
        picture = self.pictures[self.count % len(self.pictures)]
        local = Local(label, 0.5 + margin / 2, margin)
        deadline = time.monotonic() + deadline_s
        return await self.collaborator.settle(local, picture, f"s{self.count}", 1_800_000_000.0, "board-7", deadline)


@contextlib.asynccontextmanager
async def line(hub: Collaboration, halves: Halves, wanted: Service | None = None) -> AsyncIterator[Line]:
    wanted = wanted or service()
    engine = Engine(1)
    heads = None
    if wanted.split is not None:
        loaded = load_heads(wanted, str(halves.head.root), None)
        assert isinstance(loaded, LoadedHeads), loaded
        heads = EngineHeads(loaded, engine, wanted)
    collaborator = await hub.add(wanted, "solder-small@1", heads)
    assert isinstance(collaborator, Collaborator)
    try:
        yield Line(collaborator, halves)
    finally:
        await engine.stop()


def pictures_in(bench: Bench) -> list[str]:
    """Samples that reached the cloud as pictures."""
    return [sample.sample_id for sample in bench.cloud.received if sample.features is None]


async def test_an_asked_sample_is_answered_by_way_of_a_split_and_no_picture_leaves(
    bench: Bench, halves: Halves
) -> None:
    bench.cloud.model, bench.cloud.label = halves.tail.ref, "bridge"
    async with bench.hub() as hub, line(hub, halves) as it:
        await until(lambda: hub.breaker_state == "closed")
        decision = await it.one()
        assert (decision.decided, decision.label, decision.model) == ("cloud", "bridge", "solder-large@1")
        assert decision.route in [f"split@{cut}" for cut in halves.cuts]
        assert decision.cloud is not None and decision.cloud.model == "solder-large@1"
        assert decision.timings_ms["head"] > 0 and decision.timings_ms["cloud"] > 0
        (header,) = bench.cloud.received
        assert (header.pipeline, header.mosaic, header.answer_model) == (None, None, "solder-large")
        ended = halves.end(header, bench.cloud.pictures[header.sample_id])
        assert ended.label in halves.whole.labels
        report = it.collaborator.plan_report()
        assert report is not None and report.route == decision.route
    (record,) = spool_view.left(bench.state, limit=1)
    assert (record.cut, record.outcome, record.bytes) == (
        decision.route.removeprefix("split@"), "answered", len(bench.cloud.pictures[header.sample_id]),
    )  # fmt: skip


async def test_answers_to_features_certify_the_gate_as_those_to_pictures_do(bench: Bench, halves: Halves) -> None:
    bench.cloud.model, bench.cloud.label = halves.tail.ref, "normal"
    async with bench.hub() as hub, line(hub, halves) as it:
        await until(lambda: hub.breaker_state == "closed")
        for _ in range(CALIBRATION):
            await it.one(0.9)
        await until(lambda: it.collaborator.status().state == "certified")
        decision = await it.one(EASY)
        assert (decision.decided, decision.certified, decision.route) == ("edge", True, "")
        assert it.collaborator.keeper.answered_by == "solder-large@1"


async def test_without_a_link_features_wait_in_the_spool_and_teach_when_they_are_answered(
    bench: Bench, halves: Halves
) -> None:
    bench.cloud.model, bench.cloud.label = halves.tail.ref, "normal"
    async with bench.hub(link=Link()) as hub, line(hub, halves) as it:
        decision = await it.one()
        assert (decision.decided, decision.spooled, decision.route) == ("edge-degraded", False, "")
        assert decision.reason == "this device has not joined a cloudd; its features are being stored"
        await until(lambda: hub.spool_report().items == 1)
    async with bench.hub() as hub, line(hub, halves) as it:
        await until(lambda: hub.spool_report().items == 0)
        await until(lambda: bench.compared == [True])
    (header,) = bench.cloud.received
    assert header.late and header.features is not None
    assert halves.end(header, bench.cloud.pictures[header.sample_id]).label in halves.whole.labels


async def test_pictures_that_were_stored_before_stay_when_only_features_may_leave(bench: Bench, halves: Halves) -> None:
    bench.cloud.model = halves.tail.ref
    raw = service(may_leave="raw", split=None)
    async with bench.hub(link=Link()) as hub, line(hub, halves, raw) as it:
        await it.one()
        assert hub.spool_report().items == 1
    async with bench.hub(link=Link()) as hub, line(hub, halves) as it:
        it.count = 100
        await it.one()
        await until(lambda: hub.spool_report().items == 2)
    async with bench.hub() as hub, line(hub, halves):
        await until(lambda: len(bench.cloud.received) == 1)
        await asyncio.sleep(0.3)
        assert pictures_in(bench) == [] and hub.spool_report().items == 1
    assert [sample.state for sample in spool_view.spooled(bench.state)] == ["held"]
    async with bench.hub() as hub:
        hub.set_wanted([])  # the service is gone, and what its policy kept here still is
        await asyncio.sleep(0.3)
        assert pictures_in(bench) == [] and hub.spool_report().items == 1
    async with bench.hub() as hub, line(hub, halves, raw):
        await until(lambda: hub.spool_report().items == 0)
    assert pictures_in(bench) == ["s1"]


async def test_a_picture_that_another_worker_stores_meanwhile_stays_too(bench: Bench, halves: Halves) -> None:
    async with bench.hub() as hub, line(hub, halves):
        await until(lambda: hub.breaker_state == "closed")
        raw = service(may_leave="raw", split=None)
        async with Bench(bench.state, bench.cloud).hub(link=Link()) as old, line(old, halves, raw) as it:
            await it.one()
        hub.drain.wake()
        await asyncio.sleep(0.5)
        assert bench.cloud.received == []


async def test_audits_leave_as_features(bench: Bench, halves: Halves) -> None:
    bench.cloud.model, bench.cloud.label = halves.tail.ref, "normal"
    wanted = service(hard_samples=msgspec.structs.replace(service().hard_samples, audit_share=0.6))
    async with bench.hub() as hub, line(hub, halves, wanted) as it:
        await until(lambda: hub.breaker_state == "closed")
        for _ in range(CALIBRATION):
            await it.one(0.9)
        await until(lambda: it.collaborator.status().state == "certified")
        asked = len(bench.cloud.received)
        decision = await it.one(EASY)
        assert (decision.decided, decision.sent, decision.certified) == ("edge", "audit", True)
        await until(lambda: len(bench.cloud.received) == asked + 1 and bench.compared == [True])
    assert pictures_in(bench) == []


async def test_the_line_goes_on_when_only_features_may_leave_and_there_is_no_head(bench: Bench) -> None:
    async with bench.hub() as hub:
        why = "the head package solder-large-head is not installed"
        collaborator = await hub.add(service(), "solder-small@1", None, why)
        assert isinstance(collaborator, Collaborator)
        await until(lambda: hub.breaker_state == "closed")
        local = Local("normal", 0.6, HARD)
        decision = await collaborator.settle(local, b"picture", "s1", 0.0, "", time.monotonic() + 5)
        assert (decision.decided, decision.sent, decision.spooled) == ("edge", None, False)
        assert decision.reason == f"only features may leave the site, and none can be made ({why})"
        assert collaborator.sentence() == f"No risk is certified: {decision.reason}."
        assert collaborator.plan_report() is None
        assert bench.cloud.received == [] and hub.spool_report().items == 0


async def test_the_whole_model_on_the_device_counts_as_the_answer_model(bench: Bench, with_whole: Halves) -> None:
    async with bench.hub(link=Link()) as hub, line(hub, with_whole) as it:
        for _ in range(CALIBRATION):
            decision = await it.one(0.9)
            assert (decision.decided, decision.model, decision.route) == ("edge", "solder-large@1", "edge-whole")
            assert decision.cloud is not None and decision.label == decision.cloud.label
            assert "cloud" not in decision.timings_ms and decision.timings_ms["head"] > 0
            assert not decision.certified
        await until(lambda: it.collaborator.status().state != "calibrating")
        assert hub.spool_report().items == 0 and bench.cloud.received == []


async def test_an_answer_to_features_of_another_head_teaches_nothing(bench: Bench, halves: Halves) -> None:
    bench.cloud.model, bench.cloud.label = halves.tail.ref, "normal"
    async with bench.hub(link=Link()) as hub, line(hub, halves) as it:
        await it.one()
        await until(lambda: hub.spool_report().items == 1)
    async with bench.hub() as hub, line(hub, halves) as it:
        info = it.collaborator.keeper.heads
        assert info is not None
        it.collaborator.keeper.heads = replace(info, tail="solder-large-tail@2")
        await until(lambda: hub.spool_report().items == 0)
        await asyncio.sleep(0.1)
        assert bench.compared == [] and it.collaborator.keeper.answered_by == ""


async def test_a_tail_that_cloudd_does_not_have_is_named_and_the_features_wait(bench: Bench, halves: Halves) -> None:
    async with bench.hub() as hub, line(hub, halves) as it:
        await until(lambda: hub.breaker_state == "closed")
        bench.cloud.mode = "status 404"
        decision = await it.one()
        assert (decision.decided, decision.spooled, decision.route) == ("edge-degraded", True, "")
        assert decision.timings_ms["head"] > 0 and decision.timings_ms["cloud"] > 0
        await until(lambda: bench.events)
        (event,) = [event for event in bench.events if event.code == "answers.unknown-model.solder"]
        assert f'import the model "{halves.tail.ref}" on cloudd' in event.text
        await asyncio.sleep(0.3)
        assert hub.spool_report().items == 1 and hub.breaker_state == "closed"


async def test_a_head_that_cannot_run_in_time_leaves_the_local_answer_and_stores_features(
    bench: Bench, halves: Halves
) -> None:
    async with bench.hub() as hub, line(hub, halves) as it:
        await until(lambda: hub.breaker_state == "closed")
        decision = await it.one(deadline_s=0.001)
        assert decision.decided == "edge-degraded" and decision.reason.endswith("; its features are being stored")
        await until(lambda: hub.spool_report().items == 1 or len(bench.cloud.received) == 1)
        assert pictures_in(bench) == []
