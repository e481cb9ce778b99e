"""One service with a real cloud behind TLS, a real spool and a real gate: who decides, and what is remembered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from edged.collab import collaboration, spool_view
from edged.collab.collaborator import NOTHING_LEAVES
from edgekit.messages import Link
from tests.edged.collab_bench import CALIBRATION, EASY, HARD, PICTURE, Bench, Line, service, until
from tests.edged.collab_cloud import running


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with running(tmp_path / "cloud") as cloud:
        yield Bench(tmp_path / "device", cloud)


# --- the link is fine -----------------------------------------------------------------------------------------------


async def test_a_hard_sample_is_decided_by_the_cloud_and_what_left_is_on_record(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        decision = await line.one(HARD)
        assert (decision.decided, decision.label, decision.model) == ("cloud", "bad", "large@1")
        assert decision.edge.label == "ok" and decision.cloud is not None and decision.sent == "hard"
        assert decision.timings_ms["cloud"] > 0 and decision.serial == "board-7"
        assert not decision.spooled and not decision.certified
    (record,) = spool_view.left(bench.state, limit=1)
    assert (record.sample_id, record.service, record.reason, record.late) == (
        decision.sample_id,
        "solder",
        "hard",
        False,
    )
    assert (record.bytes, record.outcome, record.label) == (len(PICTURE) + 4, "answered", "bad")
    assert record.authority == bench.cloud.authority.fingerprint
    assert len(spool_view.left(bench.state)) == CALIBRATION + 1


async def test_a_trusted_answer_touches_neither_network_nor_disk(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        asked = bench.cloud.requests
        for _ in range(20):
            coroutine = line.one(EASY)
            with pytest.raises(StopIteration) as finished:
                coroutine.send(None)  # it must run to its end without waiting for anything at all
            decision = finished.value.value
            assert decision.decided == "edge" and decision.certified and decision.sent is None
        assert hub.uplink_bytes > 0 and bench.cloud.requests == asked
    assert len(spool_view.left(bench.state)) == asked


async def test_audits_are_answered_here_at_once_and_sent_in_the_background(bench: Bench) -> None:
    audited = msgspec.structs.replace(service().hard_samples, audit_share=0.6)
    async with bench.hub() as hub:
        line = await bench.ready(hub, service(hard_samples=audited))
        bench.cloud.delay = 0.1
        asked = bench.cloud.requests
        coroutine = line.one(EASY)
        with pytest.raises(StopIteration) as finished:
            coroutine.send(None)
        decision = finished.value.value
        assert (decision.decided, decision.sent, decision.certified) == ("edge", "audit", True)
        await until(lambda: bench.cloud.requests == asked + 1 and bench.compared == [False])
        assert not bench.cloud.received[-1].late


async def test_audits_overflow_into_the_spool_and_all_arrive(bench: Bench) -> None:
    audited = msgspec.structs.replace(service().hard_samples, audit_share=0.6)
    async with bench.hub() as hub:
        line = await bench.ready(hub, service(hard_samples=audited))
        bench.cloud.received.clear()
        bench.cloud.label = "ok"
        bench.cloud.delay = 0.02
        for _ in range(50):
            await line.one(EASY)
        await until(lambda: hub.spool_report().items > 0)
        await until(lambda: len({sample.sample_id for sample in bench.cloud.received}) == 50, 90.0)
        await until(lambda: hub.spool_report().items == 0)
    assert Counter(sample.sample_id for sample in bench.cloud.received).most_common(1)[0][1] == 1


async def test_nothing_may_leave(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = Line(await hub.add(service(may_leave="nothing"), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        for _ in range(30):
            decision = await line.one(HARD)
            assert (decision.decided, decision.reason, decision.spooled) == ("edge", NOTHING_LEAVES, False)
            assert not decision.certified and decision.sent is None
        await asyncio.sleep(0.1)
        assert bench.cloud.requests == 0 and hub.spool_report().items == 0
        assert "Nothing may leave" in line.collaborator.sentence()
    assert spool_view.left(bench.state) == []


async def test_samples_stored_under_an_old_policy_stay_when_nothing_may_leave_any_more(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        await Line(await hub.add(service(), "small@1")).one()
        assert hub.spool_report().items == 1
    async with bench.hub() as hub:
        await hub.add(service(may_leave="nothing"), "small@1")
        await until(lambda: hub.breaker_state == "closed")
        await asyncio.sleep(0.2)
        assert bench.cloud.requests == 0 and hub.spool_report().items == 1
        assert await hub.purge("solder") == 1


async def test_samples_of_a_removed_service_are_delivered_once_all_services_are_known(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        await Line(await hub.add(service(), "small@1")).one()
    async with bench.hub() as hub:
        await hub.add(service(name="other"), "small@1")
        await until(lambda: hub.breaker_state == "closed")
        await asyncio.sleep(0.2)
        assert bench.cloud.requests == 0, "solder may be the next to be added"
        hub.set_wanted(["other", "solder"])
        await asyncio.sleep(0.2)
        assert bench.cloud.requests == 0, "its model may still be on its way"
        hub.set_wanted(["other"])
        await until(lambda: hub.spool_report().items == 0)
    (record,) = spool_view.left(bench.state)
    assert (record.service, record.late, record.outcome) == ("solder", True, "answered")


async def test_samples_of_a_removed_service_stay_if_nothing_might_leave_at_last(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        await Line(await hub.add(service(), "small@1")).one()
        await hub.add(service(may_leave="nothing"), "small@1")
    async with bench.hub() as hub:
        hub.set_wanted([])
        await until(lambda: hub.breaker_state == "closed")
        await asyncio.sleep(0.2)
        assert bench.cloud.requests == 0 and [one.state for one in spool_view.spooled(bench.state)] == ["held"]
        await hub.add(service(), "small@1")
        await until(lambda: hub.spool_report().items == 0)


async def test_samples_of_a_removed_service_expire_in_default_time(bench: Bench) -> None:
    now = 1_800_000_000.0
    async with bench.hub(link=Link(), wall=lambda: now) as hub:
        await Line(await hub.add(service(), "small@1")).one()
    now += 29 * 86_400.0
    async with bench.hub(link=Link(), wall=lambda: now) as hub:
        hub.set_wanted([])
        await hub._maintain()
        assert hub.spool_report().items == 1
        now += 2 * 86_400.0
        await hub._maintain()
        assert hub.spool_report().items == 0
    assert spool_view.totals(bench.state)["expired"] == 1


async def test_what_cloudd_does_not_take_of_a_removed_service_is_no_lasting_trouble(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        await Line(await hub.add(service(), "small@1")).one()
    bench.cloud.mode = "status 404"
    async with bench.hub() as hub:
        hub.set_wanted([])
        await until(lambda: bench.codes == ["warning:answers.unknown-model.solder"])
        assert bench.events[0].passing and hub.spool_report().items == 1


async def test_the_right_key_is_used_again_when_it_is_back(bench: Bench) -> None:
    key = bench.state / "keys" / "kek"
    async with bench.hub(link=Link()) as hub:
        await Line(await hub.add(service(), "small@1")).one()
    right = key.read_bytes()
    key.write_bytes(b"z" * 32)
    async with bench.hub() as hub:
        await hub.add(service(), "small@1")
        await until(lambda: hub.breaker_state == "closed" and bench.codes == ["error:spool.wrong-key"])
        key.unlink()
        await hub._maintain()
        assert not key.exists() and hub.spool_report().items == 1, "no third key is made"
        key.write_bytes(right)
        await hub._maintain()
        await until(lambda: hub.spool_report().delivered == 1)
        assert bench.codes == ["error:spool.wrong-key", "ok:spool.wrong-key"]


# --- memory ---------------------------------------------------------------------------------------------------------


async def test_the_gate_goes_on_after_a_restart_without_asking_again(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        before = line.collaborator.status()
    async with bench.hub() as hub:
        line = Line(await hub.add(service(), "small@1"), prefix="again")
        assert line.collaborator.status() == before
        assert (await line.one(EASY)).certified
        hub.recalibrate("solder")
        assert line.collaborator.status().state == "calibrating"
    async with bench.hub() as hub:
        changed = msgspec.structs.replace(service().hard_samples, risk=0.2)
        collaborator = await hub.add(service(hard_samples=changed), "small@1")
        assert collaborator.status().state == "calibrating"
        assert (await hub.add(service(), "small@2")).status().state == "calibrating"


async def test_answers_that_arrive_after_the_restart_complete_the_calibration(bench: Bench) -> None:
    bench.cloud.label = "ok"
    async with bench.hub(link=Link()) as hub:
        line = Line(await hub.add(service(), "small@1"))
        for _ in range(CALIBRATION):
            assert (await line.one(0.9)).spooled
    async with bench.hub() as hub:
        collaborator = await hub.add(service(), "small@1")
        await until(lambda: collaborator.status().state == "certified")
        await until(lambda: len(bench.compared) == CALIBRATION)
        assert all(bench.compared)


async def test_a_new_worker_hears_what_the_old_one_still_delivers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swap: both have the spool open; what the new gate waits for goes out through the old worker."""
    monkeypatch.setattr(collaboration, "SAVE_EVERY_S", 0.1)
    bench.cloud.label = "ok"
    async with bench.hub(link=Link()) as hub:
        line = Line(await hub.add(service(), "small@1"))
        for _ in range(CALIBRATION):
            assert (await line.one(0.9)).spooled
    async with bench.hub() as old, bench.hub(link=Link()) as new:
        waiting = await new.add(service(), "small@1")
        await old.add(service(), "small@1")
        await until(lambda: old.spool_report().items == 0)
        await until(lambda: waiting.status().state == "certified")
    async with bench.hub(link=Link()) as hub:
        assert (await hub.add(service(), "small@1")).status().state == "certified"


