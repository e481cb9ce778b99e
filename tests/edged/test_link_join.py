"""Joining, and everybody who must learn nothing from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from link_cloud import Cloud, Device, Rogue, until

from edged.link.errors import LinkError
from edgekit.identity import IdentityStore, new_token
from edgekit.messages import PROTOCOL


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    cloud = Cloud(tmp_path / "cloud")
    await cloud.start()
    yield cloud
    await cloud.stop()


async def test_a_token_and_an_address_are_enough(cloud: Cloud, tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    assert device.service.link.url == ""
    link = await device.service.join(cloud.invite().text(), f"127.0.0.1:{cloud.port}", "press 9")
    assert link.url == cloud.url
    assert link.generation == 1
    assert device.links == [link]
    assert {entry.name for entry in Path(link.identity).iterdir()} == {"key.pem", "certificate.pem", "authority.pem"}
    assert device.service.identity is not None
    assert device.service.identity.device_id == device.service.device_id

    again = Device(tmp_path / "device")  # as after a restart, with no network and no configuration
    assert again.service.link.url == cloud.url
    assert again.service.name == "press 9"
    assert again.service.device_id == device.service.device_id


async def test_a_name_in_the_configuration_wins_over_that_of_the_join(cloud: Cloud, tmp_path: Path) -> None:
    await Device(tmp_path / "device").service.join(cloud.invite().text(), cloud.url, "press 9")
    renamed = Device(tmp_path / "device", name="line-3", name_is_given=True)
    assert renamed.service.name == "line-3"
    await renamed.service.start()
    await until(lambda: cloud.hellos)
    assert cloud.hellos[-1].name == "line-3"
    with pytest.raises(LinkError, match=r"'line-3'.*edged\.toml"):
        await renamed.service.join(cloud.invite().text(), cloud.url, "press 10")
    await renamed.service.join(cloud.invite().text(), cloud.url)
    await renamed.service.stop()
    assert Device(tmp_path / "device", name="host").service.name == "line-3", "as it joined at last"


async def test_a_used_token_is_refused_with_cloudds_own_words(cloud: Cloud, tmp_path: Path) -> None:
    token = cloud.invite().text()
    await Device(tmp_path / "one").service.join(token, cloud.url)
    second = Device(tmp_path / "two")
    with pytest.raises(LinkError, match="unknown, used or expired"):
        await second.service.join(token, cloud.url)
    assert second.service.link.url == ""
    assert second.service.identity is None


async def test_a_rogue_with_its_own_authority_gets_nothing_but_a_question(cloud: Cloud, tmp_path: Path) -> None:
    rogue = Rogue(tmp_path / "rogue")
    await rogue.start()
    token = cloud.invite()
    device = Device(tmp_path / "device")
    with pytest.raises(LinkError, match="another cloudd than the one that made the token"):
        await device.service.join(token.text(), rogue.url)
    assert_only_asked(rogue, token.secret, token.token_id, device.service.device_id)
    assert device.service.identity is None
    await rogue.stop()


async def test_a_rogue_that_shows_the_right_certificate_gets_nothing_either(cloud: Cloud, tmp_path: Path) -> None:
    rogue = Rogue(tmp_path / "rogue", cloud.authority.certificate_pem)
    await rogue.start()
    token = cloud.invite()
    device = Device(tmp_path / "device")
    with pytest.raises(LinkError, match="not the cloudd that this device trusts"):
        await device.service.join(token.text(), rogue.url)
    assert rogue.connections >= 1
    assert_only_asked(rogue, token.secret, token.token_id, device.service.device_id)
    await rogue.stop()


@pytest.mark.parametrize("label", ["CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"])
async def test_a_rogue_that_adds_its_own_certificate_to_the_right_one_gets_nothing(
    cloud: Cloud, tmp_path: Path, label: str
) -> None:
    """The first certificate has the token's fingerprint; the second one is what the rogue's server would prove."""
    rogue = Rogue(tmp_path / "rogue")
    rogue.shown = cloud.authority.certificate_pem + rogue.authority.certificate_pem.replace("CERTIFICATE", label)
    await rogue.start()
    token = cloud.invite()
    device = Device(tmp_path / "device")
    with pytest.raises(LinkError, match=r"2 certificates where one|not the cloudd that this device trusts"):
        await device.service.join(token.text(), rogue.url)
    assert_only_asked(rogue, token.secret, token.token_id, device.service.device_id)
    await rogue.stop()


def assert_only_asked(rogue: Rogue, *secrets: str) -> None:
    """What it decrypted is one GET without anything that belongs to the device."""
    text = rogue.decrypted.decode("latin-1")
    assert text.startswith("GET /v1/authority HTTP/1.1\r\n")
    assert text.count("HTTP/1.1") == 1
    assert "POST" not in text
    assert "CERTIFICATE REQUEST" not in text
    assert not any(secret in text for secret in secrets)


@pytest.mark.parametrize("protocol", [PROTOCOL, PROTOCOL + 1])
async def test_the_real_cloudd_is_found_behind_a_rogue(cloud: Cloud, tmp_path: Path, protocol: int) -> None:
    """The address that a person typed is a rogue's; the one in the configuration is the real one."""
    rogue = Rogue(tmp_path / "rogue", cloud.authority.certificate_pem, protocol)
    await rogue.start()
    first = Device(tmp_path / "device")
    await first.service.join(cloud.invite().text(), cloud.url)
    token = cloud.invite()
    link = await first.service.join(token.text(), rogue.url)
    assert link.url == cloud.url, "the last-known address was asked next"
    assert token.secret not in rogue.decrypted.decode("latin-1")
    await rogue.stop()


