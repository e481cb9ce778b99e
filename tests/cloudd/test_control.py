"""The control channel over real TLS: greeting, desired and reported state, silence, rivals and revocation."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.typedefs import Handler
from sqlalchemy import insert

from cloudd.client import ClientError
from cloudd.devices.control import ControlHub
from cloudd.devices.fleet import Device, Fleet
from cloudd.storage import Rows, schema
from cloudd.storage.rows import sqlite_url
from cloudd.web import DEVICE_ID, new_app
from edgekit.messages import PROTOCOL, Desired, Hello, Notice, Report, ServiceReport, SpoolReport, ToEdge, Welcome
from tests.support.cloud import Cloud, FakeDevice

SERVICE = 'name = "solder"\nmodel = "solder-small"\n'
HEARTBEAT_S = 0.5


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud"), "--heartbeat", str(HEARTBEAT_S), "--name", "plant 7") as running:
        yield running


@pytest.fixture
async def device(cloud: Cloud, tmp_path: Path) -> FakeDevice:
    made = FakeDevice(tmp_path / "device")
    assert (await made.enroll(cloud, cloud.invite())).status == 200
    return made


def report(**changes: Any) -> Report:
    service = ServiceReport(name="solder", model="solder-small@1", state="ready", inspected=10, edge=8, cloud=2)
    spool = SpoolReport(items=3, bytes=300, quota=1000)
    return Report(**{"services": [service], "spool": spool, "health": "ok", "at": time.time(), **changes})


def view(cloud: Cloud, device: FakeDevice) -> dict[str, Any]:
    found: dict[str, Any] = cloud.admin.get(f"/devices/{device.id}")["device"]
    return found


async def eventually(cloud: Cloud, device: FakeDevice, key: str, wanted: object) -> dict[str, Any]:
    """Wait until a device's view shows something."""
    for _ in range(100):
        found = view(cloud, device)
        if found[key] == wanted:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{key} stayed {found[key]!r}")


async def test_hello_welcome_report(cloud: Cloud, device: FakeDevice) -> None:
    async with device.control(cloud) as channel:
        await channel.hello()
        welcome = await channel.receive()
        assert isinstance(welcome, Welcome)
        assert welcome.heartbeat_s == HEARTBEAT_S and welcome.name == "plant 7"
        assert abs(welcome.time - time.time()) < 5
        await channel.send(report(problems=["the disk is nearly full"], health="warning"))
        shown = await eventually(cloud, device, "health", "warning")
        assert shown["online"] and shown["version"] == "1.2.3" and shown["machine"] == "test"
        assert shown["services"][0]["inspected"] == 10 and shown["spool"]["items"] == 3
        assert shown["problems"] == ["the disk is nearly full"]
    gone = await eventually(cloud, device, "online", False)
    assert gone["health"] == "warning"  # the last report stays


async def test_desired_state_is_pushed_once_and_only_when_it_differs(cloud: Cloud, device: FakeDevice) -> None:
    async with device.control(cloud) as channel:
        await channel.hello()
        assert isinstance(await channel.receive(), Welcome)
        change = cloud.admin.post(f"/devices/{device.id}/desired", {"services": [SERVICE]})
        assert change["delivered"]
        desired = await channel.receive()
        assert desired == Desired(revision=change["revision"], services=[SERVICE])
        assert not view(cloud, device)["in_sync"]
        await channel.send(report(revision=desired.revision))
        await eventually(cloud, device, "in_sync", True)

    later = cloud.admin.post(f"/devices/{device.id}/desired", {"services": []})
    assert not later["delivered"]
    async with device.control(cloud) as channel:  # it missed the change, so it gets it in the greeting
        await channel.hello(revision=change["revision"])
        assert isinstance(await channel.receive(), Welcome)
        assert await channel.receive() == Desired(revision=later["revision"], services=[])
    async with device.control(cloud) as channel:  # nothing changed: reconnecting is a no-op
        await channel.hello(revision=later["revision"])
        assert isinstance(await channel.receive(), Welcome)
        with pytest.raises(TimeoutError):
            await channel.receive(0.3)


