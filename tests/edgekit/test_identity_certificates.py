"""What the authority signs, and what it refuses to."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from edgekit.identity import (
    Authority,
    IdentityError,
    device_id,
    device_id_of,
    fingerprint,
    generate_key,
    issued_by,
    load_key,
    make_csr,
    parse_certificate,
    save_key,
)

NOW = 1_790_000_000.0
DAY = 86_400.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("plant 4", NOW)


def test_a_device_certificate_lasts_thirty_days_and_is_backdated(authority: Authority) -> None:
    key = generate_key()
    pem, serial = authority.sign_csr(make_csr(key), NOW)
    certificate = parse_certificate(pem)
    assert certificate.not_valid_before_utc.timestamp() == NOW - DAY
    assert certificate.not_valid_after_utc.timestamp() == NOW + 30 * DAY
    assert certificate.serial_number == int(serial, 16)
    assert issued_by(certificate, authority.certificate)
    assert device_id_of(certificate) == device_id(key.public_key())
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_what_a_request_asks_for_beside_its_key_is_ignored(authority: Authority) -> None:
    key = generate_key()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cloudd")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("cloudd.plant")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, _ = authority.sign_csr(request.public_bytes(serialization.Encoding.PEM).decode(), NOW)
    certificate = parse_certificate(pem)
    name = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert name == device_id(key.public_key())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def _request(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def test_other_keys_and_broken_requests_are_refused(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="P-256"):
        authority.sign_csr(_request(rsa.generate_private_key(65537, 2048)), NOW)
    with pytest.raises(IdentityError, match="P-256"):
        authority.sign_csr(_request(ec.generate_private_key(ec.SECP384R1())), NOW)
    with pytest.raises(IdentityError, match="allowed"):
        authority.sign_csr(make_csr(generate_key()) + " " * 5_000, NOW)
    with pytest.raises(IdentityError, match="cannot be read"):
        authority.sign_csr("", NOW)


def test_a_request_for_somebody_elses_key_is_refused(authority: Authority) -> None:
    mine, theirs = generate_key(), generate_key()
    der = x509.load_pem_x509_csr(make_csr(mine).encode()).public_bytes(serialization.Encoding.DER)
    point = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    forged = der.replace(mine.public_key().public_bytes(*point), theirs.public_key().public_bytes(*point))
    assert forged != der
    pem = x509.load_der_x509_csr(forged).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(IdentityError, match="not signed by the key"):
        authority.sign_csr(pem, NOW)


@given(st.text(max_size=200))
def test_any_text_is_a_clear_error(text: str) -> None:
    with pytest.raises(IdentityError):
        Authority.create("x", NOW).sign_csr(f"-----BEGIN CERTIFICATE REQUEST-----\n{text}", NOW)
    with pytest.raises(IdentityError):
        parse_certificate(text)


def test_one_certificate_is_one_certificate(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="2 certificates"):
        parse_certificate(authority.certificate_pem + Authority.create("other", NOW).certificate_pem)


def test_the_authority_survives_a_restart(tmp_path: Path) -> None:
    first = Authority.open(tmp_path / "authority", "plant", NOW)
    again = Authority.open(tmp_path / "authority", "plant", NOW + 5)
    assert again.fingerprint == first.fingerprint == fingerprint(parse_certificate(first.certificate_pem))
    assert (tmp_path / "authority" / "root-key.pem").stat().st_mode & 0o777 == 0o600
    pem, _ = again.sign_csr(make_csr(generate_key()), NOW)
    assert issued_by(parse_certificate(pem), first.certificate)


def test_a_root_without_its_key_is_an_error_and_a_key_without_a_root_is_not(tmp_path: Path) -> None:
    first = Authority.open(tmp_path, "plant", NOW)
    (tmp_path / "root.pem").unlink()
    second = Authority.open(tmp_path, "plant", NOW)
    assert second.fingerprint != first.fingerprint
    (tmp_path / "root-key.pem").unlink()
    with pytest.raises(OSError):
        Authority.open(tmp_path, "plant", NOW)
    save_key(generate_key(), tmp_path / "root-key.pem")
    with pytest.raises(IdentityError, match="belong together"):
        Authority.load(tmp_path)


def test_no_leaf_outlives_the_root(authority: Authority) -> None:
    late = NOW + 3_640 * DAY
    pem, _ = authority.sign_csr(make_csr(generate_key()), late)
    assert parse_certificate(pem).not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_server_names_are_checked(authority: Authority) -> None:
    pem = authority.server_certificate(generate_key(), ["cloudd.plant", "192.0.2.7", "::1"], NOW)
    names = parse_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["cloudd.plant"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "::1"]
    with pytest.raises(IdentityError, match="at least one"):
        authority.server_certificate(generate_key(), [], NOW)
    with pytest.raises(IdentityError, match="neither"):
        authority.server_certificate(generate_key(), ["werk-süd"], NOW)


def test_keys_are_private_and_checked(tmp_path: Path) -> None:
    key = generate_key()
    save_key(key, tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert fingerprint(load_key(tmp_path / "key.pem")) == fingerprint(key.public_key())
    (tmp_path / "key.pem").write_bytes(b"\x00\xff rubbish")
    with pytest.raises(IdentityError, match="readable private key"):
        load_key(tmp_path / "key.pem")
    other = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "key.pem").write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(IdentityError, match="P-256"):
        load_key(tmp_path / "key.pem")


def test_certificates_of_another_authority_are_told_apart(authority: Authority) -> None:
    twin = Authority.create("plant 4", NOW)  # the same subject, another key
    pem, _ = twin.sign_csr(make_csr(generate_key()), NOW)
    assert not issued_by(parse_certificate(pem), authority.certificate)
    assert authority.certificate.not_valid_before_utc < dt.datetime.fromtimestamp(NOW, dt.UTC)
