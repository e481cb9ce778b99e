"""Staying in touch: up, down, half-open, revoked, renewed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from link_cloud import FAST, Cloud, Device, Wire, until

from edged.link.backoff import Backoff
from edged.link.renew import renewal_time
from edgekit.messages import Desired, Notice


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    cloud = Cloud(tmp_path / "cloud")
    await cloud.start()
    yield cloud
    await cloud.stop()


@pytest.fixture
async def device(cloud: Cloud, tmp_path: Path) -> AsyncIterator[Device]:
    device = Device(tmp_path / "device", machine="Pi 5")
    await device.service.start()
    await device.service.join(cloud.invite().text(), cloud.url)
    yield device
    await device.service.stop()


async def test_reports_go_up_and_desired_state_comes_down(cloud: Cloud, device: Device) -> None:
    cloud.desired = Desired(revision="7", services=["name = 'x'"])
    await until(lambda: device.service.link.up)
    assert device.service.cloud_name == "cloud"
    hello = cloud.hellos[0]
    assert (hello.name, hello.machine, hello.revision) == ("press-7", "Pi 5", "")
    await until(lambda: len(cloud.reports) >= 3)

    device.revision = "7"
    await cloud.stop()
    await until(lambda: not device.service.link.up)
    await cloud.start(cloud.port)
    await until(lambda: device.service.link.up)
    assert cloud.hellos[-1].revision == "7"
    assert all(d.revision == "7" for d in device.desired)
    assert device.codes("warning") == ["link"] * device.codes("warning").count("link")
    assert "link" in device.codes("ok")


async def test_desired_state_arrives_while_connected(cloud: Cloud, device: Device) -> None:
    await until(lambda: device.service.link.up)
    wanted = Desired(revision="8", services=["a", "b"])
    await cloud.sockets[-1].send_str(msgspec.json.encode(wanted).decode())
    await until(lambda: device.desired == [wanted])


async def test_a_nudge_reports_before_the_heartbeat(cloud: Cloud, device: Device) -> None:
    cloud.heartbeat_s = 60.0
    await until(lambda: cloud.sockets)
    cloud.reports.clear()  # before it closes: the device may be back before `close` is
    await cloud.sockets[-1].close()
    await until(lambda: len(cloud.hellos) >= 2 and cloud.reports)
    device.revision = "new"
    device.service.nudge()
    await until(lambda: cloud.reports[-1].revision == "new")


async def test_messages_of_a_newer_cloudd_are_named_and_skipped(cloud: Cloud, device: Device) -> None:
    await until(lambda: device.service.link.up)
    socket = cloud.sockets[-1]
    for text in ('{"type":"dance"}', "not json", '{"type":"desired","revision":5,"services":[]}', "[" * 5_000):
        await socket.send_str(text)
    await socket.send_bytes(b"\x00")
    await socket.send_str(msgspec.json.encode(Notice(code="hello", text="a word")).decode())
    await until(lambda: ("warning", "cloudd.hello", "a word") in device.reports)
    assert "link.message" in device.codes("warning")
    assert device.service.link.up
    assert device.desired == []


async def test_a_dead_wire_is_noticed_by_missed_heartbeats(cloud: Cloud, tmp_path: Path) -> None:
    wire = Wire(cloud.port)
    await wire.start()
    device = Device(tmp_path / "device")
    await device.service.join(cloud.invite().text(), f"127.0.0.1:{wire.port}")
    await device.service.start()
    await until(lambda: device.service.link.up)
    wire.alive.clear()
    cut = time.monotonic()
    await until(lambda: not device.service.link.up)
    assert time.monotonic() - cut < 2.0 * FAST.ping + 1.0
    wire.alive.set()
    await until(lambda: device.service.link.up)
    await device.service.stop()
    await wire.stop()


async def test_a_revoked_device_says_so_once_and_stops_knocking(cloud: Cloud, device: Device) -> None:
    await until(lambda: device.service.link.up)
    cloud.revoked.add(device.service.device_id)
    await until(lambda: "link.refused" in device.codes("error"))
    knocks = cloud.requests.count("/v1/control")
    await until(lambda: not device.service.link.up)
    started = time.monotonic()
    await until(lambda: time.monotonic() - started > 0.6)
    assert cloud.requests.count("/v1/control") == knocks
    assert device.codes("error") == ["link.refused"]
    assert refusal(device).startswith("cloudd refuses this device: this device was revoked; `cloudd devices restore`")

    cloud.revoked.clear()
    await device.service.join(cloud.invite().text(), cloud.url)
    await until(lambda: device.service.link.up)
    assert "link.refused" in device.codes("ok")


def refusal(device: Device) -> str:
    return next(text for level, code, text in device.reports if code == "link.refused")


@pytest.mark.parametrize(
    "words",
    [
        "this device was revoked; `cloudd devices restore ABC` lets it in again",
        "this cloudd does not know the device; join again with a new token",
    ],
)
async def test_who_is_refused_at_the_door_hears_in_cloudds_words_what_helps(
    cloud: Cloud, device: Device, words: str
) -> None:
    await until(lambda: device.service.link.up)
    await device.service.stop()
    cloud.revoked.add(device.service.device_id)
    cloud.refusal = words
    await device.service.start()
    await until(lambda: "link.refused" in device.codes("error"))
    assert refusal(device) == f"cloudd refuses this device: {words}; local work goes on"


async def test_cloudd_moves_to_another_address(cloud: Cloud, tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    await device.service.join(cloud.invite().text(), cloud.url)
    old = cloud.port
    await cloud.stop()
    await cloud.start()
    assert cloud.port != old
    moved = Device(tmp_path / "device", url=f"127.0.0.1:{cloud.port}")
    await moved.service.start()
    await until(lambda: moved.service.link.up)
    assert moved.service.link.url == cloud.url != f"https://127.0.0.1:{old}"
    await moved.service.stop()
    again = Device(tmp_path / "device")
    assert cloud.url in [candidate.url for candidate in again.service.candidates()], "it is remembered"


async def test_clocks_that_differ_are_a_warning(cloud: Cloud, device: Device) -> None:
    await until(lambda: device.service.link.up)
    cloud.clock_error = 3_600.0
    await cloud.sockets[-1].close()
    await until(lambda: "clock" in device.codes("warning"))


async def test_the_certificate_is_renewed_at_two_thirds(cloud: Cloud, tmp_path: Path) -> None:
    cloud.lifetime, cloud.backdate = 3.0, 0.0
    device = Device(tmp_path / "device")
    await device.service.start()
    first = await device.service.join(cloud.invite().text(), cloud.url)
    await until(lambda: cloud.renewals >= 1)
    cloud.lifetime = 86_400.0
    await until(lambda: device.service.link.generation >= 2)
    link = device.service.link
    assert link.identity != first.identity
    assert Path(first.identity).exists(), "the worker may still be reading it"
    assert any(known.generation == link.generation for known in device.links)
    await device.service.stop()


async def test_a_failed_renewal_is_a_warning_and_an_expired_certificate_renews_itself(
    cloud: Cloud, tmp_path: Path
) -> None:
    cloud.lifetime, cloud.backdate, cloud.renewal_works = 4.0, 0.0, False
    device = Device(tmp_path / "device")
    await device.service.start()
    await device.service.join(cloud.invite().text(), cloud.url)
    await until(lambda: "certificate" in device.codes("warning"))
    await until(lambda: "certificate" in device.codes("error"))  # it has ended by now
    await cloud.sockets[-1].close()
    await until(lambda: "link.refused" in device.codes("error"))
    cloud.renewal_works, cloud.lifetime = True, 86_400.0
    await until(lambda: device.service.link.up and cloud.renewals == 1)
    assert "certificate" in device.codes("ok")
    await device.service.stop()


async def test_a_clock_weeks_ahead_does_not_renew_without_end(cloud: Cloud, tmp_path: Path) -> None:
    timing = replace(FAST, renew_retry_base=0.4, renew_retry_cap=60.0)
    device = Device(tmp_path / "device", timing=timing, wall=lambda: time.time() + 25 * 86_400.0)
    await device.service.start()
    await device.service.join(cloud.invite().text(), cloud.url)
    await until(lambda: cloud.renewals >= 1)
    await asyncio.sleep(1.0)
    assert cloud.renewals < 12, "each new certificate seems to be due at once"
    await device.service.stop()


async def test_a_damaged_identity_is_an_error_and_the_service_still_starts(cloud: Cloud, tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    link = await device.service.join(cloud.invite().text(), cloud.url)
    (Path(link.identity) / "certificate.pem").write_bytes(b"")
    again = Device(tmp_path / "device")
    await again.service.start()
    assert again.codes("error") == ["identity"]
    await again.service.join(cloud.invite().text(), cloud.url)
    await until(lambda: again.service.link.up)
    assert "identity" in again.codes("ok")
    await again.service.stop()


async def test_stopping_in_the_moment_of_a_join_ends(cloud: Cloud, tmp_path: Path) -> None:
    """An event and a cancellation in the same turn of the loop: the cancellation must not be lost."""
    device = Device(tmp_path / "device")
    await device.service.start()
    await asyncio.sleep(0.05)
    await device.service.join(cloud.invite().text(), cloud.url)
    await asyncio.wait_for(device.service.stop(), 5.0)


async def test_stopping_is_quick_even_when_the_other_side_hangs(cloud: Cloud, tmp_path: Path) -> None:
    wire = Wire(cloud.port)
    await wire.start()
    device = Device(tmp_path / "device")
    await device.service.join(cloud.invite().text(), f"127.0.0.1:{wire.port}")
    await device.service.start()
    await until(lambda: device.service.link.up)
    wire.alive.clear()
    started = time.monotonic()
    await device.service.stop()
    assert time.monotonic() - started < 4.0
    await wire.stop()


def test_backoff_is_full_jitter_under_a_doubling_ceiling() -> None:
    high = Backoff(1.0, 60.0, floor_s=0.1, rng=lambda: 0.999999)
    assert [round(high.next_s()) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    low = Backoff(1.0, 60.0, floor_s=0.1, rng=lambda: 0.0)
    assert [low.next_s() for _ in range(3)] == [0.1] * 3
    high.reset()
    assert round(high.next_s()) == 1
    forever = Backoff(1.0, 60.0)
    assert all(forever.next_s() <= 60.0 for _ in range(2_000))


def test_renewal_is_due_at_two_thirds_at_the_latest() -> None:
    assert renewal_time(0.0, 30.0, 0.0) == 20.0
    assert 18.5 <= renewal_time(0.0, 30.0, 0.999) < 20.0
