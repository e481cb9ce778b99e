"""Joining over real TLS: who gets a certificate, who does not, and what a power cut in between changes."""

from __future__ import annotations

import asyncio
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgekit.identity import Authority, JoinToken, device_id_of, parse_certificate, pinned_context, short_id
from edgekit.messages import Certificate
from tests.support.cloud import Cloud, FakeDevice, foreign_csr, send


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud")) as running:
        yield running


@pytest.fixture
def calm_cloud(tmp_path: Path) -> Iterator[Cloud]:
    """A cloudd of its own, for tests that use up the tries of an address."""
    with Cloud(tmp_path / "cloud") as running:
        yield running


@pytest.fixture
def device(tmp_path: Path) -> FakeDevice:
    return FakeDevice(tmp_path / "device")


async def test_a_token_makes_a_device_that_can_use_the_api(cloud: Cloud, device: FakeDevice) -> None:
    token = cloud.invite(name="line 4")
    info = await device.authority(cloud.url)
    assert info.fingerprint == token.fingerprint == cloud.about["fingerprint"]

    reply = await device.enroll(cloud, token)
    certificate = msgspec.json.decode(reply.body, type=Certificate)
    assert reply.status == 200 and certificate.device_id == device.id
    assert (await device.send(cloud, "GET", "/v1/models/none")).status == 404

    listed = {one["device_id"]: one for one in cloud.admin.get("/devices")}
    assert listed[device.id]["name"] == "line 4"  # the operator's name wins over the device's own
    assert not listed[device.id]["online"]


async def test_the_certificate_holds_only_what_the_authority_decides(cloud: Cloud, device: FakeDevice) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cloudd authority")])
    odd = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
        .sign(device.store.key, hashes.SHA256())
    )
    reply = await device.enroll(cloud, cloud.invite(), odd.public_bytes(serialization.Encoding.PEM).decode())
    assert reply.status == 200
    issued = parse_certificate(msgspec.json.decode(reply.body, type=Certificate).certificate_pem)
    assert issued.subject.rfc4514_string() == f"CN={device.id}"
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def _rsa_csr() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _p384_csr() -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA384())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def _broken_csr() -> str:
    """A request whose signature is somebody else's."""
    lines, other = foreign_csr().splitlines(), foreign_csr().splitlines()
    return "\n".join([*lines[:-3], *other[-3:]]) + "\n"


@pytest.mark.parametrize("csr", ["", "hello", "x" * 8000, _rsa_csr(), _p384_csr(), _broken_csr()], ids=range(6))
async def test_a_bad_request_costs_no_token(cloud: Cloud, device: FakeDevice, csr: str) -> None:
    token = cloud.invite()
    refused = await device.enroll(cloud, token, csr)
    assert refused.status == 422 and "certificate request" in refused.error
    assert (await device.enroll(cloud, token)).status == 200


async def test_a_used_token_makes_no_second_device(cloud: Cloud, device: FakeDevice, tmp_path: Path) -> None:
    token = cloud.invite()
    assert (await device.enroll(cloud, token)).status == 200
    second = await FakeDevice(tmp_path / "second").enroll(cloud, token)
    assert second.status == 403 and "another device" in second.error
    # The device itself may ask again: its first answer may have been lost on the way.
    assert (await device.enroll(cloud, token)).status == 200


async def test_an_expired_token(cloud: Cloud, device: FakeDevice) -> None:
    token = cloud.invite(ttl_s=0.05)
    await asyncio.sleep(0.1)
    reply = await device.enroll(cloud, token)
    assert reply.status == 403 and "expired" in reply.error


async def test_guessing_is_refused_the_same_way_and_soon_not_at_all(calm_cloud: Cloud, device: FakeDevice) -> None:
    real = calm_cloud.invite()
    wrong_secret = JoinToken(real.fingerprint, real.token_id, "A" * 43)
    wrong_id = JoinToken(real.fingerprint, "A" * 12, real.secret)
    answers = [await device.enroll(calm_cloud, guess) for guess in (wrong_secret, wrong_id) * 2]
    assert {reply.status for reply in answers} == {403}
    assert len({reply.body for reply in answers}) == 1  # no hint which half was wrong
    assert (await device.enroll(calm_cloud, wrong_id)).status == 403
    shut = await device.enroll(calm_cloud, real)
    assert shut.status == 429 and 0 < int(shut.headers["Retry-After"]) <= 60


