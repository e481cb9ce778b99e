"""The watch on the uplink: what exchanges say about it, and the few probes that are made when they say too little."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edged.collab.breaker import Breaker
from edged.collab.courier import Courier
from edged.collab.ledger import Ledger
from edged.collab.plan.link import IDLE_PROBE_S, WARM_PROBES, LinkWatch
from edged.collab.uplink import Exchange, Uplink
from edgekit.messages import Link
from tests.edged.collab_bench import Bench, Line, service, until
from tests.edged.collab_cloud import running


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with running(tmp_path / "cloud") as cloud:
        yield Bench(tmp_path / "device", cloud)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def watch(uplink: Uplink, clock: Clock, tmp_path: Path) -> tuple[LinkWatch, Breaker]:
    breaker = Breaker(clock, lambda: 0.5)
    ledger = Ledger(tmp_path / "left.db", ThreadPoolExecutor(1))
    return LinkWatch(Courier(uplink, ledger, breaker, clock), clock), breaker


def close(breaker: Breaker) -> None:
    breaker.link_up()
    ticket = breaker.probe()
    assert ticket is not None
    breaker.success(ticket)


def tell(uplink: Uplink, size: int, seconds: float, **changes: object) -> None:
    facts = {"outcome": "answered", "reused": True, "cloud_ms": 0.0, "small": size == 0, **changes}
    exchange = Exchange(size=size, seconds=seconds, **facts)  # type: ignore[arg-type]
    for observer in uplink.observers:
        observer(exchange)


async def test_a_new_link_is_measured_over_a_warm_connection_and_then_left_alone(bench: Bench, tmp_path: Path) -> None:
    clock, uplink = Clock(), Uplink(bench.link)
    link, breaker = watch(uplink, clock, tmp_path)
    await link.probe()
    assert bench.cloud.checks == 0, "a breaker that is open admits nobody"
    close(breaker)
    await link.probe()
    assert bench.cloud.checks == WARM_PROBES + 1, "the first one opens the connection and shows no round trip"
    await link.probe()
    assert bench.cloud.checks == WARM_PROBES + 1
    clock.now += IDLE_PROBE_S
    await link.probe()
    assert bench.cloud.checks == WARM_PROBES + 2
    link.link_is_new()
    await link.probe()
    assert bench.cloud.checks == 2 * WARM_PROBES + 2
    await uplink.close()


async def test_a_cloud_that_does_not_answer_probes_is_the_breakers_business(bench: Bench, tmp_path: Path) -> None:
    await bench.cloud.stop()
    clock, uplink = Clock(), Uplink(bench.link)
    link, breaker = watch(uplink, clock, tmp_path)
    close(breaker)
    for _ in range(3):
        await link.probe()
    assert breaker.state == "open" and not link.up
    await uplink.close()


async def test_bandwidth_and_round_trip_come_from_the_exchanges(tmp_path: Path) -> None:
    clock, uplink = Clock(), Uplink(Link())
    link, _ = watch(uplink, clock, tmp_path)
    assert link.estimate().state == "unknown"
    for _ in range(5):
        clock.now += 1.0
        tell(uplink, 0, 0.010)
        tell(uplink, 50_000, 0.150, cloud_ms=40.0)  # 0.1 s for the bytes
    estimate = link.estimate()
    assert estimate.state == "measured"
    assert estimate.bandwidth == pytest.approx(500_000, rel=0.05) and estimate.rtt.typical == pytest.approx(10.0)


async def test_handshakes_and_refusals_say_nothing_about_the_link(tmp_path: Path) -> None:
    clock, uplink = Clock(), Uplink(Link())
    link, _ = watch(uplink, clock, tmp_path)
    for _ in range(5):
        tell(uplink, 0, 0.9, reused=False)
        tell(uplink, 50_000, 0.001, outcome="busy")
        tell(uplink, 50_000, 3.0, outcome="down")
    assert link.estimate().state == "unknown" and link.estimate().samples == 0


async def test_a_request_without_an_answer_is_a_sign_of_change_until_one_is_answered(tmp_path: Path) -> None:
    clock, uplink = Clock(), Uplink(Link())
    link, _ = watch(uplink, clock, tmp_path)
    assert not link.changing
    tell(uplink, 20_000, 0.3, outcome="timeout")
    assert link.changing
    tell(uplink, 20_000, 0.1)
    assert not link.changing


async def test_a_link_that_has_become_slower_shows_in_the_plan_of_its_services(bench: Bench) -> None:
    async with bench.hub() as hub:
        line = Line(await hub.add(service(deadline_ms=500.0), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        for _ in range(6):
            assert (await line.one()).decided == "cloud"
        await until(lambda: (report := line.collaborator.plan_report()) and "round trip" in report.link)
        bench.cloud.delay = 0.8  # as seen from here, the link has become very slow
        for _ in range(60):
            decision = await line.one(deadline_s=0.5)
            assert decision.decided == "edge-degraded"
            if "the plan keeps it here" in decision.reason:
                break
            await asyncio.sleep(0.1)
        assert decision.reason.startswith("the plan keeps it here (frame: over the deadline by ")
        assert decision.spooled
        bench.cloud.delay = 0.0  # what is delivered late shows that it is better again
        for _ in range(60):
            if (await line.one(deadline_s=0.5)).decided == "cloud":
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("the plan did not notice that the link is quick again")