async def test_after_joining_a_rogue_at_the_same_address_sees_no_byte(cloud: Cloud, tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    await device.service.join(cloud.invite().text(), cloud.url)
    port = cloud.port
    await cloud.stop()
    rogue = Rogue(tmp_path / "rogue", cloud.authority.certificate_pem)
    await rogue.start(port)
    await device.service.start()
    await until(lambda: "link.authority" in device.codes("error"))
    assert rogue.decrypted == b"", "not even a request line leaves before the handshake is verified"
    await device.service.stop()
    await rogue.stop()


@pytest.mark.parametrize(
    ("token", "url", "hint"),
    [
        ("hello", "", "begin with 'edg1.'"),
        (new_token("A" * 43).text(), "http://x", "only https"),
        (new_token("A" * 43).text(), "https://user:pw@x", "without a path or password"),
        (new_token("A" * 43).text(), "https://x/path", "without a path"),
        (new_token("A" * 43).text(), "a b", "no address"),
        (new_token("A" * 43).text(), "127.0.0.1:99999", "no address"),
        (new_token("A" * 43).text(), "127.0.0.1:1", "cannot be reached (Connection refused)"),
        (new_token("A" * 43).text(), "", "no cloudd was found"),
    ],
)
async def test_what_cannot_work_is_said_in_a_sentence(tmp_path: Path, token: str, url: str, hint: str) -> None:
    device = Device(tmp_path / "device")
    with pytest.raises(LinkError) as caught:
        await device.service.join(token, url)
    assert hint in str(caught.value)


async def test_a_server_without_tls_is_named_as_that(tmp_path: Path) -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        device = Device(tmp_path / "device")
        with pytest.raises(LinkError, match="nothing there speaks TLS as cloudd does"):
            await device.service.join(new_token("A" * 43).text(), f"127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def test_a_failed_join_keeps_the_old_membership(cloud: Cloud, tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    joined = await device.service.join(cloud.invite().text(), cloud.url)
    with pytest.raises(LinkError):
        await device.service.join(new_token(cloud.authority.fingerprint).text(), cloud.url)
    assert device.service.link == joined
    current = IdentityStore(tmp_path / "device" / "identity").current()
    assert current is not None
    assert str(current.directory) == joined.identity


async def test_a_server_that_never_stops_talking_is_cut_off(cloud: Cloud, tmp_path: Path) -> None:
    rogue = Rogue(tmp_path / "rogue", "x" * 200_000)
    await rogue.start()
    with pytest.raises(LinkError, match="more than the"):
        await Device(tmp_path / "device").service.join(cloud.invite().text(), rogue.url)
    await rogue.stop()