async def test_one_token_in_a_race_makes_one_device(calm_cloud: Cloud, tmp_path: Path) -> None:
    token = calm_cloud.invite()
    racers = [FakeDevice(tmp_path / f"racer-{number}") for number in range(4)]
    replies = await asyncio.gather(*(racer.enroll(calm_cloud, token) for racer in racers))
    assert sorted(reply.status for reply in replies) == [200, 403, 403, 403]
    winner = next(racer for racer, reply in zip(racers, replies, strict=True) if reply.status == 200)
    assert [one["device_id"] for one in calm_cloud.admin.get("/devices")] == [winner.id]


@pytest.mark.parametrize("point", ["invite.spent", "device.enrolled"])
async def test_a_power_cut_while_joining(tmp_path: Path, point: str) -> None:
    state, device = tmp_path / "cloud", FakeDevice(tmp_path / "device")
    with Cloud(state, crash_at=point) as dying:
        token = dying.invite()
        with pytest.raises(aiohttp.ClientError):
            await device.enroll(dying, token)
        assert dying.wait() == -signal.SIGKILL
    with Cloud(state) as again:
        thief = FakeDevice(tmp_path / "thief")
        if point == "device.enrolled":
            assert (await thief.enroll(again, token)).status == 403
        assert (await device.enroll(again, token)).status == 200
        assert (await thief.enroll(again, token)).status == 403
        assert [one["device_id"] for one in again.admin.get("/devices")] == [device.id]


async def test_strangers_get_nothing_but_the_way_in(cloud: Cloud) -> None:
    context = pinned_context(await _authority(cloud))
    assert (await send("GET", f"{cloud.url}/v1/health", context)).status == 200
    for method, route in [
        ("GET", "/v1/control"),
        ("POST", "/v1/renew"),
        ("POST", "/v1/answers"),
        ("GET", "/v1/models/x"),
        ("GET", "/v1/blobs/" + "0" * 64),
        ("GET", "/nothing"),
    ]:
        reply = await send(method, cloud.url + route, context)
        assert reply.status == 401 and "certificate" in reply.error, route
        assert "Server" not in reply.headers


async def test_a_certificate_of_a_foreign_authority_is_refused_in_the_handshake(cloud: Cloud, tmp_path: Path) -> None:
    device = FakeDevice(tmp_path / "foreign")
    other = Authority.create("other", 1_700_000_000.0)
    certificate, _ = other.sign_csr(device.csr, 1_700_000_000.0, lifetime=10**9)
    (tmp_path / "certificate.pem").write_text(certificate)
    device.store.install(certificate, other.certificate_pem)
    identity = device.store.current()
    assert identity is not None
    context = pinned_context(await _authority(cloud))
    context.load_cert_chain(identity.certificate_path, identity.key_path)
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await send("GET", f"{cloud.url}/v1/models/x", context)


async def test_a_device_of_a_lost_database_is_told_to_join_again(cloud: Cloud, tmp_path: Path) -> None:
    device = FakeDevice(tmp_path / "unknown")
    authority = Authority.load(cloud.state / "authority")
    certificate, _ = authority.sign_csr(device.csr, 1_700_000_000.0, lifetime=10**9)
    device.store.install(certificate, authority.certificate_pem)
    reply = await device.send(cloud, "GET", "/v1/models/x")
    assert reply.status == 403 and "join again" in reply.error


async def test_renewal_keeps_the_key_even_after_expiry(cloud: Cloud, device: FakeDevice) -> None:
    await device.enroll(cloud, cloud.invite())
    reply = await device.renew(cloud)
    renewed = parse_certificate(msgspec.json.decode(reply.body, type=Certificate).certificate_pem)
    assert device_id_of(renewed) == device.id
    refused = await device.renew(cloud, foreign_csr())
    assert refused.status == 403 and "another key" in refused.error

    authority = Authority.load(cloud.state / "authority")
    expired, _ = authority.sign_csr(device.csr, 1_700_000_000.0, lifetime=60.0)
    device.store.install(expired, authority.certificate_pem)
    assert (await device.send(cloud, "GET", "/v1/models/x")).status == 401
    assert (await device.renew(cloud)).status == 200


