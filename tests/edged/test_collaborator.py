"""One service's samples with a real cloud behind TLS, a real spool and a real gate: who decides, when, and what stays."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from edged.collab import spool_view
from edged.collab.breaker import BreakerSettings
from edged.collab.collaboration import Collaboration
from edged.collab.collaborator import NOTHING_LEAVES, Collaborator
from edgekit.messages import Decision, Event, Link
from edgekit.services import HardSamples, Service
from tests.edged.collab_cloud import FaultyCloud, black_hole, free_port, make_link, running, silent_listener

PICTURE = b"\xff\xd8" + bytes(20_000)
CALIBRATION = 20
HARD, EASY = 0.2, 0.95


@dataclass(frozen=True)
class Local:
    """What an edge model said."""

    label: str
    score: float
    margin: float


def service(**changes: object) -> Service:
    hard = HardSamples(
        mode="risk", risk=0.3, confidence=0.6, answer_model="large", calibration=CALIBRATION, audit_share=0.0
    )
    return msgspec.structs.replace(Service(name="solder", model="small", hard_samples=hard), **changes)


class Line:
    """A production line: it makes samples and keeps the decisions."""

    def __init__(self, collaborator: Collaborator, prefix: str = "s") -> None:
        self.collaborator = collaborator
        self.prefix = prefix
        self.count = 0

    async def one(self, margin: float = HARD, deadline_s: float = 1.0, label: str = "ok") -> Decision:
        self.count += 1
        return await self.collaborator.settle(
            Local(label, 0.5 + margin / 2, margin),
            PICTURE + self.count.to_bytes(4, "big"),
            f"{self.prefix}{self.count}",
            1_800_000_000.0,
            "board-7",
            time.monotonic() + deadline_s,
        )

    async def calibrate(self) -> None:
        """Until the gate is certified, with a cloud that agrees with everything."""
        for _ in range(CALIBRATION):
            await self.one(0.9, deadline_s=5.0)
        await until(lambda: self.collaborator.status().state == "certified")


async def until(condition: Callable[[], object], within: float = 10.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


class Bench:
    """A device with its cloud."""

    def __init__(self, state: Path, cloud: FaultyCloud) -> None:
        self.state = state
        self.cloud = cloud
        self.events: list[Event] = []
        self.compared: list[bool] = []
        self.link = make_link(state, cloud.url, cloud.authority)

    @contextlib.asynccontextmanager
    async def hub(
        self, link: Link | None = None, quota: int = 1 << 26, rng: float = 0.5
    ) -> AsyncIterator[Collaboration]:
        async with Collaboration(
            self.state,
            "DEVICE",
            link or self.link,
            quota=quota,
            reserve=0,
            on_event=self.events.append,
            on_compared=lambda name, agrees: self.compared.append(agrees),
            rng=lambda: rng,
            breaker=BreakerSettings(first_backoff=0.2, longest_backoff=0.4),
            drain_per_second=200.0,
        ) as hub:
            yield hub

    async def ready(self, hub: Collaboration, wanted: Service | None = None) -> Line:
        """A line whose gate is certified and whose breaker is closed."""
        line = Line(await hub.add(wanted or service(), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        self.cloud.label = "ok"
        await line.calibrate()
        self.cloud.label = "bad"
        return line

    @property
    def codes(self) -> list[str]:
        return [f"{event.level}:{event.code}" for event in self.events]


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
        await until(lambda: len({sample.sample_id for sample in bench.cloud.received}) == 50)
        await until(lambda: hub.spool_report().items == 0)
    assert Counter(sample.sample_id for sample in bench.cloud.received).most_common(1)[0][1] == 1


async def test_nothing_may_leave(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = Line(await hub.add(service(may_leave="nothing"), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        for _ in range(30):
            decision = await line.one(HARD)
            assert (decision.decided, decision.reason, decision.spooled) == ("edge", NOTHING_LEAVES, False)
            assert not decision.certified
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


# --- the link is not fine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hang", "trickle", "rst before body", "rst mid reply", "garbage", "status 500"])
async def test_a_misbehaving_cloud_costs_no_more_than_the_deadline_and_loses_nothing(bench: Bench, mode: str) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        bench.cloud.received.clear()
        bench.cloud.mode = mode
        decisions = []
        for _ in range(8):
            started = time.monotonic()
            decisions.append(await line.one(HARD, deadline_s=0.3))
            assert time.monotonic() - started < 0.3 + 0.1
        assert all(d.decided == "edge-degraded" and d.label == "ok" and d.reason for d in decisions)
        assert all(d.spooled for d in decisions), [d.reason for d in decisions]
        assert hub.breaker_state != "closed"
        started = time.monotonic()
        decision = await line.one(HARD, deadline_s=5.0)
        assert time.monotonic() - started < 0.5, "an open breaker does not wait for the network"
        assert "cannot be reached" in decision.reason and "cloud" not in decision.timings_ms
        bench.cloud.received.clear()
        bench.cloud.answered.clear()
        bench.cloud.mode = "answer"
        wanted = {d.sample_id for d in [*decisions, decision]}
        await until(lambda: hub.spool_report().items == 0)
    assert Counter(s.sample_id for s in bench.cloud.received if s.late) == Counter(wanted), "each exactly once"
    assert all(bench.cloud.pictures[sample_id].startswith(PICTURE) for sample_id in wanted)


async def test_a_network_without_a_cloud(bench: Bench, tmp_path: Path) -> None:
    with silent_listener() as silent, black_hole() as hole:
        for port in (free_port(), silent, hole):
            link = msgspec.structs.replace(bench.link, url=f"https://127.0.0.1:{port}")
            async with bench.hub(link=link) as hub:
                line = Line(await hub.add(service(), "small@1"), prefix=f"p{port}-")
                for _ in range(5):
                    started = time.monotonic()
                    decision = await line.one(HARD, deadline_s=0.5)
                    assert time.monotonic() - started < 0.5
                    assert decision.decided == "edge-degraded" and decision.spooled
    async with bench.hub() as hub:
        await hub.add(service(), "small@1")
        await until(lambda: hub.spool_report().items == 0)
    assert len({s.sample_id for s in bench.cloud.received}) == len(bench.cloud.received) == 15


async def test_a_device_that_never_joined_stores_and_says_so(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        decision = await Line(await hub.add(service(), "small@1")).one()
        assert decision.spooled and "has not joined" in decision.reason
        hub.set_link(bench.link)
        await until(lambda: hub.spool_report().items == 0)


async def test_with_no_time_left_the_cloud_is_not_asked(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        asked = bench.cloud.requests
        bench.cloud.mode = "hang"
        decision = await line.one(HARD, deadline_s=0.012)
        assert decision.decided == "edge-degraded" and "no time was left" in decision.reason
        decision = await line.one(HARD, deadline_s=-1.0)
        assert "is being stored" in decision.reason and not decision.spooled
        assert hub.breaker_state == "closed"
        await until(lambda: hub.spool_report().items + bench.cloud.requests - asked >= 2)


async def test_wait_ms_limits_the_wait_below_the_deadline(bench: Bench) -> None:
    short = msgspec.structs.replace(service().hard_samples, wait_ms=50.0)
    async with bench.hub() as hub:
        line = Line(await hub.add(service(hard_samples=short), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        bench.cloud.mode = "hang"
        started = time.monotonic()
        decision = await line.one(HARD, deadline_s=5.0)
        assert 0.04 < time.monotonic() - started < 0.5 and decision.decided == "edge-degraded" and decision.spooled


async def test_hints_of_the_control_channel_close_and_open_the_way(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        bench.cloud.mode = "hang"
        hub.set_link(msgspec.structs.replace(bench.link, up=False))
        assert hub.breaker_state == "open"
        started = time.monotonic()
        decision = await line.one(HARD, deadline_s=5.0)
        assert time.monotonic() - started < 0.5 and "link to cloudd is down" in decision.reason
        bench.cloud.mode = "answer"
        hub.set_link(bench.link)
        await until(lambda: hub.breaker_state == "closed" and hub.spool_report().items == 0)


async def test_a_link_that_goes_down_calls_a_late_delivery_off_and_the_sample_stays(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        await Line(await hub.add(service(), "small@1")).one()
        bench.cloud.mode = "hang"
        hub.set_link(bench.link)
        await until(lambda: bench.cloud.requests == 1)
        hub.set_link(msgspec.structs.replace(bench.link, up=False))
        await asyncio.sleep(0.05)
        assert hub.drain._current is None and hub.spool_report().items == 1
        bench.cloud.mode = "answer"
        hub.set_link(bench.link)
        await until(lambda: hub.spool_report().items == 0)
    assert [record.outcome for record in spool_view.left(bench.state)] == ["answered", "unanswered"]


async def test_late_samples_wait_while_a_live_one_is_on_its_way(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        bench.cloud.received.clear()
        bench.cloud.delay = 0.3
        live = asyncio.create_task(line.one(HARD, deadline_s=5.0))
        await asyncio.sleep(0.1)
        await line.one(HARD, deadline_s=0.012)  # no time: goes to the spool
        await until(lambda: hub.spool_report().items == 1)
        assert hub.drain._current is None
        assert (await live).decided == "cloud"
        await until(lambda: hub.spool_report().items == 0)
        assert [sample.late for sample in bench.cloud.received] == [False, True]


async def test_a_busy_cloud_gets_the_rest_it_asks_for(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        bench.cloud.mode = "busy 2"
        decision = await line.one(HARD)
        assert decision.spooled and hub.breaker_state == "open" and 1.5 < hub.breaker.retry_in <= 2.0
        asked = bench.cloud.requests
        bench.cloud.mode = "answer"
        await asyncio.sleep(1.0)
        assert bench.cloud.requests == asked
        await until(lambda: hub.spool_report().items == 0)


async def test_a_revoked_device_asks_rarely(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        bench.cloud.mode = "status 403"
        decision = await line.one(HARD)
        assert decision.spooled and "problem 403" in decision.reason and hub.breaker.retry_in > 50


async def test_a_picture_that_the_cloud_cannot_read_is_dropped_and_said(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        bench.cloud.mode = "status 422"
        for _ in range(4):
            decision = await line.one(HARD)
            assert decision.decided == "edge-degraded" and not decision.spooled and "problem 422" in decision.reason
        assert hub.breaker_state == "closed", "the link is not to blame"
        hub.set_link(msgspec.structs.replace(bench.link, up=False))
        assert (await line.one(HARD)).spooled
        hub.set_link(bench.link)
        await until(lambda: hub.spool_report().items == 0)
        bench.cloud.mode = "answer"
        assert (await line.one(HARD)).decided == "cloud"
        await until(lambda: len(bench.codes) == 2)
    assert bench.codes == ["warning:answers.rejected.solder", "ok:answers.rejected.solder"]
    assert spool_view.totals(bench.state)["rejected"] == 1


async def test_samples_for_a_model_that_the_cloud_does_not_have_yet_wait(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = await bench.ready(hub)
        bench.cloud.mode = "status 404"
        assert (await line.one(HARD)).spooled
        await until(lambda: "large" in hub.drain._resting_models)
        asked = bench.cloud.requests
        await asyncio.sleep(0.3)
        assert bench.cloud.requests == asked and hub.spool_report().items == 1 and hub.breaker_state == "closed"
    assert bench.codes == ["warning:answers.unknown-model.solder"]
    bench.cloud.mode = "answer"
    async with bench.hub() as hub:
        await hub.add(service(), "small@1")
        await until(lambda: hub.spool_report().items == 0)


# --- the disk is not fine -------------------------------------------------------------------------------------------


async def test_a_slow_disk_does_not_hold_the_answer(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        line = Line(await hub.add(service(), "small@1"))
        spool = hub._depot._spool
        assert spool is not None
        with spool._lock:  # as if the disk stood still: nothing can be stored
            started = time.monotonic()
            decision = await line.one(HARD, deadline_s=0.15)
            assert time.monotonic() - started < 0.25
        assert not decision.spooled and "is being stored" in decision.reason
        await until(lambda: hub.spool_report().items == 1)


async def test_a_full_spool_lets_local_answers_go_on_and_tells_the_gate(bench: Bench) -> None:
    async with bench.hub(link=Link(), quota=0) as hub:
        line = Line(await hub.add(service(), "small@1"))
        decision = await line.one(HARD)
        assert (
            decision.decided == "edge-degraded" and "was not stored" in decision.reason and "quota" in decision.reason
        )
        await until(lambda: "warning:spool.full" in bench.codes)


async def test_without_a_usable_spool_local_answers_go_on_and_it_comes_back(bench: Bench) -> None:
    bench.state.mkdir(exist_ok=True)
    (bench.state / "spool").write_text("somebody put a file here")
    async with bench.hub(link=Link()) as hub:
        line = Line(await hub.add(service(), "small@1"))
        decision = await line.one(HARD)
        assert decision.decided == "edge-degraded" and "spool cannot be used" in decision.reason
        (bench.state / "spool").unlink()
        assert await hub._depot.open()
        assert (await line.one(HARD)).spooled
    assert bench.codes == ["error:spool.unusable", "ok:spool.unusable"]


async def test_what_cannot_be_recorded_does_not_leave(bench: Bench) -> None:
    (bench.state / "spool" / "left.db").mkdir(parents=True)
    async with bench.hub() as hub:
        line = Line(await hub.add(service(), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        decision = await line.one(HARD)
        assert decision.decided == "edge-degraded" and "record of what leaves" in decision.reason and decision.spooled
        await asyncio.sleep(0.2)
        assert bench.cloud.requests == 0 and hub.breaker_state == "closed"


async def test_the_record_cannot_be_changed_afterwards(bench: Bench) -> None:
    async with bench.hub() as hub:
        await (await bench.ready(hub)).one()
    connection = sqlite3.connect(bench.state / "spool" / "left.db")
    for change in ("sha256 = 'x'", "outcome = 'unsent'", "at = 0"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(f"UPDATE left_device SET {change}")
    connection.close()


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


# --- the power goes -------------------------------------------------------------------------------------------------

CHILD = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    import msgspec
    from edged.collab.collaboration import Collaboration
    from edgekit.messages import Link
    from tests.edged.test_collaborator import service

    async def main():
        link = msgspec.json.decode(sys.argv[2], type=Link)
        async with Collaboration(Path(sys.argv[1]), "DEVICE", link, quota=1 << 26, reserve=0,
                                 drain_per_second=1000.0) as hub:
            await hub.add(service(), "small@1")
            while hub.spool_report().items:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    """
)


@pytest.mark.parametrize("point", ["spool.delivered", "spool.removed"])
async def test_kill_9_while_the_spool_drains_delivers_each_sample_exactly_once(bench: Bench, point: str) -> None:
    async with bench.hub(link=Link()) as hub:
        line = Line(await hub.add(service(), "small@1"))
        for _ in range(6):
            assert (await line.one()).spooled
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(bench.state),
        msgspec.json.encode(bench.link).decode(),
        env={"EDGED_CRASH_AT": f"{point}:3", "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
    )
    _, errors = await child.communicate()
    assert child.returncode == -9, errors.decode()
    assert len(bench.cloud.received) == 3
    async with bench.hub() as hub:
        await hub.add(service(), "small@1")
        await until(lambda: hub.spool_report().items == 0)
        assert hub.spool_report().delivered == 6
    assert Counter(s.sample_id for s in bench.cloud.received) == Counter(f"s{i}" for i in range(1, 7))
    learned = sqlite3.connect(bench.state / "gate.db").execute("SELECT sample_id FROM observations").fetchall()
    assert sorted(learned) == [(f"s{i}",) for i in range(1, 7)]