@pytest.mark.parametrize(
    ("services", "words"),
    [
        (["name ="], "not valid TOML"),
        ([SERVICE + "modle = 1\n"], "modle"),
        ([SERVICE, SERVICE], "same name 'solder'"),
        (["#" * 600_000], "larger than"),
    ],
)
async def test_a_wrong_desired_state_is_refused(
    cloud: Cloud, device: FakeDevice, services: list[str], words: str
) -> None:
    with pytest.raises(ClientError, match=words) as refused:
        cloud.admin.post(f"/devices/{device.id}/desired", {"services": services})
    assert refused.value.status == 422
    assert cloud.admin.get(f"/devices/{device.id}")["desired"] is None


class SlowFleet(Fleet):
    """Hands out what it read only after `go`, as a busy database does."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self.read, self.go = asyncio.Event(), asyncio.Event()

    async def connected(self, *arguments: Any) -> Device | None:
        found = await super().connected(*arguments)
        self.read.set()
        await self.go.wait()
        return found


async def test_a_change_while_a_device_connects_is_told_last(tmp_path: Path) -> None:
    rows = await Rows.open(sqlite_url(tmp_path / "cloudd.db"))
    async with rows.writing() as connection:
        row = {"id": "DEV", "name": "d", "enrolled_at": 0.0, "serial": "1", "not_after": 9e9}
        await connection.execute(insert(schema.devices).values(row))
    fleet = SlowFleet(rows)
    hub = ControlHub(fleet, "c")
    await fleet.set_desired("DEV", [SERVICE], 1.0)

    @web.middleware
    async def known(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[DEVICE_ID] = "DEV"
        return await handler(request)

    app = new_app(known)
    app.add_routes(hub.routes())
    async with TestClient(TestServer(app)) as client, client.ws_connect("/v1/control") as socket:
        await socket.send_str(msgspec.json.encode(Hello(protocol=PROTOCOL, version="", name="", revision="")).decode())
        await fleet.read.wait()
        newest = await fleet.set_desired("DEV", [], 2.0)
        push = asyncio.create_task(hub.push_desired("DEV"))
        await asyncio.sleep(0.2)
        fleet.go.set()
        assert await push
        messages = [msgspec.json.decode((await socket.receive(5)).data, type=ToEdge) for _ in range(3)]
        assert isinstance(messages[0], Welcome) and isinstance(messages[2], Desired)
        assert messages[2].revision == newest
    await rows.close()


async def test_what_a_device_says_stays_on_one_line_of_the_log(cloud: Cloud, device: FakeDevice) -> None:
    async with device.control(cloud) as channel:
        await channel.hello()
        assert isinstance(await channel.receive(), Welcome)
        await channel.send(Notice(code="x", text="first\nI cloudd: device EVIL joined\x1b[2J"))
        await channel.send(report(revision="said"))
        await eventually(cloud, device, "reported_revision", "said")
    lines = [line for line in cloud.log.read_text().splitlines() if "EVIL" in line]
    assert len(lines) == 1 and "first?I cloudd" in lines[0] and "\x1b" not in lines[0]


async def test_the_newest_connection_wins(cloud: Cloud, device: FakeDevice) -> None:
    async with device.control(cloud) as older, device.control(cloud) as newer:
        await older.hello()
        assert isinstance(await older.receive(), Welcome)
        await newer.hello()
        assert isinstance(await newer.receive(), Welcome)
        assert await older.farewell() == ("superseded", 4001)
        await newer.send(report())
        shown = await eventually(cloud, device, "health", "ok")
        assert shown["online"]  # the end of the older channel did not mark the device offline


async def test_silence_ends_the_channel(cloud: Cloud, device: FakeDevice) -> None:
    async with device.control(cloud) as channel:
        await channel.hello()
        assert isinstance(await channel.receive(), Welcome)
        started = time.monotonic()
        assert await channel.farewell() == ("silent", 4000)
        assert 2 * HEARTBEAT_S < time.monotonic() - started < 10 * HEARTBEAT_S
        await eventually(cloud, device, "online", False)


async def test_revocation_closes_the_live_channel(cloud: Cloud, device: FakeDevice) -> None:
    async with device.control(cloud) as channel:
        await channel.hello()
        assert isinstance(await channel.receive(), Welcome)
        cloud.admin.post(f"/devices/{device.id}/revoke")
        assert await channel.farewell() == ("revoked", 4003)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with device.control(cloud):
            pass
    assert refused.value.status == 403
    assert view(cloud, device)["revoked"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"type": "hello"}',
        '{"type": "reboot"}',
        '{"type": "report", "services": [], "health": "ok"}',
        "x" * 300_000,
    ],
    ids=range(6),
)
async def test_a_first_message_that_is_no_hello(cloud: Cloud, device: FakeDevice, text: str) -> None:
    async with device.control(cloud) as channel:
        await channel.socket.send_str(text)
        code, closed = await channel.farewell()
        assert code in {"protocol", ""} and closed in {4000, 1009, 1006}  # 1006: it did not wait for all of a large one
    assert (await device.send(cloud, "GET", "/v1/models/x")).status == 404  # the daemon is unharmed


async def test_another_protocol_gets_a_sentence(cloud: Cloud, device: FakeDevice) -> None:
    async with device.control(cloud) as channel:
        await channel.hello(protocol=7)
        notice = await channel.receive()
        assert isinstance(notice, Notice) and "protocol 7" in notice.text


async def test_a_second_hello_and_binary_frames_end_the_channel(cloud: Cloud, device: FakeDevice) -> None:
    async with device.control(cloud) as channel:
        await channel.hello()
        await channel.hello()
        assert await channel.farewell() == ("protocol", 4000)
    async with device.control(cloud) as channel:
        await channel.socket.send_bytes(b"\0" * 100)
        assert await channel.farewell() == ("protocol", 4000)


async def test_reports_in_a_loop_are_slowed_down(cloud: Cloud, device: FakeDevice) -> None:
    async with device.control(cloud) as channel:
        await channel.hello()
        assert isinstance(await channel.receive(), Welcome)
        for number in range(15):
            await channel.send(report(revision=str(number)))
        started = time.monotonic()
        await eventually(cloud, device, "reported_revision", "14")
        assert time.monotonic() - started > 1.0


async def test_a_graceful_stop_says_good_bye(tmp_path: Path) -> None:
    device = FakeDevice(tmp_path / "device")
    with Cloud(tmp_path / "cloud") as own:
        await device.enroll(own, own.invite())
        async with device.control(own) as channel:
            await channel.hello()
            assert isinstance(await channel.receive(), Welcome)
            stopping = asyncio.create_task(asyncio.to_thread(own.stop))
            assert await channel.farewell() == ("", 1001)
            assert await stopping == 0


async def test_storage_that_fails_ends_the_channel_with_a_sentence(tmp_path: Path) -> None:
    device = FakeDevice(tmp_path / "device")
    with Cloud(tmp_path / "cloud") as own:
        await device.enroll(own, own.invite())
        async with device.control(own) as channel:
            await channel.hello()
            assert isinstance(await channel.receive(), Welcome)
            with contextlib.closing(sqlite3.connect(own.state / "cloudd.db")) as database:
                database.execute("ALTER TABLE reports RENAME TO lost")
            await channel.send(report())
            assert await channel.farewell() == ("storage", 1013)
        with contextlib.closing(sqlite3.connect(own.state / "cloudd.db")) as database:
            database.execute("ALTER TABLE lost RENAME TO reports")
        async with device.control(own) as channel:  # the daemon is unharmed
            await channel.hello()
            assert isinstance(await channel.receive(), Welcome)
            await channel.send(report())
            await eventually(own, device, "health", "ok")