async def test_a_revoked_device_is_out_at_its_next_request(cloud: Cloud, device: FakeDevice) -> None:
    await device.enroll(cloud, cloud.invite())
    connector = aiohttp.TCPConnector(ssl=device.context())
    async with aiohttp.ClientSession(connector=connector) as session:  # one connection, opened before the revocation
        assert (await session.get(f"{cloud.url}/v1/models/x")).status == 404
        cloud.admin.post(f"/devices/{device.id}/revoke", {"reason": "stolen"})
        refused = await session.get(f"{cloud.url}/v1/models/x")
        assert refused.status == 403 and "cloudd devices restore" in (await refused.json())["error"]
    assert (await device.renew(cloud)).status == 403
    again = await device.enroll(cloud, cloud.invite())
    assert again.status == 403  # a fresh token does not take a revocation back, and the sentence says what does
    assert f"cloudd devices restore {short_id(device.id)}" in again.error
    cloud.admin.post(f"/devices/{device.id}/restore")
    assert (await device.send(cloud, "GET", "/v1/models/x")).status == 404


async def test_bodies_that_do_not_belong_here(calm_cloud: Cloud) -> None:
    context = pinned_context(await _authority(calm_cloud))
    for body, status in [
        (b"", 400),
        (b"\xff\xfe", 400),
        (b'{"protocol": "1"}', 400),
        (b"{" * 5000, 400),
        (b"x" * 20_000, 413),
    ]:
        reply = await send("POST", f"{calm_cloud.url}/v1/enroll", context, body)
        assert reply.status == status and reply.error, body[:20]


async def test_another_protocol_is_named(cloud: Cloud, device: FakeDevice) -> None:
    reply = await device.enroll(cloud, cloud.invite(), protocol=99)
    assert reply.status == 426 and "protocol 99" in reply.error


async def test_hostile_names_are_made_harmless(cloud: Cloud, device: FakeDevice) -> None:
    device.name = "\x1b[2J<script>\n" + "x" * 500
    await device.enroll(cloud, cloud.invite())
    name = next(one["name"] for one in cloud.admin.get("/devices") if one["device_id"] == device.id)
    assert name.isprintable() and len(name) <= 64


async def test_bytes_that_are_not_http(cloud: Cloud) -> None:
    host, port = cloud.url.removeprefix("https://").split(":")
    context = pinned_context(await _authority(cloud))
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
    reply = await asyncio.wait_for(reader.read(), 10.0)
    writer.close()
    assert b" 400 " in reply and b"aiohttp" not in reply and b"Python" not in reply


async def test_a_stranger_may_hold_only_so_many_connections(cloud: Cloud) -> None:
    host, port = cloud.url.removeprefix("https://").split(":")
    context = pinned_context(await _authority(cloud))
    held, refused = [], 0
    for _ in range(70):
        try:
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            held.append(writer)
            writer.write(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
            if not await asyncio.wait_for(reader.readline(), 10.0):
                refused += 1
        except (ConnectionError, ssl.SSLError):
            refused += 1
    for writer in held:
        writer.transport.abort()
    assert refused == 70 - 64
    await asyncio.sleep(0.2)
    assert (await send("GET", f"{cloud.url}/v1/health", context)).status == 200


def test_a_second_cloudd_on_the_same_state_is_refused(cloud: Cloud) -> None:
    import sys

    command = [sys.executable, "-m", "cloudd.cli.main", "run", "--state", str(cloud.state)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert f"another cloudd (process {cloud.about['pid']}) uses" in second.stderr


async def test_the_authority_and_the_devices_survive_a_restart(tmp_path: Path, device: FakeDevice) -> None:
    with Cloud(tmp_path / "cloud") as first:
        await device.enroll(first, first.invite())
        fingerprint = first.about["fingerprint"]
        assert first.stop() == 0
    with Cloud(tmp_path / "cloud") as second:
        assert second.about["fingerprint"] == fingerprint
        assert (await device.send(second, "GET", "/v1/models/x")).status == 404


async def _authority(cloud: Cloud) -> str:
    return (cloud.state / "authority" / "root.pem").read_text()
