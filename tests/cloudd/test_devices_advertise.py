"""The advertisement as a foreign browser sees it."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path

import pytest
from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from cloudd.devices import advertise
from cloudd.devices.advertise import Advertiser, reachable_addresses
from edgekit import dnssd
from edgekit.identity import Authority, spki_hex

LOOPBACK = ["127.0.0.1"]


class Browser:
    """A plain zeroconf client that knows nothing of edged."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.changes: list[tuple[str, ServiceStateChange]] = []

    async def __aenter__(self) -> Browser:
        self.zeroconf = AsyncZeroconf(interfaces=LOOPBACK)
        self.browser = AsyncServiceBrowser(self.zeroconf.zeroconf, "_cloudd._tcp.local.", handlers=[self._changed])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.browser.async_cancel()
        await self.zeroconf.async_close()

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        self.changes.append((name, state_change))
        if state_change is ServiceStateChange.Removed:
            self.names.discard(name)
        else:
            self.names.add(name)

    async def resolve(self, name: str) -> AsyncServiceInfo:
        info = AsyncServiceInfo("_cloudd._tcp.local.", name)
        assert await info.async_request(self.zeroconf.zeroconf, 3_000)
        return info


async def _until(condition: object, timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_browser_finds_cloudd_and_hears_it_leave() -> None:
    authority = Authority.create("plant", 1_790_000_000.0)
    async with Browser() as browser:
        advertiser = Advertiser("Plant 4.north", 8440, authority.fingerprint, lambda: LOOPBACK, LOOPBACK)
        task = asyncio.create_task(advertiser.run())
        name = "Plant 4-north._cloudd._tcp.local."
        await _until(lambda: name in browser.names)
        info = await browser.resolve(name)
        assert info.port == 8440
        assert info.parsed_addresses() == LOOPBACK
        assert info.decoded_properties == {
            "v": "1",
            "fp": spki_hex(authority.certificate)[:16],
            "name": "Plant 4-north",
        }
        await _end(task)
        await _until(lambda: name not in browser.names)


async def test_two_of_the_same_name_are_told_apart() -> None:
    first = asyncio.create_task(Advertiser("twin", 1001, "A" * 43, lambda: LOOPBACK, LOOPBACK).run())
    async with Browser() as browser:
        await _until(lambda: len(browser.names) == 1)
        second = asyncio.create_task(Advertiser("twin", 1002, "B" * 43, lambda: LOOPBACK, LOOPBACK).run())
        await _until(lambda: len(browser.names) == 2)
        infos = [await browser.resolve(name) for name in sorted(browser.names)]
        assert sorted(info.port or 0 for info in infos) == [1001, 1002]
        await _end(first, second)


async def test_a_new_address_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advertise, "_RESCAN_S", 0.1)
    addresses = ["127.0.0.1"]
    task = asyncio.create_task(Advertiser("moving", 1, "A" * 43, lambda: list(addresses), LOOPBACK).run())
    async with Browser() as browser:
        name = "moving._cloudd._tcp.local."
        await _until(lambda: name in browser.names)
        addresses[:] = ["127.0.0.9"]
        async with asyncio.timeout(10):
            # A browser may keep the older one for its lifetime; the newer comes first.
            while (await browser.resolve(name)).parsed_addresses()[0] != "127.0.0.9":
                await asyncio.sleep(0.1)
        await _end(task)


async def test_no_network_is_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    real = advertise.AsyncZeroconf
    broken = True

    def sometimes(**options: object) -> AsyncZeroconf:
        if broken:
            raise OSError(19, "No such device")
        return real(interfaces=LOOPBACK)

    monkeypatch.setattr(advertise, "AsyncZeroconf", sometimes)
    monkeypatch.setattr(advertise, "_RETRY_S", 0.05)
    task = asyncio.create_task(Advertiser("late", 1, "A" * 43, lambda: LOOPBACK).run())
    await asyncio.sleep(0.3)
    assert [record.levelname for record in caplog.records if record.name == "cloudd.advertise"] == ["WARNING"]
    broken = False
    async with Browser() as browser:
        await _until(lambda: "late._cloudd._tcp.local." in browser.names)
    await _end(task)


def test_only_addresses_that_others_can_reach_are_published() -> None:
    addresses = [ipaddress.ip_address(text) for text in reachable_addresses()]
    assert addresses
    loopback = [ip for ip in addresses if ip.is_loopback]
    assert not loopback or loopback == addresses
    assert addresses == sorted(addresses, key=lambda ip: (ip.version, int(ip)))


@pytest.mark.parametrize(
    ("txt", "found"),
    [
        ({"v": "1", "fp": "ABCDEF0123456789ff", "name": "x\ny" + "z" * 99}, ("abcdef0123456789", "xy" + "z" * 46)),
        ({"v": "1"}, ("", "")),
        ({"v": "2", "fp": "a"}, None),
        ({"v": None}, None),
        ({}, None),
    ],
)
def test_a_record_is_cut_to_size(txt: dict[str, str | None], found: tuple[str, str] | None) -> None:
    assert dnssd.read_properties(txt) == found


def test_a_pin_comes_from_a_fingerprint_only(tmp_path: Path) -> None:
    authority = Authority.create("plant", 1_790_000_000.0)
    assert dnssd.pin_of(authority.fingerprint) == spki_hex(authority.certificate)[:16]
    assert dnssd.pin_of("ü") == ""
    assert dnssd.pin_of("") == ""