async def test_a_new_model_in_the_cloud_starts_a_new_calibration(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        bench.cloud.model = "large@2"
        await line.one(HARD)
        await until(lambda: line.collaborator.status().state == "calibrating")


async def test_a_damaged_memory_begins_anew(bench: Bench) -> None:
    async with bench.hub() as hub:
        await bench.ready(hub)
    (bench.state / "gate.db").write_bytes(b"\x00damaged" * 4000)
    async with bench.hub() as hub:
        collaborator = await hub.add(service(), "small@1")
        assert collaborator.status().state == "calibrating"
    assert list(bench.state.glob("gate.db.bad-*"))


async def test_audits_are_counted_once_by_the_worker_that_brought_them(bench: Bench) -> None:
    wanted = service(hard_samples=msgspec.structs.replace(service().hard_samples, audit_share=0.6))
    async with bench.hub() as hub:
        line = await bench.ready(hub, wanted)
        assert line.collaborator.audited() == (0, 0), "what calibrated is no audit"
        await line.one(HARD)
        bench.cloud.label = "ok"
        await line.one(EASY)
        await until(lambda: line.collaborator.audited() == (1, 0))
        bench.cloud.label = "bad"
        await line.one(EASY)
        await until(lambda: line.collaborator.audited() == (2, 1))
        facts = line.collaborator.facts()
        assert facts is not None and (facts.seen, facts.audits, facts.alpha) == (3, 2, 0.3)
    async with bench.hub() as hub:
        again = await hub.add(wanted, "small@1")
        assert again.audited() == (0, 0) and again.facts() == facts, "its gate knows them, another worker counted them"


async def test_a_service_that_sends_nothing_has_no_facts(bench: Bench) -> None:
    async with bench.hub() as hub:
        collaborator = await hub.add(service(may_leave="nothing"), "small@1")
        assert collaborator.facts() is None
