"""Finding cloudd on the LAN: real mDNS packets on loopback, forged ones, floods, and no network at all."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from link_cloud import FAST, Cloud, Device, Rogue, until
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from edged.link import discovery
from edged.link.address import cloud_url
from edged.link.candidates import MAX_ADDRESSES, MAX_SERVICES, Advertisement, Advertisements, order
from edged.link.discovery import Discovery, read_advertisement
from edged.link.errors import LinkError
from edgekit import dnssd

LOOPBACK = ["127.0.0.1"]
PATIENT = dataclasses.replace(FAST, search=15.0)  # a record is probed for a second before it is published


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    cloud = Cloud(tmp_path / "cloud")
    await cloud.start()
    yield cloud
    await cloud.stop()


class Advert:
    """A published record, whoever publishes it."""

    def __init__(self, name: str, port: int, fingerprint: str) -> None:
        self.info = AsyncServiceInfo(
            dnssd.SERVICE_TYPE,
            f"{name}.{dnssd.SERVICE_TYPE}",
            port=port,
            parsed_addresses=LOOPBACK,
            properties=dict(dnssd.properties(fingerprint, name)),
            server=f"{name}.local.",
        )

    async def __aenter__(self) -> Advert:
        self.zeroconf = AsyncZeroconf(interfaces=LOOPBACK)
        await (await self.zeroconf.async_register_service(self.info))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.zeroconf.async_close()


async def test_a_device_joins_with_nothing_but_a_token(cloud: Cloud, tmp_path: Path) -> None:
    device = Device(tmp_path / "device", discover=True, interfaces=LOOPBACK, timing=PATIENT)
    async with Advert("plant", cloud.port, cloud.authority.fingerprint):
        await device.service.start()
        link = await device.service.join(cloud.invite().text())
        assert link.url == cloud.url
        await until(lambda: device.service.link.up)
    await device.service.stop()


async def test_a_spoofed_advertisement_gets_nothing(cloud: Cloud, tmp_path: Path) -> None:
    """Rogues advertise the right fingerprint and show the right certificate; the device still finds the real one."""
    rogues = [Rogue(tmp_path / f"rogue{i}", cloud.authority.certificate_pem) for i in range(3)]
    for rogue in rogues:
        await rogue.start()
    token = cloud.invite()
    device = Device(tmp_path / "device", discover=True, interfaces=LOOPBACK, timing=PATIENT)
    async with (
        Advert("a-rogue", rogues[0].port, cloud.authority.fingerprint),
        Advert("b-rogue", rogues[1].port, cloud.authority.fingerprint),
        Advert("c-rogue", rogues[2].port, rogues[2].authority.fingerprint),
    ):
        await device.service.start()
        await until(lambda: len(device.service.candidates()) == 3)
        join = asyncio.create_task(device.service.join(token.text()))
        await until(lambda: rogues[0].decrypted and rogues[1].decrypted)
        async with Advert("d-real", cloud.port, cloud.authority.fingerprint):
            link = await join
            assert link.url == cloud.url
            await until(lambda: device.service.link.up)
    await device.service.stop()
    for rogue in rogues:
        text = rogue.decrypted.decode("latin-1")
        assert not any(word in text for word in ("POST", "REQUEST", token.secret, device.service.device_id))
        await rogue.stop()
    assert rogues[2].connections == 0, "an advertisement of another authority is not even asked"


async def test_a_joined_device_follows_its_cloudd_to_a_new_address(cloud: Cloud, tmp_path: Path) -> None:
    device = Device(tmp_path / "device", discover=True, interfaces=LOOPBACK, timing=PATIENT)
    await device.service.start()
    await device.service.join(cloud.invite().text(), cloud.url)
    await until(lambda: device.service.link.up)
    old = cloud.port
    await cloud.stop()
    await until(lambda: not device.service.link.up)
    rogue = Rogue(tmp_path / "rogue", cloud.authority.certificate_pem)
    await rogue.start()
    await cloud.start()
    assert cloud.port != old
    async with (
        Advert("rogue", rogue.port, cloud.authority.fingerprint),
        Advert("plant", cloud.port, cloud.authority.fingerprint),
    ):
        await until(lambda: device.service.link.up)
        assert device.service.link.url == cloud.url
        assert any(link.url == cloud.url and link.up for link in device.links)
    await device.service.stop()
    assert rogue.decrypted == b"", "without the right key nobody sees a byte, however right the advertisement is"
    await rogue.stop()


async def test_boot_without_a_network_is_reported_once_and_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    works = False
    real = discovery.AsyncZeroconf

    def sometimes(**options: object) -> AsyncZeroconf:
        if not works:
            raise OSError(19, "No such device")
        return real(interfaces=LOOPBACK)

    monkeypatch.setattr(discovery, "AsyncZeroconf", sometimes)
    monkeypatch.setattr(discovery.Backoff, "next_s", lambda _self: 0.02)
    seen: list[Advertisement] = []
    reports: list[tuple[str, str, str]] = []
    task = asyncio.create_task(Discovery(seen.append, lambda _name: None, lambda *words: reports.append(words)).run())
    await until(lambda: len(reports) >= 3)
    assert all(level == "warning" and code == "discovery" for level, code, _ in reports)
    works = True
    async with Advert("late", 9, "A" * 43):
        await until(lambda: seen)
    assert reports[-1][0] == "ok"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _advert(instance: str, pin: str = "", urls: tuple[str, ...] = ("https://h:1",)) -> Advertisement:
    return Advertisement(instance, urls, pin, "")


def test_a_flood_of_advertisements_is_bounded_and_does_not_hide_the_pinned_one() -> None:
    seen = Advertisements()
    for i in range(1_000):
        seen.seen(_advert(f"flood{i}", "f" * 16, (f"https://h:{i}",)), "a" * 16)
    assert seen.seen(_advert("mine", "a" * 16), "a" * 16)
    assert [a.instance for a in seen.fitting("a" * 16)] == ["mine"]
    assert len(seen.fitting("")) == MAX_SERVICES
    assert not seen.seen(_advert("mine", "a" * 16), "a" * 16), "the same again is no news"
    seen.lost("mine")
    seen.lost("never seen")
    assert seen.fitting("a" * 16) == []


def test_the_order_is_the_persons_word_then_memory_then_the_pinned_then_hints() -> None:
    seen = Advertisements()
    seen.seen(_advert("vague", "", ("https://vague:1",)), "a" * 16)
    seen.seen(_advert("mine", "a" * 16, tuple(f"https://mine:{i}" for i in range(9))), "a" * 16)
    seen.seen(_advert("other", "b" * 16, ("https://other:1",)), "a" * 16)
    found = order(["https://hand:1", ""], "https://mine:0", seen.fitting("a" * 16))
    assert [(c.url, c.source) for c in found] == [
        ("https://hand:1", "manual"),
        ("https://mine:0", "last-known"),
        *[(f"https://mine:{i}", "lan") for i in range(1, MAX_ADDRESSES)],
        ("https://vague:1", "lan"),
    ]


@given(
    st.lists(st.one_of(st.text(max_size=40), st.ip_addresses().map(str)), max_size=20),
    st.one_of(st.none(), st.integers(0, 65_535)),
    st.dictionaries(st.sampled_from(["v", "fp", "name", "x"]), st.one_of(st.none(), st.just("1"), st.text())),
)
def test_any_record_is_read_or_ignored(addresses: list[str], port: int | None, txt: dict[str, str | None]) -> None:
    found = read_advertisement("x" * 1_000, addresses, port, txt)
    if found is not None:
        assert txt["v"] == "1"
        assert 1 <= len(found.urls) <= MAX_ADDRESSES
        assert len(found.instance) <= 255
        assert len(found.pin) <= 16
        assert found.name.isprintable()
        for url in found.urls:
            assert url.startswith("https://")


def test_a_scoped_address_is_asked_last() -> None:
    found = read_advertisement("x", ["fe80::1%eth0", "192.0.2.1", "224.0.0.1", "0.0.0.0"], 8440, {"v": "1"})
    assert found is not None
    assert found.urls == ("https://192.0.2.1:8440", "https://[fe80::1%eth0]:8440")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("cloudd.plant", "https://cloudd.plant:8440"),
        (" 192.0.2.1:9000 ", "https://192.0.2.1:9000"),
        ("https://cloudd", "https://cloudd:8440"),
        ("https://Cloudd:1/", "https://cloudd:1"),
        ("[fd00::2]:8440", "https://[fd00::2]:8440"),
        ("https://[fd00::2]", "https://[fd00::2]:8440"),
    ],
)
def test_addresses_as_people_write_them(text: str, url: str) -> None:
    assert cloud_url(text) == url
    assert cloud_url(url) == url


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    try:
        url = cloud_url(text)
    except LinkError as error:
        assert "no address of a cloudd" in str(error)
    else:
        assert cloud_url(url) == url
