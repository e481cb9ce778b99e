"""When the device API gets a new certificate, and when it keeps the one it has."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from cloudd.devices.server_identity import ServerIdentity, host_names, reachable_address
from edgekit.identity import Authority, parse_certificate, spki_der

NOW = 1_790_000_000.0
DAY = 86_400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path, "plant", NOW)


@pytest.fixture
def identity(tmp_path: Path, authority: Authority) -> ServerIdentity:
    made = ServerIdentity(tmp_path, authority)
    assert made.refresh(["host", "10.0.0.1"], NOW)
    return made


def certificate(tmp_path: Path) -> x509.Certificate:
    return parse_certificate((tmp_path / "server.pem").read_text())


def test_it_is_kept_while_it_fits(tmp_path: Path, identity: ServerIdentity, authority: Authority) -> None:
    before = certificate(tmp_path)
    assert not identity.refresh(["host"], NOW + 200 * DAY)
    assert not ServerIdentity(tmp_path, authority).refresh(["10.0.0.1", "host"], NOW)
    assert certificate(tmp_path) == before


def test_a_new_address_or_age_makes_a_new_one_for_the_same_key(tmp_path: Path, identity: ServerIdentity) -> None:
    first = certificate(tmp_path)
    assert identity.refresh(["host", "10.0.0.2"], NOW)
    second = certificate(tmp_path)
    names = second.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.2"]
    assert identity.refresh(["host", "10.0.0.2"], NOW + 250 * DAY)
    assert spki_der(first) == spki_der(certificate(tmp_path))


def test_a_lost_damaged_or_foreign_certificate_is_replaced(
    tmp_path: Path, identity: ServerIdentity, authority: Authority
) -> None:
    (tmp_path / "server.pem").write_text("damaged")
    assert identity.refresh(["host"], NOW)
    (tmp_path / "server.pem").unlink()
    assert identity.refresh(["host"], NOW)
    (tmp_path / "server-key.pem").unlink()  # the certificate is now another key's
    assert ServerIdentity(tmp_path, authority).refresh(["host"], NOW)
    other = Authority.create("other", NOW)
    assert ServerIdentity(tmp_path, other).refresh(["host"], NOW)


def test_a_clock_that_ran_ahead_and_came_back(tmp_path: Path, identity: ServerIdentity) -> None:
    assert identity.refresh(["host"], NOW + 1000 * DAY)
    assert identity.refresh(["host"], NOW)


def test_the_context_can_be_renewed_in_place(identity: ServerIdentity) -> None:
    context = identity.context()
    assert context.verify_mode is ssl.CERT_OPTIONAL
    identity.refresh(["other"], NOW)
    identity.reload(context)


def test_names_of_this_host() -> None:
    names = host_names(["cloud.example", "cloud.example", "with%scope", ""])
    assert "localhost" in names and "127.0.0.1" in names and names.count("cloud.example") == 1
    assert not any("%" in name or not name for name in names)
    assert reachable_address("10.1.2.3") == "10.1.2.3"
    assert reachable_address("0.0.0.0") != "0.0.0.0"
